"""Meshes to pictures without Blender or a GPU: trimesh reads them, a z-buffer draws them.

Colours come from textures (nearest texel), from vertex or face colours, or from the material; light is fixed to the
world, with a weak headlight. No shadows, no transparency.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jointdreamer.compiled import cached_njit

MAX_FACES = 2_000_000
MAX_BYTES = 500_000_000
SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")


class BadMesh(Exception):
    """A mesh that is not drawn; the message says why."""


@dataclass(frozen=True)
class TriangleMesh:
    """F triangles, one entry each corner, so that nothing need be shared between faces."""

    corners: np.ndarray  # (F, 3, 3) float64, world units
    color: np.ndarray  # (F, 3, 3) float32, RGB in [0, 1] of each corner; multiplies the texture
    uv: np.ndarray  # (F, 3, 2) float32
    texture: np.ndarray  # (F,) int64 index into `textures`, -1 for none
    textures: tuple[np.ndarray, ...]  # (h, w, 3) float32 in [0, 1]


def load_mesh(path: Path, max_faces: int = MAX_FACES, max_bytes: int = MAX_BYTES) -> TriangleMesh:
    """Read a GLB, OBJ or what else trimesh reads: scene transforms applied, +y up turned to +z up, centred, the longest
    side of its box scaled to 1 (Zero-1-to-3's objects fill a unit cube).

    Raises BadMesh: it cannot be read, has no faces, more of them than max_faces or more bytes than max_bytes, vertices
    that are not finite, or no extent.
    """
    import trimesh

    if path.stat().st_size > max_bytes:
        raise BadMesh(f"it is huge: {path.stat().st_size / 1e6:.0f} MB, the limit is {max_bytes / 1e6:.0f}")
    try:
        scene: Any = trimesh.load(str(path), force="scene", process=False)
        parts = [part for part in scene.dump() if len(getattr(part, "faces", ()))]
    except Exception as error:  # a damaged file provokes anything
        raise BadMesh(f"it cannot be read ({' '.join(str(error).split())[:120] or type(error).__name__})") from error
    n_faces = sum(len(part.faces) for part in parts)
    if not n_faces:
        raise BadMesh("it is empty: no faces")
    if n_faces > max_faces:
        raise BadMesh(f"it is huge: {n_faces} faces, the limit is {max_faces}")
    corners, colors, uvs, which, textures = [], [], [], [], []
    for part in parts:
        faces = np.asarray(part.faces)
        try:
            corners.append(np.asarray(part.vertices, dtype=np.float64)[faces])
            color, uv, image = _looks(part, faces)
        except (IndexError, ValueError, AttributeError, TypeError) as error:
            raise BadMesh(f"it is broken ({' '.join(str(error).split())[:120]})") from error
        colors.append(color)
        uvs.append(uv)
        which.append(np.full(len(faces), -1 if image is None else len(textures)))
        textures += [] if image is None else [image]
    points = np.concatenate(corners)
    if not np.isfinite(points).all():
        raise BadMesh("it is broken: vertices that are not finite")
    low, high = points.min((0, 1)), points.max((0, 1))
    if not (high - low).max() > 1e-12:
        raise BadMesh("it is empty: no extent")
    points = (points - (low + high) / 2) / (high - low).max()
    points = np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)  # glTF and OBJ have y up
    return TriangleMesh(points, np.concatenate(colors), np.concatenate(uvs), np.concatenate(which), tuple(textures))


def _looks(part: Any, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Corner colours (F, 3, 3), texture coordinates (F, 3, 2) and the texture, if there is one."""
    color = np.full((len(faces), 3, 3), 0.7, np.float32)
    uv = np.zeros((len(faces), 3, 2), np.float32)
    visual = part.visual
    if visual.kind == "texture":
        material = visual.material
        factor = getattr(material, "baseColorFactor", None)
        factor = getattr(material, "diffuse", None) if factor is None else factor
        if factor is not None:
            factor = np.asarray(factor, dtype=np.float32)[:3]
            color[:] = factor / 255 if factor.max() > 1 else factor
        image = getattr(material, "baseColorTexture", None)
        image = getattr(material, "image", None) if image is None else image
        if image is not None and visual.uv is not None:
            uv = np.asarray(visual.uv, dtype=np.float32)[faces]
            if factor is None:
                color[:] = 1
            return color, uv, np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    elif visual.kind == "vertex":
        color = (np.asarray(visual.vertex_colors)[faces][..., :3] / 255).astype(np.float32)
    elif visual.kind == "face":
        color = np.repeat(np.asarray(visual.face_colors)[:, None, :3] / 255, 3, 1).astype(np.float32)
    return color, uv, None


def draw(
    mesh: TriangleMesh,
    c2w: np.ndarray,  # (4, 4) OpenGL
    fovy: float,  # radians
    resolution: int,
    supersample: int = 2,
) -> np.ndarray:
    """RGBA (R, R, 4) uint8, straight colour. Both sides of a face are seen; parts behind the camera are left out."""
    fine = resolution * supersample
    face, weight = rasterize(mesh.corners, c2w, fovy, fine)
    hit = face >= 0
    f, w = face[hit], weight[hit]  # (n,), (n, 3)
    rgb = (mesh.color[f] * w[..., None]).sum(1)
    uv, texture = (mesh.uv[f] * w[..., None]).sum(1), mesh.texture[f]
    for number, image in enumerate(mesh.textures):
        here = texture == number
        height, width = image.shape[:2]
        column = np.floor(uv[here, 0] % 1.0 * width).astype(np.int64).clip(0, width - 1)
        row = np.floor((1 - uv[here, 1] % 1.0) * height).astype(np.int64).clip(0, height - 1)
        rgb[here] *= image[row, column]
    a, b, c = mesh.corners[f].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True).clip(1e-20)
    point = (mesh.corners[f] * w[..., None]).sum(1)
    to_camera = c2w[:3, 3] - point
    to_camera /= np.linalg.norm(to_camera, axis=-1, keepdims=True)
    facing = (normal * to_camera).sum(-1)
    normal *= np.sign(facing)[:, None]  # of the side that is seen
    shade = 0.66 + 0.2 * normal[:, 2] + 0.18 * np.abs(facing)
    picture = np.zeros((fine, fine, 4), np.float32)
    picture[hit, :3], picture[hit, 3] = np.clip(rgb * shade[:, None], 0, 1), 1
    blocks = picture.reshape(resolution, supersample, resolution, supersample, 4).sum((1, 3))
    blocks[..., :3] /= blocks[..., 3:].clip(1)
    blocks[..., 3] /= supersample**2
    return np.round(blocks * 255).astype(np.uint8)


def rasterize(
    corners: np.ndarray, c2w: np.ndarray, fovy: float, resolution: int, near: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest face of each pixel's centre, (R, R) int64, -1 for none, and the weights of its corners, (R, R, 3),
    true in space (perspective-correct). corners (F, 3, 3); rays and image axes are those of `cameras.rays`."""
    rotation, position = np.asarray(c2w, dtype=np.float64)[:3, :3], np.asarray(c2w, dtype=np.float64)[:3, 3]
    in_camera = (corners - position) @ rotation
    face = np.full((resolution, resolution), -1, np.int64)
    weight = np.zeros((resolution, resolution, 3), np.float64)
    focal = 0.5 * resolution / math.tan(0.5 * fovy)
    _rasterize(np.ascontiguousarray(in_camera), focal, near, face, weight)
    return face, weight


@cached_njit()
def _rasterize(corners, focal, near, face, weight):
    size = face.shape[0]
    nearest = np.zeros((size, size))  # 1 / depth: linear in the image, and larger is nearer
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
                if near_here > nearest[row, column]:
                    nearest[row, column] = near_here
                    face[row, column] = f
                    weight[row, column, 0] = w0 * inverse[0] / near_here
                    weight[row, column, 1] = w1 * inverse[1] / near_here
                    weight[row, column, 2] = w2 * inverse[2] / near_here
