"""Files that are written whole or not at all, as far as a file system can."""

import errno
import os
import stat

import pytest

from jointdreamer.files import flush_to_disk, write_text


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
