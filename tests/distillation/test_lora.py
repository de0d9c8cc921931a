"""VSD's baseline: it starts as the prior to the bit, learns a single object's noise, and leaves the prior alone."""

from types import SimpleNamespace

import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.diffusion import NoiseProcess, add_noise, scaled_linear_alphas_cumprod
from jointdreamer.distillation.base import TrainedBeside
from jointdreamer.distillation.joint import JointScoreDistillation
from jointdreamer.distillation.lora import LoRA
from jointdreamer.errors import UserError
from jointdreamer.priors.guidance import guided
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.prompts import TextEmbeddings
from jointdreamer.scenes.base import Render
from tests.conftest import _unet, _vae
from tests.priors.known import PicturePrior

NOW = SimpleNamespace(
    t_min=0.02, t_max=0.98, guidance_scale=1.0, energy_weight=0.0, negative_prompt=False,
    loss=SimpleNamespace(vsd=1.0, lora=1.0),
)  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def prior_of(prediction_type="epsilon"):
    torch.manual_seed(1)
    if prediction_type == "velocity":
        process = NoiseProcess.rectified_flow()
    else:
        process = NoiseProcess.variance_preserving(scaled_linear_alphas_cumprod(), prediction_type)
    prior = LatentDiffusion(_unet(), _vae(), process, lambda: (None, None), image_size=16)
    return prior.eval().requires_grad_(False)


def text_of(plain_is_cond=True):
    one = torch.randn(1, 5, 16, generator=generator(2))
    plain = one[0] if plain_is_cond else torch.randn(5, 16, generator=generator(3))
    return TextEmbeddings(one.expand(4, -1, -1), torch.zeros(2, 5, 16), plain=plain)


CAMERAS = sample_cameras(Rig(n_rigs=2, n_views=2), 8, generator())


def noised_of(prior, seed=4):
    latents = torch.randn(2, 2, 4, 8, 8, generator=generator(seed))
    return add_noise(prior.process, latents, torch.tensor([100, 700]), generator(seed + 1))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "velocity"])
def test_before_the_first_step_it_is_the_prior_to_the_bit(prediction_type):
    prior, text = prior_of(prediction_type), text_of()
    baseline, noised = LoRA(prior, text), noised_of(prior)
    (noise,) = prior.predict(noised.x_t, noised.t, [text.without_view(CAMERAS)], CAMERAS)
    assert torch.equal(baseline(noised, CAMERAS, NOW), noise)


def test_with_equal_texts_and_a_scale_of_one_the_gradient_is_zero_and_then_is_not():
    prior = prior_of()
    term = JointScoreDistillation(prior, text_of(), baseline=LoRA(prior, text_of()), name="vsd")
    rgb = torch.rand(2, 2, 3, 16, 16, generator=generator(5)).requires_grad_()
    render = Render(rgb, torch.ones(2, 2, 1, 16, 16))
    optimizer = torch.optim.Adam(term.parameter_groups()["lora"], lr=0.01)
    seen = []
    for _ in range(2):
        losses = term(None, render, CAMERAS, NOW, generator(6))
        assert list(losses) == ["vsd", "lora"]
        seen.append(torch.autograd.grad(losses["vsd"], rgb, retain_graph=True)[0].abs().max().item())
        optimizer.zero_grad()
        losses["lora"].backward()
        optimizer.step()
    assert seen[0] < 1e-6 < 1e-4 < seen[1]


def test_it_learns_the_noise_of_a_single_object():
    """The renders are one point z, so that the best prediction is (x_t - alpha_t z) / sigma_t, the noise that was
    added: VSD goes over into SDS at the same scale."""
    prior, text, cameras = prior_of(), text_of(), sample_cameras(Rig(n_rigs=8, n_views=1), 8, generator())
    baseline = LoRA(prior, text, rank=16)
    latents = 0.5 * torch.randn(1, 1, 4, 8, 8, generator=generator(4)).expand(8, -1, -1, -1, -1)
    draw = generator(7)
    optimizer = torch.optim.Adam(baseline.parameter_groups()["lora"], lr=0.01)

    def distance():
        noised = add_noise(prior.process, latents, torch.linspace(300, 990, 8).long(), generator(8))
        return (baseline(noised, cameras, NOW) - noised.noise).square().mean().item()

    before = distance()
    for _ in range(100):
        loss = baseline.losses(add_noise(prior.process, latents, torch.zeros(8).long(), draw), cameras, draw)["lora"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distance() < 0.65 * before  # the tiny frozen network leaves no room for all of it


def test_training_it_leaves_the_prior_as_it_is():
    prior, text, noised = prior_of(), text_of(), None
    baseline, noised = LoRA(prior, text), noised_of(prior)
    (before,) = prior.predict(noised.x_t, noised.t, [text.at(CAMERAS)], CAMERAS)
    baseline.losses(noised, CAMERAS, generator())["lora"].backward()
    with torch.no_grad():
        for parameter in baseline.parameter_groups()["lora"]:
            parameter.add_(0.1)
    assert (baseline(noised, CAMERAS, NOW) - before).abs().max() > 1e-3
    (after,) = prior.predict(noised.x_t, noised.t, [text.at(CAMERAS)], CAMERAS)
    assert torch.equal(before, after)
    assert all(p.grad is None for p in prior.unet.parameters())
    assert all(p.dtype == torch.float32 for p in baseline.parameter_groups()["lora"])


def test_it_is_told_the_camera_and_not_the_view_words():
    prior, text = prior_of(), text_of(plain_is_cond=False)
    baseline, noised = LoRA(prior, text), noised_of(prior)
    with torch.no_grad():
        for parameter in baseline.parameter_groups()["lora"]:
            parameter.add_(0.1)
    other = sample_cameras(Rig(n_rigs=2, n_views=2), 8, generator(9))
    one, two = (baseline(noised, cameras, NOW) for cameras in (CAMERAS, other))
    assert (one - two).abs().max() > 1e-4
    changed = LoRA(prior, TextEmbeddings(text.cond + 1, text.uncond, plain=text.plain))
    changed.lora.load_state_dict(baseline.lora.state_dict())
    assert torch.equal(changed(noised, CAMERAS, NOW), one) and not torch.equal(changed(noised, CAMERAS, NOW), two)


def test_esd_guides_between_no_camera_and_the_camera():
    prior, text = prior_of(), text_of()
    baseline, noised = LoRA(prior, text, guidance_scale=0.5), noised_of(prior)
    with torch.no_grad():
        for parameter in baseline.parameter_groups()["lora"]:
            parameter.add_(0.1)
        camera = CAMERAS.c2w.flatten(-2)
        told, untold = (baseline.predict(noised, CAMERAS, rows) for rows in (camera, torch.zeros_like(camera)))
    assert torch.allclose(baseline(noised, CAMERAS, NOW), guided(told, untold, 0.5))
    assert (told - untold).abs().max() > 1e-4


def test_the_camera_is_dropped_as_often_as_it_says():
    prior, seen = prior_of(), []
    baseline = LoRA(prior, text_of(), drop_camera=0.25)
    baseline.predict = lambda noised, cameras, camera: seen.append(camera) or noised.noise  # type: ignore[method-assign]
    draw = generator(10)
    for _ in range(200):
        baseline.losses(noised_of(prior), CAMERAS, draw)
    dropped = (torch.stack(seen) == 0).all(-1).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.04)


def test_a_checkpoint_holds_what_is_trained_and_another_rank_is_refused():
    prior = prior_of()
    terms = [JointScoreDistillation(prior, text_of(), baseline=LoRA(prior, text_of(), rank=2), name="vsd")]
    one, state = TrainedBeside(terms), None
    state = {role: [p.clone() + 1 for p in group] for role, group in one.state_dict().items()}
    one.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict()["lora"], state["lora"], strict=True))
    wider = [JointScoreDistillation(prior, text_of(), baseline=LoRA(prior, text_of(), rank=3), name="vsd")]
    with pytest.raises(UserError, match="'lora' has parameters of other shapes"):
        TrainedBeside(wider).load_state_dict(state)
    assert not TrainedBeside([JointScoreDistillation(prior, text_of())]).groups


def test_a_prior_without_a_unet_of_diffusers_is_refused():
    class Known(PicturePrior):
        def predict(self, x_t, t, conditions, cameras):
            return [x_t for _ in conditions]

    with pytest.raises(UserError, match="wants a prior with a UNet of diffusers"):
        LoRA(Known(), text_of())
