"""Standard output and error of a command, whatever they are connected to."""

import os
import sys


def safe_output() -> None:
    """Let `print` never fail for a letter that the terminal's encoding has not: it is written as \\U0001f916.

    Closed descriptors (`>&-`) are where nothing is read.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
