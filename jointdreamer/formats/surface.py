"""Colours of surfaces: what glTF, OBJ and PLY store, as one thing: linear RGBA at the corners times a texture.

glTF 2.0 stores factors and vertex colours linear and textures in sRGB (section 3.9.2); all three are multiplied. OBJ
and PLY have no standard; their readers show the stored numbers as they are, so these count as sRGB, Kd included.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jointdreamer.images import decode_picture
from jointdreamer.reading import read_bytes

LARGEST_MESH = 2**33  # bytes; whoever asks for a mesh has a limit of their own
GREY = 0.7  # sRGB, of a surface without any colour
MAX_SIDE = 2048  # of a texture: a larger one is made smaller, since views are of 512 pixels or so
# world (front x, left y, up z) -> files (left x, up y, front z): a rotation, so triangles keep their winding
WORLD_TO_Y_UP = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
# files (left x, up y, front z) -> Blender (left x, up z, front -y), which is how it takes GLB and OBJ in
Y_UP_TO_Z_UP = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


class BadMesh(Exception):
    """A mesh that is not drawn; the message says why."""


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    srgb = np.asarray(srgb, dtype=np.float64)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, None)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


LINEAR = srgb_to_linear(np.arange(256) / 255).astype(np.float32)  # of an 8-bit sRGB value


def unit(stored: np.ndarray) -> np.ndarray:
    """Colours of OBJ and PLY -> [0, 1]: integers by the range of their type, floats as they are, or by 255 where they
    plainly count to 255."""
    stored = np.asarray(stored)
    finite = np.nan_to_num(stored.astype(np.float64), nan=0, posinf=0, neginf=0)
    if stored.dtype.kind == "f":
        white = 255.0 if finite.max(initial=0) > 1.5 else 1.0
    else:
        white = 65535.0 if stored.dtype == np.uint16 else 255.0
    return np.clip(finite / white, 0, 1)


@dataclass(frozen=True)
class Texture:
    """Pixels and how they go on outside of them."""

    pixels: np.ndarray  # (h, w, 3 or 4) uint8: sRGB, alpha as it is
    wrap: tuple[str, str] = ("repeat", "repeat")  # along u and v: repeat, clamp or mirror

    def sample(self, uv: np.ndarray) -> np.ndarray:
        """The nearest texel's linear RGBA, (n, 4) float32, at uv (n, 2); (0, 0) is the picture's upper left corner."""
        height, width = self.pixels.shape[:2]
        column, row = (
            _texel(along, size, wrap) for along, size, wrap in zip(uv.T, (width, height), self.wrap, strict=True)
        )
        found = self.pixels[row, column]
        rgba = np.ones((len(uv), 4), np.float32)
        rgba[:, :3] = LINEAR[found[:, :3]]
        if found.shape[1] == 4:
            rgba[:, 3] = found[:, 3] / np.float32(255)
        return rgba


def _texel(along: np.ndarray, size: int, wrap: str) -> np.ndarray:
    along = np.nan_to_num(along.astype(np.float64), nan=0, posinf=0, neginf=0)
    if wrap == "repeat":
        along = along % 1.0
    elif wrap == "mirror":
        along = 1 - np.abs(1 - along % 2.0)
    return np.floor(along * size).clip(0, size - 1).astype(np.int64)


def png(pixels: np.ndarray) -> bytes:
    """A picture (h, w, 3 or 4) uint8 as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def load_texture(data: bytes, opaque: bool) -> np.ndarray:
    """The pixels of a Texture, without alpha where `opaque`. Raises: Unreadable."""
    pixels = decode_picture(io.BytesIO(data), "texture")
    if max(pixels.shape) > MAX_SIDE:
        height, width = (max(1, round(side * MAX_SIDE / max(pixels.shape))) for side in pixels.shape[:2])
        # without alpha, or weighted by it, so that no colour bleeds in from where nothing is
        image = Image.fromarray(pixels).convert("RGB" if opaque else "RGBa")
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BOX).convert("RGBA"))
    return np.ascontiguousarray(pixels[..., :3]) if opaque else pixels


@dataclass
class Part:
    """F triangles of one material, one entry each corner, so that nothing need be shared between faces; y up."""

    corners: np.ndarray  # (F, 3, 3) float64
    color: np.ndarray  # (F, 3, 4) float32, linear RGBA: factor times vertex colour; multiplies the texture
    uv: np.ndarray | None = None  # (F, 3, 2) float32, v down; None where there is no texture
    texture: Texture | None = None
    cutoff: float = 0.0  # alpha below it is nothing, from it on is solid; 0: alpha is how much is covered


def face_colors(n_faces: int, srgb: np.ndarray | float = GREY) -> np.ndarray:
    """Corner colours (F, 3, 4), opaque and linear, of sRGB in [0, 1]: a scalar, (3,), (F, 1, 3) or (F, 3, 3)."""
    color = np.ones((n_faces, 3, 4), np.float32)
    color[..., :3] = srgb_to_linear(np.asarray(srgb))
    return color


def decode(data: bytes) -> str:
    """Text of OBJ and MTL: UTF-8, with or without its mark, UTF-16 with it, or else Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def companion(folder: Path, name: str) -> bytes:
    """The content of a file that a mesh file names: as it is written there, with other slashes, or beside it whatever
    folder it names; letters may differ in case, as on the systems that wrote them. Raises: Unreadable."""
    plain = name.strip().strip('"').replace("\\", "/")
    last = plain.rsplit("/", 1)[-1]
    for candidate in (name, plain, last):
        if candidate and os.path.isfile(folder / candidate.replace("\0", "")):
            return read_bytes(folder / candidate)
    beside = (file for file in sorted(folder.iterdir()) if file.name.casefold() == last.casefold())
    return read_bytes(next(beside, folder / last.replace("\0", "")))
