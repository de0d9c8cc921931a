"""DeepFloyd IF on a tiny random folder of the real layout, against diffusers' UNet and pipeline."""

import json
import shutil
from typing import Any

import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.pixel import PixelDiffusion
from jointdreamer.priors.prompts import Prompts
from tests.priors.folders import T5_WIDTH, clip
from tests.priors.pipelines import ddim

CAMERAS = sample_cameras(Rig(n_rigs=2, n_views=2), 8, torch.Generator().manual_seed(0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tiny_text_to_image):
    return tiny_text_to_image("if")


@pytest.fixture(scope="module")
def pipeline(folder) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import T5EncoderModel

    from jointdreamer.priors.t5 import load_t5_tokenizer

    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler: Any = DDIMScheduler(
        beta_schedule=config["beta_schedule"], clip_sample=False, prediction_type="epsilon", timestep_spacing="leading"
    )
    scheduler.register_to_config(variance_type="fixed_small")  # the pipeline then drops the variance, too
    encoder: Any = T5EncoderModel.from_pretrained(folder / "text_encoder")
    made: Any = IFPipeline(
        load_t5_tokenizer(folder / "tokenizer"), encoder.eval(),
        UNet2DConditionModel.from_pretrained(folder / "unet"), scheduler, None, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def conditions(seed=5):
    cond, uncond = (torch.randn(2, 2, 77, T5_WIDTH, generator=generator(seed + i)) for i in range(2))
    return [Condition(cond), Condition(uncond)]


def test_the_text_is_the_pipeline_s(folder, pipeline):
    text = PixelDiffusion.build(folder).embed(Prompts("A red Robot ", "a hat"))
    states, negative = pipeline.encode_prompt("A red Robot , side view", negative_prompt="a hat")
    torch.testing.assert_close(text.cond[0], states[0])
    torch.testing.assert_close(text.uncond[1], negative[0])
    _, empty = pipeline.encode_prompt("a red robot")
    torch.testing.assert_close(text.uncond[0], empty[0])
    assert text.pooled is None and not torch.equal(text.cond[0], text.cond[1])


def test_predict_is_the_unet_asked_by_hand_without_its_variance(folder, pipeline):
    prior = PixelDiffusion.build(folder)
    x_t, t = torch.randn(2, 2, 3, 16, 16, generator=generator(1)), torch.tensor([20, 700])
    told = conditions()
    for condition, noise in zip(told, prior.predict(x_t, t, told, CAMERAS), strict=True):
        for b in range(2):
            for v in range(2):
                with torch.no_grad():
                    out = pipeline.unet(x_t[b, v][None], t[b], condition.embedding[b, v][None]).sample[0]
                assert out.shape[0] == 6
                torch.testing.assert_close(noise[b, v], out[:3], atol=1e-5, rtol=1e-4)


def test_two_steps_are_the_pipeline_s(folder, pipeline, monkeypatch):
    prior = PixelDiffusion.build(folder)
    x, (cond, uncond) = torch.randn(1, 1, 3, 16, 16, generator=generator(2)), conditions()
    monkeypatch.setattr(pipeline, "prepare_intermediate_images", lambda *args: x[0])
    out = pipeline(
        prompt_embeds=cond.embedding[0, :1], negative_prompt_embeds=uncond.embedding[0, :1], num_inference_steps=2,
        guidance_scale=5.0, output_type="pt", height=16, width=16,
    )  # fmt: skip
    told = [Condition(one.embedding[:1, :1]) for one in (cond, uncond)]
    torch.testing.assert_close(ddim(prior, told, x, [500, 0], 5.0)[0], out.images, atol=1e-3, rtol=1e-3)


def test_the_schedule_is_the_folder_s_cosine(folder):
    process = PixelDiffusion.build(folder).process
    t = torch.arange(1001) / 1000
    abar = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    torch.testing.assert_close(process.alpha[:990].square(), (abar / abar[0])[1:991], atol=2e-5, rtol=1e-3)
    assert process.alpha[-1] > 0 and process.prediction_type == "epsilon"


def test_pictures_are_resized_and_scaled_with_gradients(folder):
    prior = PixelDiffusion.build(folder)
    rgb = torch.rand(2, 3, 3, 32, 32, generator=generator(3)).requires_grad_()
    latents = prior.encode(rgb, None)
    small = torch.nn.functional.avg_pool2d(rgb.flatten(0, 1), 2)  # half the size: bilinear is the mean of four
    torch.testing.assert_close(latents.flatten(0, 1), 2 * small - 1)
    torch.testing.assert_close(prior.decode(latents).flatten(0, 1), small)
    (grad,) = torch.autograd.grad(latents.sum(), rgb)
    torch.testing.assert_close(grad, torch.full_like(grad, 0.5))
    assert not prior.encode(rgb, None, grad=False).requires_grad
    assert prior.latent_shape == latents.shape[2:] == (3, 16, 16)


def test_a_small_model_may_read_its_text_through_clip_and_predict_no_variance(folder, tmp_path):
    from tests.conftest import _unet

    other = tmp_path / "small"
    shutil.copytree(folder, other)
    for name in ("text_encoder", "tokenizer", "unet"):
        shutil.rmtree(other / name)
    clip(other, "", projected=False)
    _unet(sample_size=16, in_channels=3, out_channels=3).save_pretrained(other / "unet")
    prior = PixelDiffusion.build(other)
    text = prior.embed(Prompts("a red robot"))
    (noise,) = prior.predict(torch.randn(2, 2, 3, 16, 16), torch.tensor([5, 9]), [text.at(CAMERAS)], CAMERAS)
    assert noise.shape == (2, 2, 3, 16, 16) and noise.isfinite().all()


def test_other_models_are_refused_in_one_line(folder, tiny_sd_folder, tmp_path):
    from tests.conftest import _unet

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.rmtree(other / "unet")
    shutil.copytree(tiny_sd_folder() / "unet", other / "unet")
    with pytest.raises(UserError, match="takes 4 channels and makes 4.*first stage"):
        PixelDiffusion.build(other)
    shutil.rmtree(other / "unet")
    _unet(in_channels=3, out_channels=6, class_embed_type="timestep").save_pretrained(other / "unet")  # IF's second
    with pytest.raises(UserError, match="class_embed_type 'timestep'.*first stage"):
        PixelDiffusion.build(other)
    with pytest.raises(UserError, match="width 48.*gives 16"):
        PixelDiffusion.build(folder).predict(
            torch.zeros(1, 1, 3, 16, 16), torch.tensor([1]), [Condition(torch.zeros(1, 1, 77, 16))], None
        )
