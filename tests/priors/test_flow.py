"""Stable Diffusion 3.5 on a tiny random folder of the real layout, against diffusers' transformer and pipeline."""

import json
import shutil
from typing import Any

import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.errors import UserError
from jointdreamer.priors.flow import RectifiedFlow
from jointdreamer.priors.prompts import Prompts
from tests.priors.folders import T5_WIDTH
from tests.priors.pipelines import ddim

CAMERAS = sample_cameras(Rig(n_rigs=2, n_views=2), 8, torch.Generator().manual_seed(0))
PROMPTS = Prompts("a red robot", "a hat")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tiny_text_to_image):
    return tiny_text_to_image("sd35")


def parts(folder) -> dict[str, Any]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTextModelWithProjection

    from jointdreamer.weights.parts import load_tokenizer

    tokenizers: list[Any] = [load_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    for tokenizer in tokenizers:
        tokenizer.model_max_length = 12
    return {
        "transformer": SD3Transformer2DModel.from_pretrained(folder / "transformer"),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        "tokenizer": tokenizers[0],
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        "tokenizer_2": tokenizers[1],
    }


@pytest.fixture(scope="module")
def pipeline(folder) -> Any:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

    without: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    made: Any = StableDiffusion3Pipeline(**parts(folder), **without)
    made.set_progress_bar_config(disable=True)
    return made


def test_without_t5_the_text_is_the_pipeline_s(folder, pipeline):
    text = RectifiedFlow.build(folder, text_encoders=2).embed(PROMPTS)
    assert text.pooled is not None
    words = "a red robot, front view"
    states, negative, pooled, pooled_negative = pipeline.encode_prompt(words, None, None, negative_prompt="a hat")
    torch.testing.assert_close(text.cond[1], states[0])
    torch.testing.assert_close(text.uncond[1], negative[0])
    torch.testing.assert_close(text.pooled[1], pooled[0])
    torch.testing.assert_close(text.pooled[5], pooled_negative[0])
    assert text.cond.shape == (4, 12 + 256, T5_WIDTH) and not text.cond[:, 12:].any()
    _, empty, _, _ = pipeline.encode_prompt(words, None, None)
    torch.testing.assert_close(text.uncond[0], empty[0])


def test_with_t5_the_text_is_the_pipeline_s(folder, pipeline):
    from transformers import T5EncoderModel

    from jointdreamer.priors.t5 import load_t5_tokenizer

    text = RectifiedFlow.build(folder).embed(PROMPTS)
    encoder: Any = T5EncoderModel.from_pretrained(folder / "text_encoder_3")
    pipeline.text_encoder_3, pipeline.tokenizer_3 = encoder.eval(), load_t5_tokenizer(folder / "tokenizer_3")
    try:
        states, negative, _, _ = pipeline.encode_prompt("a red robot", None, None, negative_prompt="a hat")
    finally:
        pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    torch.testing.assert_close(text.plain, states[0])
    torch.testing.assert_close(text.uncond[1], negative[0])
    assert text.plain is not None and text.plain[12:].any()


def test_timesteps_are_shifted_and_ascend(folder):
    process = RectifiedFlow.build(folder, text_encoders=2).process
    assert process.sigma[699].item() == pytest.approx(0.875)
    assert (process.sigma[1:] > process.sigma[:-1]).all() and process.last == 998
    scheduler = parts(folder)["scheduler"]
    torch.testing.assert_close(process.sigma.flip(0), scheduler.sigmas)


def test_predict_is_the_transformer_asked_by_hand(folder, pipeline):
    prior = RectifiedFlow.build(folder, text_encoders=2)
    text, t = prior.embed(PROMPTS), torch.tensor([99, 699])
    x_t = torch.randn(2, 2, 16, 8, 8, generator=generator(1))
    conditions = [text.at(CAMERAS), text.nothing(CAMERAS, negative=True)]
    for condition, noise in zip(conditions, prior.predict(x_t, t, conditions, CAMERAS), strict=True):
        for b, sigma in ((0, 3 * 0.1 / 1.2), (1, 0.875)):
            for v in range(2):
                with torch.no_grad():
                    velocity = pipeline.transformer(
                        x_t[b, v][None],
                        condition.embedding[b, v][None],
                        condition.extra["pooled"][b, v][None],
                        torch.tensor([1000 * sigma]),
                    ).sample[0]
                torch.testing.assert_close(noise[b, v], x_t[b, v] + (1 - sigma) * velocity, atol=1e-4, rtol=1e-4)


def test_two_steps_are_the_pipeline_s(folder, pipeline):
    prior = RectifiedFlow.build(folder, text_encoders=2)
    text, x = prior.embed(PROMPTS), torch.randn(1, 1, 16, 8, 8, generator=generator(2))
    one = sample_cameras(Rig(n_rigs=1, n_views=1), 8, generator())
    out = pipeline(
        "a red robot", height=16, width=16, num_inference_steps=2, sigmas=[0.7, 0.3], guidance_scale=5.0,
        latents=x[0], output_type="latent",
    )  # fmt: skip
    ours = ddim(prior, [text.without_view(one), text.nothing(one)], x, [699, 299], 5.0)
    torch.testing.assert_close(ours[0], out.images, atol=1e-4, rtol=1e-4)


def test_latents_are_shifted_and_scaled(folder):
    prior = RectifiedFlow.build(folder, text_encoders=2)
    rgb = torch.rand(1, 2, 3, 20, 20, generator=generator(3))
    latents = prior.encode(rgb, generator(4))
    assert latents.shape == (1, 2, *prior.latent_shape) == (1, 2, 16, 8, 8)
    small = torch.nn.functional.interpolate(rgb[0], (16, 16), mode="bilinear", align_corners=False)
    posterior = prior.vae.encode(2 * small - 1).latent_dist
    drawn = posterior.mean + posterior.std * torch.randn(2, 16, 8, 8, generator=generator(4))
    torch.testing.assert_close(latents[0], (drawn - 0.0609) * 1.5305)
    torch.testing.assert_close(prior.decode(latents)[0], prior.vae.decode(drawn).sample / 2 + 0.5, atol=1e-5, rtol=1e-4)


def test_a_small_model_may_have_one_clip_and_no_t5(folder, tmp_path):
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    other = tmp_path / "small"
    shutil.copytree(folder, other)
    for name in ("text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3", "transformer"):
        shutil.rmtree(other / name)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    wanted = {key: value for key, value in config.items() if not key.startswith("_")}
    small = SD3Transformer2DModel(**{**wanted, "joint_attention_dim": 16, "pooled_projection_dim": 16})
    small.save_pretrained(other / "transformer")
    prior = RectifiedFlow.build(other, text_encoders=1)
    text = prior.embed(PROMPTS)
    assert text.cond.shape == (4, 12, 16)
    x_t = torch.randn(2, 2, 16, 8, 8)
    assert prior.predict(x_t, torch.tensor([5, 9]), [text.at(CAMERAS)], CAMERAS)[0].isfinite().all()


def change(folder, part, **values):
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("transformer", {"guidance_embeds": True, "_class_name": "FluxTransformer2DModel"}, "distilled.*models=sd35"),
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "wanted an SD3Transformer2DModel.*got Flux"),
        ("scheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("scheduler", {"shift": "3"}, "shift='3': wanted a number"),
        ("scheduler", {"num_train_timesteps": 1}, "num_train_timesteps=1"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "DDIMScheduler is no rectified flow"),
        ("vae", {"shift_factor": "none"}, "shift_factor must be a number"),
    ],
)
def test_other_models_are_refused_in_one_line(folder, tmp_path, part, values, says):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    change(other, part, **values)
    with pytest.raises(UserError, match=says) as error:
        RectifiedFlow.build(other, text_encoders=2)
    assert "\n" not in str(error.value)


def test_flux_is_refused_before_anything_else_is_looked_for(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"guidance_embeds": True}))
    with pytest.raises(UserError, match="no prediction without the text"):
        RectifiedFlow.build(tmp_path)


def test_a_size_that_is_no_multiple_of_the_patches(folder):
    for size in (18, 64):
        with pytest.raises(UserError, match=f"image_size={size}.*patches of 4 pixels.*most 32 pixels"):
            RectifiedFlow.build(folder, text_encoders=2, image_size=size)


def test_a_folder_without_t5_says_so(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.rmtree(other / "text_encoder_3")
    with pytest.raises(UserError, match=r"lacks text_encoder_3/config.json"):
        RectifiedFlow.build(other)
    assert RectifiedFlow.build(other, text_encoders=2).t5 is None
