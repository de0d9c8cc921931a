"""Make a folder of views in the layout of Zero-1-to-3's `views_release`, which train_classifier.py reads.

    python -m jointdreamer.data.render_views --meshes FOLDER --out views     GLB, OBJ, ... files, one object each
    python -m jointdreamer.data.render_views --toybox 200 --out views        toys of the bundled small world

Every object gets a folder with 000.png ... (RGBA) and 000.npy ... (3x4 world-to-camera, Blender's camera axes). An
object is there whole or not at all; the same command again makes what is missing. Meshes that are empty, huge, broken
or gone are skipped, named and counted; parts and textures that are not understood are left out, and named.
"""

import argparse
import hashlib
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jointdreamer.cameras import look_at
from jointdreamer.classifier.views import world_to_camera
from jointdreamer.data.meshes import MAX_BYTES, MAX_FACES, SUFFIXES, BadMesh, draw, load_mesh
from jointdreamer.errors import UserError, one_line, printable
from jointdreamer.terminal import safe_output

FOVY_DEG = 49.1  # a 35 mm lens on a 32 mm sensor, as the public renders have it
TOYS = "jointdreamer.toybox.views"  # by name: the toybox stands above this layer and is imported only when asked for

# an object's rgba (V, R, R, 4) uint8, c2w (V, 4, 4), and what of it was left out; raises BadMesh
Render = Callable[[], tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, tuple[str, ...]]]


def sample_poses(
    seed: int, name: str, n_views: int, elevation_deg: tuple[float, float], distance: tuple[float, float]
) -> np.ndarray:
    """Independent cameras that look at the origin, c2w (V, 4, 4): any azimuth, sin(elevation) and distance uniform.

    A pure function of the seed and the object's name.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    low, high = np.sin(np.radians(elevation_deg))
    azimuth = rng.uniform(-math.pi, math.pi, n_views)
    elevation = np.arcsin(rng.uniform(low, high, n_views))
    far = rng.uniform(*distance, n_views)
    return look_at(*(torch.from_numpy(x) for x in (elevation, azimuth, far))).numpy()


def mesh_views(
    file: Path,
    name: str,
    seed: int,
    n_views: int,
    resolution: int,
    elevation_deg: tuple[float, float],
    distance: tuple[float, float],
    max_faces: int = MAX_FACES,
    max_bytes: int = MAX_BYTES,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """One mesh from all round, and what of it was left out. Raises BadMesh."""
    mesh = load_mesh(file, max_faces, max_bytes)
    c2w = sample_poses(seed, name, n_views, elevation_deg, distance)
    return np.stack([draw(mesh, pose, math.radians(FOVY_DEG), resolution) for pose in c2w]), c2w, mesh.notes


def toy_views(index: int, seed: int, n_views: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """One toy from all round, by the cameras of its world."""
    return import_module(TOYS).toy_views(index, seed, resolution, n_views)


def write_object(folder: Path, render: Render) -> tuple[str, ...]:
    """Render an object and write its folder, whole or not at all. Returns what of it was left out.

    Raises BadMesh, and then nothing is there.
    """
    rgba, c2w, *notes = render()
    temporary = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    temporary.mkdir(parents=True)
    try:
        for view, (image, pose) in enumerate(zip(rgba, c2w, strict=True)):
            Image.fromarray(image).save(temporary / f"{view:03d}.png")
            np.save(temporary / f"{view:03d}.npy", world_to_camera(pose))
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return notes[0] if notes else ()


def _attempt(folder: Path, render: Render) -> tuple[str | None, tuple[str, ...]]:
    """In a worker: why the object was skipped, or None; and what of it was left out."""
    try:
        return None, write_object(folder, render)
    except BadMesh as error:
        return str(error), ()
    except MemoryError:
        return "it does not fit into memory", ()


def render_all(out: Path, objects: dict[str, Render], workers: int = 1) -> dict[str, str]:
    """Make what is missing of name -> render below `out`; returns the skipped ones and why, said on stderr as well."""
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    missing = {name: render for name, render in objects.items() if not (out / name).exists()}
    skipped: dict[str, str] = {}

    def note(number: int, name: str, why: str | None, left_out: tuple[str, ...]) -> None:
        if why is not None:
            skipped[name] = why
            print(one_line(f"skipped {name}: {why}"), file=sys.stderr, flush=True)
        elif left_out:
            print(one_line(f"incomplete {name}: {'; '.join(left_out)}"), file=sys.stderr, flush=True)
        if number % 100 == 0 or number == len(missing):
            print(f"{number} of {len(missing)}, {len(skipped)} skipped", file=sys.stderr, flush=True)

    if workers == 1:
        for number, (name, render) in enumerate(missing.items(), 1):
            note(number, name, *_attempt(out / name, render))
        return skipped
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            jobs = {pool.submit(_attempt, out / name, render): name for name, render in missing.items()}
            for number, job in enumerate(as_completed(jobs), 1):
                note(number, jobs[job], *job.result())
    except BrokenProcessPool as error:
        raise UserError(
            "a worker died (out of memory, or a crash in a mesh library): the same command goes on where it was, "
            "--workers 1 shows which mesh it is"
        ) from error
    return skipped


def find_meshes(folder: Path) -> dict[str, Path]:
    """Name -> file of every mesh below a folder; the name is the path with its slashes and suffix gone.

    Hidden files are none of them, such as the `._x.glb` that macOS puts beside x.glb.

    Raises UserError if there is none, or if two would share a name.
    """
    if not folder.is_dir():
        raise UserError(f"--meshes {folder}: there is no such folder")
    found: dict[str, Path] = {}
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        parts = file.relative_to(folder).with_suffix("").parts
        if any(part.startswith(".") for part in parts):
            continue
        name = "_".join(parts)
        if name in found:
            raise UserError(f"--meshes {folder}: {found[name].name} and {file.name} would both be called {name}")
        found[name] = file
    if not found:
        raise UserError(f"--meshes {folder}: no mesh in it; wanted files that end in {', '.join(SUFFIXES)}")
    return found


def main(argv: list[str] | None = None) -> int:
    safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--meshes", type=Path, metavar="FOLDER", help="folder of meshes, searched through")
    what.add_argument("--toybox", type=int, metavar="N", help="so many toys")
    parser.add_argument("--out", type=Path, required=True, help="the folder of views")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--views", type=int, default=12, help="of each object")
    parser.add_argument("--resolution", type=int, help="pixels; 512 for meshes, 64 for toys")
    parser.add_argument("--elevation", type=float, nargs=2, default=(-10.0, 60.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--distance", type=float, nargs=2, default=(1.5, 2.2), metavar=("LOW", "HIGH"))
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--max-faces", type=int, default=MAX_FACES)
    parser.add_argument("--max-mb", type=float, default=MAX_BYTES / 1e6)
    args = parser.parse_args(argv)
    try:
        for name in ("toybox", "views", "resolution", "workers", "max_faces"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: wanted 1 or more")
        if not -90 <= args.elevation[0] <= args.elevation[1] <= 90 or not 0.9 <= args.distance[0] <= args.distance[1]:
            raise UserError("--elevation wants LOW HIGH within -90 and 90, --distance LOW HIGH from 0.9 up")
        resolution = args.resolution or (512 if args.meshes else 64)
        if args.meshes:
            cameras = (args.seed, args.views, resolution, tuple(args.elevation), tuple(args.distance))
            limits = (args.max_faces, int(args.max_mb * 1e6))
            objects: dict[str, Render] = {
                name: partial(mesh_views, file, name, *cameras, *limits)
                for name, file in find_meshes(args.meshes).items()
            }
        else:
            names = import_module(TOYS).toy_names(args.toybox, args.seed)
            objects = {
                name: partial(toy_views, index, args.seed, args.views, resolution) for index, name in enumerate(names)
            }
        try:
            skipped = render_all(args.out, objects, args.workers)
        except OSError as error:
            raise UserError(f"cannot write in {args.out} ({error.strerror}): choose another --out") from error
        if len(skipped) == len(objects):
            raise UserError(f"none of the {len(objects)} objects could be rendered, e.g. {next(iter(skipped.items()))}")
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{printable(args.out)}: {len(objects) - len(skipped)} objects, {len(skipped)} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
