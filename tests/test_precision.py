"""What `auto` means, and how far half precision moves the bundled networks."""

import pytest
import torch

from jointdreamer import precision
from jointdreamer.cameras import orbit_cameras
from jointdreamer.diffusion import add_noise, draw_timesteps
from jointdreamer.energies.base import Views
from jointdreamer.energies.reconstruction import mvs
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.prompts import Prompts, TextPair
from jointdreamer.toybox.judge import true_views
from jointdreamer.toybox.recipes.shipped import WEIGHTS
from jointdreamer.toybox.world import parse_caption


def test_auto_is_the_fastest_that_the_device_has_units_for(monkeypatch):
    assert network_dtype("auto", "cuda") == torch.float16
    assert network_dtype("auto", "cpu") == torch.float32  # conftest: no units
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda: True)
    assert network_dtype("auto", "cpu") == torch.bfloat16
    assert network_dtype("float32", "cpu") == network_dtype(torch.float32, "cuda") == torch.float32


def test_units_are_read_off_the_cpu(monkeypatch):
    monkeypatch.undo()  # conftest's
    for capabilities, has in (
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert precision.has_bfloat16_units() is has
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # an older torch
    assert precision.has_bfloat16_units() is False


def test_an_unknown_dtype_is_one_line():
    with pytest.raises(UserError, match="'half'.*auto, float32, bfloat16, float16"):
        network_dtype("half", "cpu")


def deviation(half: torch.Tensor, full: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((half - full).norm() / full.norm())


def test_bfloat16_moves_the_bundled_networks_by_a_percent():
    """Latents, the gradient through the encoder, both one-step estimates, at three noise levels."""
    toy = parse_caption("a red robot with a blue hat")
    assert toy is not None
    pictures = true_views(toy)[None, ::4]
    cameras = orbit_cameras(4, 64, 15.0, 2.61, 40.0)
    answers = []
    for dtype in ("float32", "bfloat16"):
        prior = LatentDiffusion.build(WEIGHTS / "text_to_image", dtype=dtype, x0_limit=4.0, x0_rescale=0.7)
        energy = mvs(WEIGHTS / "multi_view", vae="shared", dtype=dtype, guidance_scale=3.0, rescale=0.5, x0_limit=4.0)
        if not answers:  # one text for both
            text = prior.embed(Prompts("a red robot with a blue hat"))
            words = [text.at(cameras), text.nothing(cameras)]
        rgb = pictures.clone().requires_grad_()
        latents = prior.encode(rgb, torch.Generator().manual_seed(1))
        direction = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
        (latents * direction).sum().backward()
        answer = {"latents": latents.detach(), "encoder's gradient": rgb.grad}
        z = answers[0]["latents"] if answers else latents.detach()  # the networks below get the same
        for t in (0.05, 0.3, 0.9):
            g = torch.Generator().manual_seed(3)
            noised = add_noise(prior.process, z, draw_timesteps(prior.process, 1, t, t, g), g)
            cond, uncond = prior.predict(noised.x_t, noised.t, words, cameras)
            noise = prior.guidance.noise(prior.process, noised.x_t, noised.t, cond, uncond, 4.0)
            answer[f"x0 at {t}"] = noised.x0(noise)
            pair = TextPair(*(word.embedding for word in words))
            seen = Views(z, rgb.detach(), rgb[:, :, :1], cameras, noised.t, pair, prior.decode, z, g)
            answer[f"multi-view x0 at {t}"], _ = energy.estimate(seen)
        answers.append(answer)
    full, half = answers
    found = {name: deviation(half[name], full[name]) for name in full}
    assert max(found.values()) < 0.02, found  # 0.0156 on a CPU without bfloat16 units, below 0.015 on one with them
    assert min(found.values()) > 1e-4, found  # it did run in bfloat16
