"""Commands as processes of their own, several at a time: the jobs of a sweep, the runs of a table.

```python
slots = [Slot(f"GPU {gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in "01"]
stopped = run_processes({0: ["python", "train.py", ...], 1: [...]}, slots, folder, ended=print)
```
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jointdreamer.errors import one_line
from jointdreamer.project import ROOT
from jointdreamer.runs.signals import stop_on_signals

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Slot:
    """A place where one process at a time runs: a GPU, or a share of the CPU cores."""

    name: str
    env: Mapping[str, str]


def threads_env(threads: int) -> dict[str, str]:
    """The environment of a process that computes on so many CPU threads."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}


def run_processes(
    commands: Mapping[int, Sequence[str]],
    slots: Sequence[Slot],
    folder: Path,
    ended: Callable[[int, int], None],
    started: Callable[[int, Slot], None] = lambda number, slot: None,
) -> int | None:
    """Run each command, one at a time in each slot. Returns the signal that stopped them, None if they all ran.

    commands: by number; the output of each goes to `folder`/NUMBER/stdout and stderr. ended: called with the number
    and the exit status of each, negative for a signal, as soon as it is known. One that fails, or is killed, stops no
    other. The first of `signals.ENDING` is handed to all, which save and stop, and no other is started. A second
    SIGINT or SIGTERM kills them and raises KeyboardInterrupt.
    """
    waiting = list(commands.items())
    running: dict[int, tuple[int, subprocess.Popen]] = {}

    def end(place: int) -> None:
        number, process = running.pop(place)
        ended(number, process.returncode)

    with stop_on_signals() as stop:
        told = False
        try:
            while running or (waiting and stop.requested is None):
                for place, slot in enumerate(slots):
                    if waiting and place not in running and stop.requested is None:
                        number, command = waiting.pop(0)
                        running[place] = (number, _start(command, slot, folder / str(number)))
                        started(number, slot)
                if stop.requested is not None and not told:
                    told = True
                    for _, process in running.values():
                        process.send_signal(stop.requested)
                for place in [place for place, (_, process) in running.items() if process.poll() is not None]:
                    end(place)
                time.sleep(POLL_SECONDS)
        finally:
            for _, process in running.values():  # only after an exception
                process.kill()
                process.wait()
            for place in list(running):
                end(place)
    return stop.requested


def _start(command: Sequence[str], slot: Slot, folder: Path) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            command,
            env={**os.environ, **slot.env},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # else a Ctrl-C reaches it twice: from the terminal and from us
        )


def train_runs(runs: Sequence[tuple[str, Sequence[str]]], parallel: int, threads: int | None = None) -> list[int]:
    """Run train.py with the words of each (label, words), `parallel` at a time; which of them failed, from 0.

    threads: of each, or None for as many as it likes. What became of each is a line on stdout.
    Raises: KeyboardInterrupt, with its number, for a signal that stopped them; they have saved then.
    """
    began: dict[int, float] = {}
    failed: list[int] = []

    def started(number: int, slot: Slot) -> None:
        began[number] = time.monotonic()

    def ended(number: int, status: int) -> None:
        said = f"made in {time.monotonic() - began[number]:.0f} s"
        if status:
            failed.append(number)
            errors = Path(output, str(number), "stderr").read_text(encoding="utf-8", errors="replace")
            said = f"failed with status {status}: {one_line((errors.strip().splitlines() or [''])[-1])}"
        print(f"[{number + 1}/{len(runs)}] {runs[number][0]}: {said}", flush=True)

    commands = {n: [sys.executable, str(ROOT / "train.py"), *words] for n, (_, words) in enumerate(runs)}
    slots = [Slot("", threads_env(threads) if threads else {})] * parallel
    with tempfile.TemporaryDirectory() as output:
        stopped = run_processes(commands, slots, Path(output), ended, started)
    if stopped is not None:
        raise KeyboardInterrupt(stopped)
    return failed
