"""Texture maps: xatlas cuts a surface into charts and packs them into a square, and its albedo is baked there.

UV coordinates have v up and row 0 of a picture is v = 1, its top, as in OBJ and USD (glTF counts v downwards).
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import trimesh
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.scenes.mesh.raster import interpolate, rasterize

# world points and unit outward normals, both (N, 3) on the CPU -> albedo (N, 3) in [0, 1], sRGB, on any device
Colors = Callable[[Tensor, Tensor], Tensor]

SMALLEST, LARGEST = 16, 8192  # pixels along a side
PADDING = 4  # between charts, in units that xatlas chooses, about 0.6 texels: bilinear lookups need one
PIECE = 250  # faces: xatlas takes 23 s for 100,000 at once and 2 s in pieces, which cost 12% more charts
BAND = 2**19  # texels that are rasterised at a time
REACH = 64  # texels: how far out of a chart its colours are continued, at least


@dataclass(frozen=True)
class TexturedMesh:
    """A surface and its picture. At seams the map has several vertices for one of the surface's."""

    surface: trimesh.Trimesh  # in the world; its vertex colours, if it has any, are another picture of the same
    vertices: np.ndarray  # (M,) int64: of each vertex of the map, which of the surface's it is
    faces: np.ndarray  # (F, 3) int64: vertices of the map; vertices[faces] are surface.faces
    uv: np.ndarray  # (M, 2) float32 in [0, 1]
    pixels: np.ndarray  # (S, S, 3) uint8, sRGB


def add_texture(surface: trimesh.Trimesh, size: int, colors: Colors | None = None) -> TexturedMesh:
    """Unwrap a surface in the world and bake its albedo into a picture of size x size pixels.

    colors: asked at the surface's points under the centres of texels; None spreads its vertex colours over the faces.
    Deterministic on a CPU. Beyond the picture, memory is bounded: BAND texels are in work at a time.
    Raises: UserError for a size out of [16, 8192].
    """
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"a texture of {size} pixels: wanted from {SMALLEST} to {LARGEST}")
    vertices, faces, uv = unwrap(surface, size)
    return TexturedMesh(surface, vertices, faces, uv, bake(surface, vertices, faces, uv, size, colors))


def unwrap(surface: trimesh.Trimesh, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Charts that do not overlap: `vertices` (M,), `faces` (F, 3) and `uv` (M, 2) of a TexturedMesh."""
    import xatlas

    points, normals = (np.asarray(of, np.float32) for of in (surface.vertices, surface.vertex_normals))
    corners = np.asarray(surface.faces)
    atlas, packing = xatlas.Atlas(), xatlas.PackOptions()
    # never freed (6 MB for 20,000 faces): its destructor wakes its threads without their lock, and one that is about to
    # wait then is never woken, so that the destructor waits for ever, with the interpreter's lock
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(atlas))
    packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
    pieces = _pieces(points[corners].mean(1))
    used = [np.unique(corners[piece], return_inverse=True) for piece in pieces]
    for of_piece, index in used:
        atlas.add_mesh(points[of_piece], index.reshape(-1, 3).astype(np.uint32), normals[of_piece])
    atlas.generate(pack_options=packing)
    vertices, uvs, faces, count = [], [], np.empty_like(corners, np.int64), 0
    for number, piece in enumerate(pieces):
        of_piece, index, uv = atlas[number]
        vertices.append(used[number][0][of_piece])
        faces[piece] = index.astype(np.int64) + count
        uvs.append(uv)
        count += len(uv)
    uv = np.concatenate(uvs).astype(np.float32).clip(0, 1)
    return _with_slivers_placed(points, np.concatenate(vertices).astype(np.int64), faces, uv)


def _with_slivers_placed(
    points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """xatlas leaves faces without area at uv 0: give each the place of the nearest vertex that has one."""
    slivers = (uv[faces] == 0).all((1, 2))
    placed = np.unique(faces[~slivers])
    if not slivers.any() or not len(placed):
        return vertices, faces, uv
    corners = vertices[faces[slivers]]
    _, nearest = KDTree(points[vertices[placed]]).query(points[corners].mean(1))
    faces = faces.copy()
    faces[slivers] = len(vertices) + np.arange(corners.size).reshape(-1, 3)
    vertices = np.concatenate([vertices, corners.reshape(-1)])
    uv = np.concatenate([uv, np.repeat(uv[placed[nearest]], 3, axis=0)])
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used], index.reshape(-1, 3), uv[used]


def _pieces(centers: np.ndarray) -> list[np.ndarray]:
    """Faces with centres (F, 3) in pieces of at most PIECE, each halved across its longest side."""
    waiting, done = [np.arange(len(centers))], []
    while waiting:
        piece = waiting.pop()
        if len(piece) <= PIECE:
            done.append(piece)
            continue
        along = centers[piece, np.ptp(centers[piece], axis=0).argmax()]
        order = np.argsort(along, kind="stable")
        waiting += [np.sort(half) for half in np.array_split(piece[order], 2)]
    return done


@torch.no_grad()
def bake(
    surface: trimesh.Trimesh,
    vertices: np.ndarray,  # (M,)
    faces: np.ndarray,  # (F, 3)
    uv: np.ndarray,  # (M, 2)
    size: int,
    colors: Colors | None = None,
) -> np.ndarray:
    """The picture (S, S, 3) of a TexturedMesh: the UV triangles rasterised with w = 1, the surface's position and
    normal interpolated at the centre of each texel, and `colors` asked there; beyond the charts, the nearest texel."""
    attributes = [surface.vertices, surface.vertex_normals]
    if colors is None:
        rgba: Any = surface.visual.vertex_colors  # type: ignore[union-attr]
        attributes.append(np.asarray(rgba)[:, :3] / 255)
    of_vertex = torch.from_numpy(np.concatenate(attributes, 1)[vertices].astype(np.float32))

    def painted(attributes: Tensor) -> np.ndarray:
        points, normals, *rest = attributes.split(3, 1)
        albedo = rest[0] if colors is None else colors(points, torch.nn.functional.normalize(normals, dim=1))
        return np.round(255 * albedo.nan_to_num(0.5).clamp(0, 1).cpu().numpy()).astype(np.uint8)

    x, y = torch.from_numpy(2 * uv - 1).unbind(1)
    triangles = torch.from_numpy(faces)
    pixels, covered = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), bool)
    rows = max(1, BAND // size)
    for top in range(0, size, rows):
        height = min(rows, size - top)
        in_band = (y - (1 - (2 * top + height) / size)) * (size / height)  # -1 at its bottom, 1 at its top
        corners = in_band[triangles]
        here = triangles[(corners.amin(1) < 1) & (corners.amax(1) > -1)]
        if not len(here):
            continue
        clip = torch.stack([x, in_band, torch.zeros_like(x), torch.ones_like(x)], 1)[None]
        raster = rasterize(clip, here, (height, size))
        seen = raster.triangle[0] > 0
        covered[top : top + height] = seen.numpy()
        pixels[top : top + height][seen.numpy()] = painted(interpolate(of_vertex, raster, here)[0][seen])
    # the texels of vertices at the border of a chart, and all that a chart smaller than a texel has
    column, row = (np.clip(along * size, 0, size - 1).astype(np.int64) for along in (uv[:, 0], 1 - uv[:, 1]))
    texel, first = np.unique(row * size + column, return_index=True)
    first = first[~covered.reshape(-1)[texel]]
    pixels[row[first], column[first]] = painted(of_vertex[first])
    covered[row[first], column[first]] = True
    dilate(pixels, covered)
    return pixels


def dilate(pixels: np.ndarray, covered: np.ndarray) -> None:
    """Give every texel that is not covered the colour of the nearest one that is, in place, a band of rows at a time;
    where none is within REACH rows of the band, it stays."""
    size = len(pixels)
    rows = max(1, 2 * BAND // size)
    for top in range(0, size, rows):
        low, high = max(0, top - REACH), min(size, top + rows + REACH)
        if not covered[low:high].any():
            continue
        nearest: Any = ndimage.distance_transform_edt(~covered[low:high], return_distances=False, return_indices=True)
        row, column = nearest[:, top - low : top - low + rows]
        pixels[top : top + rows] = pixels[low:high][row, column]
