"""Objects of runs as files for other programs: python -m jointdreamer.export RUN [RUN ...] [KEY=VALUE ...]

RUN is a folder of train.py, finished or stopped, a folder that holds some, or a glob of either. Each run's object is
taken from its newest checkpoint, finer or smaller than the run itself wrote it; nothing is trained, and no prior is
loaded. The same command again says what is complete.

    mesh.resolution=256        points along a side of the grid whose surface is taken, 8 to 1024
    texture=2048               pixels along a side of the texture, 16 to 8192; 0: colours at the vertices
    format=glb,obj,ply,usdz    GLB, OBJ (with MTL and PNG) and USDZ have the texture, PLY has colours at the vertices
    out=FOLDER                 RUN/export unless given; for several runs, a folder for each is made in it

GLB, OBJ and USDZ have y up and the front towards +z, PLY z up and the front towards -y. Beside a turntable that has
none yet, its cameras are written as RUN/turntable/transforms.json.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jointdreamer.cli.messages import complain
from jointdreamer.errors import UserError, printable
from jointdreamer.evaluation.runs import digest_of, run_folders
from jointdreamer.files import to_json, try_folder, write_text
from jointdreamer.reading import Unreadable, find, read_json
from jointdreamer.terminal import safe_output

FORMATS = ("glb", "obj", "ply", "usdz")
TEXTURED_ONLY = "usdz"
RECORD = "export.json"  # in the folder of the files: what they were made of


@dataclass(frozen=True)
class Settings:
    """What the command line says, less the runs."""

    resolution: int = 256
    texture: int = 2048
    formats: tuple[str, ...] = FORMATS
    out: Path | None = None


def read_words(words: Sequence[str]) -> tuple[list[str], Settings]:
    """The patterns of runs and the settings that a command line means. Raises UserError, one line."""
    patterns, given = [], {}
    for word in words:
        key, equals, value = word.partition("=")
        if key in READERS and equals:
            name, read = READERS[key]
            given[name] = read(key, value)
        elif word.startswith("-"):
            raise UserError(f"{word}: wanted RUN folders and KEY=VALUE, of which there are {', '.join(READERS)}")
        elif equals and not os.path.lexists(word) and os.sep not in key:
            raise UserError(f"unknown key '{key}': there are {', '.join(READERS)}")
        else:
            patterns.append(word)
    if not patterns:
        raise UserError("no run: say which, python -m jointdreamer.export runs/mvs/PROMPT/seed0 (or a glob)")
    if given.get("texture") == 0:
        if TEXTURED_ONLY in given.get("formats", ()):
            raise UserError(f"format={TEXTURED_ONLY} wants a texture: leave texture=0 out, or that format")
        given.setdefault("formats", tuple(one for one in FORMATS if one != TEXTURED_ONLY))
    return patterns, Settings(**given)


def _whole(low: int, high: int, *others: int) -> Callable[[str, str], int]:
    def read(key: str, text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        if not low <= number <= high and number not in others:
            allowed = "".join(f"{other} or " for other in others)
            raise UserError(f"{key}={text}: wanted {allowed}a whole number from {low} to {high}")
        return number

    return read


def _formats(key: str, text: str) -> tuple[str, ...]:
    named = tuple(dict.fromkeys(one.strip().lower().removeprefix(".") for one in text.split(",")))
    if unknown := [one for one in named if one not in FORMATS]:
        raise UserError(f"{key}={text}: unknown format {unknown[0]!r}, choose from {', '.join(FORMATS)}")
    return named


def _folder(key: str, text: str) -> Path:
    if not text.strip():
        raise UserError(f"{key} is empty: wanted a folder")
    return Path(text).expanduser()


READERS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "mesh.resolution": ("resolution", _whole(8, 1024)),
    "texture": ("texture", _whole(16, 8192, 0)),
    "format": ("formats", _formats),
    "out": ("out", _folder),
}


def runs_of(patterns: Sequence[str]) -> list[Path]:
    """The run folders that are meant. Raises UserError for a pattern without one."""
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted(find(pattern))
        folders, others = run_folders(matches)
        if not folders:
            what = f"{others[0]} is no run folder: it has no config.yaml" if others else f"{pattern} matches no run"
            raise UserError(f"{what}; wanted folders of train.py, e.g. runs/mvs/PROMPT/seed0")
        found += folders
    return run_folders(found)[0]


def places(runs: Sequence[Path], out: Path | None) -> list[Path]:
    """Where the files of each run go."""
    if out is None:
        return [run / "export" for run in runs]
    if len(runs) == 1:
        return [out]
    real = [Path(os.path.realpath(run)) for run in runs]
    top = os.path.commonpath([run.parent for run in real])
    return [out / run.relative_to(top) for run in real]


def export(run: Path, place: Path, settings: Settings) -> None:
    """Write a run's files into `place`, or say that they are there.

    Raises: UserError for a run that cannot be loaded, an empty scene, too little memory, a place that takes no files.
    """
    wanted = record_of(run, settings)
    if wanted is not None and is_complete(place, wanted):
        print(f"{printable(place)}\nis complete: nothing to do")
        return
    try_folder(place)

    import torch

    from jointdreamer.kernels.waiting import spinning_while_alone
    from jointdreamer.runs.pictures import load_scene
    from jointdreamer.scenes.export import asset, write_mesh

    scene, config = load_scene(run)
    check_memory(settings)
    colors = f"a texture of {settings.texture} px" if settings.texture else "colours at the vertices"
    print(printable(f"{run}: {settings.resolution}^3 points, {colors}"), file=sys.stderr)
    scene = scene.to("cuda" if torch.cuda.is_available() else "cpu")
    with spinning_while_alone():
        mesh = asset(scene, settings.resolution, settings.texture)
    try:
        (place / RECORD).unlink(missing_ok=True)
        for suffix in settings.formats:
            write_mesh(place / f"mesh.{suffix}", mesh)
        if settings.out is None:
            write_cameras(run, config)
        if wanted is not None:
            write_text(place / RECORD, to_json(wanted, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write in {place} ({error}): choose another place with out=...") from error
    print(printable(place))


def record_of(run: Path, settings: Settings) -> dict[str, Any] | None:
    """What the files are made of; None without a checkpoint that can be read."""
    from jointdreamer.runs.checkpoint import checkpoint_files

    try:
        step, file = checkpoint_files(run)[-1]
        made_of = {"run": os.path.realpath(run), "steps": step, "checkpoint": digest_of(file)}
    except (IndexError, Unreadable):
        return None
    options = {key: value for key, value in asdict(settings).items() if key != "out"}
    return {**made_of, **options, "formats": list(settings.formats)}


def is_complete(place: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the files that are wanted are there, of this checkpoint and of these sizes."""
    try:
        there = read_json(place / RECORD)
    except Unreadable:
        return False
    if not isinstance(there, dict) or any(there.get(key) != wanted[key] for key in wanted if key != "formats"):
        return False
    formats = there.get("formats")
    files = [f"mesh.{suffix}" for suffix in wanted["formats"]]
    if "obj" in wanted["formats"] and wanted["texture"]:
        files += ["mesh.mtl", "mesh.png"]
    return (
        isinstance(formats, list)
        and set(wanted["formats"]) <= set(formats)
        and all((place / file).is_file() for file in files)
    )


def check_memory(settings: Settings) -> None:
    """Raises UserError where the sizes asked for do not fit."""
    import torch

    from jointdreamer.machine import free_bytes
    from jointdreamer.runs.memory import export_bytes

    need, free = export_bytes(0, settings.resolution, settings.texture), free_bytes(torch.device("cpu"))
    if need > free:
        raise UserError(
            f"memory: mesh.resolution={settings.resolution} with texture={settings.texture} needs about "
            f"{need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: take lower ones"
        )


def write_cameras(run: Path, config: Mapping[str, Any]) -> None:
    """transforms.json beside the turntable of a run of a version that did not write it."""
    from jointdreamer.cameras import orbit_cameras
    from jointdreamer.cli.settings import orbit
    from jointdreamer.runs.pictures import save_cameras

    output, folder = config["output"], run / "turntable"
    if (folder / "rgb.mp4").is_file() and not (folder / "transforms.json").is_file():
        save_cameras(folder, orbit_cameras(output["views"], output["resolution"], **orbit(output)))


def main(words: Sequence[str]) -> int:
    """Export the runs; the exit status, 2 where one could not be: the others are there."""
    safe_output()
    if {"-h", "--help"} & set(words) or not words:
        print(__doc__)
        return 0 if words else 2
    status = 0
    try:
        patterns, settings = read_words(words)
        runs = runs_of(patterns)
        for run, place in zip(runs, places(runs, settings.out), strict=True):
            try:
                export(run, place, settings)
            except UserError as error:
                status = complain(error if str(run) in str(error) else f"{run}: {error}")
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
