"""The multi-view model as a prior: MVDream-style distillation against its closed form, and Eq. 8's own estimate."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.distillation.joint import add_noise, mvdream_loss, sds_gradient, surrogate_loss
from jointdreamer.energies.base import Views
from jointdreamer.energies.multiview import MultiViewEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.multi_view import MultiViewGuidance
from jointdreamer.priors.prompts import Conditioning
from jointdreamer.priors.registry import build_guidance

B, V = 2, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def words(c2w=True):
    cond, uncond = (torch.randn(B, V, 12, 16, generator=generator(seed)) for seed in (1, 2))
    cameras = sample_cameras(Rig(n_rigs=B, n_views=V), 20, generator(3))
    return Conditioning(cond, uncond, cameras.c2w if c2w else None), cameras


@pytest.fixture
def make(tiny_sd_folder, tiny_mv_folder):
    def guidance(kind="epsilon", **options):
        return MultiViewGuidance(tiny_sd_folder(), tiny_mv_folder(kind), **{"guidance_scale": 4.0, **options})

    return guidance


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_the_gradient_is_z_minus_the_x0_that_eq_8_takes(make, tiny_mv_folder, kind, limit):
    """The whole step, from render to latents' gradient; x0 by the energy's own road, from the same draws."""
    guidance = make(kind, x0_limit=limit)
    text, cameras = words()
    rgb = torch.rand(B, V, 3, 20, 20, generator=generator(4))
    latents = guidance.encode(rgb, generator(5)).detach().requires_grad_()
    noised = add_noise(guidance, latents, 0.3, 0.9, generator(6), "x0")
    pred = guidance.predict_noise(noised, text, 30.0)
    loss = surrogate_loss(latents, sds_gradient(pred.noise, noised.noise, noised.weight))
    (grad,) = torch.autograd.grad(loss, latents)

    energy = MultiViewEnergy(tiny_mv_folder(kind), vae="shared", guidance_scale=4.0, x0_limit=limit)
    g = generator(6)
    torch.randint(0, 1, (B,), generator=g)  # the draw of the timesteps
    seen = Views(latents, rgb, rgb[:, :, :1], cameras, noised.timesteps, text, lambda x: x, latents.detach(), g)
    x0 = energy.estimate(seen)
    torch.testing.assert_close(grad, (latents.detach() - x0) / (B * V), rtol=1e-3, atol=1e-5)
    assert limit is None or x0.abs().max() == limit
    assert not pred.noise.requires_grad


def test_the_schedule_s_guidance_scale_is_the_other_model_s(make):
    guidance, (text, _) = make(), words()
    noised = add_noise(guidance, torch.randn(B, V, 4, 8, 8, generator=generator(1)), 0.3, 0.9, generator())
    one, two = (guidance.predict_noise(noised, text, scale).noise for scale in (0.0, 100.0))
    assert torch.equal(one, two)
    assert not torch.allclose(one, make(guidance_scale=5.0).predict_noise(noised, text, 0.0).noise)


def test_rescale_is_mvdream_s_by_default_and_views_are_drawn_together(make):
    guidance, (text, _) = make(), words()
    assert guidance.rescale == 0.5
    latents = torch.randn(B, V, 4, 8, 8, generator=generator(1))
    noised = add_noise(guidance, latents, 0.3, 0.9, generator())
    before = guidance.predict_noise(noised, text, 0.0).noise_cond
    noised.latents_noisy[0, 3] += 1.0
    after = guidance.predict_noise(noised, text, 0.0).noise_cond
    assert not torch.allclose(before[0, 0], after[0, 0])  # another view of the rig
    torch.testing.assert_close(before[1], after[1])  # another rig


def test_it_wants_to_know_where_the_views_stand(make):
    guidance, (text, _) = make(), words(c2w=False)
    noised = add_noise(guidance, torch.zeros(B, V, 4, 8, 8), 0.3, 0.9, generator())
    with pytest.raises(UserError, match="where the views stand"):
        guidance.predict_noise(noised, text, 0.0)


def test_the_second_term_reaches_the_render_through_the_model_s_own_autoencoder(make):
    guidance, (text, _) = make(), words()
    noised = add_noise(guidance, torch.zeros(B, V, 4, 8, 8), 0.3, 0.9, generator())
    rgb = torch.rand(B, V, 3, 20, 20, generator=generator(4)).requires_grad_()
    loss = mvdream_loss(guidance, rgb, noised, text, SimpleNamespace(mvdream=1.0), generator())["mvdream"]
    (grad,) = torch.autograd.grad(loss, rgb)
    assert grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in guidance.parameters())


def test_a_shared_autoencoder_is_the_text_to_image_folder_s(make, tiny_sd_folder, tiny_mv_folder, tmp_path):
    folder = tmp_path / "without"
    shutil.copytree(tiny_mv_folder(), folder)
    shutil.rmtree(folder / "vae")
    guidance = MultiViewGuidance(tiny_sd_folder(), folder, vae="shared")
    weights = LatentDiffusion(tiny_sd_folder()).vae.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in guidance.vae.state_dict().items())
    assert guidance.image_size == 16
    tokenizer, encoder = guidance.text_parts()
    assert len(tokenizer) == encoder.config.vocab_size


def test_priors_are_built_by_their_role(tiny_sd_folder, tiny_mv_folder):
    models = {"text_to_image": {"source": str(tiny_sd_folder())}, "multi_view": {"source": str(tiny_mv_folder())}}
    assert isinstance(build_guidance("text_to_image", models, "cpu"), LatentDiffusion)
    assert isinstance(build_guidance("multi_view", models, "cpu"), MultiViewGuidance)
    with pytest.raises(UserError, match="text_to_image, multi_view"):
        build_guidance("novel_view", models, "cpu")
    models["multi_view"]["scale"] = "3"
    with pytest.raises(UserError, match="unknown key 'models.multi_view.scale'"):
        build_guidance("multi_view", models, "cpu")
