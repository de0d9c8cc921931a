"""Numba kernels for what lies between the matrix products of a frozen network on the CPU.

Each is one or two passes in float32 with one rounding at the end, where torch takes a pass and a rounding for every
operation. Numbers come as float32, or as the bits of bfloat16, which are the upper half of a float32's (uint16 arrays).
exp and erf are written out, because a call into the C library would keep the loops from becoming vectors.
"""

import functools
from typing import Any

import numpy as np
import torch
from numba import boolean, float32, float64, int64, njit, types, uint16
from numba.extending import overload
from torch import Tensor

from jointdreamer.kernels.compiled import array, cached_njit

ONE, HALF, TWO = np.float32(1), np.float32(0.5), np.float32(2)
LOG2_E, SQRT_HALF = np.float32(np.log2(np.e)), np.float32(np.sqrt(0.5))
# 2^f on [-1/2, 1/2] to 3e-7: the series of exp(f ln 2)
E1, E2, E3, E4, E5 = (np.float32(np.log(2) ** k / d) for k, d in ((1, 1), (2, 2), (3, 6), (4, 24), (5, 120)))
# erf to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26
ERF_P, A1, A2 = np.float32(0.3275911), np.float32(0.254829592), np.float32(-0.284496736)
A3, A4, A5 = np.float32(1.421413741), np.float32(-1.453152027), np.float32(1.061405429)


DTYPES = (torch.float32, torch.bfloat16)  # that the kernels take


def numbers(x: Tensor) -> Any:
    """A contiguous tensor of DTYPES as the array that the kernels take."""
    x = x.detach()
    return x.numpy() if x.dtype == torch.float32 else x.view(torch.uint16).numpy()


def load(number: Any) -> Any:
    """A number of an array as float32."""
    raise NotImplementedError  # the kernels' are below


def rounded(value: Any, to: Any) -> Any:
    """A float32 as a number of the array `to`: the nearest bfloat16, halves to even, or itself."""
    raise NotImplementedError


@overload(load, inline="always")
def _load(number):
    if isinstance(number, types.Float):
        return lambda number: number
    return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)


@overload(rounded, inline="always")
def _rounded(value, to):
    if isinstance(to.dtype, types.Float):
        return lambda value, to: np.float32(value)

    def to_bfloat16(value, to):
        whole = np.float32(value).view(np.uint32)
        odd = (whole >> np.uint32(16)) & np.uint32(1)
        return np.uint16((whole + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return to_bfloat16


@njit(forceinline=True)
def exp(x):
    power = min(max(x * LOG2_E, np.float32(-126)), np.float32(126))
    whole = np.floor(power + HALF)
    f = power - whole
    series = ONE + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * E5))))
    return series * np.uint32(np.uint32(np.int32(whole + np.float32(127))) << np.uint32(23)).view(np.float32)


@njit(forceinline=True)
def gelu(x):
    """x Phi(x), with the normal distribution's Phi: torch's exact gelu."""
    z = abs(x) * SQRT_HALF
    t = ONE / (ONE + ERF_P * z)
    tail = HALF * t * (A1 + t * (A2 + t * (A3 + t * (A4 + t * A5)))) * exp(-z * z)  # Phi(-|x|)
    return x * (tail if x < 0 else ONE - tail)


def group_norm(x, shift_by, first, weight, bias, groups, eps, silu, stats, out):
    """Normalises x + shift_by[:, first : first + C] over the pixels and channels of a group; then perhaps silu.

    x, out (N, pixels, C); shift_by (N, anything): the time embedding, or no columns at all for none. Writes the groups'
    means and reciprocal standard deviations to stats (N, groups, 2), float32.
    """
    n, pixels, channels = x.shape
    per_group = channels // groups
    total, squares = np.empty(channels, np.float32), np.empty(channels, np.float32)
    scale, shift = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for i in range(n):
        total[:] = 0
        squares[:] = 0
        for p in range(pixels):
            for c in range(channels):
                value = load(x[i, p, c])
                total[c] += value
                squares[c] += value * value
        for group in range(groups):
            start, stop = group * per_group, (group + 1) * per_group
            mean, square = 0.0, 0.0
            for c in range(start, stop):
                by = np.float64(load(shift_by[i, first + c])) if shift_by.shape[1] else 0.0
                mean += total[c] / pixels + by
                square += squares[c] / pixels + by * (2 * total[c] / pixels + by)
            mean, square = mean / per_group, square / per_group
            rstd = 1 / np.sqrt(max(square - mean * mean, 0.0) + eps)
            stats[i, group, 0], stats[i, group, 1] = mean, rstd
            for c in range(start, stop):
                by = np.float64(load(shift_by[i, first + c])) if shift_by.shape[1] else 0.0
                scale[c] = rstd * weight[c]
                shift[c] = bias[c] + (by - mean) * rstd * weight[c]
        if silu:
            for p in range(pixels):
                for c in range(channels):
                    value = load(x[i, p, c]) * scale[c] + shift[c]
                    out[i, p, c] = rounded(value / (ONE + exp(-value)), out)
        else:
            for p in range(pixels):
                for c in range(channels):
                    out[i, p, c] = rounded(load(x[i, p, c]) * scale[c] + shift[c], out)


def group_norm_backward(x, grad, stats, weight, bias, silu, grad_x):
    """The gradient of what `group_norm` makes of x, in x, from that of the output; x, grad, grad_x (N, pixels, C).

    With u = weight dL/dz and xhat = (x - mean) rstd it is rstd (u - mean(u) - xhat mean(u xhat)), means over a group;
    z is what silu takes, dL/dz the output's gradient where there is none.
    """
    n, pixels, channels = x.shape
    groups = stats.shape[1]
    per_group = channels // groups
    scale, shift = np.empty(channels, np.float32), np.empty(channels, np.float32)
    total, product = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for i in range(n):
        for c in range(channels):
            mean, rstd = stats[i, c // per_group, 0], stats[i, c // per_group, 1]
            scale[c], shift[c] = rstd * weight[c], bias[c] - mean * rstd * weight[c]
        total[:] = 0
        product[:] = 0
        if silu:
            for p in range(pixels):
                for c in range(channels):
                    value = load(x[i, p, c])
                    z = value * scale[c] + shift[c]
                    sigmoid = ONE / (ONE + exp(-z))
                    of_z = load(grad[i, p, c]) * sigmoid * (ONE + z * (ONE - sigmoid))
                    total[c] += of_z
                    product[c] += of_z * value
                    grad_x[i, p, c] = rounded(of_z, grad_x)
        else:
            for p in range(pixels):
                for c in range(channels):
                    total[c] += load(grad[i, p, c])
                    product[c] += load(grad[i, p, c]) * load(x[i, p, c])
                    grad_x[i, p, c] = grad[i, p, c]
        for group in range(groups):
            start, stop = group * per_group, (group + 1) * per_group
            mean, rstd = np.float64(stats[i, group, 0]), np.float64(stats[i, group, 1])
            of_mean, of_spread = 0.0, 0.0
            for c in range(start, stop):
                of_mean += weight[c] * total[c] / (per_group * pixels)
                of_spread += weight[c] * (product[c] - mean * total[c]) * rstd / (per_group * pixels)
            for c in range(start, stop):
                total[c] = -rstd * rstd * of_spread
                shift[c] = -rstd * of_mean - mean * total[c]
        for p in range(pixels):
            for c in range(channels):
                through = load(grad_x[i, p, c]) * scale[c] + load(x[i, p, c]) * total[c]
                grad_x[i, p, c] = rounded(through + shift[c], grad_x)


def layer_norm(x, weight, bias, eps, out):
    """x, out (N, C), each row normalised."""
    n, channels = x.shape
    for i in range(n):
        total, squares = np.float32(0), np.float32(0)
        for c in range(channels):
            value = load(x[i, c])
            total += value
            squares += value * value
        mean = np.float64(total) / channels
        rstd = 1 / np.sqrt(max(np.float64(squares) / channels - mean * mean, 0.0) + eps)
        scale, shift = np.float32(rstd), np.float32(-mean * rstd)
        for c in range(channels):
            out[i, c] = rounded((load(x[i, c]) * scale + shift) * weight[c] + bias[c], out)


def gated_gelu(x, out):
    """out (N, C) = the left half of x (N, 2 C) times the gelu of the right one."""
    n, channels = out.shape
    for i in range(n):
        for c in range(channels):
            out[i, c] = rounded(load(x[i, c]) * gelu(load(x[i, channels + c])), out)


@functools.cache
def compiled(function: Any) -> Any:
    """One of the kernels above, compiled at its first use."""
    # NaN and infinity stay what they are; without NumPy's errors, a check for zero at every division forbids vectors
    return cached_njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")(function)


def signatures(dtype: torch.dtype) -> list[tuple[Any, tuple[Any, ...]]]:
    """The kernels and the types that they are called with in a network of this dtype."""
    number = float32 if dtype == torch.float32 else uint16
    parameters, rows, images = (array(1), array(1)), array(2, number), array(3, number)
    return [
        (compiled(group_norm), (images, rows, int64, *parameters, int64, float64, boolean, array(3), images)),
        (compiled(layer_norm), (rows, *parameters, float64, rows)),
        (compiled(gated_gelu), (rows, rows)),
        (compiled(group_norm_backward), (images, images, array(3), *parameters, boolean, images)),
    ]
