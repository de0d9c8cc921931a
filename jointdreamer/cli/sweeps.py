"""A sweep: which jobs it has, what became of each, and where they run on this machine.

```python
sweep = Sweep(Path("runs/.sweeps/20261122-221500"), jobs=[["seed=0"], ["seed=1"]])
stopped = run_jobs({0: ["python", "train.py", ...], 1: [...]}, slots(gpus=["0", "1"], cores=16), sweep, folders)
print(*sweep.summary(), sep="\n")
```
Every job leaves `NUMBER/outcome.json` in the sweep's folder, wherever it ran: whoever sees that folder can sum up a
sweep over many machines.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jointdreamer.errors import UserError, one_line, printable
from jointdreamer.files import to_json, write_text
from jointdreamer.runs.processes import POLL_SECONDS, Slot, run_processes, threads_env
from jointdreamer.runs.signals import ENDING

GB_PER_JOB = 2.0  # what a toybox run may take at most (0.9 GB measured), so that `auto` does not fill the memory


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its exit status, its run folder, and for a failure the one line that says why."""

    status: int
    folder: str | None = None
    error: str | None = None

    def __str__(self) -> str:
        if self.status > 128:
            return printable(f"stopped: {self.error or self.folder or 'not started'}")
        return printable(f"error: {self.error}" if self.status else self.folder or "done")


@dataclass
class Sweep:
    """The folder of a sweep, and the settings of its jobs, numbered from 0."""

    folder: Path
    jobs: list[list[str]] = field(default_factory=list)

    def write(self, number: int, outcome: Outcome) -> None:
        """Keep what became of a job, in its folder of the sweep."""
        file = self.job_folder(number) / "outcome.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, to_json(asdict(outcome)) + "\n")

    def outcome(self, number: int) -> Outcome | None:
        """What became of a job; None if nothing is known."""
        try:
            return Outcome(**json.loads((self.job_folder(number) / "outcome.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def job_folder(self, number: int) -> Path:
        """Where a job's outcome, and its output if it ran as a process of ours, lie."""
        return self.folder / str(number)

    # A stop that reaches jobs on any machine that sees the folder

    @property
    def stop_file(self) -> Path:
        """While it exists, the sweep's jobs stop."""
        return self.folder / "stop"

    def mark_started(self, number: int) -> None:
        """Let `wait_for_started` know that this job owes an outcome."""
        self.job_folder(number).mkdir(parents=True, exist_ok=True)
        (self.job_folder(number) / "started").touch()

    def wait_for_started(self, seconds: float) -> None:
        """Return when every job that has started has left its outcome, after `seconds` at the latest."""
        end = time.monotonic() + seconds
        while self.unfinished() and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def unfinished(self) -> list[int]:
        """The jobs that a launcher has started somewhere and that have left no outcome."""
        started = [number for number in range(len(self.jobs)) if (self.job_folder(number) / "started").exists()]
        return [number for number in started if self.outcome(number) is None]

    # What came of it

    def label(self, number: int) -> str:
        """The settings of a job in which the sweep's jobs differ; all of them where there is only one job."""
        common = set.intersection(*map(set, self.jobs)) if len(self.jobs) > 1 else set()
        words = [word for word in self.jobs[number] if word not in common]
        return one_line(" ".join(word if len(word) <= 60 else word[:57] + "..." for word in words))

    def outcomes(self) -> list[Outcome]:
        """What became of every job; one that left no word failed."""
        lost = Outcome(1, error=f"it left no word: look into {self.folder}, and the launcher's own logs")
        unfinished = self.unfinished()
        never = Outcome(130) if self.stop_file.exists() else lost
        return [self.outcome(n) or (lost if n in unfinished else never) for n in range(len(self.jobs))]

    def summary(self) -> list[str]:
        """A line for the whole, then one for each job: its folder, or why it failed."""
        outcomes = self.outcomes()
        stopped = sum(outcome.status > 128 for outcome in outcomes)
        failed = sum(outcome.status > 0 for outcome in outcomes) - stopped
        counts = [f"{sum(outcome.status == 0 for outcome in outcomes)} of {len(outcomes)} jobs done"]
        counts += [f"{failed} failed"] if failed else []
        counts += [f"{stopped} stopped (the same command goes on)"] if stopped else []
        lines = [f"sweep: {', '.join(counts)}"]
        return lines + [f"{n}  {self.label(n)}  {outcome}" for n, outcome in enumerate(outcomes)]

    @property
    def status(self) -> int:
        """The exit status of the sweep: the worst of its jobs'."""
        return max((outcome.status for outcome in self.outcomes()), default=0)


# Local processes


def visible_gpus() -> list[str]:
    """The CUDA devices that torch sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def slots(
    n_jobs: int | str = "auto",
    threads: int | str = "auto",
    jobs: int = 1,
    gpus: Sequence[str] = (),
    cores: int = 1,
    free_gb: float = float("inf"),
    ranks: int = 1,
) -> list[Slot]:
    """Where `jobs` jobs run: one on each GPU; without GPUs one on each core, as many as the free memory holds.

    n_jobs: how many at a time (more than there are GPUs share them). threads: CPU threads of each; `auto` divides the
    cores. gpus: as CUDA_VISIBLE_DEVICES names them. ranks: of each job, which has as many GPUs.
    Raises: UserError for another number than 1 or more, and more ranks than GPUs.
    """
    if type(ranks) is not int or ranks < 1 or (gpus and ranks > len(gpus)):
        here = f", at most the {len(gpus)} GPUs here" if gpus else ""
        raise UserError(f"hydra.launcher.ranks={ranks!r}: wanted a whole number from 1 up{here}")
    for name, value in (("n_jobs", n_jobs), ("threads", threads)):
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"hydra.launcher.{name}={value!r}: wanted auto, or a whole number from 1 up")
    if isinstance(n_jobs, str):
        n_jobs = (len(gpus) or max(1, min(cores, int(min(free_gb / GB_PER_JOB, 1e6))))) // ranks
    n_jobs = max(1, min(n_jobs, jobs))
    share = max(1, cores // (n_jobs * ranks)) if isinstance(threads, str) else threads
    found = []
    for index in range(n_jobs):
        env = threads_env(share)
        name = f"{share} CPU thread{'s' if share > 1 else ''}"
        if gpus:
            own = [gpus[(index * ranks + rank) % len(gpus)] for rank in range(ranks)]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(own)
            name = f"GPU {', '.join(own)}, {name}"
        found.append(Slot(name, env))
    return found


def run_jobs(
    commands: Mapping[int, Sequence[str]], places: Sequence[Slot], sweep: Sweep, folders: Mapping[int, str | None]
) -> int | None:
    """Run each job's command as `run_processes` does; their outcomes and output go to the sweep's folder.

    commands: job number -> command. folders: job number -> run folder. Each start and end is a line on stderr.
    """
    begun: set[int] = set()

    def started(number: int, place: Slot) -> None:
        begun.add(number)
        print(f"job {number} on {place.name}: {sweep.label(number)}", file=sys.stderr, flush=True)

    def ended(number: int, status: int) -> None:
        outcome = _read_outcome(status, sweep.job_folder(number), folders[number])
        sweep.write(number, outcome)
        print(f"job {number}: {outcome}", file=sys.stderr, flush=True)

    stopped = run_processes(commands, places, sweep.folder, ended, started)
    for number in commands.keys() - begun:
        sweep.write(number, Outcome(128 + (stopped or signal.SIGINT)))
    return stopped


def _read_outcome(returncode: int, output: Path, folder: str | None) -> Outcome:
    """The outcome of a process that has ended, from its status, its result and the end of its stderr."""
    if returncode == 0:
        if folder is not None and not Path(folder, "result.json").exists():
            return Outcome(1, folder, f"it ended without {Path(folder, 'result.json')}; see {output}/stderr")
        return Outcome(0, folder)
    if returncode < 0:
        status, name = 128 - returncode, signal.Signals(-returncode).name
        if -returncode in ENDING:  # before its loop could catch it: nothing was lost
            return Outcome(status, folder)
        return Outcome(
            1, folder, f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}; see {output}/stderr"
        )
    if returncode > 128:
        return Outcome(returncode, folder)
    lines = [
        line for line in (output / "stderr").read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return Outcome(returncode, folder, (said or lines or ["no word on stderr"])[-1][:500])
