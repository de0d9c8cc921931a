"""Which run folders a pattern means, and what each of them is: without reading a tensor.

A folder counts when train.py finished it. What does not count, or cannot be read, is named with its reason, and the
rest goes on.
"""

import hashlib
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jointdreamer.errors import UserError, one_line
from jointdreamer.files import sha256
from jointdreamer.reading import (
    BROKEN,
    DAMAGED,
    MIB,
    Unreadable,
    find,
    folders,
    is_number,
    is_whole,
    open_file,
    parse_json,
    read_json,
    read_yaml,
)

CONFIG, RESULT = "config.yaml", "result.json"
LeftOut = dict[str, str]  # {"folder", "why"}


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _group(value: Any) -> bool:
    return isinstance(value, dict)


def _color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_number(part, 0, 1) for part in value)


# What an evaluation reads of a config, what it can be, and that in words
FORM: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prompt": (_text, "a text"),
    "seed": (lambda value: is_whole(value, 0), "a whole number"),
    "name": (_text, "a text"),
    "models.name": (_text, "a text"),
    "energy.name": (_text, "a text"),
    "field": (_group, "a group of settings"),
    "renderer": (_group, "a group of settings"),
    "background": (_group, "a group of settings"),
    "background.eval_color": (_color, "three numbers from 0 to 1"),
    "output": (_group, "a group of settings"),
    "output.elevation_deg": (lambda value: is_number(value, -90, 90), "a number from -90 to 90"),
    "output.distance": (lambda value: is_number(value, 0.1, 1000), "a number from 0.1 to 1000"),
    "output.fovy_deg": (lambda value: is_number(value, 1, 179), "a number from 1 to 179"),
}
# The same where a config has the key: what the sizes in a checkpoint do not bound, and rendering time grows with
BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "renderer.n_samples": (lambda value: is_whole(value, 1, 2**13), f"a whole number from 1 to {2**13}"),
    "field.encoding.n_levels": (lambda value: is_whole(value, 1, 256), "a whole number from 1 to 256"),
}


@dataclass(frozen=True)
class Run:
    """A finished run: an object that can be looked at."""

    folder: Path
    config: dict[str, Any]  # as in config.yaml
    result: dict[str, Any]  # as in result.json
    checkpoint: Path  # of the last step
    digest: str  # of the checkpoint's content
    mesh: Path | None  # None where the run came out empty

    @property
    def prompt(self) -> str:
        return str(self.config["prompt"]).strip()

    @property
    def models(self) -> str:
        return str(self.config["models"]["name"])

    @property
    def clip(self) -> Any:
        """Where its config has a CLIP: a place, or several; None if it names none."""
        try:
            source = self.value("models.clip.source")
        except KeyError:
            return None
        places = source if isinstance(source, list) else [source]
        return source if places and all(map(_text, places)) else None

    def value(self, key: str) -> Any:
        """The config's value at a dotted key; `method`, `energy` and `models` are short for those of a table.

        Raises KeyError where there is none.
        """
        short = {"method": "name", "energy": "energy.name", "models": "models.name"}
        return value_at(self.config, short.get(key, key))


def find_runs(patterns: Sequence[str]) -> tuple[list[Run], list[LeftOut]]:
    """The finished runs that match, and what was left out; both in the order of their paths.

    patterns: globs (`**` goes down any number of folders). A folder that is no run stands for the runs below it.
    A run whose mesh is damaged counts, without its mesh, which is named among what was left out.
    Raises: UserError where nothing matches or no run is finished.
    """
    matches = sorted({path for one in patterns for path in find(one)})
    shown = " ".join(patterns)
    if not matches:
        raise UserError(f"runs={shown} matches nothing: wanted run folders of train.py, e.g. runs='runs/*/*/seed*'")
    found, others = run_folders(matches)
    left_out = [(path, "no run folder: it has no config.yaml, nor any folder below it") for path in others]
    runs = []
    for folder in found:
        try:
            run = _read(folder)
        except UserError as error:
            left_out.append((folder, one_line(error).removeprefix(f"{folder}{os.sep}")))
            continue
        runs.append(run)
        try:
            if run.mesh is not None:
                check_mesh(run.mesh)
        except Unreadable as error:
            left_out.append((error.file, f"{error.why}; its run counts, without a mesh"))
            runs[-1] = replace(run, mesh=None)
    named = [{"folder": str(path), "why": why} for path, why in sorted(set(left_out))]
    if not runs:
        first = f"; the first: {named[0]['folder']}: {named[0]['why']}" if named else ""
        raise UserError(
            f"runs={shown}: none of the {len(matches)} paths that match is a finished run of train.py{first}"
        )
    return sorted(runs, key=lambda run: run.folder), named


def run_folders(matches: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The run folders among and below some paths, each once, and the paths of folders that hold none."""
    found: dict[str, Path] = {}  # by what they are, so that a link to a run does not count twice
    others = []
    for path in matches:
        inside = list(_runs_below(path))
        if not inside and os.path.isdir(path) and not _in_a_run(path):
            others.append(path)
        for folder in inside:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values()), others


def _is_run(folder: Path) -> bool:
    return os.path.lexists(folder / CONFIG)


def _runs_below(path: Path) -> Iterator[Path]:
    """`path` if it is a run folder, else the runs in its folders, hidden ones left alone."""
    return filter(_is_run, folders(path, enter=lambda folder: not _is_run(folder)))


def _in_a_run(path: Path) -> bool:
    """Whether `path` is a part of a run (`**` matches those as well)."""
    return any(map(_is_run, path.parents))


def _read(folder: Path) -> Run:
    """The run in a folder. Raises UserError, which says why it does not count."""
    config = read_yaml(folder / CONFIG)
    check_config(config)
    if not os.path.lexists(folder / RESULT):
        raise UserError("unfinished: no result.json yet")
    result = read_json(folder / RESULT, MIB)
    if not isinstance(result, dict) or not is_whole(result.get("steps"), 0):
        raise UserError("its result.json names no number of steps")
    checkpoint = folder / "checkpoints" / f"step_{result['steps']:06d}.pt"
    if not os.path.lexists(checkpoint):
        raise UserError(f"no {checkpoint.relative_to(folder)}: the object itself is gone")
    mesh = folder / "mesh" / "mesh.glb" if result.get("mesh", True) else None
    return Run(folder, config, result, checkpoint, digest_of(checkpoint), mesh)


def check_config(config: Any) -> None:
    """Raises UserError unless a config holds what an evaluation reads, in the form that train.py writes."""
    for key, (fits, wanted) in (FORM | BOUNDS).items():
        try:
            value = value_at(config, key)
        except KeyError:
            if key in BOUNDS:
                continue
            raise UserError(f"no run of train.py: its config.yaml has no {key}") from None
        if not fits(value):
            raise UserError(f"its config.yaml says {key}={one_line(repr(value))[:60]}: wanted {wanted}")


def value_at(config: Any, key: str) -> Any:
    """The value at a dotted key. Raises KeyError where there is none."""
    for part in key.split("."):
        if not isinstance(config, dict):
            raise KeyError(key)
        config = config[part]
    return config


def digest_of(checkpoint: Path) -> str:
    """The content of a checkpoint, from the checksums that the file itself lists: no need to read it.

    Raises Unreadable.
    """
    with open_file(checkpoint) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                listed = sorted((item.filename, item.CRC, item.file_size) for item in archive.infolist())
            if sum(size for _, _, size in listed) > os.fstat(stream.fileno()).st_size:
                raise ValueError("it is packed, as no checkpoint of ours is")
        except BROKEN as error:
            raise Unreadable(checkpoint, DAMAGED, error) from error
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def check_mesh(file: Path) -> None:
    """Raises Unreadable for a GLB that is missing, cut off, or without a triangle (glTF 2.0, section 4.4)."""
    with open_file(file) as stream:
        try:
            magic, version, length, json_length, kind = struct.unpack("<4sII I4s", stream.read(20))
            if magic != b"glTF" or version != 2 or kind != b"JSON":
                raise ValueError("not a binary glTF 2.0")
            size = os.fstat(stream.fileno()).st_size
            if length != size or json_length > min(size, 64 * MIB):
                raise ValueError(f"{size} bytes, its head says {length} and {json_length} of JSON")
            gltf = parse_json(stream.read(json_length))
            counts = [
                gltf["accessors"][part["indices"] if "indices" in part else part["attributes"]["POSITION"]]["count"]
                for mesh in gltf["meshes"]
                for part in mesh["primitives"]
            ]
            if not all(is_whole(count, 0) for count in counts) or sum(counts) < 3:
                raise ValueError("it has no triangle")
        except BROKEN as error:
            raise Unreadable(file, DAMAGED, f"no {error}" if isinstance(error, KeyError) else error) from error


def same_models(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs of the `models` that most of them have, and those left out: their scores have nothing in common.

    Raises UserError where no models have more runs than the others.
    """
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.models] = counts.get(run.models, 0) + 1
    most = max(counts.values())
    if list(counts.values()).count(most) > 1:
        found = " and ".join(f"{n} of models={name}" for name, n in sorted(counts.items()))
        raise UserError(
            f"the runs were made by different models ({found}), which are scored by different networks: evaluate them "
            "apart, with a narrower runs=..."
        )
    chosen = next(name for name, n in counts.items() if n == most)
    why = f"are scored by other networks than models={chosen}, which most runs have: evaluate them apart"
    left_out = [
        {"folder": str(run.folder), "why": f"runs of models={run.models} {why}"} for run in runs if run.models != chosen
    ]
    return [run for run in runs if run.models == chosen], left_out


def file_identity(folder: Path) -> str:
    """Some weights as a short text that changes with them: contents of small files, size and time of large ones."""
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        stat = file.stat()
        # in the hub's cache a large file is called by its checksum
        large = f"{file.resolve().name} {stat.st_size} {stat.st_mtime_ns}"
        digest.update(f"{file.name} {sha256(file) if stat.st_size < 2**23 else large}\n".encode())
    return digest.hexdigest()[:12]
