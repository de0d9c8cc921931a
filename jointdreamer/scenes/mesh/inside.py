"""A closed triangle mesh as a level function: which points are inside, and how far the surface is."""

import numpy as np
import trimesh
from scipy.spatial import KDTree

from jointdreamer.errors import UserError


def welded(corners: np.ndarray) -> trimesh.Trimesh:
    """The mesh of faces (F, 3, 3), corners in one place as one vertex.

    Raises UserError unless it is closed, and its faces are wound alike: then the winding number has a meaning.
    """
    mesh = trimesh.Trimesh(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3), process=False)
    mesh.merge_vertices(digits_vertex=6)
    faces = np.asarray(mesh.faces)
    mesh.update_faces((faces != np.roll(faces, 1, axis=1)).all(1))  # one without an area may close a gap: it stays
    face_areas(np.asarray(mesh.triangles))
    edges = np.asarray(mesh.edges)
    _, edge, count = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True, return_counts=True)
    if open_edges := int((count == 1).sum()):
        raise UserError(f"the mesh is open: {open_edges} of its edges belong to one face only; wanted a closed surface")
    if odd := int((count % 2 == 1).sum()):
        raise UserError(f"the mesh is no surface: {odd} of its edges belong to an odd number of faces")
    there_and_back = np.bincount(edge.reshape(-1), np.sign(edges[:, 1] - edges[:, 0]), minlength=1)
    if crossed := int((there_and_back != 0).sum()):
        raise UserError(
            f"the mesh has faces that are turned over: {crossed} of its edges run in one direction in both of their "
            "faces; wanted all counter-clockwise seen from outside (in Blender: Mesh, Normals, Recalculate Outside)"
        )
    return mesh


def face_areas(corners: np.ndarray) -> np.ndarray:
    """(F,) of faces (F, 3, 3). Raises UserError, one line, if none has an area."""
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    if not (area > 1e-12).any():
        raise UserError("the mesh is empty: none of its faces has an area")
    return area


def inside(corners: np.ndarray, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether the points of a regular lattice are inside closed surfaces: (X, Y, Z) bool.

    corners: (F, 3, 3) float64. axes: ascending, evenly spaced coordinates of the lattice, (X,), (Y,), (Z,).
    Inside is where the winding number is not 0, so that parts that overlap count as one. It is summed along z over the
    faces above each column, whose lines are moved by a little, past edges and corners.
    """
    steps = [axis[1] - axis[0] for axis in axes]
    x, y = axes[0] + 1.2e-5 * steps[0], axes[1] + 2.3e-5 * steps[1]
    low = [np.searchsorted(line, corners[:, :, k].min(1)) for k, line in enumerate((x, y))]
    high = [np.searchsorted(line, corners[:, :, k].max(1)) for k, line in enumerate((x, y))]
    width, height = high[0] - low[0], high[1] - low[1]
    face = np.repeat(np.arange(len(corners)), width * height)
    number = np.arange(len(face)) - np.repeat((width * height).cumsum() - width * height, width * height)
    i, j = low[0][face] + number // height[face], low[1][face] + number % height[face]
    px, py = x[i], y[j]
    a, b, c = corners[face].transpose(1, 0, 2)

    def area(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return (p[:, 0] - px) * (q[:, 1] - py) - (p[:, 1] - py) * (q[:, 0] - px)

    weights = np.stack([area(b, c), area(c, a), area(a, b)])
    hit = (weights > 0).all(0) | (weights < 0).all(0)
    i, j, weights = i[hit], j[hit], weights[:, hit]
    total = weights.sum(0)
    z = (weights * np.stack([a, b, c])[:, hit, 2]).sum(0) / total
    below = np.searchsorted(axes[2], z) - 1  # the highest point of the column under the face
    i, j, sign, below = (part[below >= 0] for part in (i, j, np.sign(total).astype(np.int32), below))
    winding = np.zeros([len(axis) for axis in axes], np.int32)
    np.add.at(winding, (i, j, below), sign)
    return winding[:, :, ::-1].cumsum(2)[:, :, ::-1] != 0


def samples(corners: np.ndarray, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly over the surface: numbers of faces (n,) and weights of their corners (n, 3).

    Raises UserError for a surface without an area.
    """
    rng = np.random.default_rng(seed)
    area = face_areas(corners)
    face = rng.choice(len(corners), n, p=area / area.sum())
    u, v = rng.random((2, n))
    root = np.sqrt(u)
    return face, np.stack([1 - root, root * (1 - v), root * v], 1)


def distance(points: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """(N,) from points (N, 3) to the nearest of the samples of a surface (M, 3)."""
    return KDTree(surface).query(points)[0]
