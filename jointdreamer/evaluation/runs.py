"""Which run folders a pattern means, and what each of them is: without reading a tensor.

A folder counts when train.py finished it. What does not count is named with its reason; what is damaged is an error.
"""

import glob
import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jointdreamer.errors import UserError
from jointdreamer.files import sha256

CONFIG, RESULT = "config.yaml", "result.json"
SCENE = ("prompt", "seed", "name", "field", "background", "renderer", "output", "models", "energy")  # train.py's


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

    def value(self, key: str) -> Any:
        """The config's value at a dotted key; `method`, `energy` and `models` are short for those of a table.

        Raises KeyError where there is none.
        """
        short = {"method": "name", "energy": "energy.name", "models": "models.name"}
        node: Any = self.config
        for part in short.get(key, key).split("."):
            if not isinstance(node, dict):
                raise KeyError(key)
            node = node[part]
        return node


def find_runs(patterns: Sequence[str]) -> tuple[list[Run], list[dict[str, str]]]:
    """The finished runs that match, and what was left out: {"folder", "why"}; both in the order of their paths.

    patterns: globs (`**` goes down any number of folders). A folder that is no run stands for the runs below it.
    Raises: UserError where nothing matches or no run is finished, and for a checkpoint or mesh that is damaged.
    """
    matches = sorted({Path(found) for one in patterns for found in glob.glob(os.path.expanduser(one), recursive=True)})
    shown = " ".join(patterns)
    if not matches:
        raise UserError(f"runs={shown} matches nothing: wanted run folders of train.py, e.g. runs='runs/*/*/seed*'")
    folders: dict[Path, Path] = {}  # by what they are, so that a link to a run does not count twice
    left_out: list[dict[str, str]] = []
    for path in matches:
        inside = list(_runs_below(path)) if path.is_dir() else []
        if not inside and path.is_dir() and not _in_a_run(path):
            left_out.append(
                {"folder": str(path), "why": "no run folder: it has no config.yaml, nor any folder below it"}
            )
        for folder in inside:
            folders.setdefault(folder.resolve(), folder)
    runs = []
    for folder in folders.values():
        found = _read(folder)
        if isinstance(found, Run):
            runs.append(found)
        else:
            left_out.append({"folder": str(folder), "why": found})
    left_out = [dict(folder=folder, why=why) for folder, why in sorted({(o["folder"], o["why"]) for o in left_out})]
    if not runs:
        first = f"; the first: {left_out[0]['folder']}: {left_out[0]['why']}" if left_out else ""
        raise UserError(
            f"runs={shown}: none of the {len(matches)} paths that match is a finished run of train.py{first}"
        )
    return sorted(runs, key=lambda run: run.folder), left_out


def _runs_below(path: Path) -> Iterator[Path]:
    """`path` if it is a run folder, else the runs in its folders, hidden ones left alone."""
    if (path / CONFIG).is_file():
        yield path
        return
    try:
        inner = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return
    for folder in inner:
        yield from _runs_below(folder)


def _in_a_run(path: Path) -> bool:
    """Whether `path` is a part of a run (`**` matches those as well)."""
    return any((parent / CONFIG).is_file() for parent in path.parents)


def _read(folder: Path) -> Run | str:
    """The run, or why it does not count."""
    try:
        config = yaml.load((folder / CONFIG).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return "its config.yaml cannot be read"
    missing = [key for key in SCENE if key not in config] if isinstance(config, dict) else list(SCENE)
    if missing or not all(isinstance(config[key], dict) and "name" in config[key] for key in ("models", "energy")):
        return f"no run of train.py: its config.yaml has no {', '.join(missing) or 'names of models and energy'}"
    if not (folder / RESULT).exists():
        return "unfinished: no result.json yet"
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        steps = int(result["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its result.json cannot be read"
    checkpoint = folder / "checkpoints" / f"step_{steps:06d}.pt"
    if not checkpoint.is_file():
        return f"no {checkpoint.relative_to(folder)}: the object itself is gone"
    mesh = folder / "mesh" / "mesh.glb" if result.get("mesh", True) else None
    if mesh is not None:
        check_mesh(mesh)
    return Run(folder, config, result, checkpoint, _digest(checkpoint), mesh)


def _digest(checkpoint: Path) -> str:
    """The content of a checkpoint, from the checksums that the file itself lists: no need to read it.

    Raises UserError where the list cannot be read.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            listed = sorted((item.filename, item.CRC, item.file_size) for item in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise damaged(checkpoint, error) from error
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def damaged(file: Path, why: Any) -> UserError:
    """The error for a file of a finished run that cannot be used."""
    return UserError(
        f"{file} is damaged ({' '.join(str(why).split())[:120]}): move that run away and make it again, or name runs "
        "that do not include it"
    )


def check_mesh(file: Path) -> None:
    """Raises UserError for a GLB that is missing, cut off, or without a triangle (glTF 2.0, section 4.4)."""
    try:
        with file.open("rb") as stream:
            head = stream.read(20)
            magic, version, length, json_length, kind = struct.unpack("<4sII I4s", head)
            if magic != b"glTF" or version != 2 or kind != b"JSON":
                raise ValueError("not a binary glTF 2.0")
            if length != file.stat().st_size:
                raise ValueError(f"{file.stat().st_size} bytes, its head says {length}")
            gltf = json.loads(stream.read(json_length))
        counts = [
            gltf["accessors"][part["indices"] if "indices" in part else part["attributes"]["POSITION"]]["count"]
            for mesh in gltf["meshes"]
            for part in mesh["primitives"]
        ]
        if sum(counts) < 3:
            raise ValueError("it has no triangle")
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        why = f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise damaged(file, why) from error


def same_models(runs: Sequence[Run]) -> str:
    """The one `models` of all runs. Raises UserError where there are several: their scores have nothing in common."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.models] = counts.get(run.models, 0) + 1
    if len(counts) > 1:
        found = " and ".join(f"{n} of models={name}" for name, n in sorted(counts.items()))
        raise UserError(
            f"the runs were made by different models ({found}), which are scored by different networks: evaluate them "
            "apart, with a narrower runs=..."
        )
    return next(iter(counts))


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
