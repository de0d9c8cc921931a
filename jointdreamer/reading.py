"""Files that somebody else may have written, read with care: regular files of a size that fits, values that can be.

Below all layers, as files.py is. Every reader gives the whole value or raises `Unreadable`, which names the file and
says which of four it is: absent, damaged, cannot be read now, too large. What the value should look like, the caller
knows. Only what is damaged may be set aside, cut or written anew: what cannot be read now may be good.
"""

import errno
import glob
import io
import json
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import yaml

from jointdreamer.errors import UserError, one_line

ABSENT, DAMAGED, NOT_NOW, TOO_LARGE = "absent", "damaged", "cannot be read now", "too large"
Answer = Literal["absent", "damaged", "cannot be read now", "too large"]
MIB = 2**20
Content = TypeVar("Content")
DEEPEST = 100  # lists and mappings within each other; ours have less than ten
# What numpy, zipfile and struct raise of junk, above all of junk in a header: nearly anything.
BROKEN = (OSError, ValueError, EOFError, SyntaxError, TypeError, LookupError, ArithmeticError, RuntimeError)
BROKEN += (
    AttributeError,
    TokenError,
    struct.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
)  # RuntimeError: encrypted, unknown compression, recursion


class Unreadable(UserError):
    """A file without which somebody may be able to go on; `why` is the reason in a few words, without the name."""

    def __init__(self, file: str | Path, answer: Answer, why: Any = ""):
        self.file, self.answer = Path(file), answer
        self.why = one_line(f"{answer} ({one_line(why)[:240]})" if str(why) else answer)
        super().__init__(f"{file}: {self.why}")


def open_file(file: str | Path) -> BinaryIO:
    """A regular file, open for reading. A pipe, device or folder is refused without waiting for it."""
    try:
        # not to wait for whoever should write into a pipe
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return os.fdopen(handle, "rb")
        os.close(handle)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unreadable(file, ABSENT, error.strerror) from error
    except OSError as error:
        loop = error.errno == errno.ELOOP
        raise Unreadable(file, DAMAGED if loop else NOT_NOW, error.strerror or error) from error
    except ValueError as error:  # a null character in the name
        raise Unreadable(file, ABSENT, error) from error
    raise Unreadable(file, DAMAGED, "no regular file")


def read_with(file: str | Path, parse: Callable[[Path], Content]) -> Content:
    """parse(file), by a library that opens a regular file by its name; what it raises becomes one of the answers."""
    open_file(file).close()
    try:
        return parse(Path(file))
    except Unreadable:
        raise
    except Exception as error:  # of damaged bytes a parser raises nearly anything
        raise Unreadable(file, answer_of(error), getattr(error, "strerror", None) or error or type(error)) from error


def answer_of(error: Exception) -> Answer:
    """What an error that a library raised says of the file that it was reading."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ABSENT
    # the system's errors have a number; a library's own OSError (Pillow's, numpy's) has none, and a damaged header that
    # points to nowhere makes it seek there
    from_system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.ELOOP)
    return NOT_NOW if from_system or is_out_of_memory(error) else DAMAGED


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error comes from a lack of memory: torch and safetensors have errors of their own for it."""
    said = re.search("allocate memory|bad_alloc|(not enough|out of) memory", str(error))
    return isinstance(error, MemoryError) or said is not None


def read_bytes(file: str | Path, most: int = 256 * MIB) -> bytes:
    """The content of a regular file of at most `most` bytes."""
    with open_file(file) as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise Unreadable(file, TOO_LARGE, f"more than {most / MIB:.0f} MiB")
        try:
            return stream.read()
        except (OSError, MemoryError) as error:
            raise Unreadable(file, NOT_NOW, getattr(error, "strerror", None) or "not enough memory") from error


def read_text(file: str | Path, most: int = 16 * MIB) -> str:
    """Text in UTF-8, a byte-order mark left away."""
    try:
        return read_bytes(file, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(file, DAMAGED, f"no UTF-8 text: byte {error.start}") from error


def read_json(file: str | Path, most: int = 64 * MIB) -> Any:
    """The value of a JSON file, see `parse_json`."""
    text = read_text(file, most)
    try:
        return parse_json(text)
    except ValueError as error:
        raise Unreadable(file, DAMAGED, error) from error


def parse_json(text: str | bytes) -> Any:
    """Lists, dicts, texts, numbers, truth values, None. NaN and infinities pass: see `is_number`.

    Raises ValueError for anything else, also for values nested too deep and whole numbers of more than 63 bits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    _check_plain(value)
    return value


def read_yaml(file: str | Path, most: int = MIB) -> Any:
    """The value of a YAML file, of the kinds that JSON has, with texts as keys."""
    text = read_text(file, most)
    try:
        return parse_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise Unreadable(file, DAMAGED, error) from error


def parse_yaml(text: str) -> Any:
    """As `parse_json`. Aliases are refused: ten lines of them can stand for a billion values, and we write none.

    Raises ValueError or yaml.YAMLError.
    """
    # libyaml refuses half a character (\\uDCFF), which stands for a byte in the name of a folder
    loader = yaml.SafeLoader if "\\uD" in text else getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, loader):  # first: libyaml builds deep values on the C stack, which overflows
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has YAML aliases (*name)")
    value = yaml.load(text, loader)
    _check_plain(value)
    return value


def _check_plain(value: Any) -> None:
    waiting = [(value, 1)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, dict | list) and depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        if isinstance(node, dict):
            if odd := [key for key in node if not isinstance(key, str)]:
                raise ValueError(f"a key that is no text: {odd[0]!r}"[:100])
            waiting += [(key, depth + 1) for key in node]
            waiting += [(inner, depth + 1) for inner in node.values()]
        elif isinstance(node, list):
            waiting += [(inner, depth + 1) for inner in node]
        elif isinstance(node, str):
            node.encode("utf-8", "surrogateescape")  # UnicodeEncodeError is a ValueError
        elif isinstance(node, int):
            if node.bit_length() > 63:
                raise ValueError("a whole number of more than 63 bits")
        elif node is not None and not isinstance(node, float):
            raise ValueError(f"a value of the kind {type(node).__name__}")


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value that was read is a finite number from low to high."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    )


def is_whole(value: Any, low: int, high: int = 2**63) -> bool:
    """Whether a value that was read is a whole number from low to high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def read_array(file: str | Path, most: int = 256 * MIB) -> np.ndarray:
    """The array of a .npy file of numbers."""
    content = io.BytesIO(read_bytes(file, most))
    try:
        array = np.lib.format.read_array(content, allow_pickle=False)
    except (*BROKEN, MemoryError) as error:  # the memory is what the header asks for
        raise Unreadable(file, DAMAGED, error) from error
    if not _is_of_numbers(array):
        raise Unreadable(file, DAMAGED, "no array of numbers")
    return array


def read_arrays(file: str | Path, most: int = 256 * MIB) -> dict[str, np.ndarray]:
    """The arrays of a .npz file of numbers, of at most `most` bytes when unpacked."""
    content = io.BytesIO(read_bytes(file, most))
    try:
        with zipfile.ZipFile(content) as archive:
            if sum(item.file_size for item in archive.infolist()) > most:
                raise Unreadable(file, TOO_LARGE, f"more than {most / MIB:.0f} MiB unpacked")
        content.seek(0)
        with np.load(content, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except Unreadable:
        raise
    except (*BROKEN, MemoryError) as error:
        raise Unreadable(file, DAMAGED, error) from error
    if not all(map(_is_of_numbers, found.values())):
        raise Unreadable(file, DAMAGED, "not all of it are arrays of numbers")
    return found


def _is_of_numbers(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "biuf"


def find(pattern: str) -> Iterator[Path]:
    """What a glob matches, `**` being any number of folders; one that a link leads to again is not entered again.

    The name of something that is there is no pattern, whatever letters it has: runs/[x]/seed0.
    (`glob` enters it again, forty links deep: with two links that lead upwards it would not end.)
    """
    if os.path.lexists(os.path.expanduser(pattern)):
        yield Path(os.path.expanduser(pattern))
        return
    start, *rest = re.split(r"(?:^|(?<=/))(?:\*\*/+)*\*\*(?:/+|$)", os.path.expanduser(pattern), maxsplit=1)
    if not rest:
        yield from map(Path, glob.iglob(start))
        return
    for top in sorted(glob.glob(start)) if start else ["."]:
        for folder in folders(top):
            if rest[0]:
                yield from find(os.path.join(glob.escape(str(folder)), rest[0]))
            else:
                yield folder
                yield from (Path(entry.path) for entry in entries(folder) if not os.path.isdir(entry.path))


def folders(top: str | Path, enter: Callable[[Path], bool] = lambda folder: True) -> Iterator[Path]:
    """`top` and the folders below it, each once however many links lead to it, hidden ones left alone.

    enter: whether to go below a folder.
    """
    met: set[tuple[int, int]] = set()
    waiting, links = [Path(top)], []
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop()  # links last: a folder is called by its own name
        try:
            about = folder.stat()
        except OSError:
            continue
        if (about.st_dev, about.st_ino) in met:
            continue
        met.add((about.st_dev, about.st_ino))
        yield folder
        if enter(folder):
            for entry in reversed(entries(folder)):
                if os.path.isdir(entry.path):
                    (links if entry.is_symlink() else waiting).append(Path(entry.path))


def entries(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, sorted, hidden things left alone; nothing of one that cannot be looked into."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        return []
