"""Sampling with priors and energies whose answers are known."""

from typing import Any

import pytest
import torch

from jointdreamer.cli.main import CONF
from jointdreamer.diffusion import alpha_sigma, noise_from_x0, scaled_linear_alphas_cumprod
from jointdreamer.energies.base import Energy
from jointdreamer.energies.none import NoEnergy
from jointdreamer.priors.base import Guidance, NoisePrediction
from jointdreamer.sample2d import sample_views

B, V, C, H = 2, 4, 3, 5
NOTHING: Any = None  # for the cameras and the text that nothing here looks at


class Point(Guidance):
    """A prior that knows one clean sample, `mean`, and nothing else; its pictures are its latents."""

    def __init__(self, mean):
        super().__init__()
        self.alphas_cumprod = scaled_linear_alphas_cumprod().double()
        self.mean, self.levels = mean, []

    def encode(self, rgb, generator, grad=True, chunk=None):
        return rgb

    def decode(self, latents):
        return latents

    def predict_noise(self, noised, text, guidance_scale):
        self.levels.append(int(noised.timesteps[0]))
        alpha_t, sigma_t = alpha_sigma(self.alphas_cumprod, noised.timesteps)
        noise = noise_from_x0(noised.latents_noisy, self.mean, alpha_t, sigma_t)
        return NoisePrediction(noise, noise, noise)


class Pull(Energy):
    """C = -1/2 |x0 - target|^2; remembers what it was shown."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, views):
        self.views = views
        return -0.5 * (views.x0 - self.target).square().sum((1, 2, 3, 4))


def tensors(seed):
    return torch.randn(B, V, C, H, H, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(guidance, energy, weight, **options):
    g = torch.Generator().manual_seed(0)
    before = g.get_state()
    found = sample_views(guidance, energy, tensors(1), NOTHING, NOTHING, 1.0, weight, g, steps=10, **options)
    assert torch.equal(g.get_state(), before)  # nothing here draws
    return found


@pytest.mark.parametrize(("energy", "weight"), [(NoEnergy(), 1.0), (Pull(torch.zeros(())), 0.0)])
def test_without_energy_the_sample_is_the_prior_s(energy, weight):
    guidance = Point(tensors(2))
    torch.testing.assert_close(draw(guidance, energy, weight), guidance.mean)
    assert guidance.levels[0] == 999 and len(guidance.levels) == 10
    assert guidance.levels == sorted(guidance.levels, reverse=True) and guidance.levels[-1] > 0


def test_the_energy_moves_the_last_estimate_as_eq_5_says():
    """x0 + lambda sigma_t^2 / alpha_t^2 (target - x0), at the last noise level."""
    guidance, target = Point(tensors(2)), tensors(3)
    found = draw(guidance, Pull(target), 5.0)
    alpha_t, sigma_t = alpha_sigma(guidance.alphas_cumprod, torch.tensor([guidance.levels[-1]]))
    step = 5.0 * (sigma_t / alpha_t) ** 2
    torch.testing.assert_close(found, guidance.mean + step * (target - guidance.mean))


def test_a_bounded_strong_energy_ends_at_its_optimum():
    target = tensors(3)
    found = draw(Point(tensors(2)), Pull(target), 1e9, energy_limit=1.0)
    torch.testing.assert_close(found, target, atol=1e-6, rtol=0)


def test_samples_are_clamped():
    assert draw(Point(10 * tensors(2)), NoEnergy(), 0.0, x0_limit=0.5).abs().max() == pytest.approx(0.5)


def test_energies_see_pictures_without_a_graph_and_clean_latents():
    guidance, energy = Point(tensors(2)), Pull(tensors(3))
    draw(guidance, energy, 1.0)
    views = energy.views
    assert views.latents is not None
    assert views.rgb.min() >= 0 and views.rgb.max() <= 1 and bool((views.opacity == 1).all())
    torch.testing.assert_close(views.latents, guidance.mean)
    assert views.x0.requires_grad and not views.rgb.requires_grad and not views.latents.requires_grad


def test_fig2c_is_joined_by_the_classifier():
    assert "override /energy: cls" in (CONF / "experiment" / "fig2c.yaml").read_text()
