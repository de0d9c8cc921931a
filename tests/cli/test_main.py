import gc
import sys

from jointdreamer.cli import main as cli


def test_a_signal_stops_the_whole_sweep(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "models=toybox", "prompt=a,b,c", f"out_dir={tmp_path}"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("PYTHONPATH", "")
    called = []

    def task(cfg):
        called.append(cfg["prompt"])
        return 130 if cfg["prompt"] == "b" else 0

    assert cli.main("config", task) == 130
    assert called == ["a", "b"]
    assert capsys.readouterr().out.splitlines()[0] == "sweep: 1 of 3 jobs done, 2 stopped (the same command goes on)"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "models=toybox", "prompt=a"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert cli.main("config", lambda cfg: {}["no such key"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "KeyError: 'no such key'" in said


def test_reading_a_command_leaves_the_garbage_collector_on(monkeypatch):
    """It is off while train.py imports and loads, and for nobody else: a training of the classifier lasts hours."""
    monkeypatch.setattr(cli, "_read", None)  # what is read here is no later command's
    for words in (["-m", "runs=x"], ["runs=x"]):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
        cli.read_command("evaluate")
        assert gc.isenabled()
