"""Views of objects on disk: pictures and their cameras, as a folder per object or packed into arrays.

The layout is that of Zero-1-to-3's `views_release`: a folder per object with 000.png ... 011.png (RGBA) and 000.npy ...
011.npy (3x4 world-to-camera). They are read when they are needed.
"""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path, write_text
from jointdreamer.images import read_picture
from jointdreamer.reading import BROKEN, MIB, Unreadable, entries, open_file, read_array, read_json

log = logging.getLogger(__name__)

ROTATION_TOLERANCE = 1e-3
CAPTIONS = "captions.json"


class Damaged(Exception):
    """An object whose files cannot be used; the message says why."""


class ViewSource(Protocol):
    """Objects, each seen from several cameras."""

    @property
    def name(self) -> str: ...

    @property
    def ids(self) -> Sequence[str]: ...

    def poses(self, index: int) -> np.ndarray:
        """c2w (V, 4, 4) float32, OpenGL axes, of object `index`. Raises Damaged."""
        ...

    def images(self, index: int, views: Sequence[int], size: int) -> np.ndarray:
        """RGBA (n, size, size, 4) uint8, straight colour. Raises Damaged."""
        ...


class ViewFolder:
    """The `views_release` layout, read as it is asked for.

    A view is a picture and a pose of one name; what is hidden (`._000.png` of a Mac) or has another suffix is no view.
    Views without their other half, or whose pose cannot be used, are left out of their object, with a warning.
    Raises UserError if there is no folder, or no object in it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.name = str(folder)
        if not self.folder.is_dir():
            raise UserError(
                f"data.folder={folder}: there is no such folder; wanted views as Zero-1-to-3's views_release has them "
                "(python -m jointdreamer.data.render_views makes them from meshes)"
            )
        self.ids = [entry.name for entry in entries(self.folder) if os.path.isdir(entry.path)]
        if not self.ids:
            raise UserError(
                f"data.folder={folder}: no object in it; wanted a folder per object with 000.png, 000.npy, 001.png, ..."
            )
        self._told: set[Path] = set()  # of the pictures that cannot be read
        self._views: dict[int, list[str]] = {}  # of the objects asked for: the names of the views that `poses` has

    def poses(self, index: int) -> np.ndarray:
        folder = self.folder / self.ids[index]
        found = [Path(entry.path) for entry in entries(folder)]
        pictures, cameras = ({file.stem for file in found if file.suffix == kind} for kind in (".png", ".npy"))
        if not pictures:
            raise Damaged("it has no images (*.png)")
        usable, why = {}, [f"{name} lacks its .png or its .npy" for name in sorted(pictures ^ cameras)]
        for name in sorted(pictures & cameras):
            try:
                usable[name] = _read_pose(folder / f"{name}.npy")
            except Damaged as error:
                why.append(str(error))
        if len(usable) < 2:
            raise Damaged(f"it has {'one view' if usable else 'no view'} only{f': {why[0]}' if why else ''}")
        if why and index not in self._views:
            log.warning("object %s of %s: %d views are left out: %s", self.ids[index], self.name, len(why), why[0])
        self._views[index] = list(usable)
        return facing_the_object(np.stack(list(usable.values())))

    def images(self, index: int, views: Sequence[int], size: int) -> np.ndarray:
        if index not in self._views:
            self.poses(index)
        folder, names = self.folder / self.ids[index], self._views[index]
        return np.stack([self._image(folder / f"{names[view]}.png", size) for view in views])

    def _image(self, file: Path, size: int) -> np.ndarray:
        try:
            return _resize(Image.fromarray(read_picture(file)), size)
        except Unreadable as error:
            if file not in self._told:
                self._told.add(file)
                log.warning("a view of %s is left out: %s", self.name, error)
            raise Damaged(f"{file.name}: {error.why}") from error


def _read_pose(file: Path) -> np.ndarray:
    try:
        world_to_camera = read_array(file, MIB)
    except Unreadable as error:
        raise Damaged(f"{file.name}: {error.why}") from error
    if world_to_camera.shape not in ((3, 4), (4, 4)):
        raise Damaged(f"{file.name} is of shape {world_to_camera.shape}, wanted (3, 4)")
    return camera_to_world(world_to_camera[:3].astype(np.float64), file.name)


def camera_to_world(world_to_camera: np.ndarray, name: str) -> np.ndarray:
    """A stored 3x4 [R | t] -> c2w (4, 4) float32 in OpenGL axes.

    The axes of the camera are told apart by the object at the origin, which stands before it: at negative z in
    Blender's (OpenGL's) axes, at positive z in those of computer vision. Raises Damaged unless R is a rotation.
    """
    rotation, translation = world_to_camera[:, :3], world_to_camera[:, 3]
    off = np.abs(rotation @ rotation.T - np.eye(3)).max() if np.isfinite(world_to_camera).all() else np.inf
    if not off < ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise Damaged(f"the pose in {name} is not a rotation (R R^T is {off:.2g} off the identity)")
    if translation[2] > 0:  # x right, y down, z forward
        flip = np.array([1.0, -1.0, -1.0])
        rotation, translation = flip[:, None] * rotation, flip * translation
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = rotation.T, -rotation.T @ translation
    return c2w.astype(np.float32)


def facing_the_object(c2w: np.ndarray) -> np.ndarray:
    """c2w (V, 4, 4) of one object, as it is. Raises Damaged if most cameras look past the origin, where the object is,
    and would look at it if the stored matrices were read the other way round, as camera-to-world."""

    def aside(matrices: np.ndarray) -> float:  # the sine between the optical axis and the direction of the object
        axis, position = matrices[:, :3, 2], matrices[:, :3, 3]
        distance = np.linalg.norm(position, axis=-1).clip(1e-12)
        return float(np.median(np.linalg.norm(np.cross(axis, position), axis=-1) / distance))

    if aside(c2w) > 0.5 and aside(np.linalg.inv(c2w)) < 0.25:
        raise Damaged("its poses are camera-to-world, wanted world-to-camera: store the inverse of each")
    return c2w


def world_to_camera(c2w: np.ndarray) -> np.ndarray:
    """c2w (4, 4) in OpenGL axes -> the stored 3x4 [R | t], float64, in the same axes, as the public renders have it."""
    rotation = np.asarray(c2w, dtype=np.float64)[:3, :3].T
    return np.concatenate([rotation, -rotation @ np.asarray(c2w, dtype=np.float64)[:3, 3:]], 1)


def _resize(rgba: Image.Image, size: int) -> np.ndarray:
    """With colours weighted by their opacity, so that none bleeds in from where nothing is."""
    if rgba.size != (size, size):
        rgba = rgba.convert("RGBa").resize((size, size), Image.Resampling.BOX).convert("RGBA")
    return np.asarray(rgba)


class PackedViews:
    """Views of one size in memory-mapped arrays, for small pictures: rgba.npy, c2w.npy, ids.json of `write_packed`."""

    def __init__(self, folder: str | Path):
        self.folder, self.name = Path(folder), str(folder)
        try:
            self.ids = read_json(self.folder / "ids.json", 256 * MIB)
            if not isinstance(self.ids, list) or not all(isinstance(name, str) and name for name in self.ids):
                raise ValueError("ids.json is no list of names")
            self.c2w = read_array(self.folder / "c2w.npy", 4096 * MIB)
            open_file(self.folder / "rgba.npy").close()
            self.rgba = np.load(self.folder / "rgba.npy", mmap_mode="r")
            n, views = self.c2w.shape[:2] if self.c2w.ndim == 4 else (0, 0)
            right = self.c2w.shape == (n, views, 4, 4) and self.c2w.dtype.kind == "f" and len(self.ids) == n > 0
            shape = (n, views, *self.rgba.shape[2:3] * 2, 4)
            if not right or self.rgba.dtype != np.uint8 or self.rgba.shape != shape or self.rgba.shape[2] < 1:
                raise ValueError("its files are of different lengths, or of another form")
            if not np.isfinite(self.c2w).all():
                raise ValueError("c2w.npy is not finite")
        except BROKEN as error:
            raise UserError(f"data.folder={folder}: cannot be read ({error}); remove it and make it again") from error

    def poses(self, index: int) -> np.ndarray:
        return self.c2w[index]

    def images(self, index: int, views: Sequence[int], size: int) -> np.ndarray:
        found = np.stack([self.rgba[index, view] for view in views])
        if found.shape[1] != size:
            found = np.stack([_resize(Image.fromarray(image), size) for image in found])
        return found


def write_packed(
    folder: str | Path,
    ids: Sequence[str],
    shape: tuple[int, int],  # V, R
    views: Iterable[tuple[np.ndarray, np.ndarray]],  # of each object: rgba (V, R, R, 4) uint8, c2w (V, 4, 4)
) -> None:
    """Write what `PackedViews` reads. `ids.json` comes last: without it the rest counts as nothing."""
    folder = Path(folder)
    n_views, size = shape
    c2w = np.empty((len(ids), n_views, 4, 4), np.float32)
    with atomic_path(folder / "rgba.npy") as temporary:
        whole = (len(ids), n_views, size, size, 4)
        rgba = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=whole)
        for index, (pixels, cameras) in enumerate(views):
            rgba[index], c2w[index] = pixels, cameras
        rgba.flush()
        del rgba
    with atomic_path(folder / "c2w.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, c2w)
    write_text(folder / "ids.json", json.dumps(list(ids)))


def open_views(folder: str | Path) -> ViewSource:
    """A folder of views of either kind.

    Raises UserError, one line, if it is missing, holds no images, or if none of its objects can be used.
    """
    source = PackedViews(folder) if os.path.lexists(Path(folder) / "ids.json") else ViewFolder(folder)
    why = ""
    for index, name in enumerate(source.ids):  # the first is good, as a rule
        try:
            first_images(source, index, range(len(source.poses(index))), 2, 8)
            return source
        except Damaged as error:
            why = why or f"{name}: {error}"
    raise UserError(
        f"data.folder={folder}: none of the {len(source.ids)} objects can be used ({why}); "
        "wanted 000.png, 000.npy (3x4 world-to-camera), ... in each"
    )


def first_images(
    source: ViewSource, index: int, views: Sequence[int], n: int, size: int
) -> tuple[list[int], np.ndarray]:
    """The first n of the `views` of an object whose images can be read, and those (n, size, size, 4).

    Raises Damaged if there are fewer.
    """
    found, images, why = [], [], ""
    for view in views:
        try:
            images.append(source.images(index, [view], size)[0])
        except Damaged as error:
            why = f": {error}"
            continue
        found.append(view)
        if len(found) == n:
            return found, np.stack(images)
    raise Damaged(f"it has {len(found)} views, wanted {n}{why}")


def read_captions(folder: str | Path, ids: Sequence[str]) -> dict[str, str]:
    """What the objects of a folder of views are called: `captions.json` in it, {id: caption}, of those that have one.

    Raises UserError, one line, if it is missing, cannot be read, or has none of the objects.
    """
    file = Path(folder) / CAPTIONS
    wanted = 'wanted {"<object>": "a caption", ...}'
    try:
        said = read_json(file, 256 * MIB)
    except Unreadable as error:
        raise UserError(f"{file}: no captions ({error.why}); {wanted}") from error
    said = said if isinstance(said, dict) else {}
    captions = {name: said[name] for name in ids if isinstance(said.get(name), str) and said[name].strip()}
    if not captions:
        raise UserError(f"{file}: no captions (none for {ids[0]}, nor for the others); {wanted}")
    if lacking := [name for name in ids if name not in captions]:
        log.warning("%s has no caption for %s: %d objects are left out", file, lacking[0], len(lacking))
    return captions
