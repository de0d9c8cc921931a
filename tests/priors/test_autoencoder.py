"""Images in chunks: the same latents and gradients, and less memory."""

import shutil

import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.priors.autoencoder import check_autoencoder, decode_latents, encode_images
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.runs.trial import Live


def encoded(prior, chunk):
    rgb = torch.rand(2, 3, 3, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    with Live() as live:
        latents = prior.encode(rgb, generator, chunk=chunk)
        kept = live.now
        (latents * torch.linspace(-1, 1, latents.numel()).view_as(latents)).sum().backward()
    assert rgb.grad is not None
    return latents.detach(), rgb.grad, generator.get_state(), kept, live.peak


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_give_the_same_latents_and_gradients(tiny_sd_folder, chunk):
    # in float32 a convolution of one image rounds otherwise than one of six
    prior = LatentDiffusion.build(tiny_sd_folder(), dtype=torch.float64)
    latents, gradient, state, kept, peak = encoded(prior, None)
    again, gradient_again, state_again, kept_cut, peak_cut = encoded(prior, chunk)
    torch.testing.assert_close(again, latents)
    torch.testing.assert_close(gradient_again, gradient, atol=1e-6 * gradient.abs().max().item(), rtol=1e-4)
    assert gradient.abs().max() > 0 and torch.equal(state, state_again)
    assert kept_cut < 0.1 * kept and peak_cut < (0.3 if chunk == 1 else 0.8) * peak


def test_without_a_graph_chunks_keep_nothing(tiny_sd_folder):
    prior = LatentDiffusion.build(tiny_sd_folder(), dtype=torch.float32)
    rgb = torch.rand(1, 4, 3, 16, 16)
    one, other = (prior.encode(rgb, torch.Generator().manual_seed(0), grad=False, chunk=c) for c in (None, 3))
    torch.testing.assert_close(one, other)
    assert not other.requires_grad


def vae(**config):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(**{"block_out_channels": (32,), "latent_channels": 4, **config}).eval()


def test_latents_are_shifted_and_scaled_and_come_back():
    """Autoencoders of 16 channels have a shift: z' = (z - shift) scale."""
    torch.manual_seed(0)
    plain = vae(latent_channels=16, scaling_factor=1.0)
    moved = vae(latent_channels=16, scaling_factor=1.5, shift_factor=0.25)
    moved.load_state_dict(plain.state_dict())
    rgb = torch.rand(1, 2, 3, 8, 8)
    one, other = (encode_images(x, rgb, 8, torch.Generator().manual_seed(0)) for x in (plain, moved))
    torch.testing.assert_close(other, (one - 0.25) * 1.5)
    torch.testing.assert_close(decode_latents(moved, other), decode_latents(plain, one))


@pytest.mark.parametrize(
    ("config", "channels", "says"),
    [
        ({"latent_channels": 16}, 4, "latents of 16 channels, its UNet reads 4"),
        ({"latent_channels": 16}, 16, "no scaling_factor"),
        ({"scaling_factor": None}, 4, "scaling_factor must be a number, got None"),
        ({"scaling_factor": 0}, 4, "scaling_factor must be a number, got 0"),
        ({"scaling_factor": float("nan")}, 4, "scaling_factor must be a number"),
        ({"scaling_factor": "0.18"}, 4, "scaling_factor must be a number"),
        ({"shift_factor": [0.1]}, 4, "shift_factor must be a number"),
        ({"latents_mean": [0.0] * 4}, 4, "latents_mean"),
    ],
)
def test_latents_of_another_kind_are_one_line(config, channels, says):
    with pytest.raises(UserError, match=says) as error:
        check_autoencoder(vae(**config), channels, "here")
    assert str(error.value).startswith("here") and "\n" not in str(error.value)


def test_stable_diffusions_own_factor_may_be_left_out():
    check_autoencoder(vae(), 4, "here")
    check_autoencoder(vae(latent_channels=16, scaling_factor=0.3, shift_factor=0.1), 16, "here")


def test_a_prior_with_a_foreign_autoencoder_is_refused(tiny_sd_folder, tmp_path):
    shutil.copytree(tiny_sd_folder(), tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / "vae")
    vae(latent_channels=8, scaling_factor=0.5).save_pretrained(tmp_path / "sd" / "vae")
    with pytest.raises(UserError, match="latents of 8 channels, its UNet reads 4"):
        LatentDiffusion.build(tmp_path / "sd", dtype=torch.float32)
