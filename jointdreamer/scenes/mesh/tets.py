"""A tetrahedral grid, and the surface of a level function on it: deep marching tetrahedra (DMTet, Shen et al. 2021).

The grid is the A15 lattice (Weaire-Phelan): dihedral angles from 53 to 79 degrees, where a cube cut in six has 45 to
90. Its 46 tetrahedra per cell are found here by a Delaunay triangulation, which is unique for it; no file is shipped.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError

CELL = 4  # units of the lattice
GRID_BYTES = 550  # that making a grid takes, times resolution^3; measured at 64, 128 and 192
ATOMS = ((0, 0, 0), (2, 2, 2), (1, 2, 0), (3, 2, 0), (0, 1, 2), (0, 3, 2), (2, 0, 1), (2, 0, 3))  # of a cell
MARGIN = 2  # units: the grid's hull is ragged by less
MAX_OFFSET = 0.44  # units along each axis: moves of 4/9 and more may turn a tetrahedron over
EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # of a tetrahedron


@dataclass(frozen=True)
class TetGrid:
    """N vertices, T tetrahedra, E edges. Indices are int64; edges are sorted, and each has its smaller vertex first."""

    vertices: Tensor  # (N, 3): the cube [-1, 1]^3 and a margin around it
    tets: Tensor  # (T, 4), det(v1 - v0, v2 - v0, v3 - v0) > 0
    edges: Tensor  # (E, 2)
    tet_edges: Tensor  # (T, 6): rows of `edges`, in the order of EDGES
    outer: Tensor  # (N,) bool: on the hull, outside of the cube
    spacing: float  # a unit of the lattice: the vertices' coordinates are whole multiples; edges are 2 to sqrt(6) long

    def to(self, device: torch.device | str) -> "TetGrid":
        tensors = [getattr(self, f.name).to(device) for f in fields(self) if f.name != "spacing"]
        return TetGrid(*tensors, spacing=self.spacing)


def tet_grid(resolution: int) -> TetGrid:
    """The grid with `resolution` units of the lattice along a side of its hull.

    Raises: UserError unless resolution is a multiple of 4, and at least 8.
    """
    if resolution < 2 * CELL or resolution % CELL:
        nearest = max(2 * CELL, CELL * round(resolution / CELL))
        raise UserError(f"a tetrahedral grid of resolution {resolution}: wanted a multiple of 4, 8 or more: {nearest}")
    cells = np.arange(-1, resolution // CELL + 1)
    offsets = CELL * np.stack(np.meshgrid(cells, cells, cells, indexing="ij"), -1).reshape(-1, 1, 1, 3)
    corners = (offsets + stencil()).reshape(-1, 4, 3)  # (T, 4, 3) in units
    corners = corners[((corners >= 0) & (corners <= resolution)).all((1, 2))]
    side = resolution + 1
    keys = (corners[..., 0] * side + corners[..., 1]) * side + corners[..., 2]
    found, tets = np.unique(keys, return_inverse=True)
    tets = tets.reshape(-1, 4)
    units = np.stack([found // side**2, found // side % side, found % side], 1)

    pairs = np.sort(tets[:, EDGES], -1)
    edge_keys, tet_edges = np.unique(pairs[..., 0] * len(found) + pairs[..., 1], return_inverse=True)
    edges = np.stack([edge_keys // len(found), edge_keys % len(found)], 1)

    half = resolution / 2 - MARGIN
    return TetGrid(
        vertices=torch.from_numpy(((units - resolution / 2) / half).astype(np.float32)),
        tets=torch.from_numpy(tets),
        edges=torch.from_numpy(edges),
        tet_edges=torch.from_numpy(tet_edges.reshape(-1, 6)),
        outer=torch.from_numpy(_on_hull(tets, len(found))),
        spacing=1 / half,
    )


@cache
def stencil() -> np.ndarray:
    """The 46 tetrahedra of a cell, (46, 4, 3) in units, positively oriented, in a fixed order."""
    from scipy.spatial import Delaunay

    cells = np.stack(np.meshgrid(*3 * [np.arange(5)], indexing="ij"), -1).reshape(-1, 1, 3)
    points = (CELL * cells + np.array(ATOMS)).reshape(-1, 3)
    corners = points[Delaunay(points).simplices]
    centroid = corners.sum(1)  # four times it: whole numbers
    inside = ((centroid >= 4 * 2 * CELL) & (centroid < 4 * 3 * CELL)).all(1)
    corners = corners[inside] - 2 * CELL
    corners = np.array([sorted(map(tuple, tet)) for tet in corners])
    corners = corners[np.lexsort(corners.reshape(len(corners), -1).T[::-1])]
    mirrored = np.linalg.det(corners[:, 1:] - corners[:, :1]) < 0
    corners[mirrored] = corners[mirrored][:, [0, 1, 3, 2]]
    return corners


def _on_hull(tets: np.ndarray, n_vertices: int) -> np.ndarray:
    """(N,) bool: vertices of the faces that belong to one tetrahedron only."""
    faces = np.sort(tets[:, [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]].reshape(-1, 3), 1)
    order = np.lexsort(faces.T[::-1])
    same = (faces[order][1:] == faces[order][:-1]).all(1)
    twice = np.zeros(len(faces), bool)
    twice[order[1:][same]] = twice[order[:-1][same]] = True
    outer = np.zeros(n_vertices, bool)
    outer[faces[~twice]] = True
    return outer


def marching_tets(
    level: Tensor,  # (N,) positive outside
    vertices: Tensor,  # (N, 3)
    grid: TetGrid,
) -> tuple[Tensor, Tensor]:
    """The surface level = 0, linear on each edge: points (P, 3) and faces (F, 3) int64, normals pointing outside.

    Closed where no tetrahedron of the hull is crossed. Gradients flow to level and vertices. A level of exactly 0 is
    inside. The points are in the order of the edges that they lie on; faces of tetrahedra with one triangle come first.
    Both are empty where all levels have one sign.
    """
    positive = level > 0
    first, second = grid.edges.unbind(1)
    crossed = positive[first] != positive[second]
    number = crossed.cumsum(0) - 1  # of the point on each crossed edge
    a, b = grid.edges[crossed].unbind(1)
    share = level[a] / (level[a] - level[b])  # from a to b
    points = vertices[a] + share[:, None] * (vertices[b] - vertices[a])

    case = (positive[grid.tets].long() * torch.tensor([1, 2, 4, 8], device=level.device)).sum(1)
    table, count = (part.to(level.device) for part in triangle_table())
    faces = []
    for n_triangles in (1, 2):
        rows = torch.nonzero(count[case] == n_triangles).flatten()
        corners = table[case[rows], :n_triangles].flatten(1)  # (n, 3 n_triangles) edges of the tetrahedron
        faces.append(number[grid.tet_edges[rows].gather(1, corners)].reshape(-1, 3))
    return points, torch.cat(faces)


@cache
def triangle_table() -> tuple[Tensor, Tensor]:
    """The triangles of each of the 16 cases: (16, 2, 3) edges of a tetrahedron, rows of EDGES, and how many, (16,).

    Bit k of the case says that corner k is positive. Derived on one positively oriented tetrahedron: the crossed edges'
    midpoints, triangles wound so that their normals point from the negative corners to the positive ones. A quad is cut
    from edge 02 to 13, or, where it has not got these, from 03 to 12.
    """
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    middle = np.array([corners[list(edge)].mean(0) for edge in EDGES])
    table, count = torch.zeros(16, 2, 3, dtype=torch.int64), torch.zeros(16, dtype=torch.int64)
    for case in range(1, 15):
        positive = np.array([case >> k & 1 for k in range(4)], bool)
        crossed = [k for k, (a, b) in enumerate(EDGES) if positive[a] != positive[b]]
        if len(crossed) == 3:
            triangles = [crossed]
        else:
            ends = (1, 4) if 1 in crossed and 4 in crossed else (2, 3)
            triangles = [[*ends, k] for k in crossed if k not in ends]
        outwards = corners[positive].mean(0) - corners[~positive].mean(0)
        for row, (a, b, c) in enumerate(triangles):
            normal = np.cross(middle[b] - middle[a], middle[c] - middle[a])
            table[case, row] = torch.tensor([a, b, c] if normal @ outwards > 0 else [a, c, b])
        count[case] = len(triangles)
    return table, count
