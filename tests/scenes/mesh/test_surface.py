"""Normals and smoothness of meshes whose answers are known, and the object among hollows and floaters."""

import math

import numpy as np
import pytest
import torch
import trimesh

from jointdreamer.scenes.mesh.surface import (
    face_consistency,
    laplacian,
    main_pieces,
    normal_consistency,
    smoothed,
    unique_edges,
    vertex_normals,
)
from jointdreamer.scenes.mesh.tets import marching_tets, tet_grid


def mesh_of(shape: trimesh.Trimesh):
    return torch.from_numpy(np.array(shape.vertices)), torch.from_numpy(np.array(shape.faces))


def trimesh_of(vertices, faces):
    return trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)


SPHERE = mesh_of(trimesh.creation.icosphere(4))
CUBE = mesh_of(trimesh.creation.box())


def test_normals_of_a_sphere_are_its_points():
    assert (vertex_normals(*SPHERE) - SPHERE[0]).norm(dim=1).max() < 0.01


def test_normals_are_weighted_by_area_and_flat_vertices_have_a_default():
    vertices = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 1], [9, 9, 9]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 0, 1]])  # areas 2 and 1, and none
    expected = torch.tensor([1.0, 0, 2]) / math.sqrt(5)  # 2 z and 1 x
    assert torch.allclose(vertex_normals(vertices, faces)[0], expected)
    assert torch.equal(vertex_normals(vertices, faces)[4], torch.tensor([0.0, 0, 1]))


def test_edges_of_a_closed_mesh():
    edges, rows = unique_edges(CUBE[1])
    assert len(edges) == 18 and torch.equal(torch.bincount(rows.flatten()), torch.full((18,), 2))
    for k in range(3):
        ends = torch.stack([CUBE[1][:, k], CUBE[1][:, (k + 1) % 3]], 1).sort(1).values
        assert torch.equal(edges[rows[:, k]], ends)


def test_face_consistency_of_a_cube_counts_its_right_angles():
    assert face_consistency(*CUBE).item() == pytest.approx(12 / 18)  # twelve edges of 90 degrees, six diagonals of 0


def test_normal_consistency_equals_a_loop_over_edges():
    vertices, faces = CUBE
    normal = vertex_normals(vertices, faces)
    pairs = {tuple(sorted((int(f[k]), int(f[(k + 1) % 3])))) for f in faces for k in range(3)}
    expected = sum(1 - float(normal[a] @ normal[b]) for a, b in pairs) / len(pairs)
    assert normal_consistency(vertices, faces).item() == pytest.approx(expected)
    assert normal_consistency(*SPHERE).item() < 0.02


def test_laplacian_equals_a_loop_over_vertices():
    vertices, faces = CUBE
    neighbours = {v: set() for v in range(len(vertices))}
    for a, b, c in faces.tolist():
        neighbours[a] |= {b, c}
        neighbours[b] |= {a, c}
        neighbours[c] |= {a, b}
    expected = [len(near) * vertices[v] - sum(vertices[n] for n in near) for v, near in neighbours.items()]
    assert laplacian(vertices, faces).item() == pytest.approx(float(torch.stack(expected).norm(dim=1).mean()), rel=1e-6)


def test_a_laplacian_of_zero_has_a_gradient():
    flat = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 0]], requires_grad=True)
    gradient = torch.autograd.grad(laplacian(flat, torch.tensor([[0, 1, 2]])), flat)[0]
    assert torch.equal(gradient, torch.zeros(3, 3))


@pytest.mark.parametrize("loss", [normal_consistency, face_consistency, laplacian])
def test_smoothness_has_the_gradient_of_its_formula(loss):
    generator = torch.Generator().manual_seed(0)
    points, faces = mesh_of(trimesh.creation.icosphere(1))
    points = points + 0.1 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    if loss is laplacian:  # fp32 inside
        one = torch.autograd.grad(loss(p := points.clone().requires_grad_(True), faces), p)[0]
        step = 1e-3 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
        assert (loss(points + step, faces) - loss(points - step, faces)).item() == pytest.approx(
            2 * float((one * step).sum()), rel=0.02
        )
    else:
        assert torch.autograd.gradcheck(lambda p: loss(p, faces), points.requires_grad_(True))


def test_hollows_and_floaters_go_and_the_object_stays():
    grid = tet_grid(40)
    x = grid.vertices
    ball = x.norm(dim=1) - 0.6
    level = torch.maximum(ball, 0.3 - x.norm(dim=1))  # hollow
    level = torch.minimum(level, (x - torch.tensor([0.8, 0.8, 0.8])).norm(dim=1) - 0.15)  # and a floater
    one = main_pieces(level, grid.edges, grid.outer)
    assert torch.equal(one <= 0, ball <= 0)
    kept = (ball.abs() < 0.2) & (one.sign() == level.sign())
    assert torch.equal(one[kept], level[kept])
    mesh = trimesh_of(*marching_tets(one, x, grid))
    assert mesh.euler_number == 2 and mesh.is_watertight


def test_two_large_pieces_both_stay():
    grid = tet_grid(40)
    level = torch.minimum((grid.vertices - 0.5).norm(dim=1), (grid.vertices + 0.5).norm(dim=1)) - 0.4
    assert torch.equal(main_pieces(level, grid.edges, grid.outer) <= 0, level <= 0)


def test_what_touches_the_hull_is_cut_there():
    grid = tet_grid(16)
    one = main_pieces(torch.full((len(grid.vertices),), -1.0), grid.edges, grid.outer)
    assert (one[grid.outer] > 0).all() and (one[~grid.outer] < 0).all()
    mesh = trimesh_of(*marching_tets(one, grid.vertices, grid))
    assert mesh.is_watertight


def test_nothing_inside_is_left_alone():
    grid = tet_grid(8)
    level = torch.rand(len(grid.vertices), generator=torch.Generator().manual_seed(0)) + 0.1
    assert torch.equal(main_pieces(level, grid.edges, grid.outer), level)


def test_smoothing_keeps_what_is_linear_and_halves_what_alternates():
    grid = tet_grid(16)
    inner = ~grid.outer
    for edge in grid.edges[grid.outer[grid.edges].any(1)].flatten().unique().tolist():
        inner[edge] = False  # all of whose neighbours are there
    line = torch.arange(6.0)
    chain = torch.stack([line[:-1], line[1:]], 1).long()
    alternating = torch.tensor([1.0, -1, 1, -1, 1, -1])
    assert torch.equal(smoothed(alternating, chain, 1), torch.zeros(6))
    assert torch.allclose(smoothed(line, chain, 1)[1:-1], line[1:-1])
    ones = torch.ones(len(grid.vertices))
    assert torch.allclose(smoothed(ones, grid.edges, 5), ones)
    linear = grid.vertices @ torch.tensor([1.0, -2.0, 0.5])
    assert (smoothed(linear, grid.edges, 1) - linear)[inner].abs().max() < 0.25 * grid.spacing
    assert torch.equal(smoothed(linear, grid.edges, 0), linear)
