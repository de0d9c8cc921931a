"""Regularizers on renders written by hand, against values worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from jointdreamer.cameras import orbit_cameras, rays
from jointdreamer.scenes.base import Render
from jointdreamer.scenes.nerf.base import Field, FieldOutput
from jointdreamer.scenes.regularizers import (
    needs_normals,
    opaque,
    orientation,
    regularizers,
    smoothness,
    sparsity,
    z_variance,
)


def image(opacity, **parts) -> Render:
    """One view of 2 x 2 pixels."""
    opacity = torch.as_tensor(opacity).view(1, 1, 1, 2, 2)
    defaults = {
        "rgb": opacity.expand(-1, -1, 3, -1, -1),
        "depth": opacity,
        "z_variance": opacity,
        "normal": None,
        "facing_away": None,
        "n_samples": 0,
    }
    return Render(opacity=opacity, **{**defaults, **parts})


def test_orientation_is_a_mean_over_the_pixels_that_show_something():
    away = torch.tensor([0.5, 0.1, 0.0, 0.0]).view(1, 1, 1, 2, 2).requires_grad_()
    loss = orientation(image([0.9, 0.9, 0.0, 0.0], facing_away=away))
    assert loss.item() == pytest.approx((0.5 + 0.1) / 2)


def test_orientation_without_samples_is_zero():
    assert orientation(image([0.0] * 4, facing_away=torch.zeros(1, 1, 1, 2, 2))).item() == 0


def test_orientation_without_normals_is_refused():
    with pytest.raises(ValueError, match="normals=True"):
        orientation(image([0.5] * 4))


def test_sparsity():
    assert sparsity(image([0.0, 0.0, 0.0, 0.0])).item() == pytest.approx(0.1)
    assert sparsity(image([1.0, 0.0, 1.0, 0.0])).item() == pytest.approx((2 * math.sqrt(1.01) + 0.2) / 4)


def test_opaque_is_the_binary_entropy():
    assert opaque(image([0.5] * 4)).item() == pytest.approx(math.log(2))
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert opaque(image([0.2, 0.8, 0.2, 0.8])).item() == pytest.approx(entropy)
    edge = -(1e-3 * math.log(1e-3) + 0.999 * math.log(0.999))
    assert opaque(image([0.0, 1.0, 0.0, 1.0])).item() == pytest.approx(edge, rel=1e-4)


def test_opaque_pushes_away_from_one_half():
    opacity = torch.tensor([0.4, 0.6, 0.5, 1.0], requires_grad=True)
    opaque(image(opacity)).backward()
    assert opacity.grad is not None
    expected = math.log(0.6 / 0.4) / 4  # d/dp of the entropy is log((1 - p) / p)
    torch.testing.assert_close(opacity.grad, torch.tensor([expected, -expected, 0.0, 0.0]))


def test_z_variance_is_the_mean_over_covered_pixels():
    seen = image([0.9, 0.6, 0.5, 0.1], z_variance=torch.tensor([1.0, 3.0, 100.0, 100.0]).view(1, 1, 1, 2, 2))
    assert z_variance(seen).item() == pytest.approx(2.0)
    assert z_variance(image([0.5] * 4)).item() == 0


def test_only_what_has_a_weight_is_computed():
    seen = image([0.5] * 4)  # without normals: orientation would raise
    now = SimpleNamespace(jsd=1.0, orient=0.0, sparsity=0.5, opaque=0)
    losses = regularizers(seen, now)
    assert set(losses) == {"sparsity"}
    assert losses["sparsity"].item() == pytest.approx(math.sqrt(0.26))  # not yet weighted
    assert not needs_normals(now) and needs_normals(SimpleNamespace(orient=10.0))
    assert regularizers(seen, SimpleNamespace()) == {}


class Sphere(Field):
    """Of normals alone, with waves of some amplitude on them."""

    radius = 1.0

    def __init__(self, waves: float):
        super().__init__()
        self.waves = torch.nn.Parameter(torch.tensor(waves))

    def density(self, x):
        raise NotImplementedError

    def forward(self, x, normals=False, features=None):
        normal = torch.nn.functional.normalize(x + self.waves * (40 * x).sin(), dim=1)
        return FieldOutput(x[:, 0], x, normal)

    def parameter_groups(self):
        return {"geometry": list(self.parameters())}


def seen_sphere(radius=0.5, resolution=16):
    """A render and the cameras of a sphere of opacity 0.8, whose depth is a sum of weights times distance."""
    cameras = orbit_cameras(2, resolution, elevation_deg=0, distance=2.0, fovy_deg=40)
    rays_o, rays_d = rays(cameras.c2w, cameras.fovy, resolution)
    along = -(rays_o * rays_d).sum(-1)
    half = (radius**2 - (rays_o.square().sum(-1) - along**2)).clamp(min=0).sqrt()
    opacity = 0.8 * (half > 0).float()[:, :, None]
    parts = {"rgb": opacity, "z_variance": opacity, "normal": None, "facing_away": None, "n_samples": 0}
    return Render(opacity=opacity, depth=opacity * (along - half)[:, :, None], **parts), cameras


def test_smoothness_of_a_sphere_is_the_curvature():
    """|n(x) - n(x + e)|^2 of a sphere is |e tangential|^2 / r^2, which is 2 distance^2 / r^2 in the mean."""
    render, cameras = seen_sphere()
    g = torch.Generator().manual_seed(0)
    loss = smoothness(render, Sphere(0.0), cameras, g, n_points=20_000, distance=0.01)
    assert loss.item() == pytest.approx(2 * (0.01 / 0.5) ** 2, rel=0.05)


def test_smoothness_pulls_waves_flat():
    render, cameras = seen_sphere()
    field = Sphere(0.1)
    loss = smoothness(render, field, cameras, torch.Generator().manual_seed(0))
    assert loss.item() > 3 * smoothness(render, Sphere(0.0), cameras, torch.Generator().manual_seed(0)).item()
    loss.backward()
    assert field.waves.grad is not None and field.waves.grad > 0


def test_smoothness_draws_nothing_without_a_weight_and_is_zero_without_a_surface():
    render, cameras = seen_sphere()
    g = torch.Generator().manual_seed(0)
    state = g.get_state()
    assert regularizers(render, SimpleNamespace(smooth=0.0), Sphere(0.1), cameras, g) == {}
    assert torch.equal(g.get_state(), state)
    assert set(regularizers(render, SimpleNamespace(smooth=1.0), Sphere(0.1), cameras, g)) == {"smooth"}
    nothing, cameras = seen_sphere(radius=0.0)
    assert smoothness(nothing, Sphere(0.1), cameras, g).item() == 0
    assert regularizers(render, SimpleNamespace(smooth=1.0)) == {}  # a scene without a field


def test_the_smoothness_of_a_normal_map_is_that_of_neighbouring_pixels():
    flat = torch.zeros(1, 1, 3, 4, 4)
    flat[:, :, 2] = 1
    opacity = torch.ones(1, 1, 1, 4, 4)
    weights = SimpleNamespace(smooth_2d=1)
    assert needs_normals(weights)
    found = regularizers(Render(flat, opacity, normal=flat), weights)
    assert float(found["smooth_2d"]) == 0
    step = flat.clone()
    step[..., 2:] = torch.tensor([1.0, 0, 0])[:, None, None]  # one edge of three, of length sqrt 2
    assert float(regularizers(Render(step, opacity, normal=step), weights)["smooth_2d"]) == pytest.approx(2 / 3 / 3)
    with pytest.raises(ValueError, match="normals=True"):
        regularizers(Render(flat, opacity), weights)
