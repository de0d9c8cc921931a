"""Images in chunks: the same latents and gradients, and less memory."""

import pytest
import torch

from jointdreamer.guidance.latent_diffusion import LatentDiffusion
from jointdreamer.memory import Live


def encoded(guidance, chunk):
    rgb = torch.rand(2, 3, 3, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    with Live() as live:
        latents = guidance.encode(rgb, generator, chunk=chunk)
        kept = live.now
        (latents * torch.linspace(-1, 1, latents.numel()).view_as(latents)).sum().backward()
    assert rgb.grad is not None
    return latents.detach(), rgb.grad, generator.get_state(), kept, live.peak


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_give_the_same_latents_and_gradients(tiny_sd_folder, chunk):
    guidance = LatentDiffusion(tiny_sd_folder(), dtype=torch.float32)
    latents, gradient, state, kept, peak = encoded(guidance, None)
    again, gradient_again, state_again, kept_cut, peak_cut = encoded(guidance, chunk)
    torch.testing.assert_close(again, latents)
    torch.testing.assert_close(gradient_again, gradient, atol=1e-6 * gradient.abs().max().item(), rtol=1e-4)
    assert gradient.abs().max() > 0 and torch.equal(state, state_again)
    assert kept_cut < 0.1 * kept and peak_cut < (0.3 if chunk == 1 else 0.8) * peak


def test_without_a_graph_chunks_keep_nothing(tiny_sd_folder):
    guidance = LatentDiffusion(tiny_sd_folder(), dtype=torch.float32)
    rgb = torch.rand(1, 4, 3, 16, 16)
    one, other = (guidance.encode(rgb, torch.Generator().manual_seed(0), grad=False, chunk=c) for c in (None, 3))
    torch.testing.assert_close(one, other)
    assert not other.requires_grad
