"""SDXL on a tiny random folder of the real layout, against diffusers' own UNet, encoders and pipeline."""

import json
import shutil
from typing import Any

import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.errors import UserError
from jointdreamer.priors.prompts import Prompts
from jointdreamer.priors.sdxl import SDXL
from tests.priors.folders import clip
from tests.priors.pipelines import ddim

CAMERAS = sample_cameras(Rig(n_rigs=2, n_views=3), 8, torch.Generator().manual_seed(0))
PROMPTS = Prompts("a red robot", "a hat")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tiny_text_to_image):
    return tiny_text_to_image("sdxl")


@pytest.fixture(scope="module")
def pipeline(folder) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from jointdreamer.weights.parts import load_tokenizer

    tokenizers: list[Any] = [load_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    for tokenizer in tokenizers:
        tokenizer.model_max_length = 12
    scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
    made: Any = StableDiffusionXLPipeline(
        AutoencoderKL.from_pretrained(folder / "vae"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        *tokenizers,
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=scheduler,
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_the_text_is_the_pipeline_s(folder, pipeline):
    text = SDXL.build(folder).embed(PROMPTS)
    assert text.plain is not None and text.pooled is not None
    for number, words in enumerate(("a red robot, side view", "a red robot, front view")):
        states, nothing, pooled, pooled_nothing = pipeline.encode_prompt(words, do_classifier_free_guidance=True)
        torch.testing.assert_close(text.cond[number], states[0])
        torch.testing.assert_close(text.pooled[number], pooled[0])
        assert torch.equal(text.uncond[0], nothing[0]) and not nothing.any()
        assert torch.equal(text.pooled[4], pooled_nothing[0]) and not pooled_nothing.any()
    states, negative, pooled, pooled_negative = pipeline.encode_prompt("a red robot", negative_prompt="a hat")
    torch.testing.assert_close(text.uncond[1], negative[0])
    torch.testing.assert_close(text.pooled[5], pooled_negative[0])
    torch.testing.assert_close(text.plain, states[0])
    torch.testing.assert_close(text.pooled[6], pooled[0])


def test_what_is_said_of_a_camera_is_its_own_row(folder):
    text = SDXL.build(folder).embed(PROMPTS)
    assert text.pooled is not None
    seen = text.at(CAMERAS)
    same = (seen.embedding[:, :, None] == text.cond).flatten(3).all(-1)  # (B, V, 4)
    assert same.any(-1).all()
    assert torch.equal(text.pooled[:4][same.long().argmax(-1)], seen.extra["pooled"])
    assert torch.equal(text.nothing(CAMERAS, negative=True).extra["pooled"], text.pooled[5].expand(2, 3, -1))
    assert torch.equal(text.without_view(CAMERAS).extra["pooled"], text.pooled[6].expand(2, 3, -1))
    double = text.to(torch.float64).pooled
    assert double is not None and double.dtype == torch.float64


def test_predict_is_the_unet_asked_by_hand(folder, pipeline):
    prior = SDXL.build(folder, original_size=40, crop=(3, 5))
    text, x_t, t = prior.embed(PROMPTS), torch.randn(2, 3, 4, 8, 8, generator=generator(1)), torch.tensor([100, 700])
    conditions = [text.at(CAMERAS), text.nothing(CAMERAS)]
    for condition, noise in zip(conditions, prior.predict(x_t, t, conditions, CAMERAS), strict=True):
        for b in range(2):
            for v in range(3):
                added = {
                    "text_embeds": condition.extra["pooled"][b, v][None],
                    "time_ids": torch.tensor([[40.0, 40, 3, 5, 16, 16]]),
                }
                words = condition.embedding[b, v][None]
                with torch.no_grad():
                    wanted = pipeline.unet(x_t[b, v][None], t[b], words, added_cond_kwargs=added).sample[0]
                torch.testing.assert_close(noise[b, v], wanted, atol=1e-5, rtol=1e-4)


def test_two_steps_are_the_pipeline_s(folder, pipeline):
    prior = SDXL.build(folder)
    text, x = prior.embed(PROMPTS), torch.randn(1, 1, 4, 8, 8, generator=generator(2))
    one = CAMERAS.select(torch.zeros(2, 1, dtype=torch.long))
    conditions = [
        type(c)(c.embedding[:1], {"pooled": c.extra["pooled"][:1]}) for c in (text.without_view(one), text.nothing(one))
    ]
    out = pipeline(
        "a red robot",
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=5.0,
        latents=x[0],
        output_type="latent",
    )
    first = [value[0] for value in prior.process.at(torch.tensor([0]))]
    ours = ddim(prior, conditions, x, [501, 1], 5.0, last=first)
    torch.testing.assert_close(ours[0], out.images, atol=1e-4, rtol=1e-4)


def test_pictures_are_the_autoencoder_s_in_float32_where_it_would_overflow(folder):
    prior = SDXL.build(folder, dtype="float16")
    assert prior.unet.dtype == torch.float16 and prior.vae.dtype == torch.float32
    assert SDXL.build(folder, vae=folder / "vae", dtype="float32").latent_space == (4, 0.13025, 0.0)
    rgb = torch.rand(1, 2, 3, 16, 16, generator=generator(3))
    mean = prior.vae.encode(2 * rgb[0] - 1).latent_dist
    expected = (mean.mean + mean.std * torch.randn(2, 4, 8, 8, generator=generator(4))) * 0.13025
    torch.testing.assert_close(prior.encode(rgb, generator(4))[0], expected)


def test_an_empty_text_is_encoded_where_the_model_says_so(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "model_index.json").write_text(json.dumps({"force_zeros_for_empty_prompt": False}))
    assert SDXL.build(other).embed(PROMPTS).uncond[0].any()


def test_mistakes_are_one_line(folder, tiny_sd_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.rmtree(other / "text_encoder_2")
    with pytest.raises(UserError, match=r"lacks text_encoder_2/config.json.*"):
        SDXL.build(other)
    shutil.rmtree(other / "tokenizer_2")
    clip(other, "_2", projected=True)
    config = other / "text_encoder_2" / "config.json"
    shutil.rmtree(other / "text_encoder_2")
    shutil.copytree(folder / "text_encoder_2", other / "text_encoder_2")
    config.write_text(json.dumps({**json.loads(config.read_text()), "projection_dim": 12}))
    with pytest.raises(UserError, match="cannot load the text_encoder_2"):
        SDXL.build(other).embed(PROMPTS)
    shutil.rmtree(other / "unet")
    shutil.copytree(tiny_sd_folder() / "unet", other / "unet")
    with pytest.raises(UserError, match="no UNet of Stable Diffusion XL.*'text_time', got None"):
        SDXL.build(other)
    with pytest.raises(UserError, match="the prompt is empty"):
        SDXL.build(folder).embed(Prompts(" "))


def test_a_plain_prior_says_which_models_reads_it(folder):
    from jointdreamer.priors.latent import LatentDiffusion

    with pytest.raises(UserError, match="models=sdxl"):
        LatentDiffusion.build(folder)
