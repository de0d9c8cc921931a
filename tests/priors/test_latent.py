"""LatentDiffusion on tiny random folders, against the equations written out beside the raw networks."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from jointdreamer.diffusion import add_noise, draw_timesteps
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.flow import RectifiedFlow
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.multi_view import MultiViewDiffusion
from jointdreamer.priors.pixel import PixelDiffusion
from jointdreamer.priors.prompts import Prompts, TextPair
from jointdreamer.priors.sdxl import SDXL

B, V = 2, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def conditioning(width=16):
    cond, uncond = (torch.randn(B, V, 12, width, generator=generator(s)) for s in (1, 2))
    return TextPair(cond, uncond)


def noised(prior):
    latents = torch.randn(B, V, 4, 8, 8, generator=generator(3))
    g = generator()
    return add_noise(prior.process, latents, draw_timesteps(prior.process, B, 0.02, 0.98, g), g)


def predict(prior, noisy, text, scale=0.0):
    """The guided noise, with the paper's s, and what is known of the text and of none."""
    conditions = [Condition(text.cond), Condition(text.uncond)]
    cond, uncond = prior.predict(noisy.x_t, noisy.t, conditions, None)
    noise = prior.guidance.noise(prior.process, noisy.x_t, noisy.t, cond, uncond, 1 + scale)
    return SimpleNamespace(noise=noise, noise_cond=cond, noise_uncond=uncond)


def raw(prior, rows, timesteps, text):
    """The UNet asked one row at a time: no batching to get wrong."""
    answers = [
        prior.unet(rows[b, v][None], timesteps[b], encoder_hidden_states=text[b, v][None]).sample[0]
        for b in range(B)
        for v in range(V)
    ]
    return torch.stack(answers).view_as(rows).double()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_prediction_is_the_paper_s_prior(tiny_sd_folder, kind):
    prior = LatentDiffusion.build(tiny_sd_folder(kind))
    noisy, text = noised(prior), conditioning()
    pred = predict(prior, noisy, text, 30)
    a, s = noisy.alpha_t.double(), noisy.sigma_t.double()
    x_t = noisy.x_t.double()

    def as_noise(out):
        if kind == "epsilon":
            return out
        return a * out + s * x_t if kind == "v_prediction" else (x_t - a * out) / s

    with torch.no_grad():
        cond, uncond = (as_noise(raw(prior, noisy.x_t, noisy.t, t)) for t in (text.cond, text.uncond))
    torch.testing.assert_close(pred.noise_cond.double(), cond, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pred.noise_uncond.double(), uncond, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pred.noise.double(), 31 * cond - 30 * uncond, atol=5e-3, rtol=1e-3)
    assert not pred.noise.requires_grad and pred.noise.dtype == torch.float32
    assert not any(x.is_inference() for x in vars(pred).values())


def test_both_halves_go_through_the_unet_in_one_call(tiny_sd_folder):
    prior = LatentDiffusion.build(tiny_sd_folder())
    calls = []
    prior.unet.register_forward_hook(lambda module, args, out: calls.append(args[0].shape[0]))
    predict(prior, noised(prior), conditioning(), 7.0)
    assert calls == [2 * B * V]


def test_x0_limit_clamps_the_guided_x0(tiny_sd_folder):
    free = LatentDiffusion.build(tiny_sd_folder())
    limited = LatentDiffusion.build(tiny_sd_folder(), x0_limit=1.05)
    noisy, text = noised(free), conditioning()
    a, s, x_t = noisy.alpha_t, noisy.sigma_t, noisy.x_t
    x0 = (x_t - s * predict(free, noisy, text, 30.0).noise) / a
    pred = predict(limited, noisy, text, 30.0)
    assert x0.abs().max() > 1.05
    torch.testing.assert_close((x_t - s * pred.noise) / a, x0.clamp(-1.05, 1.05), atol=1e-4, rtol=1e-4)
    assert torch.equal(pred.noise_uncond, predict(free, noisy, text, 30.0).noise_uncond)


def test_full_cfg_rescale_restores_the_spread_of_the_text_prediction(tiny_sd_folder):
    plain = LatentDiffusion.build(tiny_sd_folder())
    half, full = (LatentDiffusion.build(tiny_sd_folder(), cfg_rescale=r) for r in (0.5, 1.0))
    noisy, text = noised(plain), conditioning()
    a, b, c = (predict(g, noisy, text, 30.0) for g in (plain, half, full))
    std = [x.flatten(2).std(2) for x in (c.noise, c.noise_cond)]
    torch.testing.assert_close(std[0], std[1])
    torch.testing.assert_close(b.noise, 0.5 * a.noise + 0.5 * c.noise)


def test_full_x0_rescale_restores_the_spread_of_the_text_estimate(tiny_sd_folder):
    full = LatentDiffusion.build(tiny_sd_folder(), x0_rescale=1.0)
    noisy, text = noised(full), conditioning()
    pred = predict(full, noisy, text, 30.0)
    x0 = [(noisy.x_t - noisy.sigma_t * e) / noisy.alpha_t for e in (pred.noise, pred.noise_cond)]
    torch.testing.assert_close(*(x.flatten(2).std(2) for x in x0), atol=1e-3, rtol=1e-3)
    plain = predict(LatentDiffusion.build(tiny_sd_folder()), noisy, text, 30.0)
    assert not torch.allclose(plain.noise, pred.noise)


def test_encode_resizes_scales_and_samples_the_posterior(tiny_sd_folder):
    prior = LatentDiffusion.build(tiny_sd_folder())
    assert prior.image_size == 16  # sample_size 8 times the autoencoder's 2
    rgb = torch.rand(B, V, 3, 20, 20, generator=generator(4))
    latents = prior.encode(rgb, generator(5))
    assert latents.shape == (B, V, 4, 8, 8)
    small = interpolate(rgb.flatten(0, 1), (16, 16), mode="bilinear", align_corners=False)
    posterior = prior.vae.encode(2 * small - 1).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator(5))
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    torch.testing.assert_close(latents.flatten(0, 1), expected)
    assert not torch.equal(latents, prior.encode(rgb, generator(6)))


def test_encode_keeps_the_graph_only_when_asked(tiny_sd_folder):
    prior = LatentDiffusion.build(tiny_sd_folder())
    rgb = torch.rand(1, 2, 3, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(prior.encode(rgb, generator()).square().sum(), rgb)
    assert (grad.abs().flatten(2).sum(2) > 0).all()
    assert not prior.encode(rgb, generator(), grad=False).requires_grad
    assert all(not p.requires_grad for p in prior.parameters())


def test_decode_is_the_autoencoder_s_image_and_differentiable(tiny_sd_folder):
    prior = LatentDiffusion.build(tiny_sd_folder())
    latents = torch.randn(1, 2, 4, 8, 8, requires_grad=True)
    rgb = prior.decode(latents)
    assert rgb.shape == (1, 2, 3, 16, 16)
    with torch.no_grad():
        expected = (prior.vae.decode(latents.flatten(0, 1) / 0.18215).sample + 1) / 2
    torch.testing.assert_close(rgb.flatten(0, 1), expected)
    (grad,) = torch.autograd.grad(rgb.sum(), latents)
    assert grad.abs().sum() > 0


def test_text_parts_feed_the_unet(tiny_sd_folder):
    prior = LatentDiffusion.build(tiny_sd_folder())
    text = prior.embed(Prompts("a robot"))
    assert text.cond.shape == (4, 12, 16) and not text.cond.requires_grad
    assert not torch.equal(text.cond[0], text.cond[1])
    assert not any("text" in name for name, _ in prior.named_parameters())


def test_float16_files_are_computed_in_float32_on_the_cpu(tiny_sd_folder, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny_sd_folder(), folder)
    prior = LatentDiffusion.build(folder, dtype=torch.float16)
    assert prior.unet.dtype == prior.vae.dtype == torch.float16
    for part, model in (("unet", prior.unet), ("vae", prior.vae)):
        shutil.rmtree(folder / part)
        model.save_pretrained(folder / part, variant="fp16")  # only *.fp16.safetensors, as people download it
    prior = LatentDiffusion.build(folder)
    assert prior.unet.dtype == prior.vae.dtype == torch.float32
    assert predict(prior, noised(prior), conditioning(), 1.0).noise.isfinite().all()


def test_same_seed_same_answer(tiny_sd_folder):
    a, b = LatentDiffusion.build(tiny_sd_folder()), LatentDiffusion.build(tiny_sd_folder())
    assert torch.equal(
        predict(a, noised(a), conditioning(), 3.0).noise, predict(b, noised(b), conditioning(), 3.0).noise
    )


# What a user can get wrong


def damage_unet(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a tensor")


def lose_weights(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_in.weight"]
    save_file(state, path, metadata={"format": "pt"})


def remove_vae(folder):
    shutil.rmtree(folder / "vae")


def damage_scheduler(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text("{")


def unknown_prediction(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "flow"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_unet, "unet"),
        (lose_weights, "conv_in.weight"),
        (remove_vae, "vae/config.json"),
        (damage_scheduler, "scheduler_config.json"),
        (unknown_prediction, "flow"),
    ],
)
def test_damaged_folders_are_one_line(tiny_sd_folder, tmp_path, damage, words):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_sd_folder(), folder)
    damage(folder)
    with pytest.raises(UserError, match=words) as error:
        LatentDiffusion.build(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_multi_view_unet_is_no_text_to_image_model(tiny_sd_folder, tiny_mv_folder, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_sd_folder(), folder)
    shutil.rmtree(folder / "unet")
    shutil.copytree(tiny_mv_folder() / "unet", folder / "unet")
    with pytest.raises(UserError, match="projection"):
        LatentDiffusion.build(folder)


def test_a_tokenizer_without_its_vocabulary_is_noticed(tiny_sd_folder, tmp_path):
    folder = tmp_path / "tokenless"
    shutil.copytree(tiny_sd_folder(), folder)
    for file in (folder / "tokenizer").iterdir():  # vocab.json and merges.txt too, where transformers writes them
        if file.name != "tokenizer_config.json":
            file.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        LatentDiffusion.build(folder).text_parts()


def test_text_of_another_width_is_refused(tiny_sd_folder):
    prior = LatentDiffusion.build(tiny_sd_folder())
    with pytest.raises(UserError, match=r"16.*24"):
        predict(prior, noised(prior), conditioning(width=24), 1.0)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(tiny_sd_folder):
    cpu = LatentDiffusion.build(tiny_sd_folder())
    gpu = LatentDiffusion.build(tiny_sd_folder(), device="cuda")
    assert gpu.unet.dtype == torch.float16
    noisy, text = noised(cpu), conditioning()
    moved: Any = SimpleNamespace(x_t=noisy.x_t.cuda(), t=noisy.t.cuda())
    there = predict(gpu, moved, TextPair(text.cond.cuda(), text.uncond.cuda()), 1.0)
    torch.testing.assert_close(there.noise.cpu(), predict(cpu, noisy, text, 1.0).noise, atol=0.05, rtol=0.05)
    rgb = torch.rand(1, 2, 3, 16, 16)
    torch.testing.assert_close(
        gpu.encode(rgb.cuda(), generator()).cpu(), cpu.encode(rgb, generator()), atol=0.02, rtol=0.05
    )


@pytest.mark.parametrize("kind", [LatentDiffusion, SDXL, PixelDiffusion, RectifiedFlow, MultiViewDiffusion])
def test_what_is_distilled_for_one_guidance_is_refused(
    tiny_text_to_image, tiny_sd_folder, tiny_mv_folder, tmp_path, kind
):
    """A latent consistency model is told its guidance, as FLUX is."""
    small = {SDXL: "sdxl", PixelDiffusion: "if", RectifiedFlow: "sd35"}
    other = {LatentDiffusion: tiny_sd_folder, MultiViewDiffusion: tiny_mv_folder}
    folder = other[kind]() if kind in other else tiny_text_to_image(small[kind])
    shutil.copytree(folder, tmp_path / "lcm")
    (path,) = (found for part in ("unet", "transformer") for found in (tmp_path / "lcm" / part).glob("config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "time_cond_proj_dim": 256}))
    for source in (tmp_path / "lcm", [str(tmp_path / "lcm")]):
        with pytest.raises(UserError, match=f"{path.parent.name}/config.json: time_cond_proj_dim: .*for one guidance"):
            kind.build(source)


def test_a_unet_that_is_told_its_guidance_is_refused(tiny_sd_folder):
    prior = LatentDiffusion.build(tiny_sd_folder())
    prior.unet.register_to_config(time_cond_proj_dim=256)
    with pytest.raises(UserError, match="the text-to-image model: time_cond_proj_dim: .*for one guidance"):
        LatentDiffusion(prior.unet, prior.vae, prior.process, prior.text_parts)
