"""Meshes to pictures without Blender or a GPU: `jointdreamer.formats` reads them, a z-buffer draws them.

Colours are factor times texture (nearest texel) times vertex colour, in linear light; light is fixed to the world, with
a weak headlight. What is transparent is blended, nearest first. No shadows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jointdreamer.formats import gltf, obj, ply
from jointdreamer.formats.surface import BadMesh, Part, Texture, face_colors, linear_to_srgb
from jointdreamer.kernels import compiled_loop
from jointdreamer.reading import Unreadable

MAX_FACES = 2_000_000
MAX_BYTES = 500_000_000
MAX_LAYERS = 16  # of transparent surfaces that a pixel looks through
Reader = Callable[[Path, int, list[str]], list[Part]]


@dataclass(frozen=True)
class TriangleMesh:
    """F triangles, one entry each corner, so that nothing need be shared between faces."""

    corners: np.ndarray  # (F, 3, 3) float64, world units
    color: np.ndarray  # (F, 3, 3) or (F, 3, 4) float32, linear RGB and opacity of each corner; multiplies the texture
    uv: np.ndarray  # (F, 3, 2) float32, v down
    texture: np.ndarray  # (F,) int64 index into `textures`, -1 for none
    textures: tuple[Texture, ...]
    cutoff: np.ndarray | None = None  # (F,) opacity from which on a surface is there; 0: it is as opaque as it says
    notes: tuple[str, ...] = ()  # what the file holds and could not be read

    def color_at(self, face: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Linear RGB (N, 3) and opacity (N,) on these faces (N,), at these weights of their corners (N, 3)."""
        color = (self.color[face] * weight[..., None]).sum(1)
        alpha = color[:, 3].copy() if color.shape[1] == 4 else np.ones(len(face))
        uv, texture = (self.uv[face] * weight[..., None]).sum(1), self.texture[face]
        for number, image in enumerate(self.textures):
            here = texture == number
            if here.any():
                rgba = image.sample(uv[here])
                color[here, :3] *= rgba[:, :3]
                alpha[here] *= rgba[:, 3]
        return color[:, :3], alpha


def load_mesh(path: Path, max_faces: int = MAX_FACES, max_bytes: int = MAX_BYTES) -> TriangleMesh:
    """Read a GLB, OBJ, PLY, STL or OFF: scene transforms applied, +y up turned to +z up, centred, the longest side of
    its box scaled to 1 (Zero-1-to-3's objects fill a unit cube).

    What is not understood (a compressed part, a picture that is gone) is left out and named in `notes`.
    Raises BadMesh: it cannot be read, has no faces, more of them than max_faces or more bytes than max_bytes, no
    vertices that are finite, or no extent.
    """
    notes: list[str] = []
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise BadMesh(f"it is huge: {size / 1e6:.0f} MB, the limit is {max_bytes / 1e6:.0f}")
        with np.errstate(all="ignore"):
            parts = [part for part in READERS[path.suffix.lower()](path, max_faces, notes) if len(part.corners)]
    except OSError as error:
        raise BadMesh(f"it cannot be read ({error.strerror or type(error).__name__})") from error
    except Unreadable as error:
        raise BadMesh(f"it is {error.why}") from error
    n_faces = sum(len(part.corners) for part in parts)
    if not n_faces:
        raise BadMesh("; ".join(["it is empty: no faces", *notes]))
    if n_faces > max_faces:
        raise BadMesh(f"it is huge: {n_faces} faces, the limit is {max_faces}")
    textures: dict[int, tuple[int, Texture]] = {}  # parts share them
    which = []
    for part in parts:
        number = -1
        if part.texture is not None:
            number, _ = textures.setdefault(id(part.texture.pixels), (len(textures), part.texture))
            if textures[id(part.texture.pixels)][1].wrap != part.texture.wrap:
                number, _ = textures.setdefault(id(part.texture), (len(textures), part.texture))
        which.append(np.full(len(part.corners), number))
    points = np.concatenate([part.corners for part in parts])
    none = [np.zeros((len(part.corners), 3, 2), np.float32) if part.uv is None else part.uv for part in parts]
    color, uv, texture = np.concatenate([part.color for part in parts]), np.concatenate(none), np.concatenate(which)
    cutoff = np.concatenate([np.full(len(part.corners), part.cutoff, np.float32) for part in parts])
    finite = np.isfinite(points).all((1, 2))
    if not finite.all():
        if not finite.any():
            raise BadMesh("it is broken: vertices that are not finite")
        notes.append(f"{(~finite).sum()} of {n_faces} faces are left out: their vertices are not finite")
        points, color, uv, texture, cutoff = (of[finite] for of in (points, color, uv, texture, cutoff))
    if not color[..., 3].any():
        raise BadMesh("it is empty: all of it is transparent")
    low, high = points.min((0, 1)), points.max((0, 1))
    with np.errstate(over="ignore"):
        longest = (high - low).max()
    if not 1e-12 < longest < np.inf:
        raise BadMesh("it is empty: no extent" if longest <= 1e-12 else "it is broken: no finite extent")
    points = (points - (low + high) / 2) / longest
    points = np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)  # glTF and OBJ have y up
    textures_ = tuple(found for _, found in textures.values())
    return TriangleMesh(points, color, uv, texture, textures_, cutoff, tuple(notes))


def _with_trimesh(path: Path, max_faces: int, notes: list[str]) -> list[Part]:
    """STL and OFF: one surface, colours at vertices or faces, if any."""
    import trimesh

    try:
        mesh: Any = trimesh.load(str(path), force="mesh", process=False)
        faces = np.asarray(mesh.faces)
        corners = np.asarray(mesh.vertices, dtype=np.float64)[faces]
        color = face_colors(len(faces))
        if mesh.visual.kind == "vertex":
            color = face_colors(len(faces), np.asarray(mesh.visual.vertex_colors)[faces][..., :3] / 255)
        elif mesh.visual.kind == "face":
            color = face_colors(len(faces), np.asarray(mesh.visual.face_colors)[:, None, :3] / 255)
    except OSError:
        raise
    except Exception as error:  # a damaged file provokes anything
        raise BadMesh(f"it cannot be read ({' '.join(str(error).split())[:120] or type(error).__name__})") from error
    return [Part(corners, color)]


READERS: dict[str, Reader] = {".glb": gltf.read, ".gltf": gltf.read, ".obj": obj.read, ".ply": ply.read}
READERS |= {".stl": _with_trimesh, ".off": _with_trimesh}
SUFFIXES = tuple(READERS)


def draw(
    mesh: TriangleMesh,
    c2w: np.ndarray,  # (4, 4) OpenGL
    fovy: float,  # radians
    resolution: int,
    supersample: int = 2,
) -> np.ndarray:
    """RGBA (R, R, 4) uint8, straight colour. Both sides of a face are seen; parts behind the camera are left out."""
    fine = resolution * supersample
    rgb, opacity = np.zeros((fine, fine, 3), np.float32), np.zeros((fine, fine), np.float32)  # rgb times opacity
    nearest = np.full((fine, fine), np.inf)  # 1 / depth in front of which all is drawn
    for _ in range(MAX_LAYERS):
        face, weight, nearest = peel(mesh.corners, c2w, fovy, nearest)
        hit = face >= 0
        shown, alpha = _shade(mesh, face[hit], weight[hit], c2w)
        through = (1 - opacity[hit]) * alpha
        rgb[hit] += through[:, None] * shown
        opacity[hit] += through
        nearest[~hit | (opacity > 0.999)] = 0  # nothing lies behind these
        if not nearest.any():
            break
    picture = np.concatenate([rgb, opacity[..., None]], -1)
    blocks = picture.reshape(resolution, supersample, resolution, supersample, 4).sum((1, 3))
    blocks[..., :3] /= blocks[..., 3:].clip(1e-6)
    blocks[..., 3] /= supersample**2
    return np.round(blocks.clip(0, 1) * 255).astype(np.uint8)


def _shade(mesh: TriangleMesh, f: np.ndarray, w: np.ndarray, c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sRGB in the light (n, 3) and opacity (n,) at the places w (n, 3) of the faces f (n,)."""
    color, alpha = mesh.color_at(f, w)
    if mesh.cutoff is not None:
        cutoff = mesh.cutoff[f]
        alpha = np.where(cutoff > 0, alpha >= cutoff, alpha)
    a, b, c = mesh.corners[f].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True).clip(1e-20)
    point = (mesh.corners[f] * w[..., None]).sum(1)
    to_camera = c2w[:3, 3] - point
    to_camera /= np.linalg.norm(to_camera, axis=-1, keepdims=True)
    facing = (normal * to_camera).sum(-1)
    normal *= np.sign(facing)[:, None]  # of the side that is seen
    shade = 0.66 + 0.2 * normal[:, 2] + 0.18 * np.abs(facing)
    return np.clip(linear_to_srgb(color[:, :3]) * shade[:, None], 0, 1), alpha


def peel(
    corners: np.ndarray, c2w: np.ndarray, fovy: float, behind: np.ndarray, near: float = 1e-3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest face of each pixel's centre that is farther than `behind`, (R, R) 1 / depth (infinite for all faces).

    Its number, (R, R) int64, -1 for none; the weights of its corners, (R, R, 3), true in space (perspective-correct);
    and its own 1 / depth, (R, R). Rays and image axes are those of `cameras.rays`.
    """
    resolution = len(behind)
    rotation, position = np.asarray(c2w, dtype=np.float64)[:3, :3], np.asarray(c2w, dtype=np.float64)[:3, 3]
    in_camera = (corners - position) @ rotation
    face = np.full((resolution, resolution), -1, np.int64)
    weight = np.zeros((resolution, resolution, 3), np.float64)
    focal = 0.5 * resolution / math.tan(0.5 * fovy)
    nearest = np.zeros((resolution, resolution))
    _rasterize(np.ascontiguousarray(in_camera), focal, near, behind * (1 - 1e-9), face, weight, nearest)
    return face, weight, nearest


@compiled_loop
def _rasterize(corners, focal, near, limit, face, weight, nearest):
    size = face.shape[0]  # nearest: 1 / depth is linear in the image, and larger is nearer
    x, y, inverse = np.empty(3), np.empty(3), np.empty(3)
    for f in range(len(corners)):
        behind = False
        for k in range(3):
            depth = -corners[f, k, 2]
            if depth < near:
                behind = True
                break
            inverse[k] = 1.0 / depth
            x[k] = 0.5 * size + focal * corners[f, k, 0] * inverse[k]
            y[k] = 0.5 * size - focal * corners[f, k, 1] * inverse[k]
        if behind:
            continue
        area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
        if abs(area) < 1e-12:
            continue
        left = max(0, int(math.ceil(min(x[0], x[1], x[2]) - 0.5)))
        right = min(size - 1, int(math.floor(max(x[0], x[1], x[2]) - 0.5)))
        top = max(0, int(math.ceil(min(y[0], y[1], y[2]) - 0.5)))
        bottom = min(size - 1, int(math.floor(max(y[0], y[1], y[2]) - 0.5)))
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                px, py = column + 0.5, row + 0.5
                w0 = ((x[1] - px) * (y[2] - py) - (x[2] - px) * (y[1] - py)) / area
                w1 = ((x[2] - px) * (y[0] - py) - (x[0] - px) * (y[2] - py)) / area
                w2 = 1.0 - w0 - w1
                if w0 < 0.0 or w1 < 0.0 or w2 < 0.0:
                    continue
                near_here = w0 * inverse[0] + w1 * inverse[1] + w2 * inverse[2]
                if nearest[row, column] < near_here < limit[row, column]:
                    nearest[row, column] = near_here
                    face[row, column] = f
                    weight[row, column, 0] = w0 * inverse[0] / near_here
                    weight[row, column, 1] = w1 * inverse[1] / near_here
                    weight[row, column, 2] = w2 * inverse[2] / near_here
