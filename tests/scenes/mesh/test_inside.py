"""Which points are inside: against the formulas of solids, however they are put together."""

import numpy as np
import pytest
import trimesh

from jointdreamer.errors import UserError
from jointdreamer.scenes.mesh.inside import distance, inside, samples, welded

AXES = np.linspace(-1, 1, 21), np.linspace(-1, 1, 24), np.linspace(-1, 1, 27)
GRID = np.stack(np.meshgrid(*AXES, indexing="ij"), -1)


def corners(mesh):
    return np.asarray(mesh.triangles)


def test_a_sphere():
    ball = trimesh.creation.icosphere(4, radius=0.7)
    found = inside(corners(ball), AXES)
    radius = np.linalg.norm(GRID, axis=-1)
    assert found[radius < 0.69].all() and not found[radius > 0.7].any()


def test_parts_that_overlap_are_one_solid_and_a_hollow_is_empty():
    one = trimesh.creation.box(extents=(0.98, 0.98, 0.98))
    other = one.copy().apply_translation((0.3, 0.2, 0.1))
    both = inside(np.concatenate([corners(one), corners(other)]), AXES)
    expected = (np.abs(GRID) < 0.49).all(-1) | (np.abs(GRID - [0.3, 0.2, 0.1]) < 0.49).all(-1)
    assert np.array_equal(both, expected)
    hole = trimesh.creation.box(extents=(0.5, 0.5, 0.5))
    hole.invert()
    shell = inside(np.concatenate([corners(one), corners(hole)]), AXES)
    assert np.array_equal(shell, (np.abs(GRID) < 0.49).all(-1) & ~(np.abs(GRID) < 0.25).all(-1))


def test_a_surface_that_is_inside_out_is_a_solid_too():
    box = trimesh.creation.box(extents=(0.98, 0.98, 0.98))
    box.invert()
    assert np.array_equal(inside(corners(box), AXES), (np.abs(GRID) < 0.49).all(-1))


def test_samples_are_even_and_their_distance_is_that_of_the_surface():
    ball = trimesh.creation.icosphere(4, radius=0.7)
    face, weight = samples(corners(ball), 50_000)
    assert weight.min() >= 0 and weight.sum(1) == pytest.approx(1)
    points = (corners(ball)[face] * weight[..., None]).sum(1)
    octants = np.bincount(((points > 0) * [1, 2, 4]).sum(1), minlength=8)
    assert octants.min() > 0.95 * 50_000 / 8
    far = distance(GRID.reshape(-1, 3), points)
    assert np.abs(far - np.abs(np.linalg.norm(GRID.reshape(-1, 3), axis=1) - 0.7)).max() < 0.01


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda mesh: mesh.update_faces(np.arange(len(mesh.faces)) > 0), "is open: 3 of its edges"),
        (lambda mesh: mesh.update_faces(np.zeros(len(mesh.faces), bool)), "is empty"),
        (lambda mesh: mesh.vertices.__imul__(0), "is empty"),
    ],
)
def test_what_is_not_closed_is_refused_in_one_line(change, said):
    mesh = trimesh.creation.box()
    change(mesh)
    with pytest.raises(UserError, match=said):
        welded(corners(mesh))


def test_corners_in_one_place_are_welded():
    soup = trimesh.creation.icosphere(2)
    assert welded(corners(soup)).is_watertight


def test_a_gap_that_a_face_without_an_area_closes_is_closed():
    """A corner half way along an edge: one of its two faces is cut in two there, and a flat one joins both halves."""
    box = trimesh.creation.box()
    a, b, c = faces = corners(box)[0]
    middle = (a + b) / 2
    halves = np.array([[a, middle, c], [middle, b, c], [a, b, middle]])
    mesh = welded(np.concatenate([corners(box)[1:], halves]))
    assert np.array_equal(inside(np.asarray(mesh.triangles), AXES), inside(corners(box), AXES))
    with pytest.raises(UserError, match="is open: 3 of its edges"):
        welded(np.concatenate([corners(box)[1:], halves[:2]]))
    twice = np.array([[a, b, a]])
    assert len(welded(np.concatenate([corners(box), twice])).faces) == 12 and len(faces) == 3


def test_faces_that_are_turned_over_are_refused_in_one_line():
    box = corners(trimesh.creation.box()).copy()
    box[[0, 5]] = box[[0, 5], ::-1]
    with pytest.raises(UserError, match="turned over: 6 of its edges"):
        welded(box)


def test_a_surface_without_an_area_is_refused_in_one_line():
    line = np.array([[[0.0, 0, 0], [1, 0, 0], [0.5, 0, 0]]])
    for function in (welded, lambda mesh: samples(mesh, 10)):
        with pytest.raises(UserError, match="the mesh is empty: none of its faces has an area"):
            function(line)
