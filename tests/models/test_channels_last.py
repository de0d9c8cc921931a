"""Group normalisation in channels-last layout against its definition in float64, and where it stands aside."""

import pytest
import torch
from torch import nn

from jointdreamer.models.channels_last import ChannelsLastGroupNorm, channels_last_on_cpu


def norm(groups: int, channels: int, kind: type[nn.GroupNorm] = ChannelsLastGroupNorm) -> nn.GroupNorm:
    made = kind(groups, channels, eps=1e-5)
    with torch.no_grad():
        made.weight.normal_(generator=torch.Generator().manual_seed(0))
        made.bias.normal_(generator=torch.Generator().manual_seed(1))
    return made.to(torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize(("groups", "channels", "side"), [(4, 8, 3), (16, 160, 4), (1, 5, 2), (8, 8, 1)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_it_is_group_normalisation_rounded_once(groups, channels, side, offset):
    x = (torch.randn(3, channels, side, side) + offset).bfloat16().to(memory_format=torch.channels_last)
    layer = norm(groups, channels)
    y = layer(x)
    exact = nn.functional.group_norm(x.double(), groups, layer.weight.double(), layer.bias.double(), layer.eps)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    # bfloat16 keeps 8 bits; the float32 sums of an image far from zero lose a little more
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-3 if offset else 1e-5)


def test_it_stands_aside_for_everything_else():
    plain, ours = norm(4, 8, nn.GroupNorm), norm(4, 8)
    for x in (torch.randn(2, 8, 3, 3).bfloat16(), torch.randn(2, 8, 5).bfloat16()):
        assert torch.equal(ours(x), plain(x))
    x = torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last)
    assert torch.equal(ours.float()(x), plain.float()(x))
    x = torch.randn(2, 8, 3, 3).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    norm(4, 8)(x).sum().backward()
    assert x.grad is not None


def test_a_nan_stays_a_nan():
    x = torch.zeros(1, 8, 2, 2).bfloat16().to(memory_format=torch.channels_last)
    x[0, 0, 0, 0] = torch.nan
    assert norm(4, 8)(x).isnan()[0, :2].all()


def test_only_bfloat16_networks_are_turned(tiny_sd_folder):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    for dtype, turned in ((torch.float32, False), (torch.bfloat16, True)):
        unet = UNet2DConditionModel.from_pretrained(tiny_sd_folder(), subfolder="unet", torch_dtype=dtype)
        assert channels_last_on_cpu(unet) is unet
        assert any(isinstance(m, ChannelsLastGroupNorm) for m in unet.modules()) is turned
