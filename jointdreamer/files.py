"""Files that are there whole or not at all, also when the process is killed or the disk fills up; and JSON for them.

Below all layers, as errors.py is: everything that writes a file writes it through here.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jointdreamer.errors import UserError

# A writer in C (torch, ffmpeg) reports a full disk as some error of its own: with less than this left, the disk is why.
FULL_BELOW_BYTES = 64 * 1024
TEMPORARY = ".tmp-"
# A file system that cannot flush (FUSE, Samba, a shared folder of a virtual machine) says one of these.
CANNOT_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix; write there, and on leaving it becomes `path`.

    The content is flushed to the disk before the move, so a reader (or a power cut) meets the old file or the new one.
    Whatever goes wrong, the temporary file is removed and an existing `path` is untouched; after a SIGKILL it stays
    behind and `remove_leftovers` finds it.

    Raises: UserError when the disk is full; anything else as it came.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    except BaseException as error:
        disk_is_full = is_disk_full(error, path.parent)  # asked first: removing the file makes room again
        temporary.unlink(missing_ok=True)
        if disk_is_full:
            raise disk_full(path) from error
        raise


def try_folder(folder: Path) -> None:
    """Make a folder, and show that files can be written in it, better than permission bits do: before the work.

    Raises: UserError, one line.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"cannot write in {folder} ({error.strerror}): move what is in the way, or name another place"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all. Undecodable bytes of a command line go back to what they were."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def sha256(file: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder, as far as the file system can.

    A folder that cannot be flushed is no error: the file in it is there, and only a power cut could tell.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not folder and error.errno not in CANNOT_FLUSH:
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written in `folder`. Only for who holds the folder's lock."""
    for entry in folder.rglob(f"{TEMPORARY}*"):
        if is_leftover(entry):
            entry.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether `path` is a file that `atomic_path` began and did not finish."""
    return path.name.startswith(TEMPORARY) and path.is_file()


def is_disk_full(error: BaseException | None, folder: Path) -> bool:
    """Whether `error`, or one that it was raised from, comes from a full disk (or a used-up quota)."""
    if not isinstance(error, Exception):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    try:
        return isinstance(error, OSError | RuntimeError) and shutil.disk_usage(folder).free < FULL_BELOW_BYTES
    except OSError:
        return False


def disk_full(path: Path) -> UserError:
    """The error to raise when `path` could not be written for want of room."""
    return UserError(
        f"no space left on the disk while writing {path}: what was there before is untouched; free some space and give "
        "the same command again"
    )


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that any reader takes: floats exactly as Python repeats them, NaN and infinity as null, paths as strings."""

    def clean(value: Any) -> Any:
        if isinstance(value, Tensor | np.generic):
            value = value.item()
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {str(key): clean(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [clean(inner) for inner in value]
        return str(value) if isinstance(value, Path) else value

    return json.dumps(clean(value), indent=indent, allow_nan=False)
