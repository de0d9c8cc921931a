"""Standard input, output and error of a command, whatever they are connected to: they neither change nor stop it."""

import errno
import io
import os
import sys
from typing import Any

# nobody reads the pipe, the terminal is gone, the disk behind a redirection is full
UNHEARD = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT)


class _Unheard(io.FileIO):
    """A descriptor whose listener may go away: what is said then is lost, and who said it goes on."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in UNHEARD:
                raise
            return len(data)


def safe_output() -> None:
    """Let no `print` end the program, whoever listens, and open the standard descriptors that are closed.

    A letter that the terminal's encoding has not is written as \\U0001f916; what is said into a pipe that nobody reads
    any more is lost. A closed descriptor (`>&-`) would be given to the next file, which would get what is printed.
    Streams that are not the process's own (a notebook's, a test's) only learn about letters.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as the process lives
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):
            raw = io.BufferedWriter(_Unheard(number, "w", closefd=False))
            encoding = "utf-8" if stream is None else stream.encoding
            setattr(sys, name, io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: the words on the command line, the
    names of files and what is printed are then the same under every locale.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
