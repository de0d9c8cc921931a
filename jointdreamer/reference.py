"""A given picture as the reference view of an object: read, cut out, centred, and where its camera stands.

reference = read_reference("bear.png", camera=ImageCamera(elevation_deg=15))
reference.on(1.0, 64)          # (3, 64, 64) in front of white
reference.cameras(64)          # one rig of one camera
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import radians
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from jointdreamer.arguments import Range
from jointdreamer.cameras import Cameras, look_at
from jointdreamer.errors import UserError
from jointdreamer.images import read_picture
from jointdreamer.reading import ABSENT, Unreadable, read_bytes

log = logging.getLogger(__name__)

MOST_SIDE = 1024  # pixels that are kept of a picture
NEAR = 20 / 255  # how far a plain background's pixels may be from its colour, in each channel
PLAIN = 0.98  # share of the border that has the background's colour
LEAST, MOST = 0.002, 0.98  # share of the picture that an object covers


@dataclass(frozen=True)
class ImageCamera:
    """The camera that took the picture; it looks at the object's middle. Azimuth 0 sees the front."""

    elevation_deg: Annotated[float, Range(-90, 90)] = 5.0
    azimuth_deg: Annotated[float, Range(-360, 360)] = 0.0
    distance: Annotated[float, Range(0.1, 1000)] = 3.8
    fovy_deg: Annotated[float, Range(1, 179)] = 20.0


@dataclass(frozen=True)
class Reference:
    """A picture of the object alone, and its camera."""

    rgba: Tensor  # (4, R, R) in [0, 1], colours multiplied by the opacity
    camera: ImageCamera

    def at(self, resolution: int) -> Tensor:
        """(4, resolution, resolution), colours multiplied by the opacity."""
        size = (resolution, resolution)
        antialias = resolution < self.rgba.shape[-1]
        return interpolate(self.rgba[None], size, mode="bilinear", align_corners=False, antialias=antialias)[0]

    def on(self, ground: float, resolution: int | None = None) -> Tensor:
        """(3, R, R) in front of a grey from 0, black, to 1, white."""
        rgba = self.rgba if resolution is None else self.at(resolution)
        return rgba[:3] + ground * (1 - rgba[3:])

    def cameras(self, resolution: int) -> Cameras:
        """One rig of the one camera, its light beside it; on the CPU."""
        one = torch.ones(1, 1)
        elevation, azimuth = radians(self.camera.elevation_deg) * one, radians(self.camera.azimuth_deg) * one
        distance = self.camera.distance * one
        c2w = look_at(elevation, azimuth, distance)
        fovy = radians(self.camera.fovy_deg) * one
        return Cameras(c2w, fovy, elevation, azimuth, distance, c2w[..., :3, 3].clone(), resolution)


def read_reference(
    image: str | Path,
    mask: str | Path | None = None,
    camera: ImageCamera = ImageCamera(),
    fill: float | None = None,
) -> Reference:
    """The object in a picture (PNG, JPEG, WebP of any depth and colours).

    mask: a picture of the same size, white (or opaque) where the object is; without one the object is cut out by the
        picture's own transparency, or in front of a plain background, or by rembg where that is installed
    fill: the object is moved to the middle and its longer side fills this share of the picture; None leaves it where
        it is: the camera is known

    Raises UserError, one line, for a picture or a mask that cannot be read, a mask that covers nothing or everything,
    and for a picture without a mask.
    """
    rgba = _picture(image, "image").astype(np.float32) / 255
    opacity = _given_mask(mask, rgba.shape[:2]) if mask is not None else _own_mask(rgba, image)
    covered = float((opacity > 0.5).mean())
    what = f"mask={mask}" if mask is not None else f"image={image}: its mask"
    if not LEAST < covered < MOST:
        state = "empty" if covered <= LEAST else "full"
        raise UserError(
            f"{what} is {state}: it covers {covered:.1%} of the picture; wanted the object alone, white (or opaque) on "
            "black (or transparent), mask=FILE"
        )
    premultiplied = np.concatenate([rgba[..., :3] * opacity[..., None], opacity[..., None]], -1)
    found = _squared(torch.from_numpy(premultiplied).permute(2, 0, 1).contiguous(), fill)
    return Reference(found.clamp(0, 1), camera)


def content(image: str | Path, mask: str | Path | None = None) -> str:
    """16 hexadecimal digits of what is in the files: a run goes on with these pictures alone. Raises UserError."""
    found = hashlib.sha256()
    for file, key in ((image, "image"), (mask, "mask")):
        try:
            found.update(b"" if file is None else hashlib.sha256(read_bytes(file)).digest())
        except Unreadable as error:
            raise _unreadable(key, file, error) from error
    return found.hexdigest()[:16]


def warn_of_elevation(camera: ImageCamera, known: Sequence[float] | None) -> None:
    """Say so where a picture was taken from a height that the novel-view model was not taught."""
    if known is not None and not known[0] <= camera.elevation_deg <= known[1]:
        log.warning(
            "image_camera.elevation_deg=%g: the novel-view model knows pictures taken from %g to %g degrees",
            camera.elevation_deg,
            *known,
        )


def _unreadable(key: str, file: Any, error: Unreadable) -> UserError:
    if error.answer == ABSENT:
        more = ": several pictures are a sweep, add -m" if "," in str(file) else ""
        return UserError(f"{key}={file}: there is no such file{more}")
    return UserError(f"{key}={file}: {error.why}; wanted a PNG, JPEG or WebP of at most 67 million pixels")


def _picture(file: str | Path, key: str) -> np.ndarray:
    """(H, W, 4) uint8, straight colours, upright."""
    try:
        return read_picture(file)
    except Unreadable as error:
        raise _unreadable(key, file, error) from error


def _given_mask(mask: str | Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) in [0, 1]: the file's transparency if it has any, else its brightness."""
    rgba = _picture(mask, "mask").astype(np.float32) / 255
    if rgba.shape[:2] != size:
        there, here = (f"{width} x {height}" for height, width in (rgba.shape[:2], size))
        raise UserError(f"mask={mask}: it has {there} pixels, the image {here}: wanted the same size")
    return rgba[..., 3] if (rgba[..., 3] < 1).any() else rgba[..., :3].mean(-1)


def _own_mask(rgba: np.ndarray, image: str | Path) -> np.ndarray:
    """(H, W) in [0, 1] of a picture alone."""
    if (rgba[..., 3] < 1).any():
        return rgba[..., 3]
    if (found := in_front_of_plain(rgba[..., :3])) is not None:
        return found
    if (remove := _rembg()) is not None:
        return np.asarray(remove(np.round(rgba * 255).astype(np.uint8)))[..., 3].astype(np.float32) / 255
    raise UserError(
        f"image={image}: it has no transparency and no plain background, so what is the object? Give mask=FILE (white "
        "on black), a PNG with transparency, or pip install rembg"
    )


def _rembg() -> Callable[..., Any] | None:
    try:
        from rembg import remove  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return remove


def in_front_of_plain(rgb: np.ndarray) -> np.ndarray | None:
    """(H, W) 0 or 1: what a flood of the border's colour does not reach, of (H, W, 3) in [0, 1].

    None where the border has no one colour.
    """
    from scipy import ndimage

    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    color = np.median(border, 0)
    if (np.abs(border - color).max(-1) <= NEAR).mean() < PLAIN:
        return None
    regions, _ = ndimage.label(np.abs(rgb - color).max(-1) <= NEAR)  # pyright: ignore[reportGeneralTypeIssues]
    outer = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    return (~np.isin(regions, outer[outer > 0])).astype(np.float32)


def _squared(rgba: Tensor, fill: float | None) -> Tensor:
    """(4, H, W) -> (4, R, R): the middle of the picture, or around the object's box so that it fills that share."""
    height, width = rgba.shape[1:]
    side, middle = max(height, width), ((height - 1) / 2, (width - 1) / 2)
    if fill is not None:
        lines = [torch.nonzero((rgba[3] > 0.5).any(axis)).flatten() for axis in (1, 0)]
        (top, bottom), (left, right) = ((int(x[0]), int(x[-1])) for x in lines)
        side = max(1, round((max(bottom - top, right - left) + 1) / fill))
        middle = (top + bottom) / 2, (left + right) / 2
    up, aside = (round(x - (side - 1) / 2) for x in middle)
    if side <= MOST_SIDE:
        return pad(rgba, (-aside, aside + side - width, -up, up + side - height))  # a negative margin cuts
    inside = rgba[:, max(0, up) : up + side, max(0, aside) : aside + side]
    # made smaller before the margins are there: they grow with the square of the longer side
    corner = [round(max(0, -x) * MOST_SIDE / side) for x in (up, aside)]
    size = [max(1, round(length * MOST_SIDE / side)) for length in inside.shape[1:]]
    (top, low), (left, right) = ((x, MOST_SIDE - x - n) for x, n in zip(corner, size, strict=True))
    small = interpolate(inside[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return pad(small, (left, right, top, low))
