"""Files that are there whole or not at all, also when the process is killed or the disk fills up; and their readers.

Below all layers, as errors.py is: everything that writes a file writes it through here, and everything that reads one
learns here which of four things is wrong with it: it is absent, damaged, cannot be read now, or is too large. Only
what is damaged may be set aside, cut or written anew.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from jointdreamer.errors import UserError

# A writer in C (torch, ffmpeg) reports a full disk as some error of its own: with less than this left, the disk is why.
FULL_BELOW_BYTES = 64 * 1024
TEMPORARY = ".tmp-"
# A file system that cannot flush (FUSE, Samba, a shared folder of a virtual machine) says one of these.
CANNOT_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS)
MOST_JSON_BYTES, MOST_YAML_BYTES, MOST_YAML_VALUES = 2**26, 2**19, 100_000  # ours have a few thousand

Content = TypeVar("Content")


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


# Reading


class UnusableFile(UserError):
    """A file that gave no answer. A UserError, for where nobody can do without it; what is optional catches it."""

    def __init__(self, path: str | Path, said: str):
        super().__init__(f"{path} {said}")
        self.path, self.said = Path(path), said


class AbsentFile(UnusableFile):
    """There is no such file."""


class DamagedFile(UnusableFile):
    """Its bytes are not what they should be: read again, it would say the same."""


class UnreadableFile(UnusableFile):
    """The file may be good, but not now: no memory, no permission, an input/output error. Nobody may touch it."""


class TooLargeFile(UnusableFile):
    """It holds more than any such file does, and was not read."""


def read_file(path: str | Path, parse: Callable[[Path], Content], most_bytes: int | None = None) -> Content:
    """parse(path) for a plain file of at most `most_bytes`. Never waits, as opening a FIFO would.

    Raises: one of the four kinds of UnusableFile, whatever `parse` raises.
    """
    path = Path(path)
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise DamagedFile(path, "is no plain file: move it away")
        if most_bytes is not None and about.st_size > most_bytes:
            raise TooLargeFile(path, f"is too large: {about.st_size} bytes, wanted at most {most_bytes}")
        return parse(path)
    except UnusableFile:
        raise
    except Exception as error:  # damaged bytes can surface as nearly any error of a parser
        raise unusable(path, error) from error


def unusable(path: str | Path, error: Exception) -> UnusableFile:
    """Which of the four `error` means, raised while `path` was read."""
    why = " ".join(str(getattr(error, "strerror", None) or error).split())[:120] or type(error).__name__
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return AbsentFile(path, "is not there")
    # an error of the system has a number; a library's OSError without one (Pillow's, numpy's) is about the content
    of_the_content = (None, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG)  # a seek to nowhere; a link to itself
    from_system = isinstance(error, OSError) and error.errno not in of_the_content
    # torch and safetensors report a lack of memory as errors of their own
    no_memory = isinstance(error, MemoryError) or "allocate memory" in str(error) or "bad_alloc" in str(error)
    if from_system or no_memory:
        return UnreadableFile(path, f"cannot be read now ({why}): it was left as it is; the same command goes on then")
    return DamagedFile(path, f"is damaged ({why})")


def read_text(path: str | Path, most_bytes: int = MOST_JSON_BYTES) -> str:
    """A text in UTF-8, without the byte-order mark that editors put before one. Raises: as `read_file`."""
    return read_file(path, lambda file: file.read_text(encoding="utf-8-sig"), most_bytes)


def read_json(path: str | Path, kind: type[Content] = dict, most_bytes: int = MOST_JSON_BYTES) -> Content:
    """What a JSON file holds, which must be of `kind`. Raises: as `read_file`."""

    def parse(file: Path) -> Content:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(found, kind):
            raise ValueError(f"wanted a {kind.__name__}, got a {type(found).__name__}")
        return found

    return read_file(path, parse, most_bytes)


def read_yaml(path: str | Path, most_bytes: int = MOST_YAML_BYTES) -> dict[str, Any]:
    """The mapping in a YAML file. Raises: as `read_file`."""
    import yaml

    def parse(file: Path) -> dict[str, Any]:
        found = yaml.safe_load(file.read_text(encoding="utf-8-sig"))  # libyaml's would crash on deep nesting
        if not isinstance(found, dict):
            raise ValueError(f"wanted a mapping, got a {type(found).__name__}")
        waiting, values = [found], 0
        while waiting:  # a few lines of aliases can stand for billions of values, or for themselves
            one = waiting.pop()
            inner = list(one.values() if isinstance(one, dict) else one)
            values += len(inner)
            if values > MOST_YAML_VALUES:
                raise ValueError(f"more than {MOST_YAML_VALUES} values")
            waiting += [value for value in inner if isinstance(value, dict | list)]
        return found

    return read_file(path, parse, most_bytes)


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
