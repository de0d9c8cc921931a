"""Eq. 2 to 5, through the term that the loop calls, against the hand derivative in float64; signs, rigs, randomness."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from jointdreamer.diffusion import Noised, NoiseProcess, add_noise, noise_like, scaled_linear_alphas_cumprod
from jointdreamer.distillation.joint import (
    WEIGHTINGS,
    JointScoreDistillation,
    clamp_x0,
    damped_weight,
    energy_gradient,
    surrogate_loss,
    views_of,
)
from jointdreamer.energies.base import Energy
from jointdreamer.energies.none import NoEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import guided
from jointdreamer.scenes.base import Render
from tests.priors.known import PicturePrior

B, V, C, H = 2, 4, 3, 5
NOTHING: Any = None  # for the cameras, the scene and the text that nothing here looks at
GUIDED, COND, UNCOND = 0.5, 0.4, 0.3  # times x_t; guidance scale 2


class NoText:
    """Embeddings of a prior that does not read them."""

    def at(self, cameras):
        return Condition(torch.ones(()))

    def nothing(self, cameras, negative=False):
        return Condition(torch.zeros(()))


class KnownPrior(PicturePrior):
    """Predicts a fixed linear function of x_t: COND x_t given the text, UNCOND x_t given none."""

    def predict(self, x_t, t, conditions, cameras):
        return [(COND if condition.embedding else UNCOND) * x_t for condition in conditions]


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


def now(**changes):
    plan = {"t_min": 0.02, "t_max": 0.98, "guidance_scale": 2.0, "energy_weight": 1.25, "negative_prompt": False}
    return SimpleNamespace(**{**plan, **changes}, loss=SimpleNamespace(jsd=1.0, mvdream=1.0))


def renders(b=B):
    rgb = tensors(B, V, C, H, H, seed=7).requires_grad_()
    opacity = torch.rand(B, V, 1, 10, 10, generator=generator(8), dtype=torch.float64, requires_grad=True)
    return Render(rgb[:b], opacity[:b])


def noised(b=B, t=(300, 850)):
    return add_noise(KnownPrior().process, tensors(B, V, C, H, H)[:b], torch.tensor(t[:b]), generator())


def term(energy=None, **options):
    return JointScoreDistillation(KnownPrior(), NoText(), energy, **options)  # pyright: ignore[reportArgumentType]


def step(distillation, render=None, seed=3, **changes):
    """The gradient that a step hands to the renders (here the latents), times the number of views; and the loss."""
    render = render or renders()
    (loss,) = distillation(NOTHING, render, NOTHING, now(**changes), generator(seed)).values()
    return torch.autograd.grad(loss, render.rgb)[0] * render.rgb.shape[0] * V, loss


def drawn(render, seed=3):
    """The noised latents of a step, drawn as documented: timesteps, then noise."""
    g = generator(seed)
    t = torch.randint(20, 981, (len(render.rgb),), generator=g)
    return add_noise(KnownPrior().process, render.rgb, t, g)


def gradient(energy, render, x, prior=None, seen=None, **options):
    prior, seen = prior or KnownPrior(), UNCOND * x.x_t if seen is None else seen
    text = [Condition(torch.ones(())), Condition(torch.zeros(()))]
    views = views_of(prior, x, GUIDED * x.x_t, render, NOTHING, text, generator())
    return energy_gradient(energy, views, x, seen, **options)


# The whole of Eq. 5


@pytest.mark.parametrize("mask", ["input", "gradient", "none"])
@pytest.mark.parametrize(("floor", "energy_x0"), [(0.0, "uncond"), (0.6, "uncond"), (0.6, "guided")])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_step_is_eq_5(mask, floor, energy_x0, weighting):
    target, render = tensors(B, V, C, H, H, seed=2), renders()
    options = {"mask": mask, "mask_floor": floor, "energy_x0": energy_x0, "weighting": weighting}
    found, _ = step(term(PullEnergy(target), **options), render)

    x = drawn(render)
    m = interpolate(render.opacity.detach().flatten(0, 1), (H, H), mode="bilinear", align_corners=False)
    m = torch.maximum(m.view(B, V, 1, H, H), torch.tensor(floor, dtype=torch.float64))
    e = (GUIDED if energy_x0 == "guided" else UNCOND) * x.x_t
    for i in range(B):
        abar = scaled_linear_alphas_cumprod().double()[x.t[i]]
        a, s = abar**0.5, (1 - abar) ** 0.5
        w = {"sds": 1 - abar, "uniform": 1.0, "fantasia3d": a * (1 - abar), "x0": s / a, "velocity": 1 / a}[weighting]
        x0 = ((m[i] if mask == "input" else 1) * x.x_t[i] - s * e[i]) / a
        energy_grad = -(1 if mask == "none" else m[i]) / a * (x0 - target[i])
        torch.testing.assert_close(found[i], w * (GUIDED * x.x_t[i] - 1.25 * s * energy_grad - x.noise[i]))


def test_without_energy_jsd_is_sds_bit_for_bit():
    render = renders()
    sds, _ = step(term(None, timesteps=None), render)
    joint, _ = step(term(PullEnergy(tensors(B, V, C, H, H, seed=2))), render, energy_weight=0)
    x = drawn(render)
    expected = x.sigma_t**2 * (guided(COND * x.x_t, UNCOND * x.x_t, 2.0) - x.noise)
    assert torch.equal(sds, joint) and torch.equal(sds, expected)  # 8 views: the division is exact


class NeverAsked(KnownPrior):
    def encode(self, rgb, generator, grad=True, chunk=None):
        raise AssertionError("was asked although it has no weight")

    def predict(self, x_t, t, conditions, cameras):
        raise AssertionError("was asked although it has no weight")


@pytest.mark.parametrize("weights", [{"jsd": 0}, {"jsd": 0.0}, {}])
def test_a_term_without_weight_does_nothing(weights):
    """No loss, no network, no random number."""
    distillation, plan, g = term(PullEnergy(tensors(B, V, C, H, H))), now(), generator(5)
    distillation.prior = NeverAsked()
    plan.loss, before = SimpleNamespace(**weights), g.get_state()
    assert distillation(NOTHING, renders(), NOTHING, plan, g) == {}
    assert torch.equal(g.get_state(), before)


def test_the_joint_x0_is_clamped():
    target, render = 50 * tensors(B, V, C, H, H, seed=2), renders()
    found, _ = step(term(PullEnergy(target), x0_limit=0.7, weighting="uniform"), render)
    x = drawn(render)
    x0 = x.x0(found + x.noise)
    assert x0.abs().max() == pytest.approx(0.7) and (x0.abs() > 0.699).double().mean() > 0.5


def test_a_step_reports_what_it_saw():
    target = tensors(B, V, C, H, H, seed=2)
    distillation, render = term(PullEnergy(target), mask="none"), renders()
    step(distillation, render)
    x, shown = drawn(render), distillation.pictures()
    assert list(shown) == ["noised", "x0 of the prior", "x0 that the energy wants", "x0 after the energy"]
    torch.testing.assert_close(shown["x0 of the prior"], x.x0(GUIDED * x.x_t)[0])
    torch.testing.assert_close(shown["x0 that the energy wants"], target[0])  # the optimum of this energy
    assert distillation.metrics["coherence"] < 0
    step(term(None), render)
    assert term(None).pictures() == {}


# The baselines of the paper


def test_the_weighting_x0_makes_sds_mvdream_s_reconstruction():
    """1/2 |z - x0|^2 / rows: its value, and its gradient (z - x0) / rows, x0 being the prior's own clean estimate."""
    render = renders()
    found, loss = step(term(None, weighting="x0"), render)
    x = drawn(render)
    x0 = x.x0(GUIDED * x.x_t)
    torch.testing.assert_close(found, render.rgb.detach() - x0)
    assert loss.item() == pytest.approx(0.5 * (render.rgb - x0).square().sum().item() / (B * V))


def test_a_partner_s_last_timestep_still_has_a_clean_estimate_in_a_flow():
    """A variance preserving process goes to its very end, where nothing of x0 is left in a flow."""
    first, flow = term(None), KnownPrior()
    flow.process = NoiseProcess.rectified_flow()
    text: Any = NoText()
    second = JointScoreDistillation(flow, text, name="mvdream", weighting="x0", timesteps=first)
    g, plan = generator(3), now(t_min=1.0, t_max=1.0)
    first(NOTHING, renders(), NOTHING, plan, g)
    losses = second(NOTHING, renders(), NOTHING, plan, g)
    assert first.t.tolist() == [999] * B and second.t.tolist() == [998] * B and losses["mvdream"].isfinite()


def test_a_second_term_may_see_the_timesteps_of_the_first_under_noise_of_its_own():
    first, render, g = term(None), renders(), generator(3)
    second = term(None, name="mvdream", weighting="x0", timesteps=first)
    first(NOTHING, render, NOTHING, now(), g)
    losses = second(NOTHING, render, NOTHING, now(), g)
    (grad,) = torch.autograd.grad(losses["mvdream"], render.rgb)
    g = generator(3)
    x = add_noise(first.prior.process, render.rgb, torch.randint(20, 981, (B,), generator=g), g)
    again = add_noise(first.prior.process, render.rgb, x.t, g)
    assert not torch.equal(again.noise, x.noise)
    torch.testing.assert_close(grad * B * V, render.rgb.detach() - again.x0(GUIDED * again.x_t))


def test_a_gradient_clip_bounds_each_element_and_leaves_the_others():
    free, clipped = step(term())[0], step(term(), grad_clip=0.2)[0]
    inside = free.abs() <= 0.2
    assert inside.any() and not inside.all()
    torch.testing.assert_close(clipped, free.clamp(-0.2, 0.2))


# energy_gradient


def test_energy_sees_detached_renders_and_an_x0_with_a_graph():
    energy, x, prior = PullEnergy(tensors(B, V, C, H, H, seed=2)), noised(), KnownPrior()
    with torch.no_grad():  # the loop may have switched gradients off
        grad, coherence = gradient(energy, renders(), x, prior=prior)
    assert energy.seen.x0.requires_grad
    assert not energy.seen.rgb.requires_grad and not energy.seen.opacity.requires_grad
    assert energy.seen.timesteps is x.t and energy.seen.decode == prior.decode
    assert not grad.requires_grad and not coherence.requires_grad
    torch.testing.assert_close(energy.seen.x0_guided, x.x0(GUIDED * x.x_t))


def test_without_a_render_the_energy_sees_the_decoded_estimate():
    energy, x = PullEnergy(tensors(B, V, C, H, H, seed=2)), noised()
    gradient(energy, None, x, mask="none")
    guess = x.x0(GUIDED * x.x_t)
    torch.testing.assert_close(energy.seen.rgb, guess.clamp(0, 1))
    torch.testing.assert_close(energy.seen.latents, guess)
    assert bool((energy.seen.opacity == 1).all())


def test_moving_against_the_gradient_raises_coherence():
    energy, x, render = PullEnergy(tensors(B, V, C, H, H, seed=2)), noised(), renders()
    energy_grad, before = gradient(energy, render, x)
    moved = Noised(**{**vars(x), "x_t": x.x_t + 1e-3 * x.sigma_t * energy_grad})
    _, after = gradient(energy, render, moved, seen=UNCOND * x.x_t)
    assert (after > before).all()


def test_rigs_do_not_influence_each_other():
    energy, x, render = PullEnergy(tensors(B, V, C, H, H, seed=2)), noised(), renders()
    grad, coherence = gradient(energy, render, x)
    for i in range(B):
        one = Noised(**{k: value[i : i + 1] for k, value in vars(x).items()})
        r = Render(render.rgb[i : i + 1], render.opacity[i : i + 1])
        alone, c = gradient(PullEnergy(energy.target[i : i + 1]), r, one)
        assert torch.equal(alone[0], grad[i]) and torch.equal(c[0], coherence[i])


class Forbidden(Energy):
    def forward(self, views):
        raise AssertionError("was asked although it has no weight")


@pytest.mark.parametrize(("energy", "weight"), [(Forbidden(), 0), (Forbidden(), 0.0), (NoEnergy(), 1.25)])
def test_an_energy_without_weight_is_not_asked(energy, weight):
    x, g, distillation = noised(), generator(5), term(energy)
    before = g.get_state()
    found = distillation.joint_noise_pred(x, renders(), NOTHING, now(energy_weight=weight), g)
    assert torch.equal(found, guided(COND * x.x_t, UNCOND * x.x_t, 2.0)) and distillation.metrics["coherence"] == 0
    assert torch.equal(g.get_state(), before) and distillation.pictures() == {}


class MeanEnergy(Energy):
    def forward(self, views):
        return views.x0.mean()


class DetachedEnergy(Energy):
    def forward(self, views):
        return views.x0.detach().sum((1, 2, 3, 4))


@pytest.mark.parametrize(("energy", "words"), [(MeanEnergy(), "one number per rig"), (DetachedEnergy(), "x0")])
def test_energies_that_break_the_contract_are_named(energy, words):
    with pytest.raises(UserError, match=f"{type(energy).__name__}.*{words}"):
        gradient(energy, renders(), noised())


@pytest.mark.parametrize("options", [{"mask": "output"}, {"weighting": "dreamtime"}])
def test_unknown_choices_are_refused(options):
    with pytest.raises(UserError, match="choose"):
        term(None, **options)


# The limits and the hand-over


def test_limit_clamps_the_implied_x0_and_nothing_else():
    x = noised()
    noise = GUIDED * x.x_t
    limited = clamp_x0(noise, x, 0.7)
    torch.testing.assert_close(x.x0(limited), x.x0(noise).clamp(-0.7, 0.7))
    inside = x.x0(noise).abs() <= 0.7
    assert 0 < inside.double().mean() < 1
    torch.testing.assert_close(limited[inside], noise[inside])
    assert clamp_x0(noise, x, None) is noise


def test_a_bounded_energy_never_passes_its_optimum():
    """C = -1/2 |x0 - target|^2, limit 1: x0 moves step / (1 + step) of the way, step = lambda sigma^2 / alpha^2."""
    x, target = noised(), tensors(B, V, C, H, H, seed=9)
    a, s, noise = x.alpha_t, x.sigma_t, GUIDED * x.x_t
    energy_grad = (target - x.x0(noise)) / a  # dC/dx_t by hand, at the guided estimate
    size = 1.25 * (s / a) ** 2
    moved = x.x0(noise - damped_weight(1.25, x, 1.0) * s * energy_grad)
    torch.testing.assert_close(moved, x.x0(noise) + size / (1 + size) * (target - x.x0(noise)))
    unbounded = x.x0(noise - damped_weight(1.25, x, None) * s * energy_grad)
    torch.testing.assert_close(unbounded, x.x0(noise) + size * (target - x.x0(noise)))


def test_a_bounded_step_from_what_is_distilled_lands_on_what_the_energy_wants():
    """With energy_x0 guided and a limit of 1, x0 after the energy is its target, whatever the text says."""
    target, render = tensors(B, V, C, H, H, seed=2), renders()
    options = {"mask": "none", "energy_x0": "guided", "energy_limit": 1.0, "weighting": "uniform"}
    found, _ = step(term(PullEnergy(target), **options), render, energy_weight=1e9)
    x = drawn(render)
    torch.testing.assert_close(x.x0(found + x.noise), target, rtol=1e-4, atol=1e-4)


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
    x, render = noised(b=1), renders(b=1)
    energy = PullEnergy(tensors(B, V, C, H, H, seed=2)[:1])
    alone, _ = gradient(energy, render, x)
    twice = Noised(**{k: torch.cat([value, value]) for k, value in vars(x).items()})
    r = Render(torch.cat([render.rgb] * 2), torch.cat([render.opacity] * 2))
    both, _ = gradient(PullEnergy(energy.target.repeat(2, 1, 1, 1, 1)), r, twice)

    def handed_over(grad):
        latents = torch.zeros_like(grad, requires_grad=True)
        return torch.autograd.grad(surrogate_loss(latents, grad), latents)[0].sum(0)

    torch.testing.assert_close(handed_over(both), handed_over(alone))


def test_noise_like_is_what_a_step_draws():
    g = generator(3)
    distillation, render = term(None), renders()
    step(distillation, render)
    assert torch.equal(distillation.t, torch.randint(20, 981, (B,), generator=g))
    assert torch.equal(drawn(render).noise, noise_like(render.rgb, g))
