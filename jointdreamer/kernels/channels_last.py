"""Frozen networks in the memory layout in which a CPU's convolutions run best: channels last.

There the convolutions need no reordering of their inputs, but torch's group normalisation takes longer than in the
other layout (of bfloat16 5 to 20 times), which costs more than the convolutions win. With the kernels of
`norm_numba.py` a UNet gains a quarter and an autoencoder, forward and backward, a half; their rounding is
torch's.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from jointdreamer.kernels import norm_numba as norm_kernels
from jointdreamer.kernels.norm_numba import DTYPES, numbers

NO_SHIFT = {dtype: torch.empty(0, 0, dtype=dtype) for dtype in DTYPES}


def channels_last_on_cpu(network: Any) -> Any:
    """The network itself: in channels-last layout if it is one of DTYPES on a CPU, else as it was."""
    if network.dtype not in DTYPES or network.device.type != "cpu":
        return network
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = ChannelsLastGroupNorm
        elif type(module).__name__ == "ResnetBlock2D" and is_plain(module):
            module.forward = partial(residual_block, module)
    return network.to(memory_format=torch.channels_last)


def is_plain(block: Any) -> bool:
    """Whether a residual block of diffusers is norm, silu, convolution, twice, perhaps told the time between."""
    extras = (block.upsample, block.downsample, block.dropout.p or None)
    plain = isinstance(block.nonlinearity, nn.SiLU) and extras == (None, None, None) and block.output_scale_factor == 1
    time = block.time_emb_proj is None or (block.time_embedding_norm == "default" and not block.skip_time_act)
    return plain and time


def residual_block(block: Any, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:  # diffusers' names
    """The forward of a residual block; an autoencoder's knows no time."""
    x = input_tensor
    hidden = block.conv1(norm_silu(block.norm1, x))
    if temb is not None and block.time_emb_proj is not None:
        hidden = hidden + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    hidden = block.conv2(norm_silu(block.norm2, hidden))
    return hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """silu(norm(x)), in one pass for what the kernels take."""
    return GroupNorm.apply(x, norm, True) if takes(x, norm) else F.silu(norm(x))


def takes(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Whether these are images of DTYPES on the CPU in channels-last layout, and the norm is not trained on them."""
    images = x.ndim == 4 and x.dtype in DTYPES and not x.is_cuda and rows(x).is_contiguous()
    return images and not (torch.is_grad_enabled() and norm.weight.requires_grad)


def rows(x: Tensor) -> Tensor:
    """Channels-last images (N, C, h, w) -> (N, h w, C), a view."""
    return x.movedim(1, -1).flatten(1, 2)


def group_norm(
    x: Tensor, weight: Any, bias: Any, groups: int, eps: float, silu: bool, shift: Tensor | None = None, first: int = 0
) -> tuple[Tensor, Any]:
    """What the kernel makes of images, with weight and bias (C,) as float32 arrays, and the groups' statistics."""
    shift = NO_SHIFT[x.dtype] if shift is None else shift
    out, stats = torch.empty_like(x), torch.empty(len(x), groups, 2).numpy()
    kernel = norm_kernels.compiled(norm_kernels.group_norm)
    kernel(numbers(rows(x)), numbers(shift), first, weight, bias, groups, eps, silu, stats, numbers(rows(out)))
    return out, stats


def parameters(norm: nn.GroupNorm) -> tuple[Any, Any]:
    """Weight and bias as float32 arrays."""
    weight, bias = (p.detach().float().numpy() for p in (norm.weight, norm.bias))
    return weight, bias


class GroupNorm(torch.autograd.Function):
    """norm(x), perhaps with silu after it, for what `takes` says; differentiable once, in x."""

    @staticmethod
    def forward(ctx, x: Tensor, norm: nn.GroupNorm, silu: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.parameters, ctx.silu = parameters(norm), silu
        out, ctx.stats = group_norm(x.detach(), *ctx.parameters, norm.num_groups, norm.eps, silu)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad = rows(grad.to(x.dtype)).contiguous()
        kernel = norm_kernels.compiled(norm_kernels.group_norm_backward)
        kernel(numbers(rows(x)), numbers(grad), ctx.stats, *ctx.parameters, ctx.silu, numbers(rows(grad_x)))
        return grad_x, None, None


class ChannelsLastGroupNorm(nn.GroupNorm):
    """nn.GroupNorm with a fast way through for what `takes` says."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        return GroupNorm.apply(input, self, False) if takes(input, self) else super().forward(input)
