"""Files that others wrote: the value, or one line that names the file, and never a wait, a crash or a full memory."""

import errno
import io
import json
import os
import zipfile

import numpy as np
import pytest
import yaml

from jointdreamer.reading import (
    Unreadable,
    find,
    folders,
    is_number,
    is_whole,
    read_array,
    read_arrays,
    read_bytes,
    read_json,
    read_text,
    read_with,
    read_yaml,
)

READERS = (read_bytes, read_text, read_json, read_yaml, read_array, read_arrays)


def refusal(reader, file, **options):
    with pytest.raises(Unreadable) as caught:
        reader(file, **options)
    assert str(caught.value) == f"{file}: {caught.value.why}" and "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_named_and_not_waited_for(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    assert refusal(reader, tmp_path / "nowhere").answer == "absent"
    assert refusal(reader, tmp_path / "a\0b").answer == "absent"
    for name in ("pipe", "loop", "folder"):
        assert refusal(reader, tmp_path / name).answer == "damaged"
    assert refusal(reader, "/dev/zero").answer == "damaged"
    (tmp_path / "long").write_bytes(b"1" * 1000)
    assert refusal(reader, tmp_path / "long", most=999).answer == "too large"


def test_what_the_system_does_not_give_now(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("1")

    def denied(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert refusal(read_json, tmp_path / "file").why == "cannot be read now (Permission denied)"


def test_json_and_yaml_that_hold_values(tmp_path):
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, true, "\xc3\xbc"]}')
    assert read_json(tmp_path / "file") == read_yaml(tmp_path / "file") == {"a": [1, 2.5, None, True, "ü"]}


BOMB = b"a0: &a0 {x: 1}\n" + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (k, k, k - 1, k - 1) for k in range(1, 60))
DEEP = 100_000  # libyaml's own stack overflows there


@pytest.mark.parametrize(
    ("reader", "content", "why"),
    [
        (read_json, b"", "Expecting value"),
        (read_json, b"\xff\x00", "UTF-8"),
        (read_json, b"[" * DEEP + b"]" * DEEP, "deep"),
        (read_json, b"[" * 150 + b"]" * 150, "deep"),
        (read_json, b"9" * 5000, "digits"),
        (read_json, b"9" * 30, "63 bits"),
        (read_json, b'"\\ud800"', "surrogates"),
        (read_yaml, b"a: [", "flow"),
        (read_yaml, b"[" * DEEP + b"]" * DEEP, "deep"),
        (read_yaml, b"{a: " * DEEP + b"}" * DEEP, "deep"),
        (read_yaml, b"a: &x [1]\nb: *x\n", "aliases"),
        (read_yaml, b"&x [*x]", "aliases"),
        (read_yaml, BOMB, "aliases"),
        (read_yaml, b"1: 2", "no text"),
        (read_yaml, b"a: 2020-01-01", "kind date"),
        (read_yaml, b"a: !!python/object:os.system {}", "constructor"),
        (read_yaml, b"a: 0x" + b"f" * 9000, "63 bits"),
        (read_yaml, b"a: 1\n---\nb: 2", "single document"),
    ],
)  # fmt: skip
def test_junk_is_damaged(reader, content, why, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert why in refusal(reader, tmp_path / "file").why


def test_numbers_that_were_read():
    assert is_number(1) and is_number(-0.5, -1, 0) and is_whole(0, 0)
    for value in (None, True, "1", [], {}, float("nan"), float("inf")):
        assert not is_number(value) and not is_whole(value, 0)
    assert not is_number(2, high=1) and not is_whole(-1, 0) and not is_whole(1.0, 0)


def npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def test_arrays_and_what_calls_itself_one(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, np.arange(6.0).reshape(2, 3))
    assert read_array(file).shape == (2, 3)
    np.save(file, np.array([None, {}]), allow_pickle=True)
    assert refusal(read_array, file).answer == "damaged"
    for content in (
        b"",
        b"\x93NUMPY",
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3)}", bytes(24)),
        npy(b"{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}", b"a\0\0\0"),
        npy(b"{'descr': [], 'fortran_order': 3}"),
        npy(b"(" * 9000),
        npy(b"\xff\xfe"),
    ):
        file.write_bytes(content)
        assert refusal(read_array, file).answer == "damaged"


def test_archives_of_arrays_and_bombs(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, a=np.ones(2), b=np.array(True))
    assert set(read_arrays(file)) == {"a", "b"}
    np.savez_compressed(file, a=np.zeros(2**20))
    assert refusal(read_arrays, file, most=2**16).answer == "too large"
    np.savez(file, a=np.array([None]))
    assert refusal(read_arrays, file).answer == "damaged"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"no array")
    assert refusal(read_arrays, file).answer == "damaged"
    whole = io.BytesIO()
    np.savez(whole, a=np.ones(100))
    for content in (b"", b"PK", whole.getvalue()[:200], whole.getvalue()[:-30]):
        file.write_bytes(content)
        assert refusal(read_arrays, file).answer == "damaged"


def test_globs_go_round_no_loop(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c [1]").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("one", "two", "three"):
        os.symlink(tmp_path, tmp_path / "a" / name)
    for folder in ("a", "a/b", "c [1]", ".hidden"):
        (tmp_path / folder / "x.json").write_text("{}")
    names = [path.relative_to(tmp_path).as_posix() for path in find(f"{tmp_path}/**/*.json")]
    assert sorted(names) == ["a/b/x.json", "a/x.json", "c [1]/x.json"]
    assert sorted(map(str, folders(tmp_path))) == sorted(str(tmp_path / name) for name in ("", "a", "a/b", "c [1]"))
    assert len(list(find(f"{tmp_path}/**/**/**"))) == 4 + 3
    assert [path.name for path in find(f"{tmp_path}/*/x.json")] == ["x.json", "x.json"]
    assert list(find(f"{tmp_path}/nowhere/**")) == []
    assert [path.name for path in folders(tmp_path / "a", lambda folder: False)] == ["a"]


def test_a_glob_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mvs").mkdir(parents=True)
    (tmp_path / "runs" / "mvs" / "r.json").write_text(json.dumps(1))
    assert {str(path) for path in find("**/*.json")} == {"runs/mvs/r.json"}
    assert {str(path) for path in find("runs/**")} == {"runs", "runs/mvs", "runs/mvs/r.json"}


def test_errors_of_libraries_are_one_of_the_four(tmp_path):
    """What torch, safetensors, Pillow and numpy raise, told apart by what they say."""
    (tmp_path / "file").touch()

    def answer(error):
        def parse(file):
            raise error

        return refusal(lambda file: read_with(file, parse), tmp_path / "file").answer

    no_memory = (
        "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    )
    for error in (RuntimeError(no_memory), RuntimeError("unable to mmap 5 bytes: Cannot allocate memory (12)")):
        assert answer(error) == "cannot be read now"
    for error in (OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale"), MemoryError()):
        assert answer(error) == "cannot be read now"
    for error in (OSError("cannot identify image file"), OSError(errno.EINVAL, "Invalid argument"), EOFError()):
        assert answer(error) == "damaged"
    assert answer(FileNotFoundError(errno.ENOENT, "gone meanwhile")) == "absent"
    assert answer(Unreadable(tmp_path / "file", "too large")) == "too large"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="damaged"):
        read_with(tmp_path / "pipe", lambda file: file.read_text())


def test_half_a_character_in_the_name_of_a_folder_comes_back(tmp_path):
    (tmp_path / "file").write_text(yaml.safe_dump({"out_dir": "caf\udce9"}, allow_unicode=True))
    assert read_yaml(tmp_path / "file") == {"out_dir": "caf\udce9"}


def test_a_name_that_is_there_is_no_pattern(tmp_path):
    for name in ("runs [x]", "x", "a*b", "ab"):
        (tmp_path / name).mkdir()
    assert list(find(str(tmp_path / "runs [x]"))) == [tmp_path / "runs [x]"]
    assert list(find(str(tmp_path / "a*b"))) == [tmp_path / "a*b"]
    assert sorted(find(str(tmp_path / "[x]"))) == [tmp_path / "x"]
