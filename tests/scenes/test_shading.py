"""Shading: Lambert's law at known angles, and the odds of the modes."""

import math
from collections import Counter

import pytest
import torch

from jointdreamer.scenes.shading import Shading, sample_shading, shade

ALBEDO = torch.tensor([[0.2, 0.5, 0.8]])
ORIGIN = torch.zeros(1, 3)
UP = torch.tensor([[0.0, 0.0, 1.0]])


def light(angle_deg, distance=2.0):
    angle = math.radians(angle_deg)
    return torch.tensor([[math.sin(angle), 0.0, math.cos(angle)]]) * distance


def test_albedo_ignores_the_light():
    assert torch.equal(shade(ALBEDO, None, ORIGIN, light(0), Shading()), ALBEDO)
    assert torch.equal(shade(ALBEDO, UP, ORIGIN, light(0), Shading("albedo", 0.1, 0.9)), ALBEDO)


@pytest.mark.parametrize("angle_deg, cosine", [(0, 1.0), (60, 0.5), (90, 0.0), (150, 0.0)])
def test_lambert(angle_deg, cosine):
    shading = Shading("diffuse", ambient=0.3, diffuse=0.7)
    for distance in (0.5, 4.0):  # the light does not fade with distance
        seen = shade(ALBEDO, UP, ORIGIN, light(angle_deg, distance), shading)
        torch.testing.assert_close(seen, ALBEDO * (0.3 + 0.7 * cosine))


def test_textureless_is_the_light_alone():
    shading = Shading("textureless", ambient=0.25, diffuse=0.75)
    torch.testing.assert_close(shade(ALBEDO, UP, ORIGIN, light(60), shading), torch.full((1, 3), 0.25 + 0.375))


def test_direction_is_towards_the_light_from_the_sample():
    position = torch.tensor([[5.0, 0.0, 0.0]])
    above = position + torch.tensor([[0.0, 0.0, 1.0]])
    torch.testing.assert_close(shade(ALBEDO, UP, position, above, Shading("diffuse", 0.0, 1.0)), ALBEDO)


def test_shading_without_normals_is_refused():
    with pytest.raises(ValueError, match="needs normals"):
        shade(ALBEDO, None, ORIGIN, light(0), Shading("diffuse", 0.5, 0.5))


def test_odds_of_the_modes():
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_shading(generator, enabled=True) for _ in range(2000)]
    share = Counter(s.mode for s in drawn)
    assert share["albedo"] / 2000 == pytest.approx(0.25, abs=0.03)
    assert share["textureless"] / 2000 == pytest.approx(0.375, abs=0.03)
    assert share["diffuse"] / 2000 == pytest.approx(0.375, abs=0.03)
    assert all(s.ambient + s.diffuse == pytest.approx(1) for s in drawn)
    assert min(s.diffuse for s in drawn) < 0.01 and max(s.diffuse for s in drawn) > 0.99


def test_coarse_stage_is_albedo_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sample_shading(generator, enabled=False) == Shading("albedo", 1.0, 0.0)
    assert torch.equal(generator.get_state(), before)
