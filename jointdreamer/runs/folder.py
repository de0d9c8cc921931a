"""The run folder: a function of the config, its checkpoints, its records, and the seeds of the run in it.

```python
with RunFolder.open(run_path(out_dir, name, prompt, seed), config) as run, signals.stop_on_signals() as stop:
    start = run.resume(field=field, optimizer=optimizer, generator=generator)     # 0 in a new folder
    for step in range(start, steps):
        ...
        if stop.requested or due(step + 1, 1000):
            run.save(step + 1, field=field, optimizer=optimizer, generator=generator)
```
"""

import hashlib
import logging
import os
import re
import shlex
import tempfile
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml

from jointdreamer.errors import UserError
from jointdreamer.files import (
    disk_full,
    flush_to_disk,
    is_disk_full,
    is_leftover,
    remove_leftovers,
    to_json,
    write_text,
)
from jointdreamer.reading import ABSENT, NOT_NOW, Unreadable, read_json
from jointdreamer.runs.checkpoint import checkpoint_files, load_checkpoint, read_newest_checkpoint, write_checkpoint
from jointdreamer.runs.environment import weights_before, write_environment
from jointdreamer.runs.records import (
    has_begun,
    lock,
    read_config,
    read_result,
    refuse_odd_records,
    steps_done,
    to_yaml,
    truncate_metrics,
    unlock,
)
from jointdreamer.runs.same_config import Compare, Comparison, check_same_config
from jointdreamer.runs.signals import Stop

log = logging.getLogger(__name__)

CONTRACT = ("prompt", "seed", "energy", "models", "steps", "minutes", "seconds_per_step", "peak_memory_gb", "device")


def slug(text: str, length: int = 40) -> str:
    """A folder name for any text: its ASCII letters and digits, cut, then 8 hex digits of the hash of all of it.

    Two texts never share one, and nothing of the text (`../`, newlines, emoji, 10,000 characters) can leave the folder.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "_", ascii_text)[:length].strip("_") or "prompt"
    return f"{words}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def run_path(out_dir: str | Path, name: str, prompt: str, seed: int) -> Path:
    """`out_dir/name/slug(prompt)/seed0`. `name` may have slashes (table3/mvs) and must stay inside `out_dir`.

    Raises: UserError for a name that is empty, absolute, or climbs out.
    """
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") or len(part) > 100 for part in parts):
        raise UserError(f"name={name[:100]!r}: wanted words like table3/mvs that name a folder inside out_dir")
    return Path(out_dir).joinpath(*parts, slug(prompt), f"seed{seed}")


def subject(config: Mapping[str, Any]) -> str:
    """What a run is of: its prompt, and the name of its given image."""
    image = config.get("image")
    return config["prompt"] if image is None else f"{config['prompt']} {Path(image).stem}".strip()


def folder_for(config: Mapping[str, Any]) -> Path:
    """`run_path` of a config of train.py."""
    return run_path(config["out_dir"], config["name"], subject(config), config["seed"])


class RunFolder:
    """A folder that belongs to one config, and to one process at a time. Made by `RunFolder.open`."""

    keep = 2  # how many checkpoints stay, the newest ones

    def __init__(self, path: Path, config: dict[str, Any], lock: int | None, comparison: Comparison | None = None):
        self.path = path
        self.config = config
        self.comparison = comparison or Comparison()
        self._lock = lock
        self._opened = time.monotonic()
        self._seconds_before = 0.0

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], compare: Compare | None = None) -> "RunFolder":
        """Make the folder, or take up the one that is there.

        config: the resolved config as plain dicts, lists and values. `config.yaml` holds it from the first time on,
            and from `resume` on that of the newest command that went on.
        compare: what of two configs computes the parameters; by default all but MAY_DIFFER.
        Raises: UserError if the folder cannot be written, is in use by another process, holds something else than a
        run, or belongs to another config. A folder in which no step was done yet belongs to nobody: a command with a
        mistake in it must not stand in the way of the corrected one.
        """
        path = Path(path)
        text = to_yaml(config)
        plain: dict[str, Any] = yaml.safe_load(text)  # here a tuple is the list that it becomes in the file
        try:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()  # shows that we can write, better than permission bits do
            refuse_odd_records(path)
            handle = lock(path)
        except OSError as error:
            if is_disk_full(error, path):
                raise disk_full(path) from error
            raise UserError(
                f"cannot write in the run folder {path} ({error.strerror}): choose another place with out_dir=..."
            ) from error
        comparison = Comparison()
        try:
            known = (path / "config.yaml").exists()
            if known and has_begun(path):
                comparison = check_same_config(path, plain, compare)
            elif not known and any(entry.name != ".lock" and not is_leftover(entry) for entry in path.iterdir()):
                raise UserError(
                    f"{path} holds files but no config.yaml, so it is not a run folder: move it away, or choose "
                    "another place with out_dir=..."
                )
            else:  # new, or left by a command that failed before its first step
                for name in ("command.txt", "numerics.json"):
                    (path / name).unlink(missing_ok=True)
                write_text(path / "config.yaml", text)
            remove_leftovers(path)
        except BaseException:
            unlock(handle)
            raise
        return cls(path, plain, handle, comparison)

    def close(self) -> None:
        """Let another process have the folder."""
        unlock(self._lock)
        self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def still_there(self) -> Path:
        """The folder's path. Raises UserError if it was deleted, moved or made anew under this process."""
        try:
            there = self._lock is None or os.path.samestat(os.fstat(self._lock), os.stat(self.path / ".lock"))
        except FileNotFoundError:
            there = False
        if not there:
            raise UserError(
                f"the run folder {self.path} was deleted or moved while the run was going on: put it back, and the "
                "same command goes on from its newest checkpoint; without it the run starts again"
            )
        return self.path

    def pin(self, **numbers: int | None) -> dict[str, int | None]:
        """Keep, in `numerics.json`, numbers on which a run's last bits depend and which no config holds: its threads,
        the cuts of its memory. What the run began with stays, and is returned.
        """
        before, readable = self._pinned()
        pinned = {**numbers, **before}
        if pinned != before and readable:
            write_text(self.still_there() / "numerics.json", to_json(pinned, indent=2) + "\n")
        return pinned

    def pinned(self) -> dict[str, int | None]:
        """What `pin` has kept so far; a file that says nothing of use is a warning."""
        return self._pinned()[0]

    def _pinned(self) -> tuple[dict[str, int | None], bool]:
        """What was kept, and whether the file may be written anew."""
        try:
            kept = read_json(self.path / "numerics.json")
        except Unreadable as error:
            if error.answer != ABSENT:
                log.warning("%s: the run's last bits may differ", error)
            return {}, error.answer != NOT_NOW
        kept = kept if isinstance(kept, dict) else {"": kept}
        good = {
            key: value for key, value in kept.items() if value is None or (type(value) is int and 0 < value < 2**31)
        }
        if good != kept:
            log.warning("%s holds what is no number of threads or rays: left out", self.path / "numerics.json")
        return good, True

    def use_threads(self) -> int:
        """Compute on as many CPU threads as the run began with, whoever starts it now; returns their number."""
        threads = self.pin(threads=torch.get_num_threads())["threads"] or torch.get_num_threads()
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return threads

    def ranks_at_first(self, count: int) -> int:
        """On how many ranks the run began, where it goes on on `count` of them now."""
        if self.checkpoints:
            return self.pinned().get("ranks") or 1
        if count > 1:
            self.pin(ranks=count)
        return count

    def room(self, steps: int, every: int, *modules: torch.nn.Module) -> float:
        """Bytes that checkpoints of `modules` will take beyond what they take now: `steps` to go, one each `every`."""
        parameters = (p for module in modules for p in module.parameters())
        size = 3 * sum(p.numel() * p.element_size() for p in parameters)  # with Adam's two moments
        to_come = -(-steps // every) if every else min(steps, 1)
        return size * min(to_come, max(1, self.keep + 1 - len(self.checkpoints)))

    # Checkpoints

    @property
    def checkpoints(self) -> list[tuple[int, Path]]:
        """(completed steps, file) of the checkpoints there are, oldest first."""
        return checkpoint_files(self.path)

    @property
    def newest_checkpoint(self) -> int | None:
        """Completed steps of the newest checkpoint; None without one."""
        found = self.checkpoints
        return found[-1][0] if found else None

    def is_trained(self, steps: int) -> bool:
        """Whether all steps are done with these weights, so that only outputs can be missing."""
        return self.newest_checkpoint == steps and not self.comparison.elsewhere

    def save(self, step: int, **parts: Any) -> Path:
        """Write `checkpoints/step_<step>.pt`, whole or not at all, then let go of all but the newest `keep`.

        step: completed steps, the step to do next.
        parts: whatever has a `state_dict`, `torch.Generator`s, or plain values (tensors, numbers, strings, lists,
            dicts). The state of torch's, numpy's and Python's global random generators is added.
        Raises: UserError if the disk is full, a tensor holds NaN or infinity, or a part's own `check_state` does (older
        checkpoints stay as they are);
        TypeError for a part that `torch.load(weights_only=True)` would refuse to read.
        """
        for part in parts.values():
            if hasattr(part, "check_state"):
                part.check_state()
        file = self.still_there() / "checkpoints" / f"step_{step:06d}.pt"
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():  # a checkpoint promises that the rows before it are on the disk
            flush_to_disk(metrics)
        write_checkpoint(file, step, self.seconds, parts)
        for _, old in self.checkpoints[: -self.keep]:
            old.unlink()
        return file

    def save_if_due(self, done: int, steps: int, every: int, stop: Stop, **parts: Any) -> bool:
        """Save after `done` of `steps` steps if a checkpoint is due, it was the last, or a signal asks for the end.

        Returns whether the run has to end now.
        """
        stopping = stop.agreed()  # looked at once: a signal between two looks would be left unsaved
        if due(done, every) or stopping or done == steps:
            if "generator" in parts and stop.ranks is not None:
                stop.ranks.check_together(parts["generator"])
            self.save(done, **parts)
        return bool(stopping) and done < steps

    def resume(self, only: bool = False, **parts: Any) -> int:
        """Put the newest readable checkpoint into `parts` and the random generators; return the step to do next.

        parts: as for `save`, all with `load_state_dict`, or `torch.Generator`s; plain values are not taken (a number
            that must survive belongs to an object with a state). The same names as were saved, or with `only` some.
        A checkpoint that is cut short or damaged is set aside with a one-line warning and the one before is used; with
        none left the run starts again at 0. `metrics.jsonl` loses the rows from the returned step on. From here on
        the folder is this config's, and not complete.
        Raises: UserError if the checkpoint holds other parts than asked for, if the run was finished and its
        checkpoints are gone, or if a file cannot be read now: then nothing was changed.
        """
        step, checkpoint = 0, read_newest_checkpoint(self.path, set_aside=True)
        if checkpoint is not None:
            load_checkpoint(checkpoint, parts, only, self.path)
            step, self._seconds_before, self._opened = checkpoint["step"], checkpoint["seconds"], time.monotonic()
        elif read_result(self.path) is not None:
            raise UserError(
                f"{self.path} is a finished run without its checkpoint, so there is nothing to go on from: move it "
                "away to make it again, or give name=... for a folder of its own"
            )
        truncate_metrics(self.path / "metrics.jsonl", step)
        (self.path / "result.json").unlink(missing_ok=True)
        if not self.comparison.equal:
            (self.path / "command.txt").unlink(missing_ok=True)
            write_text(self.path / "config.yaml", to_yaml(self.config))
        for remark in self.comparison.remarks:
            log.warning("%s", remark)
        return step

    def check_weights(self, weights: Sequence[Mapping[str, str]], steps: int) -> None:
        """Raise UserError unless these are the weights that the steps done were made with, wherever they lay.

        weights: from `checksums`. steps: of the run. Where they are all done, and no source was named otherwise, nobody
        needs the weights.
        """
        done, elsewhere = steps_done(self.path), self.comparison.elsewhere
        if not done or (done >= steps and not elsewhere):
            return
        before = {one["sha256"]: one["path"] for one in weights_before(self.path / "environment.json")}
        now = {one["sha256"]: one["path"] for one in weights}
        if not before and elsewhere:
            raise UserError(
                f"{self.path}: {'; '.join(elsewhere)}, and its environment.json does not say whether these are the "
                "same weights: name them as before, or give name=... for a folder of its own"
            )
        same = before.keys() == now.keys()
        # of a folder that was completed since, e.g. by a download, what was there still counts
        grown = not elsewhere and (before.keys() <= now.keys() or now.keys() <= before.keys())
        if before and not same and not grown:
            other = next(iter([now[key] for key in now.keys() - before.keys()] or [*before.values()]))
            raise UserError(
                f"{self.path} was made with other weights ({other} has another content): name those, or give name=... "
                "for a folder of its own"
            )

    # Records

    @property
    def seconds(self) -> float:
        """Seconds of work in this run, those before the resumed checkpoint included."""
        return self._seconds_before + time.monotonic() - self._opened

    def write_command(self, argv: Sequence[str]) -> None:
        """Write `command.txt`, quoted for a shell; the first command stays."""
        if not (self.path / "command.txt").exists():
            write_text(self.path / "command.txt", shlex.join(argv) + "\n")

    def write_environment(self, weights: Sequence[Mapping[str, Any]] = (), **more: Any) -> None:
        """Write `environment.json`; what an earlier command ran on is kept in it, under `before`."""
        write_environment(self.path / "environment.json", weights, more)

    def write_result(self, **result: Any) -> Path:
        """Write `result.json`, the last file of a run: with it the run is complete.

        Raises: KeyError if one of the keys of CONTRACT is missing.
        """
        if missing := [key for key in CONTRACT if key not in result]:
            raise KeyError(f"result.json must have {', '.join(missing)}")
        write_text(self.still_there() / "result.json", to_json(result, indent=2) + "\n")
        return self.path / "result.json"

    def result(self, steps: int | None = None) -> dict[str, Any] | None:
        """What `result.json` says, or None while the run is not complete.

        It is not where it could not make an output, which it has in `missing`.
        steps: also None if it completed another number of them, or if the config asks for other outputs, or names
            weights that have yet to be compared.
        """
        result = read_result(self.path)
        if result is None or result.get("missing"):
            return None
        complete = steps is None or (result.get("steps") == steps and self.comparison.complete)
        return result if complete else None


def read_run(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the newest readable checkpoint of a run, without its lock: for looking at it.

    Raises: UserError if there is none.
    """
    path = Path(path)
    try:
        config = read_config(path)
    except Unreadable as error:
        raise UserError(f"{path} is no run folder: its config.yaml cannot be read ({error.why})") from error
    checkpoint = read_newest_checkpoint(path)
    if checkpoint is None:
        raise UserError(f"{path} has no checkpoint yet: let the run go on first")
    return config, checkpoint


def is_complete(path: Path, config: dict[str, Any], steps: int, compare: Compare | None = None) -> bool:
    """Whether a folder holds the result of `config`, looked at without its lock.

    Raises UserError if what lies there was made with other settings.
    """
    if not (path / "result.json").exists():
        return False
    return RunFolder(path, config, None, check_same_config(path, config, compare)).result(steps) is not None


def due(done: int, every: int) -> bool:
    """Whether something that happens each `every` steps happens after `done` of them; 0 is never."""
    return every > 0 and done % every == 0
