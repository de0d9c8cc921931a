"""MVS energy (Eq. 8) against its equations, the network asked half by half; the random energy's white gradient."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

from jointdreamer.cameras import Rig, mvdream_camera, sample_cameras
from jointdreamer.diffusion import NoiseProcess, scaled_linear_alphas_cumprod
from jointdreamer.distillation.joint import JointScoreDistillation
from jointdreamer.energies.base import Views
from jointdreamer.energies.random import RandomEnergy
from jointdreamer.energies.reconstruction import mvs
from jointdreamer.errors import UserError
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.multi_view_unet import set_views
from jointdreamer.priors.prompts import Prompts, TextPair

B, V = 2, 4


def views(latent_size=8, channels=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Views(
        x0=torch.randn(B, V, channels, latent_size, latent_size, generator=g, requires_grad=True),
        rgb=torch.rand(B, V, 3, 20, 20, generator=g),
        opacity=torch.ones(B, V, 1, 20, 20),
        cameras=sample_cameras(Rig(n_rigs=B, n_views=V), 20, g),
        timesteps=torch.tensor([100, 600]),
        text=TextPair(*(torch.randn(B, V, 12, 16, generator=g) for _ in range(2))),
        decode=lambda latents: latents,
        generator=torch.Generator().manual_seed(11),
        latents=torch.randn(B, V, 4, 8, 8, generator=g),
    )


def estimate(energy, seen, kind, scale, rescale):
    """x0_mv by the equations, in float64 around the raw network."""
    g = torch.Generator().manual_seed(11)
    if energy.prior.vae is None:
        z = seen.latents
    else:
        small = interpolate(seen.rgb.flatten(0, 1), (16, 16), mode="bilinear", align_corners=False)
        posterior = energy.prior.vae.encode(2 * small - 1).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
        z = (0.18215 * z).unflatten(0, (B, V))
    abar = scaled_linear_alphas_cumprod()[seen.timesteps].view(B, 1, 1, 1, 1)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    x_t = a * z + s * torch.randn(z.shape, generator=g)
    x0 = []
    for text in (seen.text.cond, seen.text.uncond):
        set_views(energy.prior.unet, V)
        rows = (x.flatten(0, 1) for x in (x_t, text, mvdream_camera(seen.cameras.c2w)))
        sample, words, cameras = rows
        t = seen.timesteps.repeat_interleave(V)
        out = energy.prior.unet(sample, t, words, class_labels=cameras).sample.unflatten(0, (B, V)).double()
        x0.append({"epsilon": (x_t - s * out) / a, "sample": out, "v_prediction": a * x_t - s * out}[kind])
    guided = x0[1] + scale * (x0[0] - x0[1])
    result = []
    for of_text, of_both in zip(x0[0], guided, strict=True):  # one rig at a time
        result.append(rescale * of_both * of_text.std() / of_both.std() + (1 - rescale) * of_both)
    return torch.stack(result)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("scale", "rescale"), [(50.0, 0.5), (3.0, 0.0)])
@pytest.mark.parametrize("vae", [None, "shared"])
def test_energy_is_eq_8(tiny_mv_folder, kind, scale, rescale, vae):
    energy = mvs(tiny_mv_folder(kind), vae=vae, guidance_scale=scale, rescale=rescale)
    seen = views()
    with torch.no_grad():
        target = estimate(energy, seen, kind, scale, rescale)
    coherence = energy(seen)
    expected = [-0.5 * (x - t).square().sum() for x, t in zip(seen.x0.double(), target, strict=True)]
    torch.testing.assert_close(coherence.double(), torch.stack(expected), rtol=1e-3, atol=1e-3)
    (grad,) = torch.autograd.grad(coherence.sum(), seen.x0)
    size = float(target.abs().max())
    torch.testing.assert_close(grad.double(), (target - seen.x0).detach(), rtol=1e-3, atol=1e-4 * size)


def test_guidance_and_rescale_are_mvdream_s_by_default(tiny_mv_folder):
    energy = mvs(tiny_mv_folder())
    assert energy.prior.guidance == Guidance(scale=50.0, x0_rescale=0.5, over="rig")
    assert energy.prior.image_size == 16


def test_the_target_is_a_constant_and_the_network_is_asked_once(tiny_mv_folder):
    energy = mvs(tiny_mv_folder())
    calls = []
    energy.prior.unet.register_forward_hook(lambda module, args, out: calls.append(args[0].shape[0]))
    seen = views()
    seen.rgb.requires_grad_()
    energy(seen).sum().backward()
    assert calls == [2 * B * V]
    assert seen.rgb.grad is None and seen.x0.grad is not None


def test_a_smaller_estimate_is_resized_to_the_latents(tiny_mv_folder):
    energy = mvs(tiny_mv_folder())
    seen = views(latent_size=16)
    coherence = energy(seen)
    target, _ = energy.estimate(views(latent_size=16))
    assert target.shape == (B, V, 4, 8, 8)
    large = interpolate(target.flatten(0, 1), (16, 16), mode="bilinear", align_corners=False).view_as(seen.x0)
    torch.testing.assert_close(coherence, -0.5 * (seen.x0 - large).square().sum((1, 2, 3, 4)))


def test_x0_limit_bounds_the_target(tiny_mv_folder):
    free, limited = (mvs(tiny_mv_folder(), x0_limit=limit) for limit in (None, 1.05))
    (one, _), (two, _) = free.estimate(views()), limited.estimate(views())
    assert one.abs().max() > 1.05
    torch.testing.assert_close(two, one.clamp(-1.05, 1.05))


def test_the_autoencoder_may_come_from_elsewhere(tiny_mv_folder, tiny_sd_folder, tmp_path):
    folder = tmp_path / "without"
    shutil.copytree(tiny_mv_folder(), folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match=r"models\.multi_view\.vae"):
        mvs(folder)
    assert mvs(folder, vae=tiny_sd_folder())(views()).shape == (B,)


def test_shared_latents_take_no_autoencoder_and_one_draw(tiny_mv_folder, tmp_path):
    folder = tmp_path / "without"
    shutil.copytree(tiny_mv_folder(), folder)
    shutil.rmtree(folder / "vae")
    energy, seen = mvs(folder, vae="shared"), views()
    blank = Views(**{**vars(views()), "rgb": torch.full_like(seen.rgb, torch.nan)})
    assert torch.equal(energy.estimate(seen)[0], energy.estimate(blank)[0])  # the renders are not looked at
    expected = torch.Generator().manual_seed(11)
    assert seen.latents is not None and seen.generator is not None
    torch.randn(seen.latents.shape, generator=expected)
    assert torch.equal(seen.generator.get_state(), expected.get_state())


@pytest.mark.parametrize("latents", [None, torch.zeros(B, V, 4, 16, 16), torch.zeros(B, V, 8, 8, 8)])
def test_shared_latents_of_another_shape_are_refused(tiny_mv_folder, latents):
    energy = mvs(tiny_mv_folder(), vae="shared")
    with pytest.raises(UserError, match=r"models\.multi_view\.vae=shared.*4x8x8.*vae=FOLDER"):
        energy(Views(**{**vars(views()), "latents": latents}))


def test_latents_of_another_kind_are_refused(tiny_mv_folder):
    with pytest.raises(UserError, match=r"4 channels.*12"):
        mvs(tiny_mv_folder())(views(channels=12))


def test_x0_of_another_latent_space_is_decoded_and_encoded_view_by_view_with_gradients(tiny_mv_folder):
    energy, seen, asked = mvs(tiny_mv_folder()), views(latent_size=5, channels=12), []
    maps = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))

    def decode(latents):
        asked.append(latents.shape)
        return 0.5 + 0.1 * torch.einsum("bvchw,cd->bvdhw", latents, maps)

    seen = Views(**{**vars(seen), "decode": decode, "latent_space": ("pixels",)})
    coherence = energy(seen)
    (grad,) = torch.autograd.grad(coherence.sum(), seen.x0)
    assert asked == [(B, 1, 12, 5, 5)] * (2 * V)  # one view of every rig at a time, and once more on the way back
    target, _ = energy.estimate(Views(**{**vars(views(latent_size=5, channels=12)), "decode": decode}))
    whole = decode(seen.x0).flatten(0, 1)
    small = interpolate(whole, (16, 16), mode="bilinear", align_corners=False)
    latents = 0.18215 * energy.prior.vae.encode(2 * small - 1).latent_dist.mean.unflatten(0, (B, V))
    expected = -0.5 * (latents - target).square().sum((1, 2, 3, 4))
    torch.testing.assert_close(coherence, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), seen.x0)[0])
    assert grad.abs().amax((2, 3, 4)).min() > 0


def test_x0_of_the_same_latent_space_is_compared_as_it_is(tiny_mv_folder):
    energy = mvs(tiny_mv_folder())
    assert energy.prior.latent_space == (4, 0.18215, 0.0)
    known, unknown = (Views(**{**vars(views()), "latent_space": space}) for space in ((4, 0.18215, 0.0), None))
    other = Views(**{**vars(views()), "latent_space": (4, 0.13025, 0.0), "decode": lambda x: x[:, :, :3].sigmoid()})
    assert torch.equal(energy(known), energy(unknown)) and not torch.allclose(energy(known), energy(other))


def test_timesteps_beyond_the_model_s_are_refused_before_training_and_are_its_last(tiny_mv_folder, tiny_sd_folder):
    energy, prior = mvs(tiny_mv_folder()), LatentDiffusion.build(tiny_sd_folder())
    text = prior.embed(Prompts("a red robot"))
    JointScoreDistillation(prior, text, energy)
    process = energy.prior.process
    energy.prior.process = NoiseProcess(process.alpha[:500], process.sigma[:500])
    with pytest.raises(UserError, match="multi-view model has 500 timesteps, and the prior that draws them 1000"):
        JointScoreDistillation(prior, text, energy)
    later, last = (
        energy.estimate(replace(views(), timesteps=torch.tensor([100, t])))[0] for t in (600, energy.prior.process.last)
    )
    assert torch.equal(later, last)


def test_a_text_encoder_of_its_own_reads_the_prompt(tiny_mv_folder, tiny_sd_folder):
    prompts = Prompts("a red robot", "a hat")
    seen, energies = views(), [mvs(tiny_mv_folder(), text=tiny_sd_folder()), mvs(tiny_mv_folder())]
    for energy in energies:
        energy.give_prompt(prompts)
    text = LatentDiffusion.build(tiny_sd_folder()).embed(prompts)
    for negative in (False, True):
        pair = TextPair(text.at(seen.cameras).embedding, text.nothing(seen.cameras, negative).embedding)
        wide = TextPair(*(torch.randn(B, V, 12, 24) for _ in range(2)))  # what another prior is told
        own = energies[0](Views(**{**vars(views()), "text": wide, "negative_prompt": negative}))
        assert torch.equal(own, energies[1](Views(**{**vars(views()), "text": pair})))


def test_text_of_another_width_is_refused(tiny_mv_folder):
    seen = views()
    wide = TextPair(*(torch.randn(B, V, 12, 24) for _ in range(2)))
    with pytest.raises(UserError, match=r"16.*24"):
        mvs(tiny_mv_folder())(Views(**{**vars(seen), "text": wide}))


def test_random_energy_has_a_fresh_white_gradient():
    energy, seen = RandomEnergy(scale=3.0), views(latent_size=32)
    grads = [torch.autograd.grad(energy(seen).sum(), seen.x0)[0] for _ in range(2)]
    n = grads[0].numel()
    for grad in grads:
        assert grad.mean().item() == pytest.approx(0, abs=5 * 3 / n**0.5)
        assert grad.std().item() == pytest.approx(3, rel=0.03)
    correlation = torch.corrcoef(torch.stack([grads[0].flatten(), grads[1].flatten()]))[0, 1]
    assert abs(correlation.item()) < 5 / n**0.5


def test_random_energy_is_linear_in_x0():
    energy, seen = RandomEnergy(), views()
    doubled = SimpleNamespace(x0=2 * seen.x0, generator=torch.Generator().manual_seed(11))
    torch.testing.assert_close(energy(doubled), 2 * energy(seen), rtol=1e-4, atol=1e-3)
