"""The multi-view model as a prior: MVDream-style distillation against its closed form, and Eq. 8's own estimate."""

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.diffusion import add_noise, draw_timesteps
from jointdreamer.distillation.joint import JointScoreDistillation
from jointdreamer.energies.base import Views
from jointdreamer.energies.reconstruction import mvs
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.multi_view import MultiViewDiffusion
from jointdreamer.priors.prompts import TextPair
from jointdreamer.priors.registry import build_prior
from jointdreamer.scenes.base import Render

B, V = 2, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Words:
    """Random embeddings, for every view another one."""

    def __init__(self):
        self.cond, self.uncond = (torch.randn(B, V, 12, 16, generator=generator(seed)) for seed in (1, 2))

    def at(self, cameras):
        return Condition(self.cond)

    def nothing(self, cameras, negative=False):
        return Condition(self.uncond)


CAMERAS = sample_cameras(Rig(n_rigs=B, n_views=V), 20, generator(3))


NOTHING: Any = None  # for the scene, which no term here looks at


def now(**weights):
    plan = {"t_min": 0.3, "t_max": 0.9, "guidance_scale": 31.0, "energy_weight": 0, "negative_prompt": False}
    return SimpleNamespace(**plan, loss=SimpleNamespace(**weights))


def noised(prior, latents, seed=0):
    g = generator(seed)
    return add_noise(prior.process, latents, draw_timesteps(prior.process, B, 0.3, 0.9, g), g)


def predict(prior, x, scale=0.0):
    """(guided, given the text)"""
    words = Words()
    cond, uncond = prior.predict(x.x_t, x.t, [words.at(None), words.nothing(None)], CAMERAS)
    return prior.guidance.noise(prior.process, x.x_t, x.t, cond, uncond, scale), cond


@pytest.fixture
def make(tiny_sd_folder, tiny_mv_folder):
    def prior(kind="epsilon", **options):
        options = {"guidance_scale": 4.0, **options}
        return MultiViewDiffusion.build(tiny_mv_folder(kind), text=tiny_sd_folder(), **options)

    return prior


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_the_gradient_is_z_minus_the_x0_that_eq_8_takes(make, tiny_mv_folder, kind, limit):
    """The whole step, from render to the renders' gradient; x0 by the energy's own road, from the same draws."""
    prior, words = make(kind, x0_limit=limit), Words()
    rgb = torch.rand(B, V, 3, 20, 20, generator=generator(4), requires_grad=True)
    term = JointScoreDistillation(prior, words, name="mvdream", weighting="x0")  # pyright: ignore[reportArgumentType]
    render = Render(rgb, torch.ones(B, V, 1, 20, 20))
    (grad,) = torch.autograd.grad(term(NOTHING, render, CAMERAS, now(mvdream=1), generator(5))["mvdream"], rgb)

    g = generator(5)
    latents = prior.encode(rgb, g)
    t = torch.randint(300, 901, (B,), generator=g)
    energy = mvs(tiny_mv_folder(kind), vae="shared", guidance_scale=4.0, x0_limit=limit)
    text = TextPair(words.cond, words.uncond)
    seen = Views(latents, rgb, rgb[:, :, :1], CAMERAS, t, text, lambda x: x, latents.detach(), g)
    x0, _ = energy.estimate(seen)
    (expected,) = torch.autograd.grad(0.5 * (latents - x0).square().sum() / (B * V), rgb)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-5)
    assert limit is None or x0.abs().max() == limit
    assert all(p.grad is None and not p.requires_grad for p in prior.parameters())


def test_the_schedule_s_guidance_scale_is_the_other_model_s(make):
    prior = make()
    x = noised(prior, torch.randn(B, V, 4, 8, 8, generator=generator(1)))
    one, two = (predict(prior, x, scale)[0] for scale in (0.0, 100.0))
    assert torch.equal(one, two)
    assert not torch.allclose(one, predict(make(guidance_scale=5.0), x)[0])


def test_rescale_is_mvdream_s_by_default_and_views_are_drawn_together(make):
    prior = make()
    assert prior.guidance.x0_rescale == 0.5 and prior.guidance.over == "rig"
    x = noised(prior, torch.randn(B, V, 4, 8, 8, generator=generator(1)))
    _, before = predict(prior, x)
    x.x_t[0, 3] += 1.0
    _, after = predict(prior, x)
    assert not torch.allclose(before[0, 0], after[0, 0])  # another view of the rig
    torch.testing.assert_close(before[1], after[1])  # another rig


def test_it_wants_to_know_where_the_views_stand(make):
    prior, words = make(), Words()
    x = noised(prior, torch.zeros(B, V, 4, 8, 8))
    with pytest.raises(UserError, match="where the views stand"):
        prior.predict(x.x_t, x.t, [words.at(None)], None)


def test_a_shared_autoencoder_is_the_text_to_image_folder_s(make, tiny_sd_folder, tiny_mv_folder, tmp_path):
    folder = tmp_path / "without"
    shutil.copytree(tiny_mv_folder(), folder)
    shutil.rmtree(folder / "vae")
    prior = MultiViewDiffusion.build(folder, vae="shared", text=tiny_sd_folder())
    weights = LatentDiffusion.build(tiny_sd_folder()).vae.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in prior.vae.state_dict().items())
    assert prior.image_size == 16
    tokenizer, encoder = prior.text_parts()
    assert len(tokenizer) == encoder.config.vocab_size


def test_priors_are_built_by_their_role(tiny_sd_folder, tiny_mv_folder):
    models = {"text_to_image": {"source": str(tiny_sd_folder())}, "multi_view": {"source": str(tiny_mv_folder())}}
    assert type(build_prior("text_to_image", models, "cpu")) is LatentDiffusion
    assert type(build_prior("multi_view", models, "cpu")) is MultiViewDiffusion
    with pytest.raises(UserError, match="text_to_image, multi_view"):
        build_prior("novel_view", models, "cpu")
    models["multi_view"]["scale"] = "3"
    with pytest.raises(UserError, match="unknown key 'models.multi_view.scale'"):
        build_prior("multi_view", models, "cpu")
