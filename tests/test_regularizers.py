"""Regularizers on renders written by hand, against values worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from jointdreamer.regularizers import needs_normals, opaque, orientation, regularizers, sparsity, z_variance
from jointdreamer.renderers.volume import Render


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
