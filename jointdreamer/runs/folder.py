"""The run folder: a function of the config, its checkpoints, its records, and the seeds of the run in it.

```python
with RunFolder.open(run_path(out_dir, name, prompt, seed), config) as run, signals.stop_on_signals() as stop:
    start = run.resume(field=field, optimizer=optimizer, generator=generator)     # 0 in a new folder
    for step in range(start, steps):
        ...
        if stop.requested or due(step + 1, 1000):
            run.save(step + 1, field=field, optimizer=optimizer, generator=generator)
```
A checkpoint's number counts completed steps: `step_005000.pt` was written after step 4999, and step 5000 is next.
"""

import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import pickle
import platform
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.files import (
    atomic_path,
    disk_full,
    flush_to_disk,
    is_disk_full,
    is_leftover,
    remove_leftovers,
    sha256,
    to_json,
    write_text,
)
from jointdreamer.reading import (
    ABSENT,
    DAMAGED,
    NOT_NOW,
    Unreadable,
    answer_of,
    open_file,
    read_json,
    read_with,
    read_yaml,
)

try:
    import fcntl
except ImportError:  # Windows: runs without the lock
    fcntl = None

from jointdreamer.runs.signals import Stop
from jointdreamer.runs.versions import current_parts

log = logging.getLogger(__name__)

# Keys that change where a run lies, where it is computed and what is shown of it, not what it computes.
MAY_DIFFER = ("out_dir", "name", "device", "logger", "every", "memory", "output", "hydra", "export")
RECORDS = (
    "config.yaml",
    "metrics.jsonl",
    "train.log",
    "result.json",
    "environment.json",
    "numerics.json",
    "command.txt",
    ".lock",
)
MOST_ROW_BYTES = 2**20
CONTRACT = ("prompt", "seed", "energy", "models", "steps", "minutes", "seconds_per_step", "peak_memory_gb", "device")
PACKAGES = ("accelerate", "diffusers", "hydra-core", "numba", "numpy", "safetensors", "tokenizers", "torch")
PACKAGES += ("transformers", "trimesh", "wandb")


# Names


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


# The folder


class RunFolder:
    """A folder that belongs to one config, and to one process at a time. Made by `RunFolder.open`."""

    def __init__(
        self, path: Path, config: dict[str, Any], lock: int | None, keep: int, comparison: "Comparison | None" = None
    ):
        self.path = path
        self.config = config
        self.comparison = comparison or Comparison()
        self.keep = keep
        self._lock = lock
        self._opened = time.monotonic()
        self._seconds_before = 0.0

    @classmethod
    def open(
        cls, path: str | Path, config: Mapping[str, Any], keep: int = 2, compare: "Compare | None" = None
    ) -> "RunFolder":
        """Make the folder, or take up the one that is there.

        config: the resolved config as plain dicts, lists and values. `config.yaml` holds it from the first time on,
            and from `resume` on that of the newest command that went on.
        keep: how many checkpoints stay (the newest ones).
        compare: what of two configs computes the parameters; by default all but MAY_DIFFER.
        Raises: UserError if the folder cannot be written, is in use by another process, holds something else than a
        run, or belongs to another config. A folder in which no step was done yet belongs to nobody: a command with a
        mistake in it must not stand in the way of the corrected one.
        """
        if keep < 1:
            raise UserError(f"keep={keep}: wanted the number of checkpoints to keep, 1 or more")
        path = Path(path)
        text = to_yaml(config)
        plain: dict[str, Any] = yaml.safe_load(text)  # here a tuple is the list that it becomes in the file
        try:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()  # shows that we can write, better than permission bits do
            refuse_odd_records(path)
            lock = _lock(path)
        except OSError as error:
            if is_disk_full(error, path):
                raise disk_full(path) from error
            raise UserError(
                f"cannot write in the run folder {path} ({error.strerror}): choose another place with out_dir=..."
            ) from error
        comparison = Comparison()
        try:
            known = (path / "config.yaml").exists()
            if known and _has_begun(path):
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
            _unlock(lock)
            raise
        return cls(path, plain, lock, keep, comparison)

    def close(self) -> None:
        """Let another process have the folder."""
        _unlock(self._lock)
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
        Raises: UserError if the disk is full or a tensor holds NaN or infinity (older checkpoints stay as they are);
        TypeError for a part that `torch.load(weights_only=True)` would refuse to read.
        """
        checkpoint = {
            "step": step,
            "seconds": self.seconds,
            "random": _random_state(),
            "parts": {name: _plain(_state(part), name) for name, part in parts.items()},
        }
        for name, tensor in _tensors(checkpoint["parts"]):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(
                    f"step {step}: {name} holds NaN or infinity, so no checkpoint was written and the one before "
                    "stays; lower the learning rates (schedule.lr...) or use full precision, under another name=..."
                )
        file = self.still_there() / "checkpoints" / f"step_{step:06d}.pt"
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():  # a checkpoint promises that the rows before it are on the disk
            flush_to_disk(metrics)
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)
        for _, old in self.checkpoints[: -self.keep]:
            old.unlink()
        return file

    def save_if_due(self, done: int, steps: int, every: int, stop: Stop, **parts: Any) -> bool:
        """Save after `done` of `steps` steps if a checkpoint is due, it was the last, or a signal asks for the end.

        Returns whether the run has to end now.
        """
        stopping = stop.requested  # looked at once: a signal between two looks would be left unsaved
        if due(done, every) or stopping or done == steps:
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
        step, checkpoint = 0, self.read_checkpoint(set_aside=True)
        if checkpoint is not None:
            step, states = checkpoint["step"], current_parts(checkpoint["parts"])
            if not (parts.keys() <= states.keys() if only else parts.keys() == states.keys()):
                raise UserError(
                    f"the checkpoint of step {step} in {self.path} holds {', '.join(states)} and this code wants "
                    f"{', '.join(parts)}: it was made by another version; move the folder away to start again"
                )
            for name, part in parts.items():
                _load(part, states[name])
            _set_random_state(checkpoint["random"])
            self._seconds_before, self._opened = checkpoint["seconds"], time.monotonic()
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

    def read_checkpoint(self, set_aside: bool = False) -> dict[str, Any] | None:
        """The newest readable checkpoint as a dict of `step`, `seconds`, `random`, `parts`, on the CPU; None without.

        Reads without executing code, and checks every byte against the checksums in the file.
        set_aside: whether damaged ones are renamed, for who holds the lock.
        Raises: UserError for one that may be good and cannot be read now; an older one would not do instead.
        """
        found = self.checkpoints
        for position, (step, file) in reversed(list(enumerate(found))):
            try:
                return read_checkpoint_file(file, step)
            except Unreadable as error:
                if error.answer not in (ABSENT, DAMAGED):
                    raise UserError(
                        f"{error}: nothing was changed, and the same command goes on when it can"
                    ) from error
                before = f"the one of step {found[position - 1][0]}" if position else "none: starting again at step 0"
                log.warning("checkpoint %s is %s; using %s", file, error.why, before)
                if set_aside and error.answer == DAMAGED:
                    file.replace(file.with_name(file.name + ".damaged"))
        return None

    def check_weights(self, weights: Sequence[Mapping[str, str]], steps: int) -> None:
        """Raise UserError unless these are the weights that the steps done were made with, wherever they lay.

        weights: from `checksums`. steps: of the run. Where they are all done, and no source was named otherwise, nobody
        needs the weights.
        """
        done, elsewhere = steps_done(self.path), self.comparison.elsewhere
        if not done or (done >= steps and not elsewhere):
            return
        before = {one["sha256"]: one["path"] for one in _weights_before(self.path)}
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
        """Write `environment.json`: commit, versions, machine, and `weights` (a dict of path, sha256, ... for each).

        Where the run was resumed on something else, what there was before is kept under `before`.
        """
        file = self.path / "environment.json"
        record = {**environment(), "weights": [dict(weight) for weight in weights], **more}
        before: list[Any] = []
        try:
            old = read_json(file)
            if isinstance(old, dict):
                kept = old.pop("before", [])
                before = [*kept] if isinstance(kept, list) else []
                if old != json.loads(to_json(record)):
                    before.append(old)
        except Unreadable as error:
            if error.answer == NOT_NOW:
                log.warning("%s: it was left as it is, without what this command runs on", error)
                return
            if error.answer != ABSENT:
                log.warning("%s: it is written anew", error)
        write_text(file, to_json({**record, **({"before": before} if before else {})}, indent=2) + "\n")

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


def read_result(path: Path) -> dict[str, Any] | None:
    """What a run's `result.json` says; None where it says nothing. Raises UserError if it cannot be read now."""
    try:
        result = read_json(path / "result.json")
    except Unreadable as error:
        if error.answer == NOT_NOW:
            raise
        return None
    return result if isinstance(result, dict) else None


def read_run(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the newest readable checkpoint of a run, without its lock: for looking at it.

    Raises: UserError if there is none.
    """
    path = Path(path)
    try:
        config = _mapping(path / "config.yaml")
    except Unreadable as error:
        raise UserError(f"{path} is no run folder: its config.yaml cannot be read ({error.why})") from error
    checkpoint = RunFolder(path, config, None, 1).read_checkpoint()
    if checkpoint is None:
        raise UserError(f"{path} has no checkpoint yet: let the run go on first")
    return config, checkpoint


# Config and lock


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by dotted keys."""
    if isinstance(value, dict) and value:
        items = [flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items()]
        return {key: inner for item in items for key, inner in item.items()}
    return {prefix: value}


def to_yaml(config: Mapping[str, Any]) -> str:
    """A config as YAML that says a value again where it stands twice: the reader refuses aliases."""
    return yaml.dump(config, Dumper=_NoAliases, sort_keys=False, allow_unicode=True, width=120)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(file: Path) -> dict[str, Any]:
    found = read_yaml(file)
    if not isinstance(found, dict):
        raise Unreadable(file, DAMAGED, "not a mapping")
    return found


def refuse_odd_records(path: Path) -> None:
    """Raise UserError where a pipe, a folder or a link to itself has the name of one of a run's files.

    To open a pipe for writing waits for somebody who reads it.
    """
    for name in RECORDS:
        try:
            open_file(path / name).close()
        except Unreadable as error:
            if error.answer == DAMAGED:
                raise UserError(f"{error}: move it away, a run writes there") from error


def checkpoint_files(path: Path) -> list[tuple[int, Path]]:
    """(completed steps, file) of a run folder's checkpoints, oldest first."""
    found = []
    for file in (path / "checkpoints").glob("step_*.pt"):
        if number := re.fullmatch(r"step_(\d{1,18})\.pt", file.name):
            found.append((int(number[1]), file))
    return sorted(found)


def steps_done(path: Path) -> int:
    """How many steps of a run are kept: those of its newest checkpoint, or of its result."""
    said = (read_result(path) or {}).get("steps", 0)
    return max([step for step, _ in checkpoint_files(path)] + [said if isinstance(said, int) else 0])


def _has_begun(path: Path) -> bool:
    """Whether there is anything to lose: a checkpoint, good or not, a row of metrics, or a result."""
    metrics = path / "metrics.jsonl"
    rows = metrics.exists() and metrics.stat().st_size > 0
    return rows or any((path / "checkpoints").glob("step_*")) or (path / "result.json").exists()


def _weights_before(path: Path) -> list[dict[str, str]]:
    """The weights of which `environment.json` says that a run was made with them: {"path", "sha256"} each."""
    try:
        record = read_json(path / "environment.json")
    except Unreadable:
        return []
    listed = record.get("weights") if isinstance(record, dict) else None
    rows = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [one for one in rows if isinstance(one.get("path"), str) and isinstance(one.get("sha256"), str)]


# Whether a config computes the parameters that are there


@dataclass(frozen=True)
class Comparison:
    """What of a run's config differs from the one that is asked for. What is `differing` stands in the way."""

    differing: tuple[str, ...] = ()  # what computes other parameters, each in words
    elsewhere: tuple[str, ...] = ()  # weights that are named otherwise, each in words: their content decides
    remarks: tuple[str, ...] = ()  # what to say when the run goes on
    other_outputs: bool = False
    equal: bool = True  # whether the two configs are the same, to the last key

    @property
    def complete(self) -> bool:
        """Whether a result that is there is what is asked for."""
        return not self.elsewhere and not self.other_outputs


# what is there, what is asked for, how many steps are done
Compare = Callable[[dict[str, Any], dict[str, Any], int], Comparison]


def check_same_config(path: Path, config: dict[str, Any], compare: Compare | None = None) -> Comparison:
    """Compare the run folder's config.yaml with `config`. Raises UserError where it computes something else."""
    try:
        existing = _mapping(path / "config.yaml")
    except Unreadable as error:
        if error.answer == NOT_NOW:
            raise
        raise UserError(
            f"{path}/config.yaml cannot be read ({error.why}): move the folder away to start again"
        ) from error
    try:
        comparison = (compare or compare_all)(existing, config, steps_done(path))
    except Unreadable:
        raise
    except UserError as error:
        raise UserError(f"the run folder {path}: {error}") from error
    if differing := comparison.differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"the run folder {path} belongs to another config: {'; '.join(differing[:5])}{more}. Give the same values "
            "to resume it, name=... for a folder of its own, or move that folder away"
        )
    return comparison


def is_complete(path: Path, config: dict[str, Any], steps: int, compare: Compare | None = None) -> bool:
    """Whether a folder holds the result of `config`, looked at without its lock.

    Raises UserError if what lies there was made with other settings.
    """
    if not (path / "result.json").exists():
        return False
    return RunFolder(path, config, None, 1, check_same_config(path, config, compare)).result(steps) is not None


def compare_all(there: dict[str, Any], here: dict[str, Any], done: int) -> Comparison:
    """Two configs of which everything counts but the keys in MAY_DIFFER."""
    one, two = ({key: value for key, value in config.items() if key not in MAY_DIFFER} for config in (there, here))
    differing = differing_keys(one, two)
    outputs = bool(differing_keys(there.get("output"), here.get("output"), shared=True))
    return Comparison(tuple(differing.values()), other_outputs=outputs, equal=same(there, here))


def differing_keys(there: Any, here: Any, shared: bool = False) -> dict[str, str]:
    """Dotted keys whose values differ, and how, in words. shared: of those that both have."""
    one, two = flat(there), flat(here)
    absent = object()
    keys = [key for key in (one if shared else {**one, **two}) if not shared or key in two]
    found = [key for key in keys if not same(one.get(key, absent), two.get(key, absent))]
    return {key: f"{key} is {_shown(one, key)} there, {_shown(two, key)} here" for key in found}


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "absent"
    return text if len(text) <= 60 else text[:57] + "..."


def same(one: Any, two: Any) -> bool:
    """Whether two settings are equal; NaN is equal to itself, and a tuple to its list."""
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one == two or (one != one and two != two)


def _lock(path: Path) -> int | None:
    """Lock `path/.lock` until `_unlock` or the end of the process, however it ends."""
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise UserError(
                f"another process (pid {holder}) is working in {path}: wait for it, stop it, or choose another name=..."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            log.warning("%s cannot be locked (%s): take care to run only one process in it", path, error.strerror)
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


# What a checkpoint holds


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part


def _load(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state)


def _plain(value: Any, where: str) -> Any:
    """`value` made of CPU tensors and Python's own types only; `where` names it in the error."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # a view would drag its whole storage into the file
        whole = value.untyped_storage().nbytes() == value.nbytes
        return value if whole and value.is_contiguous() else value.contiguous().clone()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(inner, f"{where}.{index}") for index, inner in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values only")


def _tensors(value: Any, where: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, f"{where}.{key}" if where else str(key))


def read_checkpoint_file(file: Path, step: int) -> dict[str, Any]:
    """The checkpoint of `step` in `file`, every byte checked. Raises `reading.Unreadable`."""
    return read_with(file, partial(_parse_checkpoint, step=step))


def _parse_checkpoint(file: Path, step: int) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:  # torch.load itself does not look at the checksums
        items = archive.infolist()
        if not any(item.filename.endswith("/data.pkl") for item in items):
            raise zipfile.BadZipFile("it is not a checkpoint of ours")
        if sum(item.file_size for item in items) > file.stat().st_size:  # ours are not compressed
            raise zipfile.BadZipFile("it claims to hold more than it does")
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum in {bad}")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # every byte is as it was written: the fault is not the file's
        answer = answer_of(error)
        raise Unreadable(file, NOT_NOW if answer == DAMAGED else answer, error) from error
    if not isinstance(checkpoint, dict) or not {"step", "seconds", "random", "parts"} <= checkpoint.keys():
        raise pickle.UnpicklingError("it is not a checkpoint of ours")
    if checkpoint["step"] != step:
        raise ValueError(f"its name says step {step}, its content step {checkpoint['step']}")
    return checkpoint


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def due(done: int, every: int) -> bool:
    """Whether something that happens each `every` steps happens after `done` of them; 0 is never."""
    return every > 0 and done % every == 0


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python's, numpy's and torch's global generators; return a CPU generator of its own, seeded alike.

    Raises: UserError unless 0 <= seed < 2**32 (what numpy takes).
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: wanted a whole number from 0 to 4294967295")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


# Metrics and records


def truncate_metrics(path: Path, step: int) -> None:
    """Cut `metrics.jsonl` before its first row of `step` or later, and leave out lines that are no rows.

    So a run that was interrupted ends with the same file as one that was not. A row that was cut short by a kill, or
    comes after the step, is cut in place, in one operation: what a kill can leave is either the old file or the new.
    Raises: UserError if the file cannot be read now.
    """
    if not path.exists():
        return
    rows: list[bytes] = []
    try:
        with open_file(path) as stream:
            while (line := stream.readline(MOST_ROW_BYTES)) and ((at := _step_of(line)) is None or at < step):
                rows += [line] if at is not None else []
            kept = b"".join(rows)
            stream.seek(0)
            in_front = stream.read(len(kept)) == kept
    except (OSError, MemoryError) as error:
        raise Unreadable(path, NOT_NOW, error) from error
    if not in_front:
        with atomic_path(path) as temporary:
            temporary.write_bytes(kept)
    elif len(kept) < path.stat().st_size:
        os.truncate(path, len(kept))


def _step_of(line: bytes) -> int | None:
    """The step of a row of metrics; None for a line that is no row."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    at = row.get("step") if isinstance(row, dict) else None
    return at if isinstance(at, int) else None


def checksums(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Path and sha256 of every weights file (.safetensors, .pt, ...) among `paths` or in the folders of them."""
    files = [f for path in paths for f in ([path] if path.is_file() else sorted(path.rglob("*.*")))]
    weights = [f for f in dict.fromkeys(files) if f.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin")]
    return [{"path": str(f), "sha256": sha256(f)} for f in weights]


def environment() -> dict[str, Any]:
    """The commit, the versions and the machine, as plain values."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    commit, dirty = _commit(Path(__file__).resolve())
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": versions,
    }


def _commit(file: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the repository that tracks `file`; (None, None) without one."""
    # a hook's GIT_DIR would point at another repository
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(file.parent), *arguments]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=20, env=clean, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:  # installed below some other repository
        return None, None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if changes is None else bool(changes)


def peak_memory_gb() -> float:
    """The most memory used so far, GB (1e9 bytes): of the GPU where there is one, else resident of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
