"""SDI, PFD, ISM and ASD against closed forms: a prior whose predictions are multiples of x_t, both noise processes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jointdreamer.diffusion import NoiseProcess, add_noise, scaled_linear_alphas_cumprod
from jointdreamer.distillation.inversion import IntervalNoise, InvertedNoise, ShiftedNoise, invert
from jointdreamer.distillation.joint import JointScoreDistillation
from jointdreamer.distillation.targets import ClassifierFree, ProbabilityFlow
from jointdreamer.scenes.base import Render
from tests.distillation.test_joint import COND, UNCOND, KnownPrior, NoText

CAMERAS: Any = None
NOW = SimpleNamespace(
    t_min=0.02, t_max=0.98, guidance_scale=3.0, energy_weight=0.0, negative_prompt=False,
    loss=SimpleNamespace(jsd=1.0),
)  # fmt: skip
TEXT: Any = NoText()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["variance preserving", "flow"])
def prior(request):
    made = KnownPrior()
    if request.param == "flow":
        sigma = (torch.arange(1, 1001) / 1000).double()
        made.process = NoiseProcess(1 - sigma, sigma, "epsilon")
    return made


def latents():
    return torch.randn(2, 2, 3, 4, 4, generator=generator(1), dtype=torch.float64)


def test_two_steps_of_inversion_are_their_formula(prior):
    z, process = latents(), prior.process
    timesteps = torch.tensor([[100, 200], [400, 500]])
    x, before = invert(process, lambda x, t: COND * x, z, timesteps)
    (a1, s1), (a2, s2) = (process.at(t) for t in timesteps)
    x1 = (a1 + s1 * COND) * z
    assert torch.allclose(before, COND * x1)
    assert torch.allclose(x, a2 * (x1 - s1 * COND * x1) / a1 + s2 * COND * x1)


def test_inversion_with_the_true_noise_goes_straight_to_it(prior):
    """Where the network knows the noise eps, every path ends at alpha_t z + sigma_t eps."""
    z, eps = latents(), torch.randn(2, 2, 3, 4, 4, generator=generator(2), dtype=torch.float64)
    timesteps = torch.tensor([[50, 60], [300, 310], [700, 710]])
    x, before = invert(prior.process, lambda x, t: eps, z, timesteps)
    alpha_t, sigma_t = prior.process.at(timesteps[-1])
    assert torch.equal(before, eps) and torch.allclose(x, alpha_t * z + sigma_t * eps)


@pytest.mark.parametrize("kind", ["variance preserving", "flow"])
def test_eta_adds_its_share_of_the_ddim_deviation(kind):
    process = NoiseProcess.rectified_flow()
    if kind == "variance preserving":
        process = NoiseProcess.variance_preserving(scaled_linear_alphas_cumprod().double())
    z = torch.zeros(1, 1, 4, 200, 200, dtype=torch.float64)
    timesteps = torch.tensor([[300], [600]])
    x, _ = invert(process, lambda x, t: torch.zeros_like(x), z, timesteps, 0.5, generator(3))
    (a1, s1), (a2, s2) = (tuple(part.item() for part in process.at(t)) for t in timesteps)
    # x_2 = r x_1 + what the noising adds, where the marginal of x_2 has the deviation s2 as it must; and the spread of
    # x_1 given x_2 and z, as joint Gaussians have it. The first step starts without noise and adds none.
    r = a2 / a1
    added = s2**2 - (r * s1) ** 2
    covariance = torch.tensor([[s1**2, r * s1**2], [r * s1**2, r**2 * s1**2 + added]], dtype=torch.float64)
    assert covariance[1, 1].item() == pytest.approx(s2**2)
    variance = 1 / covariance.inverse()[0, 0].item()
    if kind == "variance preserving":
        assert variance == pytest.approx((s1 / s2) ** 2 * (1 - r**2))  # the DDIM paper's Eq. 16
    assert x.std().item() == pytest.approx(0.5 * variance**0.5, rel=0.01)


def test_sdi_with_one_step_subtracts_the_guided_prediction_of_the_clean_latents(prior):
    baseline = InvertedNoise(prior, TEXT, n_steps=1, guidance_scale=-6.5, eta=0.0)
    z, t = latents(), torch.tensor([300, 800])
    noised = baseline.add_noise(prior.process, z, t, CAMERAS, NOW, generator())
    kappa = (UNCOND - 6.5 * (COND - UNCOND)) * z
    assert torch.allclose(baseline(noised, CAMERAS, NOW), kappa)
    assert torch.allclose(noised.x_t, noised.alpha_t * z + noised.sigma_t * kappa)


def test_sdi_s_gradient_is_the_render_less_the_one_step_x0(prior):
    baseline = InvertedNoise(prior, TEXT, n_steps=4, eta=0.3)
    term = JointScoreDistillation(prior, TEXT, baseline=baseline, weighting="x0")
    rgb = latents().requires_grad_()
    render = Render(rgb, torch.ones(2, 2, 1, 4, 4))
    loss = term(None, render, CAMERAS, NOW, generator(5))["jsd"]
    noised = InvertedNoise(prior, TEXT, n_steps=4, eta=0.3).add_noise(
        prior.process, rgb.detach(), term.t, CAMERAS, NOW, skipped(generator(5))
    )
    x0 = noised.x0((UNCOND + 3.0 * (COND - UNCOND)) * noised.x_t)
    assert torch.allclose(4 * torch.autograd.grad(loss, rgb)[0], rgb.detach() - x0)


def target_of(kind, prior, noised):
    predictions = prior.predict(noised.x_t, noised.t, kind.conditions(TEXT, CAMERAS, NOW), CAMERAS)
    return kind(prior, noised, predictions, CAMERAS, NOW)


def test_pfd_with_one_step_is_guidance_to_the_bit_and_with_two_its_formula(prior):
    noised = add_noise(prior.process, latents(), torch.tensor([301, 800]), generator())
    assert torch.equal(target_of(ProbabilityFlow(1), prior, noised), target_of(ClassifierFree(), prior, noised))
    e = UNCOND + 3.0 * (COND - UNCOND)  # what the guided prediction multiplies x_t with
    a, s = prior.process.at(torch.tensor([150, 400]))
    half_way = a * (1 - noised.sigma_t * e) / noised.alpha_t * noised.x_t + s * e * noised.x_t
    found = noised.x0(target_of(ProbabilityFlow(2), prior, noised))
    assert torch.allclose(found, (1 - s * e) / a * half_way)


def test_where_the_noise_is_known_pfd_finds_the_clean_latents_in_any_number_of_steps(prior):
    noised = add_noise(prior.process, latents(), torch.tensor([301, 800]), generator())
    prior.predict = lambda x_t, t, conditions, cameras: [noised.noise] * 2
    assert torch.allclose(noised.x0(target_of(ProbabilityFlow(7), prior, noised)), noised.latents)


def skipped(draws):
    """The generator after the timesteps of a step were drawn."""
    torch.randint(20, 981, (2,), generator=draws)
    return draws


@pytest.mark.parametrize("t", [[500, 300], [50, 40]])
def test_ism_subtracts_what_is_predicted_without_text_one_interval_before(prior, t):
    baseline = IntervalNoise(prior, TEXT, interval=80, stride=1000)
    z, t = latents(), torch.tensor(t)
    noised = baseline.add_noise(prior.process, z, t, CAMERAS, NOW, generator())
    a1, s1 = prior.process.at((t - 80).clamp_min(0))
    x_s = (a1 + s1 * UNCOND) * z
    assert torch.allclose(baseline(noised, CAMERAS, NOW), UNCOND * x_s)
    x0 = (x_s - s1 * UNCOND * x_s) / a1
    assert torch.allclose(noised.x_t, noised.alpha_t * x0 + noised.sigma_t * UNCOND * x_s)
    assert torch.allclose(noised.x_t, noised.alpha_t * z + noised.sigma_t * noised.noise)


def test_asd_subtracts_the_prediction_with_text_at_a_later_timestep_of_the_same_noise(prior):
    z, t, later = latents(), torch.tensor([300, 800]), []
    baseline = ShiftedNoise(prior, TEXT, shift=0.1)
    for seed in range(30):
        noised = baseline.add_noise(prior.process, z, t, CAMERAS, NOW, generator(seed))
        assert torch.equal(noised.noise, add_noise(prior.process, z, t, generator(seed)).noise)
        alpha_t, sigma_t = prior.process.at(baseline.after)
        assert torch.allclose(baseline(noised, CAMERAS, NOW), COND * (alpha_t * z + sigma_t * noised.noise))
        later.append(baseline.after - t)
    moved = torch.stack(later)
    assert (moved >= 0).all() and (moved <= torch.tensor([28, 78])).all() and (moved.float().mean(0) > 8).all()
