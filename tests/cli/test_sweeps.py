"""Sweeps: places for jobs, processes with a known end, and four real runs that come out the same by every launcher."""

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from jointdreamer.cli.sweeps import Outcome, Sweep, run_jobs, slots
from jointdreamer.errors import UserError

# Places


def test_one_job_on_each_gpu_with_its_share_of_the_cores():
    places = slots(jobs=16, gpus=["2", "5"], cores=16)
    assert [place.env["CUDA_VISIBLE_DEVICES"] for place in places] == ["2", "5"]
    assert {place.env["OMP_NUM_THREADS"] for place in places} == {"8"}


def test_more_jobs_than_gpus_share_them():
    places = slots(n_jobs=3, jobs=9, gpus=["0", "1"], cores=2)
    assert [place.env["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1", "0"]
    assert {place.env["NUMBA_NUM_THREADS"] for place in places} == {"1"}


@pytest.mark.parametrize(
    ("jobs", "cores", "free_gb", "n", "threads"),
    [(64, 8, 100, 8, 1), (2, 8, 100, 2, 4), (64, 8, 5, 2, 4), (9, 8, 0, 1, 8)],
)
def test_without_gpus_one_job_on_each_core_as_the_memory_allows(jobs, cores, free_gb, n, threads):
    places = slots(jobs=jobs, cores=cores, free_gb=free_gb)
    assert [place.env["OMP_NUM_THREADS"] for place in places] == [str(threads)] * n
    assert all("CUDA_VISIBLE_DEVICES" not in place.env for place in places)


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True, None])
def test_a_wrong_number_of_jobs_or_threads(value):
    with pytest.raises(UserError, match="n_jobs=.*from 1 up"):
        slots(n_jobs=value)
    with pytest.raises(UserError, match="threads=.*from 1 up"):
        slots(threads=value)


# Processes


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def names(n: int) -> dict[int, str | None]:
    return {number: f"runs/{number}" for number in range(n)}


FINISHES = "import os; os.makedirs('runs/0'); open('runs/0/result.json', 'w').close(); print('fine')"


def test_every_end_of_a_job_is_one_line_and_stops_no_other(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {
        0: python(FINISHES),
        1: python("import sys; print('error: no prompt: say one', file=sys.stderr); sys.exit(2)"),
        2: python("{}['no such key']"),
        3: python("import os; os.kill(os.getpid(), 9)"),
        4: python("print('fine')"),  # without a result
        5: python("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)"),  # before its loop could catch it
    }
    sweep = Sweep(tmp_path, [["energy=none", f"seed={number}"] for number in commands])
    assert run_jobs(commands, slots(n_jobs=2, jobs=6, cores=2), sweep, names(6)) is None
    outcomes = sweep.outcomes()
    assert [outcome.status for outcome in outcomes] == [0, 2, 1, 1, 1, 128 + signal.SIGUSR1]
    assert sweep.status == 128 + signal.SIGUSR1
    assert [outcome.folder for outcome in outcomes] == [f"runs/{number}" for number in range(6)]
    assert sweep.summary()[:4] == [
        "sweep: 1 of 6 jobs done, 4 failed, 1 stopped (the same command goes on)",
        "0  seed=0  runs/0",
        "1  seed=1  error: no prompt: say one",
        "2  seed=2  error: KeyError: 'no such key'",
    ]
    assert "killed by SIGKILL (out of memory?)" in sweep.summary()[4]
    assert "without runs/4/result.json" in sweep.summary()[5] and sweep.summary()[6] == "5  seed=5  stopped: runs/5"
    assert (tmp_path / "0" / "stdout").read_text() == "fine\n"
    assert "job 1: error: no prompt" in capsys.readouterr().err


def test_what_a_sweep_says_of_itself_is_lines_of_text(tmp_path):
    sweep = Sweep(tmp_path, [["prompt=a\x1b[31m\ncat"], ["prompt=b"]])
    sweep.write(0, Outcome(0, "runs/\x1b]0;x\x07"))
    sweep.write(1, Outcome(2, error="no \x9b2J"))
    assert sweep.summary()[1:] == [
        "0  prompt=a\\x1b[31m cat  runs/\\x1b]0;x\\x07",
        "1  prompt=b  error: no \\x9b2J",
    ]


def test_a_job_of_several_ranks_has_as_many_gpus():
    places = slots(jobs=9, gpus=["0", "1", "2", "3"], cores=8, ranks=2)
    assert [place.env["CUDA_VISIBLE_DEVICES"] for place in places] == ["0,1", "2,3"]
    assert {place.env["OMP_NUM_THREADS"] for place in places} == {"2"}
    for wrong in (0, 5, 1.5):
        with pytest.raises(UserError, match="hydra.launcher.ranks=.*at most the 4 GPUs here"):
            slots(gpus=["0", "1", "2", "3"], ranks=wrong)  # pyright: ignore[reportArgumentType]


SAVES = """
import signal, sys, time
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, stop)
print("listening", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_lets_the_running_jobs_save_and_starts_no_other(tmp_path, number):
    sweep = Sweep(tmp_path, [[f"seed={seed}"] for seed in range(3)])
    before = signal.getsignal(number)

    def interrupt() -> None:
        heard = [tmp_path / job / "stdout" for job in "01"]
        while not all(file.exists() and "listening" in file.read_text() for file in heard):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    commands = {job: python(SAVES) for job in range(3)}
    assert run_jobs(commands, slots(n_jobs=2, jobs=3, cores=2), sweep, names(3)) == number
    assert [(tmp_path / job / "stdout").read_text() for job in "01"] == ["listening\nsaved\n"] * 2
    assert not (tmp_path / "2" / "stdout").exists()
    assert [outcome.status for outcome in sweep.outcomes()] == [128 + number] * 3
    assert sweep.summary() == [
        "sweep: 0 of 3 jobs done, 3 stopped (the same command goes on)",
        "0  seed=0  stopped: runs/0",
        "1  seed=1  stopped: runs/1",
        "2  seed=2  stopped: not started",
    ]
    assert signal.getsignal(number) is before


# Jobs that a launcher runs somewhere


def test_a_job_that_died_without_a_word_is_a_failure(tmp_path):
    sweep = Sweep(tmp_path, [["seed=0"], ["seed=1"], ["seed=2"]])
    sweep.write(0, Outcome(0, "runs/0"))
    sweep.mark_started(1)
    assert sweep.unfinished() == [1]
    sweep.stop_file.touch()
    assert [outcome.status for outcome in sweep.outcomes()] == [0, 1, 130]  # the last was never started
    assert "left no word" in sweep.summary()[2]


# Four real runs

SWEEP = ("prompt=a red robot,'a hat, red'", "energy=none,mvs")
PAIR = ("prompt='a hat, red'", "energy=none,mvs")  # two of the four, where each is a process of its own


@pytest.fixture(scope="module")
def one_after_another(launcher, tiny_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("basic")
    assert launcher.run(folder, tiny_run("-m", *SWEEP)) == 0, (folder / "stderr").read_text()
    return folder


def results(folder: Path) -> dict[str, tuple]:
    """Run folder -> its numbers: every row of metrics, and the parts of the newest checkpoint."""
    found = {}
    for file in folder.rglob("result.json"):
        run = file.parent
        parts = torch.load(run / "checkpoints" / "step_000002.pt", weights_only=True)["parts"]
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found[str(run.relative_to(folder))] = (rows, parts)
    return found


def tensors(value, name: str = ""):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(inner, f"{name}.{key}")


def assert_pair_of(a: dict, b: dict) -> None:
    """Four results, and the same again of PAIR."""
    assert len(a) == 4 and len(b) == 2 and b.keys() < a.keys()
    for run, (rows, parts) in b.items():
        assert len(rows) == 2 and rows == a[run][0]
        ours, theirs = dict(tensors(parts)), dict(tensors(a[run][1]))
        assert len(ours) > 10 and ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_sweep_sums_itself_up(one_after_another):
    said = (one_after_another / "stdout").read_text().splitlines()
    at = said.index("sweep: 4 of 4 jobs done")
    assert len(said[at + 1 :]) == 4
    for number, line in enumerate(said[at + 1 :]):
        assert (
            line.startswith(f"{number}  prompt=")
            and (one_after_another / line.split("  ")[-1] / "result.json").exists()
        )
    commands = {file.read_text().strip() for file in one_after_another.rglob("command.txt")}
    assert len(commands) == 4 and not any(" -m " in command for command in commands)
    assert sum("'prompt=a hat, red'" in command for command in commands) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_processes_give_the_same_and_a_repeated_sweep_starts_nothing(
    one_after_another, launcher, tiny_run, tmp_path
):
    words = tiny_run("-m", *PAIR, "hydra/launcher=local", "hydra.launcher.n_jobs=2")
    assert launcher.run(tmp_path, words) == 0, (tmp_path / "stderr").read_text()
    assert_pair_of(results(one_after_another), results(tmp_path))
    assert (tmp_path / "stderr").read_text().count(" on 1 CPU thread: ") == 2
    said = (tmp_path / "stdout").read_text()
    assert launcher.run(tmp_path, words) == 0
    assert (tmp_path / "stdout").read_text() == said and (tmp_path / "stderr").read_text() == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs the extra slurm")
def test_the_slurm_launcher_s_local_mode_gives_the_same(one_after_another, launcher, tiny_run, tmp_path):
    words = tiny_run("-m", *PAIR, "hydra/launcher=submitit_local")
    assert launcher.run(tmp_path, words) == 0, (tmp_path / "stderr").read_text()
    assert_pair_of(results(one_after_another), results(tmp_path))
    assert "sweep: 2 of 2 jobs done" in (tmp_path / "stdout").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_a_local_ray_gives_the_same(one_after_another, launcher, tiny_run, tmp_path):
    words = tiny_run("-m", *PAIR, "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2")
    assert launcher.run(tmp_path, words) == 0, (tmp_path / "stderr").read_text()
    assert_pair_of(results(one_after_another), results(tmp_path))
