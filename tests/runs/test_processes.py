"""Processes: one at a time in each slot, a line of each, and a signal that lets them save; no real run."""

import os
import signal
import sys
import threading
import time

import pytest

from jointdreamer.runs.processes import Slot, run_processes, train_runs


def test_each_slot_has_one_process_at_a_time_and_its_environment(tmp_path):
    code = "import os, time; a = time.time(); time.sleep(0.3); print(os.environ['SLOT'], a, time.time())"
    slots = [Slot(name, {"SLOT": name}) for name in ("a", "b")]
    ended = []
    commands = {number: [sys.executable, "-S", "-c", code] for number in range(5)}
    assert run_processes(commands, slots, tmp_path, lambda *end: ended.append(end)) is None
    assert sorted(ended) == [(number, 0) for number in range(5)]
    spans: dict[str, list] = {"a": [], "b": []}
    for number in range(5):
        slot, start, end = (tmp_path / str(number) / "stdout").read_text().split()
        spans[slot].append((float(start), float(end)))
    for of_slot in spans.values():
        of_slot.sort()
        assert len(of_slot) >= 2
        assert all(before[1] <= after[0] for before, after in zip(of_slot, of_slot[1:], strict=False))


def test_a_failed_run_is_told_and_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    """Of each a line, with the last of its stderr; it has its words and as many threads as asked."""
    (tmp_path / "train.py").write_text(
        "import os, sys\nprint('noise')\nprint('noise', file=sys.stderr)\n"
        "print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], file=sys.stderr)\nsys.exit('seed=1' in sys.argv)\n"
    )
    monkeypatch.setattr("jointdreamer.runs.processes.ROOT", tmp_path)
    runs = [(f"mvs, seed {seed}", ["energy=mvs", f"seed={seed}"]) for seed in range(3)]
    assert train_runs(runs, 1, threads=3) == [1]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("[1/3] mvs, seed 0: made in ") and said[2].startswith("[3/3] mvs, seed 2: made in ")
    assert said[1] == "[2/3] mvs, seed 1: failed with status 1: ['energy=mvs', 'seed=1'] 3" and len(said) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_runs_save_and_starts_no_other(tmp_path, monkeypatch, number):
    (tmp_path / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def save(number, frame):\n    (folder / 'saved').touch()\n    sys.exit(128 + number)\n"
        f"signal.signal({int(number)}, save)\n"
        "(folder / 'begun').touch()\ntime.sleep(60)\n"
    )
    monkeypatch.setattr("jointdreamer.runs.processes.ROOT", tmp_path)
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()

    def interrupt():
        deadline = time.monotonic() + 20
        while not all((folder / "begun").exists() for folder in folders[:2]) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        train_runs([(folder.name, [str(folder)]) for folder in folders], 2)
    assert caught.value.args == (number,)
    assert [sorted(file.name for file in folder.iterdir()) for folder in folders] == [["begun", "saved"]] * 2 + [[]]
