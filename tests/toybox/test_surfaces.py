"""The angle between neighbouring normals: known of a sphere, larger with noise, and of a run by the command."""

import math

import pytest
import torch

from jointdreamer.metrics import roughness
from jointdreamer.toybox.surfaces import of_toy
from jointdreamer.toybox.world import Toy


def sphere(radius: int = 30, size: int = 64):
    y, x = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    z = (radius**2 - x**2 - y**2).clamp(min=0).sqrt()
    inside = x**2 + y**2 < (0.5 * radius) ** 2  # far from the rim, where a pixel is about 1 / radius
    return torch.stack([x, y, z])[None], inside[None, None].float()


def test_of_a_sphere_it_is_the_angle_a_pixel_covers():
    normal, opacity = sphere()
    assert roughness(normal, opacity) == pytest.approx(math.degrees(1 / 30), rel=0.1)


def test_noise_adds_to_it_and_length_and_what_is_outside_do_not_matter():
    normal, opacity = sphere()
    smooth = roughness(normal, opacity)
    assert roughness(5 * normal, opacity) == pytest.approx(smooth)
    noise = torch.randn(normal.shape, generator=torch.Generator().manual_seed(0))
    assert roughness(torch.where(opacity > 0, normal, noise), opacity) == pytest.approx(smooth)
    assert roughness(normal + 6 * noise, opacity) > smooth + 8
    assert math.isnan(roughness(normal, torch.zeros_like(opacity)))


def test_a_true_object_has_edges_but_no_noise():
    assert 2 < of_toy(Toy("ghost", "red")) < 15
