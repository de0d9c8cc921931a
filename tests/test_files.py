"""Files: whole or not at all where a file system allows it, and four answers from every reader."""

import errno
import os
import stat
from pathlib import Path

import pytest

from jointdreamer.files import (
    AbsentFile,
    DamagedFile,
    TooLargeFile,
    UnreadableFile,
    flush_to_disk,
    read_file,
    read_json,
    read_text,
    read_yaml,
    unusable,
    write_text,
)

READERS = [read_text, read_json, read_yaml]


@pytest.fixture
def refuse(monkeypatch):
    """Let fsync refuse what a predicate of the file's mode picks, with an error of this number."""
    real = os.fsync

    def refusing(number, picked):
        def fsync(handle):
            if picked(os.fstat(handle).st_mode):
                raise OSError(number, os.strerror(number))
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    return refusing


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO, errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path, refuse, number):
    refuse(number, stat.S_ISDIR)
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_file_that_no_flush_reaches_is_written_and_one_that_was_not_stored_is_an_error(tmp_path, refuse):
    refuse(errno.EINVAL, stat.S_ISREG)
    write_text(tmp_path / "a.txt", "text")
    refuse(errno.EIO, stat.S_ISREG)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "a.txt", "other")
    assert (tmp_path / "a.txt").read_text() == "text"
    with pytest.raises(FileNotFoundError):
        flush_to_disk(tmp_path / "gone.txt")


# The four answers


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_is_not_there(tmp_path, read):
    (tmp_path / "file").touch()
    for path in (tmp_path / "gone", tmp_path / "gone" / "too", tmp_path / "file" / "inside"):
        with pytest.raises(AbsentFile):
            read(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["fifo", "loop", "folder", "bytes", "device"])
def test_what_can_never_be_read_is_damaged_and_nobody_waits(tmp_path, read, kind):
    path = tmp_path / "file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.write_bytes(b"\xff\xfe\x00rubbish")
    with pytest.raises(DamagedFile) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "no"), MemoryError()]
)
def test_what_may_be_good_is_not_called_damaged(tmp_path, monkeypatch, read, error):
    (tmp_path / "file").write_text("{}")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(UnreadableFile, match="cannot be read now"):
        read(tmp_path / "file")


@pytest.mark.parametrize("read", READERS)
def test_a_file_of_any_size_is_answered_at_once(tmp_path, read):
    with (tmp_path / "file").open("wb") as stream:
        stream.truncate(10**12)
    with pytest.raises(TooLargeFile):
        read(tmp_path / "file")


def test_errors_of_libraries():
    """What torch, safetensors, Pillow and numpy raise, told apart by what they say."""

    def kind(error):
        return type(unusable("file", error))

    assert (
        kind(RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried")) is UnreadableFile
    )
    assert kind(RuntimeError("unable to mmap 5 bytes: Cannot allocate memory (12)")) is UnreadableFile
    assert kind(OSError(errno.ESTALE, "Stale file handle")) is UnreadableFile
    assert kind(OSError("cannot identify image file")) is DamagedFile
    assert kind(OSError(errno.EINVAL, "Invalid argument")) is DamagedFile  # a seek to where a damaged header points
    assert kind(EOFError()) is DamagedFile and "EOFError" in str(unusable("file", EOFError()))


@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"', "", "{", "[" * 100_000, '{"a": NaN'])
def test_json_of_another_kind_is_damaged(tmp_path, text):
    (tmp_path / "file").write_text(text)
    with pytest.raises(DamagedFile):
        read_json(tmp_path / "file")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "file") == read_yaml(tmp_path / "file") == {"a": 1}
    assert read_text(tmp_path / "file") == '{"a": 1}'
    (tmp_path / "file").write_text("[1]")
    assert read_json(tmp_path / "file", list) == [1]


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 15)
)


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a [*a]", "a: &a {b: *a}", "[" * 200_000, "a: " + "- " * 100_000, "- 1", ""]
)
def test_yaml_that_grows_is_damaged(tmp_path, text):
    (tmp_path / "file").write_text(text)
    with pytest.raises(DamagedFile):
        read_yaml(tmp_path / "file")


def test_yaml_may_name_a_value_twice(tmp_path):
    (tmp_path / "file").write_text("a: &x [1, 2]\nb: *x\n")
    assert read_yaml(tmp_path / "file") == {"a": [1, 2], "b": [1, 2]}


def test_a_parser_s_own_answer_is_kept(tmp_path):
    (tmp_path / "file").touch()

    def parse(path):
        raise UnreadableFile(path, "is on holiday")

    with pytest.raises(UnreadableFile, match="holiday"):
        read_file(tmp_path / "file", parse)
