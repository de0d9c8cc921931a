"""Cameras against docs/conventions.md, Cameras, written out in NumPy float64."""

import math

import numpy as np
import pytest
import torch

from jointdreamer.cameras import (
    Rig,
    look_at,
    mvdream_camera,
    orbit_cameras,
    rays,
    relative_pose,
    sample_cameras,
)
from jointdreamer.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def true_c2w(elevation, azimuth, distance):
    """Gram-Schmidt from the position and world up: the definition, not the closed form."""
    position = distance * np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    backward = position / np.linalg.norm(position)
    right = np.cross(-backward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, -backward)
    return np.vstack([np.column_stack([right, up, backward, position]), [0, 0, 0, 1]])


def test_pose_is_the_definition():
    cameras = sample_cameras(Rig(n_rigs=3, elevation_deg=(-60, 60)), 8, generator())
    for b in range(3):
        for v in range(4):
            e, a, d = (float(x[b, v]) for x in (cameras.elevation, cameras.azimuth, cameras.distance))
            np.testing.assert_allclose(cameras.c2w[b, v].numpy(), true_c2w(e, a, d), atol=1e-5)


def test_front_camera_stands_on_plus_x_with_right_towards_plus_y():
    c2w = orbit_cameras(4, 8, elevation_deg=0.0, distance=2.0).c2w[0, 0]
    expected = torch.tensor([[0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float32)
    torch.testing.assert_close(c2w, expected)


def test_straight_above_is_still_a_rotation():
    c2w = look_at(torch.tensor(math.pi / 2), torch.tensor(0.3), torch.tensor(2.0))
    torch.testing.assert_close(c2w[:3, :3] @ c2w[:3, :3].T, torch.eye(3), atol=1e-6, rtol=0)
    assert torch.linalg.det(c2w[:3, :3]) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(c2w[:3, 3], torch.tensor([0.0, 0.0, 2.0]), atol=1e-6, rtol=0)


def test_views_of_a_rig_are_90_degrees_apart_and_share_the_rest():
    cameras = sample_cameras(Rig(n_rigs=5), 16, generator())
    assert cameras.c2w.shape == (5, 4, 4, 4) and cameras.light.shape == (5, 4, 3)
    assert (cameras.n_rigs, cameras.n_views, cameras.resolution) == (5, 4, 16)
    steps = cameras.azimuth.diff(dim=1)
    torch.testing.assert_close(steps, torch.full_like(steps, math.pi / 2))
    for shared in (cameras.elevation, cameras.fovy, cameras.distance):
        assert (shared == shared[:, :1]).all()
        assert shared[:, 0].unique().numel() == 5
    assert cameras.azimuth[:, 0].unique().numel() == 5


def test_ranges_of_the_rig_hold_and_are_used():
    cameras = sample_cameras(Rig(n_rigs=4000, n_views=1), 8, generator())
    for values, low, high in (
        (torch.rad2deg(cameras.elevation), 0, 30),
        (torch.rad2deg(cameras.fovy), 15, 60),
        (cameras.distance * torch.tan(cameras.fovy / 2), 0.8, 1.0),
        (cameras.light.norm(dim=-1), 0.8, 1.5),
        (torch.rad2deg(cameras.azimuth), -180, 180),
    ):
        spread = 0.02 * (high - low)
        assert low - 1e-3 <= values.min() < low + spread and high - spread < values.max() <= high + 1e-3


@pytest.mark.parametrize("sampler", ["sphere", "released"])
def test_elevation_distribution(sampler):
    """Half of the draws are uniform in angle, half on the sphere; the two formulas differ in what these reach."""
    # Over 0..90 degrees both formulas are uniform in the sine, so half of them lie below 30 degrees.
    rig = Rig(n_rigs=20000, n_views=1, elevation_deg=(0, 90), elevation_sampler=sampler)
    elevation = sample_cameras(rig, 8, generator()).elevation[:, 0].double()
    share = (elevation < math.pi / 6).double().mean().item()
    assert share == pytest.approx(0.5 * (1 / 3) + 0.5 * 0.5, abs=0.01)

    rig = Rig(n_rigs=20000, n_views=1, elevation_deg=(0, 30), elevation_sampler=sampler)
    degrees = torch.rad2deg(sample_cameras(rig, 8, generator()).elevation[:, 0].double())
    # Above asin(1/3) = 19.47 degrees the released sphere half never goes.
    reach = math.degrees(math.asin(1 / 3))
    in_angle = 1 - reach / 30
    on_sphere = {"sphere": 1 - (1 / 3) / math.sin(math.radians(30)), "released": 0.0}[sampler]
    assert (degrees > reach).double().mean().item() == pytest.approx(0.5 * in_angle + 0.5 * on_sphere, abs=0.01)


def test_same_seed_same_rig_and_the_samplers_draw_equally_often():
    first, second = generator(3), generator(3)
    a = sample_cameras(Rig(), 8, first)
    b = sample_cameras(Rig(), 8, second)
    assert torch.equal(a.c2w, b.c2w) and torch.equal(a.light, b.light)
    sample_cameras(Rig(elevation_sampler="released"), 8, first)
    sample_cameras(Rig(), 8, second)
    assert torch.equal(first.get_state(), second.get_state())


def test_orbit_starts_in_front_and_does_not_repeat_its_end():
    cameras = orbit_cameras(6, 32, elevation_deg=15, distance=3, fovy_deg=40)
    expected = torch.arange(6) * math.pi / 3
    torch.testing.assert_close(cameras.azimuth[0], expected)
    torch.testing.assert_close(cameras.c2w[..., :3, 3].norm(dim=-1), torch.full((1, 6), 3.0))
    torch.testing.assert_close(cameras.light, cameras.c2w[..., :3, 3])


def test_rays_go_through_pixel_centres():
    cameras = sample_cameras(Rig(n_rigs=2), 5, generator())
    rays_o, rays_d = rays(cameras.c2w, cameras.fovy, 5)
    assert rays_o.shape == rays_d.shape == (2, 4, 5, 5, 3)
    torch.testing.assert_close(rays_d.norm(dim=-1), torch.ones(2, 4, 5, 5))
    b, v = 1, 2
    c2w, focal = cameras.c2w[b, v].double().numpy(), 0.5 * 5 / math.tan(float(cameras.fovy[b, v]) / 2)
    for row, column in ((0, 0), (2, 2), (4, 1)):
        d = np.array([(column + 0.5 - 2.5) / focal, -(row + 0.5 - 2.5) / focal, -1.0])
        d = c2w[:3, :3] @ d
        np.testing.assert_allclose(rays_d[b, v, row, column].numpy(), d / np.linalg.norm(d), atol=1e-5)
        np.testing.assert_allclose(rays_o[b, v, row, column].numpy(), c2w[:3, 3], atol=1e-6)
    # The central ray of an odd image hits the origin.
    centre = cameras.c2w[..., :3, 3]
    torch.testing.assert_close(rays_d[:, :, 2, 2], -torch.nn.functional.normalize(centre, dim=-1), atol=1e-5, rtol=0)


def test_orthographic_rays_against_the_closed_form():
    cameras = sample_cameras(Rig(n_rigs=2, projection="orthographic"), 6, generator())
    assert cameras.orthographic and not sample_cameras(Rig(), 6, generator()).orthographic
    rays_o, rays_d = rays(cameras.c2w, cameras.fovy, 6, cameras.orthographic)
    for b, v, row, column in ((0, 0, 0, 0), (1, 2, 5, 1), (1, 3, 2, 4)):
        right, up, backward, position = cameras.c2w[b, v, :3].double().numpy().T
        half = float(cameras.distance[b, v]) * math.tan(float(cameras.fovy[b, v]) / 2)
        x, y = half * ((column + 0.5) / 3 - 1), half * (1 - (row + 0.5) / 3)
        np.testing.assert_allclose(rays_o[b, v, row, column].numpy(), position + x * right + y * up, atol=1e-5)
        np.testing.assert_allclose(rays_d[b, v, row, column].numpy(), -backward, atol=1e-6)
    # Both projections show the same of the plane through the origin
    perspective_o, perspective_d = rays(cameras.c2w, cameras.fovy, 6)
    backward = cameras.c2w[..., None, None, :3, 2]

    def on_plane(o, d):
        return o - d * ((o * backward).sum(-1) / (d * backward).sum(-1))[..., None]

    torch.testing.assert_close(on_plane(rays_o, rays_d), on_plane(perspective_o, perspective_d), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fixed", [{}, {"azimuth_deg": (0, 90, 180, -90), "elevation_deg": (0, 0)}])
def test_the_first_view_can_be_kept_near_the_front(fixed):
    cameras = sample_cameras(Rig(n_rigs=300, first_azimuth_deg=(-20, 40), **fixed), 8, generator())
    first = torch.rad2deg(cameras.azimuth[:, 0])
    assert -20 <= first.min() < -15 and 35 < first.max() <= 40
    turned = torch.rad2deg(cameras.azimuth - cameras.azimuth[:, :1]) % 360
    torch.testing.assert_close(turned[:, 1:], torch.tensor([90.0, 180, 270]).expand(300, 3), atol=1e-2, rtol=0)


def test_fixed_views_stand_around_the_first_as_it_sees_the_object():
    rig = Rig(n_rigs=200, n_views=3, azimuth_deg=(0, 90, 180), elevation_deg=(20, 20))
    cameras = sample_cameras(rig, 8, generator())
    degrees = torch.rad2deg(cameras.elevation)
    # A quarter to the right along a tilted horizon is on the equator, and the far side is as deep as the first is high
    torch.testing.assert_close(degrees, torch.tensor([20.0, 0, -20]).expand(200, 3), atol=1e-3, rtol=0)
    turned = (torch.rad2deg(cameras.azimuth - cameras.azimuth[:, :1]) % 360)[:, 1:]
    torch.testing.assert_close(turned, torch.tensor([90.0, 180]).expand(200, 2), atol=1e-2, rtol=0)
    assert cameras.azimuth[:, 0].std() > 1.5  # all around
    centre = cameras.distance[..., None] * cameras.c2w[..., :3, 2]
    torch.testing.assert_close(cameras.c2w[..., :3, 3], centre, atol=1e-5, rtol=0)
    # At the horizon it is the plain orbit
    flat = sample_cameras(Rig(n_views=4, azimuth_deg=(0, 90, 180, -90), elevation_deg=(0, 0)), 8, generator())
    expected = look_at(flat.elevation, flat.azimuth, flat.distance)
    torch.testing.assert_close(flat.c2w, expected, atol=1e-5, rtol=0)


def test_selected_views_are_those_views():
    cameras = sample_cameras(Rig(n_rigs=2), 8, generator())
    some = cameras.select(torch.tensor([[3, 0], [1, 1]]))
    assert some.n_rigs == some.n_views == 2 and some.resolution == 8
    assert torch.equal(some.c2w[0], cameras.c2w[0, [3, 0]]) and torch.equal(some.azimuth[1], cameras.azimuth[1, [1, 1]])
    assert torch.equal(some.light[0, 1], cameras.light[0, 0])


def test_relative_pose_takes_camera_2_into_the_frame_of_camera_1():
    c2w = sample_cameras(Rig(), 8, generator()).c2w[0]
    torch.testing.assert_close(relative_pose(c2w[0], c2w[0]), torch.eye(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(c2w[0] @ relative_pose(c2w[0], c2w[1]), c2w[1], atol=1e-5, rtol=0)
    expected = np.linalg.inv(c2w[:2].double().numpy()) @ c2w[2:].double().numpy()
    np.testing.assert_allclose(relative_pose(c2w[:2], c2w[2:]).numpy(), expected, atol=1e-5)


def test_mvdream_camera_has_unit_translation_and_leaves_its_argument():
    c2w = sample_cameras(Rig(n_rigs=2), 8, generator()).c2w
    before = c2w.clone()
    camera = mvdream_camera(c2w)
    assert torch.equal(c2w, before)
    assert camera.shape == (2, 4, 16)
    matrix = camera.view(2, 4, 4, 4)
    torch.testing.assert_close(matrix[..., :3, :3], c2w[..., :3, :3])
    torch.testing.assert_close(matrix[..., :3, 3], torch.nn.functional.normalize(c2w[..., :3, 3], dim=-1))
    torch.testing.assert_close(matrix[..., 3, :], torch.tensor([0.0, 0, 0, 1]).expand(2, 4, 4))


def test_to_moves_every_tensor_and_keeps_the_resolution():
    moved = orbit_cameras(3, 8).to("meta")
    assert moved.resolution == 8
    assert {moved.c2w.device.type, moved.light.device.type, moved.azimuth.device.type} == {"meta"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_views": 0},
        {"elevation_deg": (30, 0)},
        {"fovy_deg": (0, 60)},
        {"relative_distance": (-1, 1)},
        {"elevation_sampler": "cube"},
        {"projection": "fisheye"},
        {"azimuth_deg": (0, 90)},
        {"azimuth_deg": (90, 180, 270, 0)},
        {"first_azimuth_deg": (30, -30)},
        {"first_azimuth_deg": (0, 181)},
    ],
)
def test_impossible_rigs_are_refused(wrong):
    with pytest.raises(UserError) as error:
        Rig(**wrong)
    assert next(iter(wrong)) in str(error.value)
