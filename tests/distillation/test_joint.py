"""Eq. 2 to 5 against the hand derivative in float64; what is promised about signs, rigs and randomness."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from jointdreamer.diffusion import noise_like, scaled_linear_alphas_cumprod
from jointdreamer.distillation.joint import (
    Noised,
    add_noise,
    bounded_weight,
    energy_gradient,
    jsd_gradient,
    jsd_noise,
    limit_x0,
    mvdream_loss,
    noise_at,
    one_step_images,
    sds_gradient,
    surrogate_loss,
)
from jointdreamer.energies.base import Energy
from jointdreamer.energies.none import NoEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Guidance, NoisePrediction

B, V, C, H = 2, 4, 3, 5
NOTHING: Any = None  # for the cameras and the text that no energy here looks at


class KnownGuidance(Guidance):
    """Predicts a fixed linear function of the noisy latents; counts its calls."""

    def __init__(self):
        super().__init__()
        self.alphas_cumprod = scaled_linear_alphas_cumprod().double()

    def encode(self, rgb, generator, grad=True, chunk=None):
        return rgb

    def decode(self, latents):
        return latents

    def predict_noise(self, noised, text, guidance_scale):
        x = noised.latents_noisy
        return NoisePrediction(0.5 * x, 0.4 * x, 0.3 * x)


class PullEnergy(Energy):
    """C = -1/2 |x0 - target|^2 per rig."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, views):
        self.seen = views
        return -0.5 * (views.x0 - self.target[: len(views.x0)]).square().sum((1, 2, 3, 4))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def scene(b=B, seed=1):
    guidance = KnownGuidance()
    latents = tensors(B, V, C, H, H, seed=seed)[:b]
    render: Any = SimpleNamespace(
        rgb=torch.rand(B, V, 3, 10, 10, generator=generator(7), dtype=torch.float64, requires_grad=True)[:b],
        opacity=torch.rand(B, V, 1, 10, 10, generator=generator(8), dtype=torch.float64, requires_grad=True)[:b],
    )
    noised = add_noise(guidance, latents, 0.02, 0.98, generator())
    return guidance, render, noised, guidance.predict_noise(noised, NOTHING, 1.0)


def gradient(energy, guidance, render, noised, pred, weight=1.25, **options):
    return energy_gradient(energy, guidance, noised, pred, render, NOTHING, NOTHING, weight, generator(), **options)


# add_noise


def test_noised_latents_follow_the_noise_process():
    guidance, _, noised, _ = scene()
    assert noised.timesteps.shape == (B,) and noised.alpha_t.shape == (B, 1, 1, 1, 1)
    abar = guidance.alphas_cumprod[noised.timesteps].view(B, 1, 1, 1, 1)
    torch.testing.assert_close(noised.alpha_t, abar.sqrt())
    torch.testing.assert_close(noised.sigma_t, (1 - abar).sqrt())
    torch.testing.assert_close(
        noised.latents_noisy, abar.sqrt() * tensors(B, V, C, H, H) + (1 - abar).sqrt() * noised.noise
    )


def test_noised_latents_have_no_graph():
    latents = torch.ones(1, 1, 1, 2, 2, requires_grad=True)
    assert not add_noise(KnownGuidance(), latents, 0.1, 0.9, generator()).latents_noisy.requires_grad


def test_timesteps_fill_the_range_both_ends_included():
    latents = torch.zeros(20000, 1, 1, 1, 1)
    t = add_noise(KnownGuidance(), latents, 0.5, 0.509, generator()).timesteps
    assert set(t.tolist()) == set(range(500, 510))
    assert torch.bincount(t)[500:].min() > 1700
    assert (add_noise(KnownGuidance(), latents, 0.98, 0.98, generator()).timesteps == 980).all()
    assert add_noise(KnownGuidance(), latents, 1.0, 1.0, generator()).timesteps.max() == 999


@pytest.mark.parametrize(
    ("weighting", "formula"),
    [
        ("sds", lambda abar: 1 - abar),
        ("uniform", lambda abar: 1.0),
        ("fantasia3d", lambda a: a**0.5 * (1 - a)),
        ("x0", lambda abar: (1 / abar - 1) ** 0.5),
    ],
)
def test_weightings(weighting, formula):
    guidance = KnownGuidance()
    noised = add_noise(guidance, torch.zeros(3, 1, 1, 1, 1).double(), 0.02, 0.98, generator(), weighting)
    for i, t in enumerate(noised.timesteps.tolist()):
        assert noised.weight[i].item() == pytest.approx(formula(guidance.alphas_cumprod[t].item()))


@pytest.mark.parametrize("bounds", [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_noise_ranges_are_refused(bounds):
    t_min, t_max = bounds
    with pytest.raises(UserError, match="t_min"):
        add_noise(KnownGuidance(), torch.zeros(1, 1, 1, 1, 1), t_min, t_max, generator())
    with pytest.raises(UserError, match="uniform"):
        add_noise(KnownGuidance(), torch.zeros(1, 1, 1, 1, 1), 0.1, 0.2, generator(), weighting="dreamtime")


def test_all_randomness_is_the_generator_s():
    draws = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        draws.append(add_noise(KnownGuidance(), torch.zeros(2, 1, 1, 3, 3), 0.02, 0.98, generator(3)))
    assert torch.equal(draws[0].timesteps, draws[1].timesteps) and torch.equal(draws[0].noise, draws[1].noise)
    other = add_noise(KnownGuidance(), torch.zeros(2, 1, 1, 3, 3), 0.02, 0.98, generator(4))
    assert not torch.equal(draws[0].noise, other.noise)


# energy_gradient


@pytest.mark.parametrize("mask", ["input", "gradient", "none"])
@pytest.mark.parametrize(("floor", "energy_x0"), [(0.0, "uncond"), (0.6, "uncond"), (0.6, "guided")])
def test_energy_gradient_is_the_hand_derivative(mask, floor, energy_x0):
    guidance, render, noised, pred = scene()
    target = tensors(B, V, C, H, H, seed=2)
    options = {"mask": mask, "mask_floor": floor, "energy_x0": energy_x0}
    grad, coherence = gradient(PullEnergy(target), guidance, render, noised, pred, **options)

    m = interpolate(render.opacity.detach().flatten(0, 1), (H, H), mode="bilinear", align_corners=False)
    m = torch.maximum(m.view(B, V, 1, H, H), torch.tensor(floor, dtype=torch.float64))
    a, s, x_t, e = noised.alpha_t, noised.sigma_t, noised.latents_noisy, pred.noise_uncond
    if energy_x0 == "guided":
        e = pred.noise
    x0 = ((m if mask == "input" else 1) * x_t - s * e) / a
    expected = -(1 if mask == "none" else m) / a * (x0 - target)
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(coherence, torch.stack([-0.5 * d.square().sum() for d in x0 - target]))
    assert not grad.requires_grad and not coherence.requires_grad


def test_energy_sees_detached_renders_and_an_x0_with_a_graph():
    guidance, render, noised, pred = scene()
    energy = PullEnergy(tensors(B, V, C, H, H, seed=2))
    with torch.no_grad():  # the loop may have switched gradients off
        gradient(energy, guidance, render, noised, pred)
    assert energy.seen.x0.requires_grad
    assert not energy.seen.rgb.requires_grad and not energy.seen.opacity.requires_grad
    assert energy.seen.timesteps is noised.timesteps
    assert energy.seen.decode == guidance.decode


def test_a_bounded_step_from_what_is_distilled_lands_on_what_the_energy_wants():
    """With energy_x0 guided and a limit of 1, x0 after the energy is its target, whatever the text says."""
    guidance, render, noised, pred = scene()
    target = tensors(B, V, C, H, H, seed=2)
    energy_grad, _ = gradient(PullEnergy(target), guidance, render, noised, pred, 1e9, mask="none", energy_x0="guided")
    joint = jsd_noise(pred.noise, energy_grad, noised.sigma_t, bounded_weight(1e9, noised, 1.0))
    x0 = (noised.latents_noisy - noised.sigma_t * joint) / noised.alpha_t
    torch.testing.assert_close(x0, target, rtol=1e-4, atol=1e-4)


def test_moving_against_the_gradient_raises_coherence():
    guidance, render, noised, pred = scene()
    energy = PullEnergy(tensors(B, V, C, H, H, seed=2))
    energy_grad, before = gradient(energy, guidance, render, noised, pred)
    zero = torch.zeros_like(noised.noise)
    step = jsd_gradient(zero, zero, energy_grad, noised.sigma_t, noised.weight, 1.25)
    moved = Noised(**{**vars(noised), "latents_noisy": noised.latents_noisy - 1e-3 * step})
    _, after = gradient(energy, guidance, render, moved, pred)
    assert (after > before).all()


def test_rigs_do_not_influence_each_other():
    guidance, render, noised, pred = scene()
    energy = PullEnergy(tensors(B, V, C, H, H, seed=2))
    grad, coherence = gradient(energy, guidance, render, noised, pred)
    for i in range(B):
        one = Noised(**{k: x[i : i + 1] for k, x in vars(noised).items()})
        p = NoisePrediction(*(x[i : i + 1] for x in (pred.noise, pred.noise_cond, pred.noise_uncond)))
        r: Any = SimpleNamespace(rgb=render.rgb[i : i + 1], opacity=render.opacity[i : i + 1])
        alone, c = gradient(PullEnergy(energy.target[i : i + 1]), guidance, r, one, p)
        assert torch.equal(alone[0], grad[i]) and torch.equal(c[0], coherence[i])


class Forbidden(Energy):
    def forward(self, views):
        raise AssertionError("was asked although it has no weight")


@pytest.mark.parametrize(("energy", "weight"), [(Forbidden(), 0), (Forbidden(), 0.0), (NoEnergy(), 1.25)])
def test_an_energy_without_weight_is_not_asked(energy, weight):
    guidance, render, noised, pred = scene()
    g = generator(5)
    before = g.get_state()
    grad, coherence = energy_gradient(energy, guidance, noised, pred, render, NOTHING, NOTHING, weight, g)
    assert torch.equal(grad, torch.zeros_like(noised.noise)) and torch.equal(coherence, torch.zeros(B).double())
    assert torch.equal(g.get_state(), before)


class MeanEnergy(Energy):
    def forward(self, views):
        return views.x0.mean()


class DetachedEnergy(Energy):
    def forward(self, views):
        return views.x0.detach().sum((1, 2, 3, 4))


@pytest.mark.parametrize(("energy", "words"), [(MeanEnergy(), "one number per rig"), (DetachedEnergy(), "x0")])
def test_energies_that_break_the_contract_are_named(energy, words):
    guidance, render, noised, pred = scene()
    with pytest.raises(ValueError, match=f"{type(energy).__name__}.*{words}"):
        gradient(energy, guidance, render, noised, pred)


def test_unknown_mask_is_refused():
    guidance, render, noised, pred = scene()
    with pytest.raises(UserError, match="output"):
        gradient(PullEnergy(tensors(B, V, C, H, H)), guidance, render, noised, pred, mask="output")


# Eq. 2, Eq. 5 and the hand-over


def test_one_step_images_are_estimates_at_one_t_of_what_each_is_called():
    class Told(KnownGuidance):
        def predict_noise(self, noised, text, guidance_scale):
            self.told = text, guidance_scale
            return super().predict_noise(noised, text, guidance_scale)

    guidance, rgb = Told(), tensors(6, C, H, H)
    words, nothing = tensors(6, 2, 8, seed=1), torch.zeros(1, 2, 8)
    found = one_step_images(guidance, rgb, 0.3, 0.9, words, nothing, 3.0, generator(4))
    noised = add_noise(guidance, rgb[None], 0.3, 0.9, generator(4))
    assert noised.timesteps.shape == (1,)  # all images share it
    expected = (noised.latents_noisy - noised.sigma_t * 0.5 * noised.latents_noisy) / noised.alpha_t
    torch.testing.assert_close(found, expected[0])
    text, scale = guidance.told
    assert torch.equal(text.cond, words[None]) and text.uncond.shape == (1, 6, 2, 8) and not text.uncond.any()
    assert scale == 3.0


def test_jsd_is_eq_5():
    noise_pred, noise, energy_grad = (tensors(2, 1, 1, 1, 1, seed=s) for s in (1, 2, 3))
    sigma_t, w = (tensors(2, 1, 1, 1, 1, seed=s).abs() for s in (4, 5))
    grad = jsd_gradient(noise_pred, noise, energy_grad, sigma_t, w, 1.25)
    for i in range(2):
        p, n, e, s, wi = (x.flatten()[i].item() for x in (noise_pred, noise, energy_grad, sigma_t, w))
        assert grad.flatten()[i].item() == pytest.approx(wi * (p - 1.25 * s * e - n))


def test_without_energy_jsd_is_sds_bit_for_bit():
    guidance, render, _, _ = scene()
    latents = tensors(B, V, C, H, H).float()
    noised = add_noise(guidance, latents, 0.02, 0.98, generator())
    pred = guidance.predict_noise(noised, NOTHING, 1.0)
    energy_grad, _ = gradient(NoEnergy(), guidance, render, noised, pred)
    sds = noised.weight * (pred.noise - noised.noise)
    assert torch.equal(jsd_gradient(pred.noise, noised.noise, energy_grad, noised.sigma_t, noised.weight, 1.25), sds)
    limited = limit_x0(jsd_noise(pred.noise, energy_grad, noised.sigma_t, 1.25), noised, None)
    assert torch.equal(sds_gradient(limited, noised.noise, noised.weight), sds)


def test_limit_clamps_the_implied_x0_and_nothing_else():
    _, _, noised, pred = scene()
    a, s, x_t = noised.alpha_t, noised.sigma_t, noised.latents_noisy
    x0 = (x_t - s * pred.noise) / a
    limited = limit_x0(pred.noise, noised, 0.7)
    torch.testing.assert_close((x_t - s * limited) / a, x0.clamp(-0.7, 0.7))
    inside = x0.abs() <= 0.7
    assert 0 < inside.double().mean() < 1
    torch.testing.assert_close(limited[inside], pred.noise[inside])


def test_a_bounded_energy_never_passes_its_optimum():
    """C = -1/2 |x0 - target|^2, limit 1: x0 moves step / (1 + step) of the way, step = lambda sigma^2 / alpha^2."""
    _, _, noised, pred = scene()
    target = tensors(B, V, C, H, H, seed=9)
    a, s, x_t = noised.alpha_t, noised.sigma_t, noised.latents_noisy
    x0 = (x_t - s * pred.noise) / a
    energy_grad = (target - x0) / a  # dC/dx_t by hand, at the guided estimate
    step = 1.25 * (s / a) ** 2
    moved = (x_t - s * jsd_noise(pred.noise, energy_grad, s, bounded_weight(1.25, noised, 1.0))) / a
    torch.testing.assert_close(moved, x0 + step / (1 + step) * (target - x0))
    unbounded = (x_t - s * jsd_noise(pred.noise, energy_grad, s, bounded_weight(1.25, noised, None))) / a
    torch.testing.assert_close(unbounded, x0 + step * (target - x0))


def test_surrogate_hands_over_exactly_the_gradient_per_view():
    latents = (1e3 * tensors(B, V, C, H, H)).float().requires_grad_()
    grad = (1e-4 * tensors(B, V, C, H, H, seed=2)).float().requires_grad_()
    loss = surrogate_loss(latents, grad)
    loss.backward()
    assert latents.grad is not None and torch.equal(
        latents.grad, grad.detach() / (B * V)
    )  # 8 rows: the division is exact
    assert grad.grad is None
    assert loss.item() == pytest.approx(0.5 * grad.detach().double().square().sum().item() / (B * V), rel=1e-5)


def test_the_energy_counts_the_same_in_a_larger_batch():
    """Twice the same rig: the latents' gradient, summed over the copies, is that of the rig alone."""
    guidance, render, noised, pred = scene(b=1)
    energy = PullEnergy(tensors(B, V, C, H, H, seed=2)[:1])
    alone, _ = gradient(energy, guidance, render, noised, pred)
    twice = Noised(**{k: torch.cat([x, x]) for k, x in vars(noised).items()})
    p = NoisePrediction(*(torch.cat([x, x]) for x in (pred.noise, pred.noise_cond, pred.noise_uncond)))
    r: Any = SimpleNamespace(rgb=torch.cat([render.rgb] * 2), opacity=torch.cat([render.opacity] * 2))
    both, _ = gradient(PullEnergy(energy.target.repeat(2, 1, 1, 1, 1)), guidance, r, twice, p)

    def handed_over(grad):
        latents = torch.zeros_like(grad, requires_grad=True)
        return torch.autograd.grad(surrogate_loss(latents, grad), latents)[0].sum(0)

    torch.testing.assert_close(handed_over(both), handed_over(alone))


def test_noise_like_is_what_add_noise_draws():
    """The documented order: timesteps, then noise."""
    g = generator(9)
    latents = torch.zeros(2, 1, 1, 3, 3)
    noised = add_noise(KnownGuidance(), latents, 0.1, 0.5, generator(9))
    assert torch.equal(noised.timesteps, torch.randint(100, 501, (2,), generator=g))
    assert torch.equal(noised.noise, noise_like(latents, g))


# The baselines


def test_the_weighting_x0_makes_sds_mvdream_s_reconstruction():
    """1/2 |z - x0|^2 / rows: its value, and its gradient (z - x0) / rows, x0 being the prior's own clean estimate."""
    guidance = KnownGuidance()
    latents = tensors(B, V, C, H, H).requires_grad_()
    noised = add_noise(guidance, latents, 0.02, 0.98, generator(), "x0")
    pred = guidance.predict_noise(noised, NOTHING, 1.0)
    x0 = (noised.latents_noisy - noised.sigma_t * pred.noise) / noised.alpha_t
    loss = surrogate_loss(latents, sds_gradient(pred.noise, noised.noise, noised.weight))
    (grad,) = torch.autograd.grad(loss, latents)
    torch.testing.assert_close(grad, (latents.detach() - x0) / (B * V))
    assert loss.item() == pytest.approx(0.5 * (latents.detach() - x0).square().sum().item() / (B * V))


class OtherLatents(KnownGuidance):
    """A prior with latents of its own, half as large as the image, whose x0 is 0.25 everywhere."""

    def encode(self, rgb, generator, grad=True, chunk=None):
        return 0.5 * rgb

    def predict_noise(self, noised, text, guidance_scale):
        noise = (noised.latents_noisy - 0.25 * noised.alpha_t) / noised.sigma_t
        return NoisePrediction(noise, noise, noise)


def test_the_sum_s_second_term_is_the_other_prior_s_reconstruction_in_its_own_latents():
    _, _, noised, _ = scene()
    rgb = torch.rand(B, V, 3, 6, 6, generator=generator(3), dtype=torch.float64, requires_grad=True)
    loss = mvdream_loss(OtherLatents(), rgb, noised, NOTHING, SimpleNamespace(jsd=1, mvdream=0.3), generator())
    assert loss.keys() == {"mvdream"}
    (grad,) = torch.autograd.grad(loss["mvdream"], rgb)
    torch.testing.assert_close(grad, 0.5 * (0.5 * rgb.detach() - 0.25) / (B * V))
    assert loss["mvdream"].item() == pytest.approx(0.5 * (0.5 * rgb - 0.25).square().sum().item() / (B * V))


def test_the_second_prior_sees_the_timesteps_of_the_first_and_noise_of_its_own():
    guidance, _, noised, _ = scene()
    again = noise_at(guidance, noised.latents, noised.timesteps, generator(9), "x0")
    assert torch.equal(again.timesteps, noised.timesteps) and not torch.equal(again.noise, noised.noise)
    torch.testing.assert_close(again.latents_noisy, noised.alpha_t * noised.latents + noised.sigma_t * again.noise)


class NeverAsked(Guidance):
    def encode(self, rgb, generator, grad=True, chunk=None):
        raise AssertionError("was asked although it has no weight")

    def decode(self, latents):
        raise AssertionError("was asked although it has no weight")

    def predict_noise(self, noised, text, guidance_scale):
        raise AssertionError("was asked although it has no weight")


@pytest.mark.parametrize(
    ("prior", "weights"),
    [(NeverAsked(), {"mvdream": 0}), (NeverAsked(), {"mvdream": 0.0}), (NeverAsked(), {}), (None, {"mvdream": 1})],
)
def test_the_sum_without_weight_is_sds(prior, weights):
    """No term, no network, no random number: what is left of the step is SDS, bit for bit."""
    _, render, noised, _ = scene()
    g = generator(5)
    before = g.get_state()
    assert mvdream_loss(prior, render.rgb, noised, NOTHING, SimpleNamespace(jsd=1, **weights), g) == {}
    assert torch.equal(g.get_state(), before)
