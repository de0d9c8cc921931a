"""Sampling with priors and energies whose answers are known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jointdreamer.diffusion import NoiseProcess, noise_from_x0, scaled_linear_alphas_cumprod
from jointdreamer.distillation.joint import JointScoreDistillation
from jointdreamer.energies.base import Energy
from jointdreamer.energies.none import NoEnergy
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Condition
from jointdreamer.project import CONF
from jointdreamer.sample2d import sample_views

B, V, C, H = 2, 4, 3, 5
NOTHING: Any = None  # for the cameras that nothing here looks at


class NoText:
    def at(self, cameras):
        return Condition(torch.zeros(()))

    def nothing(self, cameras, negative=False):
        return Condition(torch.zeros(()))


class Point(Prior):
    """A prior that knows one clean sample, `mean`, and nothing else; its pictures are its latents."""

    def __init__(self, mean):
        super().__init__()
        self.process = NoiseProcess.variance_preserving(scaled_linear_alphas_cumprod().double())
        self.mean, self.levels = mean, []

    def embed(self, prompts):
        return NoText()

    def encode(self, rgb, generator, grad=True, chunk=None):
        return rgb

    def decode(self, latents):
        return latents

    def predict(self, x_t, t, conditions, cameras):
        self.levels.append(int(t[0]))
        return [noise_from_x0(x_t, self.mean, *self.process.at(t))] * len(conditions)


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


def draw(prior, energy, weight, **options):
    g = torch.Generator().manual_seed(0)
    before = g.get_state()
    term = JointScoreDistillation(prior, NoText(), energy, mask="none", **options)  # pyright: ignore
    now = SimpleNamespace(guidance_scale=2.0, energy_weight=weight, negative_prompt=False)
    found = sample_views(term, tensors(1), NOTHING, now, g, steps=10)
    assert torch.equal(g.get_state(), before)  # nothing here draws
    return found


@pytest.mark.parametrize(("energy", "weight"), [(NoEnergy(), 1.0), (Pull(torch.zeros(())), 0.0)])
def test_without_energy_the_sample_is_the_prior_s(energy, weight):
    prior = Point(tensors(2))
    torch.testing.assert_close(draw(prior, energy, weight), prior.mean)
    assert prior.levels[0] == 999 and len(prior.levels) == 10
    assert prior.levels == sorted(prior.levels, reverse=True) and prior.levels[-1] > 0


def test_the_energy_moves_the_last_estimate_as_eq_5_says():
    """x0 + lambda sigma_t^2 / alpha_t^2 (target - x0), at the last noise level."""
    prior, target = Point(tensors(2)), tensors(3)
    found = draw(prior, Pull(target), 5.0)
    alpha_t, sigma_t = prior.process.at(torch.tensor([prior.levels[-1]]))
    step = 5.0 * (sigma_t / alpha_t) ** 2
    torch.testing.assert_close(found, prior.mean + step * (target - prior.mean))


def test_a_bounded_strong_energy_ends_at_its_optimum():
    target = tensors(3)
    found = draw(Point(tensors(2)), Pull(target), 1e9, energy_limit=1.0)
    torch.testing.assert_close(found, target, atol=1e-6, rtol=0)


def test_samples_are_clamped():
    assert draw(Point(10 * tensors(2)), NoEnergy(), 0.0, x0_limit=0.5).abs().max() == pytest.approx(0.5)


def test_energies_see_pictures_without_a_graph_and_clean_latents():
    prior, energy = Point(tensors(2)), Pull(tensors(3))
    draw(prior, energy, 1.0)
    views = energy.views
    assert views.latents is not None
    assert views.rgb.min() >= 0 and views.rgb.max() <= 1 and bool((views.opacity == 1).all())
    torch.testing.assert_close(views.latents, prior.mean)
    assert views.x0.requires_grad and not views.rgb.requires_grad and not views.latents.requires_grad


def test_fig2c_is_joined_by_the_classifier():
    assert "override /energy: cls" in (CONF / "experiment" / "fig2c.yaml").read_text()
