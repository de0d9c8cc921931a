"""The ray caster against distances worked out by hand, from the cameras of the package."""

import math

import numpy as np
import pytest
import torch

from jointdreamer.cameras import orbit_cameras, rays
from jointdreamer.toybox.raycast import BOX, CONE, CYLINDER, SPHERE, Solid, pack, render

GREY = (0.5, 0.5, 0.5)


def ball(center, radius, color=GREY):
    x, y, z = center
    return Solid(SPHERE, (x, y, z), (radius, radius, radius), color)


def look(solids, resolution=33, views=4, elevation=0.0, supersample=1):
    cameras = orbit_cameras(views, resolution, elevation_deg=elevation, distance=3.0, fovy_deg=40)
    rgba, depth, normal = render(
        pack(solids), cameras.c2w[0].double().numpy(), cameras.fovy[0].double().numpy(), resolution, supersample
    )
    origins, directions = (x[0].double().numpy() for x in rays(cameras.c2w, cameras.fovy, resolution))
    return rgba, depth, normal, origins, directions


def test_a_sphere_is_hit_where_the_quadratic_says():
    centre, radius = np.array([0.1, -0.2, 0.15]), 0.5
    rgba, depth, normal, o, d = look([ball(centre, radius)], elevation=20)
    b = ((o - centre) * d).sum(-1)
    disc = b * b - ((o - centre) ** 2).sum(-1) + radius**2
    hit = disc > 0
    clear = np.abs(disc) > 1e-3  # float32 rays may differ on the very edge
    assert (rgba[..., 3] > 0)[clear].tolist() == hit[clear].tolist()
    t = -b - np.sqrt(np.where(hit, disc, 0))
    both = hit & clear
    np.testing.assert_allclose(depth[both], t[both], atol=1e-4)
    expected = (o + t[..., None] * d - centre) / radius
    np.testing.assert_allclose(normal[both], expected[both], atol=2e-3)


@pytest.mark.parametrize(
    ("shape", "view", "distance"),
    [
        (BOX, 0, 3 - 0.4),  # +x face of half size 0.4
        (BOX, 1, 3 - 0.3),  # +y face of half size 0.3
        (CYLINDER, 0, 3 - 0.4),
        (CONE, 0, 3 - 0.2),  # half way up, a cone is half as wide
    ],
)
def test_the_middle_of_a_solid_is_where_its_size_says(shape, view, distance):
    _, depth, normal, *_ = look([Solid(shape, (0, 0, 0), (0.4, 0.3, 0.5), GREY)])
    assert depth[view, 16, 16] == pytest.approx(distance, abs=1e-3)
    facing = {0: 0, 1: 1}[view]
    assert normal[view, 16, 16, facing] > 0.7


def test_tilting_a_box_by_a_right_angle_swaps_its_sides():
    straight = look([Solid(BOX, (0, 0, 0), (0.2, 0.6, 0.3), GREY)])
    tilted = look([Solid(BOX, (0, 0, 0), (0.6, 0.2, 0.3), GREY, tilt=(0, 0, math.pi / 2))])
    np.testing.assert_allclose(straight[1], tilted[1], atol=1e-5)


def test_the_nearer_solid_hides_the_other():
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    near, far = ball((0.5, 0, 0), 0.2, red), ball((-0.5, 0, 0), 0.2, blue)
    for solids in ([near, far], [far, near]):
        rgba, *_ = look(solids)
        assert rgba[0, 16, 16, 0] > 0.5 > rgba[0, 16, 16, 2]
        assert rgba[2, 16, 16, 2] > 0.5 > rgba[2, 16, 16, 0]


def test_rows_go_down_and_columns_to_the_viewer_s_right():
    rgba, *_ = look([ball((0, 0, 0.5), 0.2)])
    assert rgba[0, 8, 16, 3] == 1 and rgba[0, 24, 16, 3] == 0
    rgba, *_ = look([ball((0, 0.5, 0), 0.2)])  # seen from +x, +y is to the right
    assert rgba[0, 16, 24, 3] == 1 and rgba[0, 16, 8, 3] == 0


def test_supersampling_gives_the_share_of_each_pixel():
    rgba, *_ = look([ball((0, 0, 0), 0.5)], resolution=64, supersample=4)
    # a sphere of radius r at distance d covers a disc of tangent r / sqrt(d^2 - r^2)
    tangent = 0.5 / math.sqrt(9 - 0.25) / math.tan(math.radians(20)) * 32
    assert rgba[0, ..., 3].sum() == pytest.approx(math.pi * tangent**2, rel=0.01)


def test_nothing_in_view_is_nothing():
    rgba, depth, normal, *_ = look([ball((0, 0, 5), 0.1)])
    assert not rgba.any() and not depth.any() and not normal.any()


def test_the_volume_renderer_and_the_ray_caster_see_an_object_at_the_same_pixels():
    from jointdreamer.scenes.background import SphericalBackground
    from jointdreamer.scenes.nerf.base import Field, FieldOutput
    from jointdreamer.scenes.nerf.volume import VolumeRenderer

    centre = torch.tensor([0.2, 0.3, -0.1])

    class Ball(Field):
        radius = 1.0

        def density(self, x):
            return 500.0 * ((x - centre).norm(dim=-1) < 0.4).float()

        def forward(self, x, normals=False):
            return FieldOutput(self.density(x), torch.full_like(x, 0.5), None)

        def parameter_groups(self):
            return {}

    cameras = orbit_cameras(4, 32, elevation_deg=20, distance=3.0, fovy_deg=40)
    seen = VolumeRenderer(n_samples=512)(Ball(), SphericalBackground(), cameras).opacity[0, :, 0]
    rgba, *_ = render(
        pack([ball(centre.tolist(), 0.4)]), cameras.c2w[0].double().numpy(), cameras.fovy[0].double().numpy(), 32, 2
    )
    assert np.abs(seen.numpy() - rgba[..., 3]).mean() < 0.01
