"""Density field -> triangle mesh -> GLB, OBJ, USDZ with a texture or colours at the vertices, PLY with the latter.

Inside, a mesh lies in the world of `cameras.py`: right-handed, z up, the front towards +x. On writing it is turned to
what readers expect: GLB, OBJ and USDZ y up and the front towards +z; PLY z up and the front towards -y, which is where
Blender puts the others.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import trimesh
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor
from trimesh.visual import ColorVisuals

from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path
from jointdreamer.formats.glb import write_glb
from jointdreamer.formats.obj import mtl_text, obj_text
from jointdreamer.formats.ply import mark_z_up
from jointdreamer.formats.surface import WORLD_TO_Y_UP, Y_UP_TO_Z_UP, png, srgb_to_linear
from jointdreamer.formats.usdz import write_usdz
from jointdreamer.scenes.mesh.texture import TexturedMesh, add_texture

if TYPE_CHECKING:
    from jointdreamer.scenes.base import Scene
    from jointdreamer.scenes.nerf.base import Field

FORMATS = (".glb", ".obj", ".ply", ".usdz")
TEXTURED_ONLY = (".usdz",)  # its readers show no colours at vertices


@torch.no_grad()
def density_grid(field: "Field", resolution: int = 128, chunk: int = 2**17) -> np.ndarray:
    """Density at resolution^3 points of the cube [-radius, radius]^3, both ends included: float32, indexed x, y, z.

    NaN and negative values count as empty, infinite ones as solid.
    """
    if resolution < 4:
        raise UserError(f"mesh resolution {resolution}: wanted 4 or more")
    device = _device(field)
    axis = torch.linspace(-field.radius, field.radius, resolution, device=device)
    sigma = torch.empty(resolution**3)
    for start in range(0, resolution**3, chunk):
        index = torch.arange(start, min(start + chunk, resolution**3), device=device)
        x = torch.stack(
            [axis[index // resolution**2], axis[index // resolution % resolution], axis[index % resolution]], 1
        )
        sigma[start : start + len(index)] = field.density(x).float().cpu()
    return sigma.nan_to_num(0.0, 1e6, 0.0).clamp(0, 1e6).reshape(3 * (resolution,)).numpy()


def opacities(sigma: np.ndarray, radius: float) -> np.ndarray:
    """(3, R, R): how opaque the density (R, R, R) is along the lines parallel to each axis."""
    spacing = 2 * radius / (sigma.shape[0] - 1)
    return np.stack([1 - np.exp(-sigma.sum(axis, dtype=np.float64) * spacing) for axis in range(3)])


def choose_threshold(sigma: np.ndarray, radius: float) -> float:
    """The density whose surface has the silhouettes that a camera sees: never an empty mesh if renders show something.

    Along each axis, the line integral of the density says which pixels are at least half opaque, and the largest
    density on the line says for each threshold which pixels the mesh covers. The threshold with the best agreement
    (intersection over union, all three views) wins; of a plateau of equals, its middle on a log scale. If nothing is
    half opaque, "half as opaque as the most opaque pixel" takes the place of one half.

    Raises: UserError if even a ray through the densest part would be less than 1% opaque.
    """
    opacity = opacities(sigma, radius)
    largest = np.stack([sigma.max(axis) for axis in range(3)])
    if opacity.max() < 0.01:
        raise UserError(
            f"the field is empty: its largest density is {sigma.max():.3g} and no view of it is more than "
            f"{100 * opacity.max():.2g}% opaque, so there is no surface to export; train longer, or raise the rates"
        )
    seen = opacity >= min(0.5, 0.5 * opacity.max())
    levels = np.geomspace(max(largest[seen].min() * 1e-2, 1e-6), largest.max(), 201)
    levels = np.sqrt(levels[1:] * levels[:-1])
    covered = largest[None] > levels[:, None, None, None]
    agreement = (covered & seen).sum((1, 2, 3)) / np.maximum(1, (covered | seen).sum((1, 2, 3)))
    best = np.flatnonzero(agreement >= agreement.max() - 1e-9)
    return float(math.exp(np.log(levels[best]).mean()))


def solid(sigma: np.ndarray, threshold: float, min_share: float = 0.05) -> np.ndarray:
    """The density without hollows and floaters: enclosed empty space is filled, and of the separate pieces only the
    largest stays and those of at least `min_share` of its volume. Same shape; nothing else changes.
    """
    inside = np.asarray(ndimage.binary_fill_holes(sigma > threshold), dtype=bool)
    pieces, count = ndimage.label(inside, structure=np.ones((3, 3, 3)))  # type: ignore[misc]  # returns a pair
    if count > 1:
        volume = np.bincount(pieces.ravel())
        volume[0] = 0
        inside = inside & (volume >= min_share * volume.max())[pieces]
    filled = np.where(inside & (sigma <= threshold), np.float32(np.inf), sigma)
    return np.where(~inside & (sigma > threshold), np.float32(0), filled)


def mesh_from_density(
    sigma: np.ndarray,  # (R, R, R)
    radius: float,
    threshold: float | None = None,
    min_share: float = 0.05,
    max_faces: int | None = 100_000,
) -> trimesh.Trimesh:
    """Marching cubes on a density grid over [-radius, radius]^3: a closed surface with outward normals, in the world.

    threshold: `choose_threshold` unless given. A given one that no density exceeds falls back to the chosen one.
    Marching cubes runs on sigma / (sigma + threshold), 1/2 on the surface: a density that jumps from 0 to 1000 between
    two grid points puts the surface in the middle, not next to the empty one.
    Raises: UserError if the field is empty (see choose_threshold) or max_faces is below 100.
    """
    if max_faces is not None and max_faces < 100:
        raise UserError(f"at most {max_faces} faces: wanted 100 or more, or null for no limit")
    chosen = choose_threshold(sigma, radius)
    if threshold is None or not 0 < threshold < 0.999 * sigma.max():
        threshold = chosen
    sigma = solid(sigma, threshold, min_share)
    with np.errstate(invalid="ignore"):
        level = np.where(np.isinf(sigma), np.float32(1), sigma / (sigma + np.float32(threshold)))
    level = np.pad(level, 1)  # closes what touches the border of the field
    extent = radius + 2 * radius / (sigma.shape[0] - 1)
    vertices, faces = _isosurface(level, extent)
    if max_faces is None or len(faces) <= max_faces:
        return _welded(vertices, faces)
    for share in (1, 0.95, 0.9):
        mesh = _simplified(vertices, faces, int(share * max_faces))
        if mesh.is_watertight and len(mesh.faces):
            return mesh
    # a coarser grid needs no simplification
    while len(faces) > max_faces:
        level = np.asarray(ndimage.zoom(level, 0.95 * math.sqrt(max_faces / len(faces)), order=1))
        vertices, faces = _isosurface(level, extent)
    return _welded(vertices, faces)


def _isosurface(level: np.ndarray, extent: float) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes at 1/2 on a grid over [-extent, extent]^3 with a border of 0: closed, all vertices apart."""
    # no grid point lies on the surface itself, where the vertices of all its edges would fall together
    level = np.where(np.abs(level - 0.5) < 1e-3, np.where(level > 0.5, 0.501, 0.499), level)
    # "ascent": triangles are wound so that their normals point to where the density falls, outwards. "lorensen": the
    # newer table of Lewiner leaves edges of four faces in noise
    vertices, faces, _, _ = marching_cubes(level, 0.5, gradient_direction="ascent", method="lorensen")
    return vertices * (2 * extent / (np.array(level.shape) - 1)) - extent, faces


def _simplified(vertices: np.ndarray, faces: np.ndarray, target: int) -> trimesh.Trimesh:
    """At most `target` triangles. Collapsing edges by their error alone may fold a thin place onto itself, and then the
    surface is not closed any more."""
    import fast_simplification

    points, triangles = fast_simplification.simplify(  # type: ignore[misc]  # a pair, unless collapses are asked for
        vertices.astype(np.float64), faces.astype(np.int32), target_count=target
    )
    return _welded(points, triangles)


def _welded(vertices: np.ndarray, faces: np.ndarray) -> trimesh.Trimesh:
    """Vertices in one place are one, as every reader will have it; what has no area then goes: faces with one corner
    twice, and pairs of faces with the same corners."""
    mesh = trimesh.Trimesh(vertices.astype(np.float32), faces, process=False)  # as files store them
    mesh.merge_vertices()
    corners = np.sort(mesh.faces, axis=1)
    _, which, count = np.unique(corners, axis=0, return_inverse=True, return_counts=True)
    flat = (corners[:, 0] == corners[:, 1]) | (corners[:, 1] == corners[:, 2])
    mesh.update_faces(~flat & (count[which.reshape(-1)] == 1))
    mesh.remove_unreferenced_vertices()
    return mesh


def seen_depth(field: "Field", resolution: int) -> float:
    """How far around a surface from a grid of resolution^3 points its colours are: four spacings."""
    return 4 * 2 * field.radius / (resolution - 1)


@torch.no_grad()
def vertex_colors(
    field: "Field", vertices: Tensor, normals: Tensor, depth: float, n_samples: int = 8, chunk: int = 2**15
) -> Tensor:
    """Albedo (M, 3) in [0, 1] that a camera straight above each vertex, or point of the surface, would see.

    vertices, normals: (M, 3), unit and outward. The field's colours are trained where its density is, a little inside
    the surface: n_samples along the normal, from depth / 4 above to 3 / 4 depth below, composited front to back.
    """
    device, step = _device(field), depth / n_samples
    inwards = (torch.arange(n_samples, device=device) + 0.5) * step - depth / 4
    colors = torch.empty(len(vertices), 3)
    for start in range(0, len(vertices), chunk):
        x = vertices[start : start + chunk, None].to(device)
        n = normals[start : start + chunk, None].to(device)
        x = (x - inwards[:, None] * n).clamp(-field.radius, field.radius)
        out = field(x.reshape(-1, 3), normals=False)
        optical = (out.sigma.float() * step).reshape(-1, n_samples)
        before = optical.cumsum(1) - optical
        weights = torch.exp(-before) * (1 - torch.exp(-optical)) + 1e-8  # the mean albedo where all is empty
        weights = weights / weights.sum(1, keepdim=True)
        seen = (weights[..., None] * out.albedo.float().reshape(-1, n_samples, 3)).sum(1)
        colors[start : start + len(seen)] = seen.nan_to_num(0.5).clamp(0, 1).cpu()
    return colors


def extract_mesh(
    field: "Field",
    resolution: int = 128,
    threshold: float | None = None,
    min_share: float = 0.05,
    max_faces: int | None = 100_000,
    chunk: int = 2**17,
) -> trimesh.Trimesh:
    """The field as a mesh in the world (z up, front +x) with an RGBA uint8 colour at each vertex.

    resolution: grid points along an edge of the cube. threshold, min_share, max_faces: see `mesh_from_density`.
    chunk: points a call of the field gets at most.
    Raises: UserError if the field is empty everywhere; a run that is otherwise complete may say so and go on.
    """
    mesh = mesh_from_density(density_grid(field, resolution, chunk), field.radius, threshold, min_share, max_faces)
    vertices = torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32)
    normals = torch.tensor(np.asarray(mesh.vertex_normals), dtype=torch.float32)
    colors = vertex_colors(field, vertices, normals, seen_depth(field, resolution), chunk=max(1, chunk // 8))
    rgba = np.concatenate([colors.numpy(), np.ones((len(vertices), 1))], 1)
    mesh.visual = ColorVisuals(mesh, vertex_colors=np.round(255 * rgba).astype(np.uint8))
    return mesh


def asset(scene: "Scene", resolution: int, texture: int) -> trimesh.Trimesh | TexturedMesh:
    """A scene's surface in the world, with a texture of that many pixels along a side; 0: colours at its vertices.

    Raises: UserError for an empty scene, one without a surface, or a size that cannot be.
    """
    surface = scene.mesh(resolution)
    return add_texture(surface, texture, scene.surface_colors(resolution)) if texture else surface


def write_mesh(path: str | Path, mesh: trimesh.Trimesh | TexturedMesh) -> list[Path]:
    """Write a mesh that lies in the world as .glb, .obj, .ply or .usdz; the files. `mesh` is not changed.

    A TexturedMesh keeps its texture: GLB and USDZ hold it, beside NAME.obj lie NAME.mtl and NAME.png. PLY has no custom
    for textures: it has the colours at the vertices, as all but USDZ have of a plain mesh. GLB stores vertex colours
    linear, as glTF 2.0 wants, in floats; OBJ and PLY store them as they are. The material is matt, and one-sided where
    the surface is closed. .glb, .obj, .usdz: y up, front +z. .ply: z up, front -y, and a comment that says so.
    `load_mesh` gives the same object back from each but USDZ; trimesh the vertex colours of a GLB with
    `trimesh.load(path, skip_materials=True)`. Each file is there whole or not at all, what is named by another first.
    Raises: UserError for another suffix, a USDZ without a texture, or a full disk.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(
            f"mesh file {path}: wanted a name that ends in {', '.join(FORMATS)}, got {suffix or 'no suffix'}"
        )
    if isinstance(mesh, TexturedMesh) and suffix != ".ply":
        files = _textured(path, mesh)
    elif suffix in TEXTURED_ONLY:
        raise UserError(f"mesh file {path}: {suffix} wants a texture, which this mesh does not have")
    else:
        files = {path: _plain(suffix, mesh.surface if isinstance(mesh, TexturedMesh) else mesh)}
    for file, data in files.items():
        with atomic_path(file) as temporary:
            temporary.write_bytes(data)
    return list(files)


def _plain(suffix: str, mesh: trimesh.Trimesh) -> bytes:
    """The content of a file with colours at the vertices."""
    mesh = mesh.copy()
    mesh.apply_transform(WORLD_TO_Y_UP)
    if suffix == ".glb":
        visual: Any = mesh.visual.to_color() if mesh.visual.kind == "texture" else mesh.visual  # type: ignore[union-attr]
        rgba = visual.vertex_colors
        colors = srgb_to_linear(np.asarray(rgba)[:, :3] / 255)
        attributes = {"POSITION": np.asarray(mesh.vertices), "NORMAL": _normals(mesh), "COLOR_0": colors}
        return _glb(attributes, mesh.faces, double_sided=not mesh.is_watertight)
    if suffix == ".ply":
        mesh.apply_transform(Y_UP_TO_Z_UP)
    data: Any = mesh.export(file_type=suffix[1:])
    return mark_z_up(data) if suffix == ".ply" else data.encode()  # an OBJ is text


def _textured(path: Path, mesh: TexturedMesh) -> dict[Path, bytes]:
    """The files of a mesh with a texture."""
    surface, picture = mesh.surface.copy(), png(mesh.pixels)
    surface.apply_transform(WORLD_TO_Y_UP)
    vertices, normals, faces = np.asarray(surface.vertices), _normals(surface), np.asarray(surface.faces)
    double_sided = not surface.is_watertight
    suffix = path.suffix.lower()
    if suffix == ".glb":
        uv = np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], 1)  # glTF counts v from the top
        attributes = {"POSITION": vertices[mesh.vertices], "NORMAL": normals[mesh.vertices], "TEXCOORD_0": uv}
        return {path: _glb(attributes, mesh.faces, picture=picture, double_sided=double_sided)}
    if suffix == ".usdz":
        return {path: write_usdz(vertices, normals, faces, mesh.uv, mesh.faces, picture, double_sided)}
    library, texture = path.with_suffix(".mtl"), path.with_suffix(".png")
    text = obj_text(vertices, normals, faces, mesh.uv, mesh.faces, library.name)
    return {texture: picture, library: mtl_text(texture.name).encode(), path: text.encode()}


def _normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """Vertex normals of length 1, also where all faces of a vertex are flat."""
    normals = np.nan_to_num(np.asarray(mesh.vertex_normals))
    return np.where(np.linalg.norm(normals, axis=1, keepdims=True) > 0.5, normals, (0.0, 1.0, 0.0))


def _glb(attributes: dict[str, np.ndarray], faces: np.ndarray, **more: Any) -> bytes:
    return write_glb({name: array.astype("<f4") for name, array in attributes.items()}, faces.astype("<u4"), **more)


def _device(field: "Field") -> torch.device:
    return next((parameter.device for parameter in field.parameters()), torch.device("cpu"))
