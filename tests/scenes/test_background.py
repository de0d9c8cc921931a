"""The background: spherical harmonics against their defining property, and the random colours of training."""

import math

import numpy as np
import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.scenes.background import SphericalBackground, spherical_harmonics


def directions(n=100):
    return torch.nn.functional.normalize(torch.randn(n, 3), dim=-1)


def test_harmonics_are_orthonormal_on_the_sphere():
    """Gauss-Legendre in z times the trapezoid rule in azimuth integrates these products exactly."""
    z, weights = np.polynomial.legendre.leggauss(8)
    azimuth = np.arange(16) * math.tau / 16
    z, azimuth = np.meshgrid(z, azimuth, indexing="ij")
    x, y = np.sqrt(1 - z**2) * np.cos(azimuth), np.sqrt(1 - z**2) * np.sin(azimuth)
    basis = spherical_harmonics(torch.from_numpy(np.stack([x, y, z], -1))).numpy()
    products = np.einsum("zai,zaj,z->ij", basis, basis, weights) * math.tau / 16
    np.testing.assert_allclose(products, np.eye(9), atol=1e-12)


def test_harmonics_have_tiny_cuda_nns_order_and_signs():
    d = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, 3.0]]), dim=-1)
    x, y, z = d[0].tolist()
    monomials = torch.tensor([1, -y, z, -x, x * y, -y * z, 3 * z * z - 1, -x * z, x * x - y * y])
    ratio = spherical_harmonics(d)[0] / monomials
    assert (ratio > 0).all()


def test_learned_background_is_a_bias_free_network_of_the_direction():
    background = SphericalBackground()
    assert [tuple(p.shape) for p in background.parameters()] == [(16, 9), (16, 16), (3, 16)]
    dirs = directions().view(4, 25, 3)
    colors = background(dirs)
    assert colors.shape == dirs.shape and (colors >= 0).all() and (colors <= 1).all()
    assert colors.std(dim=(0, 1)).min() > 0
    assert set(background.parameter_groups()) == {"background"}
    assert len(background.parameter_groups()["background"]) == 3


def test_evaluation_is_white():
    background = SphericalBackground(random_probability=1.0)
    assert (background.sample(directions(), None) == 1).all()
    grey = SphericalBackground(eval_color=(0.66, 0.66, 0.66)).sample(directions(), None)
    torch.testing.assert_close(grey, torch.full((100, 3), 0.66))


def test_training_shows_a_plain_colour_half_of_the_time():
    background, dirs = SphericalBackground(), directions()
    generator = torch.Generator().manual_seed(0)
    draws = [background.sample(dirs, generator) for _ in range(400)]
    plain = [d for d in draws if (d == d[0]).all()]
    assert 160 < len(plain) < 240
    assert all(torch.equal(d, background(dirs)) for d in draws if not (d == d[0]).all())
    colors = torch.stack([d[0] for d in plain])
    assert (colors.amin(0) < 0.1).all() and (colors.amax(0) > 0.9).all()
    assert (colors[:, 0] != colors[:, 1]).all()


def test_random_greys():
    background = SphericalBackground(random_probability=1.0, random_grey_range=(0.6, 0.8))
    generator = torch.Generator().manual_seed(0)
    colors = torch.stack([background.sample(directions(2), generator)[1] for _ in range(200)])
    assert (colors == colors[:, :1]).all()
    assert 0.6 <= colors.min() < 0.62 and 0.78 < colors.max() <= 0.8


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_generator_moves_alike_whatever_the_coin_says(probability):
    generator = torch.Generator().manual_seed(3)
    SphericalBackground(probability).sample(directions(5), generator)
    after = torch.rand(1, generator=generator)
    generator.manual_seed(3)
    torch.rand(4, generator=generator)
    assert torch.equal(after, torch.rand(1, generator=generator))


def test_wrong_numbers():
    with pytest.raises(UserError, match="random_probability"):
        SphericalBackground(random_probability=1.5)
    with pytest.raises(UserError, match="random_grey_range"):
        SphericalBackground(random_grey_range=(0.8, 0.6))
