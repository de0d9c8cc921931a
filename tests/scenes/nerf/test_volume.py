"""Volume rendering: small worlds whose images are known in closed form, and slow twins of the packed march and sums."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jointdreamer.cameras import Cameras, Rig, look_at, orbit_cameras, rays, sample_cameras
from jointdreamer.errors import UserError
from jointdreamer.runs.trial import Live
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.base import Render
from jointdreamer.scenes.nerf import volume
from jointdreamer.scenes.nerf.base import Field, FieldOutput
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.scenes.regularizers import regularizers
from jointdreamer.scenes.shading import Shading


class World(Field):
    """Density `sigma` where `inside(x)`, red towards +x and blue towards -x; normals point away from the origin."""

    radius = 1.0

    def __init__(self, inside, sigma):
        super().__init__()
        self.inside = inside
        self.sigma = torch.nn.Parameter(torch.tensor(float(sigma)))
        self.n_asked = 0

    def density(self, x):
        self.n_asked += len(x)
        return self.inside(x).to(x.dtype) * self.sigma

    def forward(self, x, normals=False):
        red = (x[:, :1] > 0).to(x.dtype)
        albedo = torch.cat([red, torch.zeros_like(red), 1 - red], dim=-1)
        return FieldOutput(self.density(x), albedo, torch.nn.functional.normalize(x, dim=-1) if normals else None)

    def parameter_groups(self):
        return {"geometry": [self.sigma]}


def ball(radius):
    return lambda x: x.norm(dim=-1) < radius


def slab(half):
    return lambda x: x[:, 0].abs() < half


def small_field(blob_scale=10.0, backend="auto"):
    torch.manual_seed(1)
    field = HashGridField({"n_levels": 4, "log2_table_size": 10, "backend": backend}, hidden=16, blob_scale=blob_scale)
    torch.nn.init.normal_(field.encoding.params, std=0.1)
    return field


def render(field, cameras=None, *, n_samples=4096, background=None, renderer=None, **options) -> Render:
    """Without anything dropped, unless the renderer is given."""
    renderer = renderer or VolumeRenderer(n_samples=n_samples, prune=False)
    cameras = cameras or orbit_cameras(2, 12)
    return renderer(field, background or SphericalBackground(), cameras, **options)


def camera_rays(cameras):
    return tuple(x.double().numpy().reshape(-1, 3) for x in rays(cameras.c2w, cameras.fovy, cameras.resolution))


def front(resolution=9, distance=3.0, fovy_deg=30.0):
    return orbit_cameras(1, resolution, elevation_deg=0.0, distance=distance, fovy_deg=fovy_deg)


# ------------------------------------------------------------------------------------------------------- closed forms


def moments(sigma, enter, leave):
    """Opacity, depth and z-variance of constant density between two distances."""
    attenuation = np.exp(-sigma * (leave - enter))
    zeroth = 1 - attenuation
    first = (enter + 1 / sigma) - attenuation * (leave + 1 / sigma)
    second = (enter**2 + 2 * enter / sigma + 2 / sigma**2) - attenuation * (leave**2 + 2 * leave / sigma + 2 / sigma**2)
    return zeroth, first, second - 2 * first * first + first**2 * zeroth


def seen_moments(image):
    """The same three of a render."""
    assert image.depth is not None and image.z_variance is not None
    return image.opacity, image.depth, image.z_variance


def test_slab():
    """|x| < 0.3 at density 2, seen along -x: every ray crosses it on a length 0.6 / |d_x|."""
    cameras, sigma = front(), 2.0
    image = render(World(slab(0.3), sigma), cameras)
    rays_o, rays_d = camera_rays(cameras)
    enter, leave = ((side - rays_o[:, 0]) / rays_d[:, 0] for side in (0.3, -0.3))
    for ours, expected in zip(seen_moments(image), moments(sigma, enter, leave), strict=True):
        np.testing.assert_allclose(ours.detach().flatten().numpy(), expected, atol=4e-3)

    middle = -rays_o[:, 0] / rays_d[:, 0]  # red before x = 0, blue behind
    red = 1 - np.exp(-sigma * (middle - enter))
    blue = np.exp(-sigma * (middle - enter)) * (1 - np.exp(-sigma * (leave - middle)))
    through = np.exp(-sigma * (leave - enter))  # white behind
    expected = np.stack([red + through, through, blue + through])
    np.testing.assert_allclose(image.rgb[0, 0].detach().flatten(1).numpy(), expected, atol=4e-3)


def test_ball():
    cameras, sigma, radius = orbit_cameras(3, 16, distance=2.5, fovy_deg=50.0), 3.0, 0.6
    image = render(World(ball(radius), sigma), cameras, normals=True)
    rays_o, rays_d = camera_rays(cameras)
    closest = -(rays_o * rays_d).sum(-1)
    half = np.sqrt(np.maximum(radius**2 - (rays_o**2).sum(-1) + closest**2, 0))
    expected = moments(sigma, closest - half, closest + half)
    # At the rim the chord changes by many steps within a step.
    for ours, theirs in zip(seen_moments(image), expected, strict=True):
        np.testing.assert_allclose(ours.detach().flatten().numpy(), theirs, atol=1e-2)
    assert (image.opacity.detach().flatten().numpy()[half == 0] == 0).all()


def test_depth_and_normal_of_a_hard_ball():
    cameras = front(resolution=3, fovy_deg=5.0)
    image = render(World(ball(0.5), 1e4), cameras, normals=True)
    assert image.normal is not None and image.depth is not None and image.z_variance is not None
    centre = image.normal[0, 0, :, 1, 1]
    torch.testing.assert_close(centre, torch.tensor([1.0, 0.0, 0.0]), atol=1e-3, rtol=0)
    assert image.depth[0, 0, 0, 1, 1].item() == pytest.approx(2.5, abs=2e-3)
    assert image.opacity.min().item() == pytest.approx(1.0, abs=1e-6)
    assert image.z_variance.abs().max() < 1e-5
    torch.testing.assert_close(image.rgb[0, 0, :, 1, 1], torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_row_0_is_the_top_and_views_stay_apart():
    above = render(
        World(lambda x: (x[:, 2] > 0.1) & (x.norm(dim=-1) < 0.9), 100.0), orbit_cameras(4, 8, elevation_deg=0.0)
    )
    opacity = above.opacity[0, :, 0]
    assert (opacity[:, 1:3, 3:5] > 0.99).all() and (opacity[:, 5:] == 0).all()
    side = render(World(ball(0.5), 100.0), orbit_cameras(4, 9, elevation_deg=0.0)).rgb[0, :, :, 4, 4]
    assert side[0, 0] > 0.9 and side[2, 2] > 0.9  # red from +x, blue from -x


def test_offset_is_uniform_over_one_step():
    """A slab thinner than a step is hit with odds thickness / step, and then by the alpha of a whole step."""
    renderer = VolumeRenderer(n_samples=32, prune=False)
    half, sigma = renderer.step_size / 8, 5.0
    cameras = front(resolution=64, fovy_deg=1.0)
    opacity = render(
        World(slab(half), sigma), cameras, renderer=renderer, generator=torch.Generator().manual_seed(0)
    ).opacity
    alpha = 1 - math.exp(-sigma * renderer.step_size)
    assert opacity.mean().item() == pytest.approx(alpha / 4, rel=0.05)
    assert ((opacity == 0) | ((opacity - alpha).abs() < 1e-6)).all()


def test_gradient_reaches_the_density():
    """d/dsigma of 1 - exp(-sigma L)."""
    world, cameras = World(slab(0.3), 2.0), front(resolution=2, fovy_deg=0.1)
    render(world, cameras).opacity.mean().backward()
    assert world.sigma.grad is not None
    assert world.sigma.grad.item() == pytest.approx(0.6 * math.exp(-1.2), rel=1e-2)


def test_shading_finds_its_normals():
    """Lambert with the light at the camera: the middle of the ball is lit in full, its rim is not."""
    world, cameras = World(ball(0.5), 1e4), front(resolution=21, fovy_deg=22.0)
    image = render(world, cameras, shading=Shading("textureless", ambient=0.2, diffuse=0.8), n_samples=1024)
    assert image.normal is not None
    row = image.rgb[0, 0, 0, 10].detach()
    covered = image.opacity[0, 0, 0, 10] > 0.99
    assert row[10].item() == pytest.approx(1.0, abs=1e-2)
    assert (row[3:10].diff() > 0).all() and row[covered].min() < 0.6
    assert render(world, cameras, n_samples=64).normal is None


# -------------------------------------------------------------------------------------------------------- slow twins


def test_march_finds_exactly_the_midpoints_in_occupied_cells():
    torch.manual_seed(0)
    renderer = VolumeRenderer(field_radius=1.5, grid_resolution=8, n_samples=100)
    renderer.occupied.copy_(torch.rand(8, 8, 8) < 0.1)
    renderer.occupied[:, :, :2] = False  # a smaller box than the field's
    cameras = sample_cameras(Rig(n_rigs=2), 6, torch.Generator().manual_seed(0))
    rays_o, rays_d = (x.reshape(-1, 3) for x in rays(cameras.c2w, cameras.fovy, cameras.resolution))
    offset = torch.rand(len(rays_o))
    ray_indices, t = renderer.march(rays_o, rays_d, offset)

    expected = []
    occupied, step = renderer.occupied.numpy(), 3 * math.sqrt(3) / 100
    for ray, (o, d) in enumerate(zip(rays_o.double().numpy(), rays_d.double().numpy(), strict=True)):
        for k in range(600):
            distance = (k + offset[ray].item() + 0.5) * step
            cell = np.floor((o + distance * d + 1.5) / (3 / 8)).astype(int)
            if (cell >= 0).all() and (cell < 8).all() and occupied[tuple(cell)]:
                expected.append((ray, distance))
    assert len(expected) > 500
    assert ray_indices.tolist() == [ray for ray, _ in expected]
    np.testing.assert_allclose(t.numpy(), [distance for _, distance in expected], atol=1e-5)


def test_march_in_parts_is_the_same_march(monkeypatch):
    renderer = VolumeRenderer(n_samples=50)
    cameras = orbit_cameras(3, 7)
    rays_o, rays_d = (x.reshape(-1, 3) for x in rays(cameras.c2w, cameras.fovy, cameras.resolution))
    offset = torch.rand(len(rays_o))
    whole = renderer.march(rays_o, rays_d, offset)
    monkeypatch.setattr(volume, "MAX_CANDIDATES", 51 * 20)
    parts = renderer.march(rays_o, rays_d, offset)
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1])


# --------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("blob_scale", [10.0, 200.0])
@pytest.mark.parametrize("prune", [True, False])
def test_everything_is_in_range(blob_scale, prune):
    renderer, generator = VolumeRenderer(n_samples=64, prune=prune), torch.Generator().manual_seed(0)
    field = small_field(blob_scale)
    renderer.update_occupancy(field, 0, generator)
    cameras = sample_cameras(Rig(n_rigs=2), 10, generator)
    image = render(field, cameras, renderer=renderer, normals=True, generator=generator)
    assert image.rgb.shape == (2, 4, 3, 10, 10) and image.opacity.shape == (2, 4, 1, 10, 10)
    assert image.normal is not None and image.normal.shape == (2, 4, 3, 10, 10)
    assert image.opacity.min() >= 0 and image.opacity.max() <= 1
    assert image.rgb.min() >= 0 and image.rgb.max() <= 1
    assert image.rgb.is_contiguous()


def test_pruning_changes_less_than_its_threshold():
    generator, cameras = torch.Generator().manual_seed(0), orbit_cameras(4, 16)
    field = small_field(blob_scale=300.0)
    pruned, whole = VolumeRenderer(n_samples=128), VolumeRenderer(n_samples=128, prune=False)
    for renderer in (pruned, whole):
        renderer.update_occupancy(field, 0, generator.manual_seed(0))
    one, other = (render(field, cameras, renderer=r) for r in (pruned, whole))
    assert one.n_samples < 0.7 * other.n_samples
    assert (one.rgb - other.rgb).abs().max() < 0.01 and (one.opacity - other.opacity).abs().max() < 0.01


def test_dropping_what_no_light_reaches_changes_less_than_its_threshold():
    cameras, world = orbit_cameras(2, 16), World(ball(0.6), 30.0)
    renderer = VolumeRenderer(n_samples=256, alpha_threshold=0.0, transmittance_threshold=1e-4)
    one, other = render(world, cameras, renderer=renderer), render(world, cameras, n_samples=256)
    assert one.n_samples < 0.9 * other.n_samples
    assert 0 < (one.opacity - other.opacity).abs().max() < 1e-4
    assert (one.rgb - other.rgb).abs().max() < 1e-4


def test_without_an_update_nothing_is_skipped():
    renderer = VolumeRenderer(n_samples=256)  # prunes, but knows of no occupancy yet
    world, cameras = World(ball(0.6), 0.05), orbit_cameras(2, 8)  # alpha = 0.0007, far below 0.01
    torch.testing.assert_close(
        render(world, cameras, renderer=renderer).opacity, render(world, cameras, n_samples=256).opacity
    )


def test_a_world_without_anything_shows_the_background():
    renderer, generator = VolumeRenderer(n_samples=32), torch.Generator().manual_seed(0)
    world, background = World(ball(0.5), 0.0), SphericalBackground(random_probability=0.0)
    renderer.update_occupancy(world, 0, generator)
    assert not renderer.occupied.any()
    cameras = orbit_cameras(2, 5)
    image = render(world, cameras, renderer=renderer, background=background, normals=True, generator=generator)
    _, rays_d = rays(cameras.c2w, cameras.fovy, 5)
    torch.testing.assert_close(image.rgb, background(rays_d).movedim(-1, 2))
    assert image.n_samples == 0 and image.depth is not None
    assert not image.opacity.any() and not image.depth.any()
    image.rgb.sum().backward()
    assert world.sigma.grad is None or world.sigma.grad == 0
    assert all(p.grad is not None for p in background.parameters())


def test_all_rays_beside_the_box():
    c2w = look_at(torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), 3.0))
    c2w[..., 1, 3] = 50.0
    one = torch.ones(1, 1)
    image = render(small_field(), Cameras(c2w, one * 0.3, one, one, one, torch.zeros(1, 1, 3), 4), normals=True)
    assert image.n_samples == 0 and (image.rgb == 1).all()
    image.rgb.sum().backward()


def test_chunks_change_nothing():
    renderer, cameras = VolumeRenderer(n_samples=64), orbit_cameras(2, 9)
    renderer.update_occupancy(small_field(), 0, torch.Generator().manual_seed(0))
    background, field = SphericalBackground(random_probability=0.0), small_field(100.0)
    whole, parts = (
        render(field, cameras, renderer=renderer, background=background, normals=True, chunk=chunk,
               generator=torch.Generator().manual_seed(1))
        for chunk in (None, 50)
    )  # fmt: skip
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), value, msg=name)


SETTINGS = {
    "albedo": {},
    "normals": {"normals": True},
    "diffuse": {"shading": Shading("diffuse", ambient=0.3, diffuse=0.7)},
    "textureless": {"shading": Shading("textureless", ambient=0.3, diffuse=0.7)},
}


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_in_chunks_are_those_of_one_pass(setting, backend):
    """With everything that a training loss may read off a render; the chunks cut through rows and views."""
    renderer, cameras = VolumeRenderer(n_samples=96), sample_cameras(Rig(n_rigs=2), 7, torch.Generator().manual_seed(3))
    weights = SimpleNamespace(orient=2.0, sparsity=0.5, opaque=0.7, z_variance=3.0)

    def gradients(chunk):
        field, background = small_field(30.0, backend), SphericalBackground(random_probability=0.0)
        generator = torch.Generator().manual_seed(0)
        torch.nn.init.constant_(list(background.parameters())[-1], 0.1)
        renderer.update_occupancy(field, 0, generator)
        image = render(
            field, cameras, renderer=renderer, background=background, generator=generator, chunk=chunk,
            **SETTINGS[setting],
        )  # fmt: skip
        losses = regularizers(
            image, weights if image.normal is not None else SimpleNamespace(**{**vars(weights), "orient": 0})
        )
        assert image.depth is not None
        target = torch.linspace(0, 1, image.rgb.numel()).view_as(image.rgb)
        loss = ((image.rgb - target).square().sum() + image.depth.square().mean()) / 50
        (loss + sum(getattr(weights, name) * value for name, value in losses.items())).backward()
        parameters = [*field.named_parameters(), *background.named_parameters()]
        return {name: p.grad for name, p in parameters}, image, generator.get_state()

    whole, image, state = gradients(None)
    for chunk in (61, 10_000):
        parts, again, state_again = gradients(chunk)
        assert torch.equal(state, state_again) and again.n_samples == image.n_samples > 1000
        for name, gradient in whole.items():
            if setting == "textureless" and "albedo" in name:
                assert gradient is None or not gradient.any()
                continue
            assert gradient is not None and gradient.abs().max() > 1e-6, name
            torch.testing.assert_close(
                parts[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=name
            )


def test_in_chunks_memory_grows_with_the_pixels_only():
    """Four times the pixels: one pass keeps four times as much; chunks of one size keep little more than the pixels."""
    field, renderer = small_field(), VolumeRenderer(n_samples=256)
    renderer.update_occupancy(field, 0, torch.Generator().manual_seed(0))

    def live(resolution, chunk):
        with Live() as counted:
            image = render(field, orbit_cameras(2, resolution), renderer=renderer, normals=True, chunk=chunk)
            kept = counted.now
            assert image.facing_away is not None
            (image.rgb.sum() + image.facing_away.sum()).backward()
        return kept, counted.peak

    live(8, None)  # the gradients' own memory
    (kept, peak), (small_kept, small_peak) = live(24, None), live(12, None)
    assert kept > 3.3 * small_kept and peak > 2.4 * small_peak  # the tables' gradients do not grow
    kept_cut, peak_cut = live(24, 288)
    assert kept_cut < 0.1 * kept and peak_cut < 0.45 * peak


def test_facing_away_is_the_sum_over_samples():
    """A slab whose normals all point along +x, seen from -x: every sample looks away by the cosine of its ray."""

    class Turned(World):
        def forward(self, x, normals=False):
            out = super().forward(x, normals)
            return FieldOutput(out.sigma, out.albedo, torch.tensor([1.0, 0, 0]).expand_as(x) if normals else None)

    cameras = orbit_cameras(2, 5, elevation_deg=0.0)
    image = render(Turned(slab(0.3), 2.0), cameras, normals=True, n_samples=512)
    assert image.facing_away is not None
    _, rays_d = camera_rays(cameras)
    expected = image.opacity.detach().flatten().numpy() * np.maximum(rays_d[:, 0], 0) ** 2
    np.testing.assert_allclose(image.facing_away.flatten().numpy(), expected, atol=1e-5)
    assert expected[25:].min() > 0.4 and not expected[:25].any()
    assert not image.facing_away.requires_grad  # turned, not erased: this world's normals are constants


def test_the_same_seed_gives_the_same_bits():
    def step():
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        field, background, renderer = small_field(), SphericalBackground(), VolumeRenderer(n_samples=64)
        for step in (0, 16, 256):
            renderer.update_occupancy(field, step, generator)
        cameras = sample_cameras(Rig(), 8, generator)
        image = render(field, cameras, renderer=renderer, background=background, normals=True, generator=generator)
        assert image.normal is not None and image.facing_away is not None
        (image.rgb.square().sum() + image.normal.sum() + image.facing_away.sum()).backward()
        return [image.rgb, renderer.occupancy, *(p.grad for p in field.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(step(), step(), strict=True))


# ---------------------------------------------------------------------------------------------------------- occupancy


def test_occupancy_never_skips_occupied_space():
    """Every cell that lies within the world is marked, none outside is, and the image is the same."""
    world, renderer = World(ball(0.6), 5.0), VolumeRenderer(n_samples=256, prune=False)
    for step in range(0, 128, 16):
        renderer.update_occupancy(world, step, torch.Generator().manual_seed(step))
    border = torch.linspace(-1, 1, 33)
    corners = torch.stack(torch.meshgrid(border, border, border, indexing="ij"), -1).norm(dim=-1)
    unfolded = corners.unfold(0, 2, 1).unfold(1, 2, 1).unfold(2, 2, 1).flatten(3)
    assert renderer.occupied[(unfolded < 0.6).all(-1)].all()
    assert not renderer.occupied[unfolded.amin(-1) > 0.6 + 2 / 32].any()
    cameras = orbit_cameras(2, 16)
    seen, whole = render(world, cameras, renderer=renderer), render(world, cameras, n_samples=256)
    assert seen.n_samples < 0.35 * whole.n_samples
    # Only slivers of cells that eight random looks have missed may differ.
    assert (seen.opacity - whole.opacity).abs().max() < 0.08
    assert (seen.opacity - whole.opacity).abs().mean() < 1e-3


def test_occupancy_is_the_decaying_maximum_of_alpha_like_density():
    world, renderer = World(lambda x: torch.ones(len(x)), 0.5), VolumeRenderer(n_samples=100, grid_resolution=4)
    generator = torch.Generator().manual_seed(0)
    value = 0.5 * 2 * math.sqrt(3) / 100
    renderer.update_occupancy(world, 0, generator)
    torch.testing.assert_close(renderer.occupancy, torch.full((4, 4, 4), value))
    assert renderer.occupied.all()  # 0.017 > 0.01, though not above the mean
    world.sigma.data.zero_()
    renderer.update_occupancy(world, 16, generator)
    torch.testing.assert_close(renderer.occupancy, torch.full((4, 4, 4), 0.95 * value))
    renderer.update_occupancy(world, 17, generator)
    torch.testing.assert_close(renderer.occupancy, torch.full((4, 4, 4), 0.95 * value))


def test_after_the_warmup_half_of_the_cells_are_looked_at():
    """What appears is found and what disappears is forgotten, in time; occupied cells are looked at more often."""
    world, renderer = World(ball(0.5), 20.0), VolumeRenderer(n_samples=128, grid_resolution=16)
    generator = torch.Generator().manual_seed(0)
    renderer.update_occupancy(world, 240, generator)
    occupied = int(renderer.occupied.sum())
    world.n_asked = 0
    renderer.update_occupancy(world, 256, generator)
    assert 200 < occupied < 16**3 // 4
    assert world.n_asked == 16**3 // 4 + occupied
    world.inside = lambda x: (x - 0.6).norm(dim=-1) < 0.3
    for step in range(272, 272 + 16 * 120, 16):
        renderer.update_occupancy(world, step, generator)
    centre = (torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1) + 0.5) / 8 - 1
    distance = (centre - 0.6).norm(dim=-1)
    assert renderer.occupied[distance < 0.2].all() and not renderer.occupied[distance > 0.5].any()


def test_state_is_in_the_state_dict():
    one, other, world = VolumeRenderer(), VolumeRenderer(), World(ball(0.5), 20.0)
    one.update_occupancy(world, 0, torch.Generator().manual_seed(0))
    assert set(one.state_dict()) == {"occupancy", "occupied"}
    other.load_state_dict(one.state_dict())
    for renderer in (one, other):
        renderer.update_occupancy(world, 256, torch.Generator().manual_seed(1))
    assert torch.equal(one.occupancy, other.occupancy) and torch.equal(one.occupied, other.occupied)


def test_impossible_sizes():
    with pytest.raises(UserError, match="n_samples above 0"):
        VolumeRenderer(n_samples=0)
