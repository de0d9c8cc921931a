"""Where the frozen networks stand: same numbers, and compiled only if asked."""

import pytest
import torch
from torch import nn

from jointdreamer.priors.latent import LatentDiffusion


def test_the_unet_alone_is_compiled_and_only_if_asked(monkeypatch, tiny_sd_folder):
    calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: calls.append((self, options)))
    LatentDiffusion.build(tiny_sd_folder())
    assert calls == []
    prior = LatentDiffusion.build(tiny_sd_folder(), compile=True)
    ((network, options),) = calls
    assert network is prior.unet and options == {"dynamic": False, "mode": None}


@pytest.mark.slow
def test_a_captured_unet_gives_the_same_numbers(monkeypatch, tiny_sd_folder):
    """With torch.compile's capture, without its code generation, which takes minutes."""
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: plain(self, dynamic=False, backend="eager"))
    inputs = torch.rand(2, 4, 8, 8), torch.zeros(2), torch.rand(2, 12, 16)
    with torch.no_grad():
        one, other = (
            LatentDiffusion.build(tiny_sd_folder(), dtype=torch.float32, compile=c).unet(*inputs).sample
            for c in (False, True)
        )
    torch.testing.assert_close(one, other)


@pytest.mark.gpu
def test_on_cuda_channels_are_last_and_half_precision_agrees(tiny_sd_folder):
    inputs = torch.rand(2, 4, 8, 8), torch.zeros(2), torch.rand(2, 12, 16)
    half = LatentDiffusion.build(tiny_sd_folder(), device="cuda").unet
    assert half.dtype == torch.float16
    assert half.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        ours = half(inputs[0].cuda().half(), inputs[1].cuda(), inputs[2].cuda().half()).sample.float().cpu()
        whole = LatentDiffusion.build(tiny_sd_folder(), dtype=torch.float32).unet(*inputs).sample
    assert (ours - whole).norm() < 0.01 * whole.norm()
