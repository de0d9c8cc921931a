"""The toybox's flow and pixel models answer, through the priors that read their folders, what was trained."""

import numpy as np
import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.priors.flow import RectifiedFlow
from jointdreamer.priors.pixel import PixelDiffusion
from jointdreamer.priors.prompts import Prompts
from jointdreamer.toybox import networks
from jointdreamer.toybox.recipes.flow import Flow
from jointdreamer.toybox.recipes.pixel import Pixel
from jointdreamer.toybox.recipes.shipped import FAMILY

TEXTS = ["a green bear, side view", ""]
T = torch.tensor([600])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def recipe_of(kind, **parts):
    made = object.__new__(kind)  # without pictures to learn from
    made.tokenizer = networks.build_tokenizer()
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def asked(prior, x_t):
    """Noise with the text and without, for one camera at the side."""
    text = prior.embed(Prompts("a green bear"))
    cameras = sample_cameras(Rig(n_views=1), 8, torch.Generator().manual_seed(0))
    cameras.azimuth[:] = np.pi / 2
    return prior.predict(x_t, T, [text.at(cameras), text.nothing(cameras)], cameras)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=5e-3 * float(expected.abs().max()))  # stored as fp16


def test_the_flow_s_folder_answers_what_was_trained(tmp_path):
    channels = networks.LATENT_CHANNELS
    tokenizer = networks.build_tokenizer()
    unet, text = networks.build_transformer(channels), networks.build_pooled_text_encoder(tokenizer)
    torch.nn.init.normal_(unet.proj_out.weight, std=0.1)  # it starts as zeros, or nearly
    recipe = recipe_of(Flow, networks={"unet": unet.eval(), "text": text.eval()})
    prior = RectifiedFlow.build(recipe.save(tmp_path), vae=FAMILY, text_encoders=1, dtype="float32")
    assert prior.image_size == 64 and prior.process.prediction_type == "velocity"
    x_t = torch.randn(1, 1, channels, 16, 16)
    sigma = prior.process.sigma[T]
    with torch.no_grad():
        velocity = recipe.velocity(x_t[0].repeat(2, 1, 1, 1), sigma.repeat(2), recipe.read(TEXTS))
    assert not torch.allclose(velocity[0], velocity[1])
    for noise, v in zip(asked(prior, x_t), velocity, strict=True):
        close(noise[0, 0], x_t[0, 0] + (1 - sigma) * v)


def test_the_pixel_model_s_folder_answers_what_was_trained(tmp_path):
    text = networks.build_text_encoder(networks.build_tokenizer()).eval()
    recipe = recipe_of(
        Pixel,
        networks={"unet": networks.build_pixel_unet().eval()},
        text=text,
        scheduler=networks.build_pixel_scheduler(),
    )
    prior = PixelDiffusion.build(recipe.save(tmp_path), dtype="float32")
    assert prior.latent_shape == (3, 32, 32) and prior.process.prediction_type == "sample"
    x_t = torch.randn(1, 1, 3, 32, 32)
    with torch.no_grad():
        x0 = recipe.networks["unet"](x_t[0].repeat(2, 1, 1, 1), T, recipe.read(TEXTS)).sample
    assert not torch.allclose(x0[0], x0[1])
    abar = recipe.scheduler.alphas_cumprod[T]
    for noise, one in zip(asked(prior, x_t), x0, strict=True):
        close(noise[0, 0], (x_t[0, 0] - abar.sqrt() * one) / (1 - abar).sqrt())


@pytest.mark.parametrize("build", [networks.build_transformer, networks.build_pixel_unet])
def test_they_ship_in_eight_megabytes(build):
    assert 2 * sum(parameter.numel() for parameter in build().parameters()) < 7e6  # and the text encoder's one
