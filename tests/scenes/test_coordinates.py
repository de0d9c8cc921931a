"""Coordinate maps of a volume, a mesh and the toybox's ray caster are the analytic positions; gradients by hand."""

import numpy as np
import pytest
import torch

from jointdreamer.cameras import Rig, orbit_cameras, rays, sample_cameras
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.coordinates import as_latents, as_maps, coordinate_map
from jointdreamer.scenes.mesh.scene import DMTet
from jointdreamer.scenes.nerf.base import Field, FieldOutput
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.scene import NeRF
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.toybox import raycast

RADIUS = 0.5
BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])


class Ball(Field):
    """Opaque inside a sphere of RADIUS around `center`."""

    radius = 1.0

    def __init__(self, center=(0.0, 0.0, 0.0), sigma=1e3):
        super().__init__()
        self.center, self.sigma = torch.tensor(center), torch.nn.Parameter(torch.tensor(sigma))

    def density(self, x):
        return self.sigma * ((x - self.center).norm(dim=-1) < RADIUS)

    def forward(self, x, normals=False, features=None):
        out = torch.nn.functional.normalize(x - self.center, dim=-1)
        return FieldOutput(self.density(x), torch.full_like(x, 0.5), out if normals else None)

    def parameter_groups(self):
        return {"geometry": [self.sigma]}


def hits(cameras, center=(0.0, 0.0, 0.0)):
    """Where rays first meet the sphere (B, V, R, R, 3), NaN where they miss it, and how near they pass its centre."""
    rays_o, rays_d = (x.double() for x in rays(cameras.c2w, cameras.fovy, cameras.resolution, cameras.orthographic))
    o = rays_o - torch.tensor(center, dtype=torch.float64)
    along = (o * rays_d).sum(-1, keepdim=True)
    nearest = (o.square().sum(-1, keepdim=True) - along.square()).clamp(min=0).sqrt()
    t = -along - (RADIUS**2 - nearest.square()).sqrt()
    return rays_o + t * rays_d, nearest[..., 0]


def seen(render, cameras):
    return coordinate_map(render.opacity, render.depth, cameras, BOX)


@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_of_a_volume_they_are_the_positions_of_the_sphere(projection):
    center = (0.1, -0.05, 0.2)
    scene = NeRF(Ball(center), SphericalBackground(), VolumeRenderer(n_samples=512, prune=False))
    cameras = sample_cameras(Rig(n_views=2, projection=projection), 24, torch.Generator().manual_seed(1))
    render = scene.render(cameras, normals=False)
    maps = seen(render, cameras)
    wanted, nearest = hits(cameras, center)
    inside, outside = nearest < 0.9 * RADIUS, nearest > 1.02 * RADIUS
    got = maps.movedim(2, -1).detach().double()
    step = 2 * 3**0.5 / 512  # one sample, in coordinates of half a unit a world unit
    assert (got[inside][:, :3] - (wanted[inside] + 1) / 2).abs().max() < 0.75 * step
    assert torch.equal(got[outside], torch.tensor([0.5, 0.5, 0.5, 0.0]).double().expand(int(outside.sum()), 4))
    assert inside.sum() > 100 and outside.sum() > 100


def test_of_a_mesh_they_are_the_positions_of_the_sphere():
    field = HashGridField(encoding={"n_levels": 2, "log2_table_size": 8}, hidden=4)
    scene = DMTet(field, SphericalBackground(), resolution=32)
    cameras = orbit_cameras(3, 32)
    with torch.no_grad():
        render = scene.render(cameras)
    maps = seen(render, cameras).movedim(2, -1).double()
    wanted, nearest = hits(cameras)
    inside, outside = nearest < 0.85 * RADIUS, nearest > 1.1 * RADIUS
    assert (maps[inside][:, :3] - (wanted[inside] + 1) / 2).abs().max() < 0.02
    assert (maps[outside] == torch.tensor([0.5, 0.5, 0.5, 0.0])).all()


def test_of_the_toybox_they_are_the_positions_of_the_sphere():
    ball = raycast.pack([raycast.Solid(raycast.SPHERE, (0, 0, 0), (RADIUS, RADIUS, RADIUS), (1, 0, 0))])
    cameras = orbit_cameras(2, 16)
    rgba, depth, _ = raycast.render(ball, cameras.c2w[0].double().numpy(), cameras.fovy[0].numpy(), 16, supersample=1)
    opacity, depth = (torch.from_numpy(np.ascontiguousarray(x))[None, :, None] for x in (rgba[..., 3], depth))
    maps = coordinate_map(opacity, opacity * depth, cameras, BOX).movedim(2, -1).double()
    wanted, nearest = hits(cameras)
    inside = nearest < 0.99 * RADIUS
    torch.testing.assert_close(maps[inside][:, :3], (wanted[inside] + 1) / 2, atol=1e-5, rtol=0)


def test_half_a_pixel_of_object_is_half_way_to_the_middle_of_the_box():
    cameras = orbit_cameras(1, 3, elevation_deg=0, distance=2)
    box = torch.tensor([[-1.0, -2.0, 0.0], [3.0, 2.0, 4.0]])
    whole, half = (coordinate_map(torch.full((1, 1, 1, 3, 3), o), torch.full((1, 1, 1, 3, 3), 1.5 * o), cameras, box)
                   for o in (1.0, 0.5))  # fmt: skip
    torch.testing.assert_close(whole[0, 0, :, 1, 1], torch.tensor([(0.5 + 1) / 4, 0.5, 0.0, 1.0]))  # at (0.5, 0, 0)
    torch.testing.assert_close(half[0, 0, :, 1, 1], torch.tensor([0.4375, 0.5, 0.25, 0.5]))


def test_latents_are_the_official_four_channels_and_back():
    maps = torch.rand(2, 3, 4, 5, 5)
    official = torch.cat([2 * maps[:, :, :3] - 1, 2 * maps[:, :, 3:] - 1], 2)
    torch.testing.assert_close(as_latents(maps), official)
    torch.testing.assert_close(as_latents(maps, 5.0)[:, :, :3], 5 * official[:, :, :3])
    torch.testing.assert_close(as_maps(as_latents(maps, 5.0), 5.0), maps)


def test_a_volume_s_gradient_is_that_of_its_weighted_positions():
    """d(coordinates)/d(sigma) of one ray, against the sum over its samples in float64."""
    field = Ball(sigma=2.0)
    renderer = VolumeRenderer(n_samples=64, prune=False, backend="torch")
    cameras = orbit_cameras(1, 1, elevation_deg=20, distance=2.5)
    render = NeRF(field, SphericalBackground(), renderer).render(cameras, normals=False)
    maps = seen(render, cameras)
    (got,) = torch.autograd.grad(maps[0, 0, 2, 0, 0], field.sigma)
    sigma = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    rays_o, rays_d = (x.double().view(3) for x in rays(cameras.c2w, cameras.fovy, 1))
    t = (torch.arange(200, dtype=torch.float64) + 0.5) * renderer.step_size
    x = rays_o + t[:, None] * rays_d
    tau = sigma * renderer.step_size * (x.norm(dim=1) < RADIUS)
    weights = (1 - (-tau).exp()) * (-(tau.cumsum(0) - tau)).exp()
    (wanted,) = torch.autograd.grad((weights * x[:, 2]).sum() / 2 + 0.5, sigma)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-6)


def test_a_scene_knows_the_box_of_its_object():
    center = (0.2, 0.0, -0.1)
    scene = NeRF(Ball(center), SphericalBackground(), VolumeRenderer(n_samples=64, grid_resolution=32))
    assert torch.equal(scene.bounds(), BOX)  # nothing seen yet
    scene.before_step(0, torch.Generator().manual_seed(0))
    wanted = torch.tensor(center) + RADIUS * torch.tensor([[-1.0], [1.0]])
    assert (scene.bounds() - wanted).abs().max() <= 2 / 32 + 1e-6
    field = HashGridField(encoding={"n_levels": 2, "log2_table_size": 8}, hidden=4)
    ball = DMTet(field, SphericalBackground(), resolution=16)
    assert (ball.bounds() - RADIUS * torch.tensor([[-1.0], [1.0]])).abs().max() < 0.05
    with torch.no_grad():
        ball.level.fill_(1.0)
    assert torch.equal(ball.bounds(), ball.box)
