"""Checkpoint files of a run folder: written whole, read back with every byte checked, and the random generators' state.

A checkpoint's number counts completed steps: `step_005000.pt` was written after step 4999, and step 5000 is next.
"""

import logging
import pickle
import random
import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path
from jointdreamer.reading import ABSENT, DAMAGED, NOT_NOW, Unreadable, answer_of, read_with
from jointdreamer.runs.versions import current_parts

log = logging.getLogger(__name__)


def checkpoint_files(path: Path) -> list[tuple[int, Path]]:
    """(completed steps, file) of a run folder's checkpoints, oldest first."""
    found = []
    for file in (path / "checkpoints").glob("step_*.pt"):
        if number := re.fullmatch(r"step_(\d{1,18})\.pt", file.name):
            found.append((int(number[1]), file))
    return sorted(found)


def write_checkpoint(file: Path, step: int, seconds: float, parts: Mapping[str, Any]) -> None:
    """Write the state of `parts` and of the global random generators, whole or not at all, as `RunFolder.save` says."""
    checkpoint = {
        "step": step,
        "seconds": seconds,
        "random": random_state(),
        "parts": {name: _plain(_state(part), name) for name, part in parts.items()},
    }
    for name, tensor in _tensors(checkpoint["parts"]):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"step {step}: {name} holds NaN or infinity, so no checkpoint was written and the one before "
                "stays; lower the learning rates (schedule.lr...) or use full precision, under another name=..."
            )
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        torch.save(checkpoint, stream)


def read_newest_checkpoint(path: Path, set_aside: bool = False) -> dict[str, Any] | None:
    """The newest readable checkpoint as a dict of `step`, `seconds`, `random`, `parts`, on the CPU; None without.

    Reads without executing code, and checks every byte against the checksums in the file.
    path: the run folder. set_aside: whether damaged ones are renamed, for who holds the lock.
    Raises: UserError for one that may be good and cannot be read now; an older one would not do instead.
    """
    found = checkpoint_files(path)
    for position, (step, file) in reversed(list(enumerate(found))):
        try:
            return read_checkpoint_file(file, step)
        except Unreadable as error:
            if error.answer not in (ABSENT, DAMAGED):
                raise UserError(f"{error}: nothing was changed, and the same command goes on when it can") from error
            before = f"the one of step {found[position - 1][0]}" if position else "none: starting again at step 0"
            log.warning("checkpoint %s is %s; using %s", file, error.why, before)
            if set_aside and error.answer == DAMAGED:
                file.replace(file.with_name(file.name + ".damaged"))
    return None


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


def load_checkpoint(checkpoint: Mapping[str, Any], parts: Mapping[str, Any], only: bool, path: Path) -> None:
    """Put a checkpoint's states into `parts` and the global random generators; `RunFolder.resume` says which.

    Raises: UserError if it holds other parts; `path`, the run folder, is for its words.
    """
    states = current_parts(checkpoint["parts"])
    if not (parts.keys() <= states.keys() if only else parts.keys() == states.keys()):
        raise UserError(
            f"the checkpoint of step {checkpoint['step']} in {path} holds {', '.join(states)} and this code wants "
            f"{', '.join(parts)}: it was made by another version; move the folder away to start again"
        )
    for name, part in parts.items():
        _load(part, states[name])
    set_random_state(checkpoint["random"])


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


def random_state() -> dict[str, Any]:
    """Where the global random generators of torch, numpy and Python stand."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global random generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


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
