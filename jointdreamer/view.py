"""Runs' objects in the browser: python -m jointdreamer.view RUN [RUN ...] [KEY=VALUE ...]

RUN is a folder of train.py, finished or stopped, a folder that holds some, or a glob of either. Each object is taken
from its newest checkpoint; nothing is trained, and no prior is loaded. Ctrl-C ends it. For a run that trains now, give
viewer=true to train.py itself.

    host=127.0.0.1        where the page is; 0.0.0.0: anyone on the network can look
    port=8080             the next free one if it is in use
    resolution=384        pixels along a side of a picture, 32 to 1024
    mesh.resolution=128   points along a side of the grid whose surface is shown, 8 to 256

Drag turns the objects, all of them alike; the wheel comes nearer. Needs viser: pip install -e '.[viewer]'
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jointdreamer.arguments import check_arguments
from jointdreamer.cli.messages import complain
from jointdreamer.errors import UserError, one_line, printable
from jointdreamer.export import runs_of
from jointdreamer.terminal import safe_output
from jointdreamer.viewer.server import ViewerSettings, check_viewer, open_server
from jointdreamer.viewer.subjects import Subject
from jointdreamer.viewer.window import POLL, Viewer

NAMES = {"host": "host", "port": "port", "resolution": "resolution", "mesh.resolution": "mesh_resolution"}


def read_words(words: Sequence[str]) -> tuple[list[str], ViewerSettings]:
    """The patterns of runs and the settings that a command line means. Raises UserError, one line."""
    patterns: list[str] = []
    given: dict[str, Any] = {"resolution": 384, "mesh_resolution": 128}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in NAMES:
            number = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else value
            given[NAMES[key]] = value if key == "host" else number
        elif word.startswith("-") or (equals and not os.path.lexists(word) and os.sep not in key):
            raise UserError(f"{word}: wanted RUN folders and KEY=VALUE, of which there are {', '.join(NAMES)}")
        else:
            patterns.append(word)
    if not patterns:
        raise UserError("no run: say which, python -m jointdreamer.view runs/mvs/PROMPT/seed0 (or a glob)")
    check_arguments(ViewerSettings, given, "", whole=False)
    return patterns, ViewerSettings(**given)


def names_of(runs: Sequence[Path]) -> list[str]:
    """What distinguishes the runs' folders: the parts of their paths in which they differ."""
    paths = [Path(os.path.realpath(run)).parts for run in runs]
    if len(runs) == 1 or len({len(path) for path in paths}) > 1:
        top = os.path.commonpath([Path(*path).parent for path in paths])
        return [str(Path(*path).relative_to(top)) for path in paths]
    return ["/".join(part for part, *others in zip(path, *paths, strict=True) if len({*others}) > 1) for path in paths]


def view(runs: Sequence[Path], settings: ViewerSettings) -> None:
    """Show runs until Ctrl-C. Raises UserError for a folder that is no run, or has no checkpoint, before it starts."""
    subjects = [Subject.saved(run, printable(name)) for run, name in zip(runs, names_of(runs), strict=True)]
    server = open_server(settings.host, settings.port)
    viewer = Viewer(server, subjects, settings.resolution, settings.mesh_resolution, **subjects[0].orbit)
    try:
        while True:
            if not viewer.tick():
                time.sleep(POLL)
    finally:
        viewer.close()


def main(words: Sequence[str]) -> int:
    """Show the runs; the exit status."""
    safe_output()
    if {"-h", "--help"} & set(words) or not words:
        print(__doc__)
        return 0 if words else 2
    log = logging.getLogger("jointdreamer")
    log.setLevel(logging.INFO)
    log.addHandler(said := logging.StreamHandler(sys.stderr))
    said.setFormatter(_OneLine())
    try:
        patterns, settings = read_words(words)
        runs = runs_of(patterns)
        check_viewer(settings)
        view(runs, settings)
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt:
        return 0
    finally:
        log.removeHandler(said)
    return 0


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + one_line(record.getMessage())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
