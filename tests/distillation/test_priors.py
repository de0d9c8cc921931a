"""Every target and baseline over SDXL, Stable Diffusion 3.5 and IF: tiny random folders of the real layouts."""

from types import SimpleNamespace

import pytest
import torch

from jointdreamer.cameras import Rig, orbit_cameras, sample_cameras
from jointdreamer.diffusion import add_noise
from jointdreamer.distillation.joint import WEIGHTINGS, JointScoreDistillation
from jointdreamer.distillation.lora import LoRA
from jointdreamer.distillation.registry import BASELINES, TARGETS, build_part
from jointdreamer.distillation.targets import PerpNeg
from jointdreamer.priors.flow import RectifiedFlow
from jointdreamer.priors.pixel import PixelDiffusion
from jointdreamer.priors.prompts import DIRECTIONS, Prompts, TextEmbeddings
from jointdreamer.priors.sdxl import SDXL
from jointdreamer.scenes.base import Render
from tests.priors.folders import T5_WIDTH

CAMERAS = sample_cameras(Rig(n_rigs=2, n_views=2), 8, torch.Generator().manual_seed(0))
PROMPTS = Prompts("a red robot", "a hat")
NOW = SimpleNamespace(
    t_min=0.02, t_max=0.7, guidance_scale=3.0, energy_weight=0.0, negative_prompt=False, bridge=True,
    csd=SimpleNamespace(text=1.0, negative=-0.5, empty=-0.5), loss=SimpleNamespace(jsd=1.0, lora=1.0),
)  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn_text(prompts: Prompts) -> TextEmbeddings:
    """What stands for T5's embeddings, without its process."""
    drawn = torch.randn(7, 77, T5_WIDTH, generator=generator(len(prompts.prompt)))
    return TextEmbeddings(drawn[:4], drawn[4:6], plain=drawn[6])


@pytest.fixture(scope="module", params=["sdxl", "sd35", "if"])
def told(request, tiny_text_to_image):
    """A prior, and a prompt that it has embedded."""
    folder = tiny_text_to_image(request.param)
    if request.param == "if":
        prior = PixelDiffusion.build(folder, dtype="float32")
        prior.embed = drawn_text
        return prior, prior.embed(PROMPTS)
    if request.param == "sdxl":
        prior = SDXL.build(folder, dtype="float32")
    else:
        prior = RectifiedFlow.build(folder, text_encoders=2, dtype="float32")
    return prior, prior.embed(PROMPTS)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_step_has_a_gradient(told, target, baseline):
    prior, text = told
    options = {"inverted": {"n_steps": 2}, "coefficients": {}}
    parts = {
        part: build_part(part, {"name": name, **options.get(name, {})}, part, prior, text=text, prompts=PROMPTS)
        for part, name in (("target", target), ("baseline", baseline))
    }
    term = JointScoreDistillation(prior, text, name="jsd", **parts)
    rgb = torch.rand(2, 2, 3, 16, 16, generator=generator(2)).requires_grad_()
    losses = term(None, Render(rgb, torch.ones(2, 2, 1, 16, 16)), CAMERAS, NOW, generator(3))
    (grad,) = torch.autograd.grad(losses["jsd"], rgb, retain_graph=True)
    assert grad.isfinite().all() and (grad.abs().amax((2, 3, 4)) > 0).all()


def test_the_lora_starts_as_the_prior_and_every_part_of_it_learns(told):
    prior, text = told
    baseline = LoRA(prior, text)
    shape = (2, 2, *prior.latent_shape)
    noised = add_noise(
        prior.process, torch.randn(shape, generator=generator(4)), torch.tensor([100, 600]), generator(5)
    )
    (noise,) = prior.predict(noised.x_t, noised.t, [text.without_view(CAMERAS)], CAMERAS)
    assert torch.equal(baseline(noised, CAMERAS, NOW), noise)
    loss = baseline.losses(noised, CAMERAS, generator(6))["lora"]
    loss.backward()
    ups = {name: p.grad for name, p in baseline.lora.named_parameters() if name.endswith("up")}
    idle = [name for name, grad in ups.items() if grad is None or not grad.any()]
    # the text leaves the last block of a transformer unread, so what it asks there has no effect
    assert len(ups) > 7 and len(idle) == isinstance(prior, RectifiedFlow)
    assert baseline.lora.camera[-1].weight.grad is not None and all(p.grad is None for p in prior.unet.parameters())


def test_perp_neg_mixes_the_pooled_text_as_it_does_the_text(told):
    _, text = told
    right, nothing, one, two = PerpNeg().conditions(text, orbit_cameras(8, 8), NOW)
    if text.pooled is None:
        assert right.extra == nothing.extra == {}
        return
    front, side = (text.pooled[DIRECTIONS.index(name)] for name in ("front", "side"))
    pooled = [condition.extra["pooled"][0] for condition in (right, nothing, one, two)]
    torch.testing.assert_close(pooled[0][1], (front + side) / 2)  # at 45 degrees
    assert torch.equal(pooled[1][1], text.pooled[4])
    assert torch.equal(pooled[2][1], front) and torch.equal(pooled[3][1], side)


def test_the_weighting_of_velocities_is_rfds_s(tiny_text_to_image):
    """v_hat - (noise - z), by the network's own velocities."""
    prior = RectifiedFlow.build(tiny_text_to_image("sd35"), text_encoders=2)
    text = prior.embed(Prompts("a red robot"))
    z = torch.randn(2, 2, *prior.latent_shape, generator=generator(7))
    noised = add_noise(prior.process, z, torch.tensor([50, 690]), generator(8))
    conditions = [text.at(CAMERAS), text.nothing(CAMERAS)]
    with torch.no_grad():
        velocity = prior.network(noised.x_t, noised.t, conditions, CAMERAS).unflatten(0, (2, 2, 2))
    rfds = velocity[1] + 3 * (velocity[0] - velocity[1]) - (noised.noise - z)
    cond, uncond = prior.predict(noised.x_t, noised.t, conditions, CAMERAS)
    guided = uncond + 3 * (cond - uncond)
    grad = WEIGHTINGS["velocity"](noised.alpha_t, noised.sigma_t) * (guided - noised.noise)
    torch.testing.assert_close(grad, rfds, atol=1e-3, rtol=1e-3)
