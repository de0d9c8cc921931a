"""Group normalisation in channels-last layout against its definition in float64, and where it stands aside."""

import copy

import pytest
import torch
from torch import nn

from jointdreamer.kernels.channels_last import ChannelsLastGroupNorm, channels_last_on_cpu, norm_silu
from tests.conftest import _unet

HALF, FULL = torch.bfloat16, torch.float32
PRECISION = {HALF: 2**-8, FULL: 1e-5}  # bfloat16 keeps 8 bits
both_dtypes = pytest.mark.parametrize("dtype", [FULL, HALF], ids=str)


def norm(
    groups: int, channels: int, dtype: torch.dtype, kind: type[nn.GroupNorm] = ChannelsLastGroupNorm
) -> nn.GroupNorm:
    made = kind(groups, channels, eps=1e-5)
    with torch.no_grad():
        made.weight.normal_(generator=torch.Generator().manual_seed(0))
        made.bias.normal_(generator=torch.Generator().manual_seed(1))
    return made.to(dtype).requires_grad_(False)


@pytest.mark.parametrize(("groups", "channels", "side"), [(4, 8, 3), (16, 160, 4), (1, 5, 2), (8, 8, 1)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@both_dtypes
def test_it_is_group_normalisation_rounded_once(groups, channels, side, offset, dtype):
    x = (torch.randn(3, channels, side, side) + offset).to(dtype).to(memory_format=torch.channels_last)
    layer = norm(groups, channels, dtype)
    y = layer(x)
    exact = nn.functional.group_norm(x.double(), groups, layer.weight.double(), layer.bias.double(), layer.eps)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    # a float32's last digit times the scale (1 / sqrt(eps) where a group is one number); sums far from zero lose more
    spread = x.double().unflatten(1, (groups, -1)).flatten(2).var(-1, correction=0).min()
    digit = float(2**-23 * x.double().abs().max() * layer.weight.abs().max() / (spread + layer.eps).sqrt())
    torch.testing.assert_close(y.double(), exact, rtol=PRECISION[dtype], atol=2 * digit + (1e-3 if offset else 1e-5))


def test_it_stands_aside_for_everything_else():
    plain, ours = norm(4, 8, HALF, nn.GroupNorm), norm(4, 8, HALF)
    for x in (torch.randn(2, 8, 3, 3).bfloat16(), torch.randn(2, 8, 5).bfloat16()):
        assert torch.equal(ours(x), plain(x))
    x = torch.randn(2, 8, 3, 3).double().to(memory_format=torch.channels_last)
    assert torch.equal(ours.double()(x), plain.double()(x))
    x = torch.randn(2, 8, 3, 3).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    norm(4, 8, HALF)(x).sum().backward()
    assert x.grad is not None


@both_dtypes
def test_a_nan_stays_a_nan(dtype):
    x = torch.zeros(1, 8, 2, 2).to(dtype).to(memory_format=torch.channels_last)
    x[0, 0, 0, 0] = torch.nan
    assert norm(4, 8, dtype)(x).isnan()[0, :2].all()


def test_networks_in_half_precision_are_left_alone(tiny_sd_folder):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    for dtype, turned in ((torch.float16, False), (torch.float32, True), (torch.bfloat16, True)):
        unet = UNet2DConditionModel.from_pretrained(tiny_sd_folder(), subfolder="unet", torch_dtype=dtype)
        assert channels_last_on_cpu(unet) is unet
        assert any(isinstance(m, ChannelsLastGroupNorm) for m in unet.modules()) is turned


@both_dtypes
def test_an_autoencoder_turned_is_as_exact_forward_and_backward(tiny_sd_folder, dtype):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    exact = AutoencoderKL.from_pretrained(tiny_sd_folder(), subfolder="vae").requires_grad_(False)
    plain = copy.deepcopy(exact).to(dtype)
    ours = channels_last_on_cpu(copy.deepcopy(plain))
    images, weights = torch.rand(2, 3, 16, 16), torch.randn(2, 8, 8, 8)
    answers = []
    for vae in (exact, plain, ours):
        x = images.clone().requires_grad_()
        moments = vae.encode(x.to(vae.dtype)).latent_dist.parameters.float()  # pyright: ignore[reportAttributeAccessIssue]
        (moments * weights).sum().backward()
        answers.append((moments.detach(), x.grad))
    for wanted, half, found in zip(*answers, strict=True):
        most = 1.2 * (half - wanted).norm() + 1e-5 * wanted.norm()
        assert (found - wanted).norm() <= most < 0.03 * wanted.norm()


@both_dtypes
@pytest.mark.parametrize("silu", [True, False])
def test_its_gradient_is_that_of_float64(dtype, silu):
    layer = norm(4, 24, dtype)
    x = (2 * torch.randn(2, 24, 5, 3) + 1).to(dtype).to(memory_format=torch.channels_last)
    weights = torch.randn(2, 24, 5, 3)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y = norm_silu(layer, ours) if silu else layer(ours)
    assert type(y.grad_fn).__name__ == "GroupNormBackward"
    (y.float() * weights).sum().backward()
    wanted = nn.functional.group_norm(exact, 4, layer.weight.double(), layer.bias.double(), layer.eps)
    wanted = nn.functional.silu(wanted) if silu else wanted
    (wanted * weights.to(dtype)).sum().backward()
    torch.testing.assert_close(y.double(), wanted, rtol=PRECISION[dtype], atol=1e-5)
    assert ours.grad is not None and exact.grad is not None
    assert (ours.grad.double() - exact.grad).abs().max() < 2 * PRECISION[dtype] * exact.grad.abs().max()


@both_dtypes
def test_a_unet_turned_is_as_exact_forward_and_backward(dtype):
    exact = _unet().requires_grad_(False)
    plain = copy.deepcopy(exact).to(dtype)
    ours = channels_last_on_cpu(copy.deepcopy(plain))
    images, weights, text = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    answers = []
    for unet in (exact, plain, ours):
        x = images.clone().requires_grad_()
        out = unet(x.to(unet.dtype), torch.tensor([5, 700]), text.to(unet.dtype))[0].float()
        (out * weights).sum().backward()
        answers.append((out.detach(), x.grad))
    for wanted, half, found in zip(*answers, strict=True):
        most = 1.2 * (half - wanted).norm() + 1e-5 * wanted.norm()
        assert (found - wanted).norm() <= most < 0.05 * wanted.norm()
