"""The A15 grid by its known properties; marching tetrahedra by all their cases and by solids with known volumes."""

import math
from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
import trimesh
from scipy.optimize import linprog

from jointdreamer.errors import UserError
from jointdreamer.scenes.mesh.tets import EDGES, MAX_OFFSET, TetGrid, marching_tets, stencil, tet_grid


def volumes(corners):
    a, b, c, d = np.asarray(corners).swapaxes(0, 1)
    return np.einsum("ij,ij->i", b - a, np.cross(c - a, d - a)) / 6


def test_a_cell_has_46_tetrahedra_of_two_volumes_that_fill_it():
    volume = volumes(stencil().astype(float))
    shapes = sorted(Fraction(v).limit_denominator(12) for v in volume)
    assert shapes == [Fraction(4, 3)] * 30 + [Fraction(3, 2)] * 16
    assert volume.sum() == pytest.approx(64)


def test_dihedral_angles_are_those_of_the_a15_lattice():
    angles = []
    for tet in stencil().astype(float):
        for i, j in combinations(range(4), 2):
            k, m = (x for x in range(4) if x not in (i, j))
            axis = (tet[j] - tet[i]) / np.linalg.norm(tet[j] - tet[i])
            u, v = (p - tet[i] - axis * (axis @ (p - tet[i])) for p in (tet[k], tet[m]))
            angles.append(np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))))
    assert min(angles) == pytest.approx(53.13, abs=0.01) and max(angles) == pytest.approx(78.46, abs=0.01)


@pytest.mark.parametrize("resolution", [8, 16])
def test_the_grid_fills_the_cube_without_gaps_and_its_hull_lies_outside(resolution):
    grid = tet_grid(resolution)
    vertices = grid.vertices.double().numpy()
    assert (volumes(vertices[grid.tets]) > 0).all()
    inner = np.abs(vertices).max(1) < 1 - 1e-6
    assert not grid.outer.numpy()[inner].any()
    # each face inside belongs to two tetrahedra, whose volumes reach past the cube's 8
    faces = np.sort(grid.tets.numpy()[:, list(combinations(range(4), 3))].reshape(-1, 3), 1)
    found, count = np.unique(faces, axis=0, return_counts=True)
    assert set(count) == {1, 2}
    assert np.array_equal(np.unique(found[count == 1]), np.flatnonzero(grid.outer.numpy()))
    assert volumes(vertices[grid.tets]).sum() > 8


def test_edges_are_numbered_once_and_each_tetrahedron_knows_its_six():
    grid = tet_grid(8)
    assert len(torch.unique(grid.edges, dim=0)) == len(grid.edges) and (grid.edges[:, 0] < grid.edges[:, 1]).all()
    for number, (a, b) in enumerate(EDGES):
        ends = grid.edges[grid.tet_edges[:, number]]
        assert torch.equal(ends, grid.tets[:, [a, b]].sort(1).values)
    length = (grid.vertices[grid.edges[:, 0]] - grid.vertices[grid.edges[:, 1]]).norm(dim=1) / grid.spacing
    whole = {2, math.sqrt(5), math.sqrt(6)}
    assert all(min(abs(x - w) for w in whole) < 1e-5 for x in length.tolist())


@pytest.mark.parametrize("resolution", [0, 4, 10, -8, 33])
def test_other_resolutions_are_refused_in_one_line(resolution):
    with pytest.raises(UserError, match="wanted a multiple of 4, 8 or more"):
        tet_grid(resolution)


def one_tet():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    index = torch.arange(4)[None]
    return vertices, TetGrid(
        vertices, index, torch.tensor(EDGES), torch.arange(6)[None], torch.zeros(4, dtype=torch.bool), 1.0
    )


@pytest.mark.parametrize("case", range(1, 15))
def test_each_case_cuts_off_its_positive_corners(case):
    """The cut's signed area vector is the flux through it: that of the tetrahedron's faces, cut at the same points."""
    vertices, grid = one_tet()
    positive = np.array([case >> k & 1 for k in range(4)], bool)
    level = torch.where(torch.tensor(positive), 0.3, -0.7).double()
    points, faces = marching_tets(level, vertices, grid)
    assert len(faces) == (1 if positive.sum() in (1, 3) else 2)
    corners = points[faces]
    a, b, c = corners.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    for one in normal:  # towards the positive corners, away from the others
        assert (one @ (vertices[torch.tensor(positive)].mean(0) - vertices[torch.tensor(~positive)].mean(0))) > 0
    # a plane: level is linear on a tetrahedron, so that all points lie in one
    plane = torch.linalg.solve(torch.cat([vertices, torch.ones(4, 1)], 1), level)
    assert (points @ plane[:3] + plane[3]).abs().max() < 1e-12
    assert (
        torch.nn.functional.normalize(normal, dim=1) @ torch.nn.functional.normalize(plane[:3], dim=0) > 0.999
    ).all()


def test_a_level_without_a_change_of_sign_has_no_surface():
    vertices, grid = one_tet()
    for value in (-1.0, 0.0, 1.0):
        points, faces = marching_tets(torch.full((4,), value), vertices, grid)
        assert points.shape == (0, 3) and faces.shape == (0, 3)


@pytest.mark.parametrize("shape", ["sphere", "torus", "two spheres"])
def test_solids_come_out_closed_with_their_volume_and_topology(shape):
    grid = tet_grid(40)
    x = grid.vertices
    if shape == "sphere":
        level, volume, euler = x.norm(dim=1) - 0.6, 4 / 3 * math.pi * 0.6**3, 2
    elif shape == "torus":
        level = ((x[:, :2].norm(dim=1) - 0.6).square() + x[:, 2].square()).sqrt() - 0.25
        volume, euler = 2 * math.pi**2 * 0.6 * 0.25**2, 0
    else:
        level = torch.minimum((x - 0.5).norm(dim=1), (x + 0.5).norm(dim=1)) - 0.45
        volume, euler = 8 / 3 * math.pi * 0.45**3, 4
    points, faces = marching_tets(level, x, grid)
    mesh = trimesh.Trimesh(points.numpy(), faces.numpy(), process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == euler
    assert mesh.volume == pytest.approx(volume, rel=0.03)  # positive: normals point outwards


def test_points_lie_where_the_level_is_zero_and_gradients_move_them():
    grid = tet_grid(16)
    level = (grid.vertices[:, 2].double() - 0.123).requires_grad_(True)
    points, _ = marching_tets(level, grid.vertices.double(), grid)
    assert (points[:, 2] - 0.123).abs().max() < 1e-7
    gradient = torch.autograd.grad(points[:, 2].sum(), level)[0]
    assert gradient.sum().item() == pytest.approx(-len(points), rel=1e-6)  # all levels up by h: all points down by h


def test_the_deformation_cannot_turn_a_tetrahedron_over():
    grid, generator = tet_grid(16), torch.Generator().manual_seed(0)
    vertices = grid.vertices.double()
    worst = {}
    for limit in (MAX_OFFSET, 0.5, 1.0):
        smallest = []
        for _ in range(20):
            offset = torch.randn(vertices.shape, generator=generator, dtype=torch.float64).sign()
            moved = (vertices + limit * grid.spacing * offset).numpy()
            smallest.append(volumes(moved[grid.tets]).min())
        worst[limit] = min(smallest)
    assert worst[MAX_OFFSET] > 0 > worst[0.5] > worst[1.0]


def test_the_largest_safe_offset_is_four_ninths():
    """Moves of at most m along each axis bring four points p into a plane iff, for some u,
    max p.u - min p.u <= 2 m |u|_1. The smallest such m is a linear program in each octant of u."""
    safe = []
    for tet in stencil().astype(float):
        for signs in product((1, -1), repeat=3):
            pairs = [[*(tet[i] - tet[j]), -1] for i, j in permutations(range(4), 2)]
            bounds = [(0, None) if sign > 0 else (None, 0) for sign in signs]
            found = linprog([0, 0, 0, 1], pairs, np.zeros(12), [[*signs, 0]], [1], [*bounds, (0, None)])
            safe.append(found.fun / 2)
    assert min(safe) == pytest.approx(4 / 9) and MAX_OFFSET < 4 / 9
