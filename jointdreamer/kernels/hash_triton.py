"""Triton kernels of the multiresolution hash grid (CUDA; on a CPU in Triton's interpreter). `encoding.py` wraps them.

The three maps of `hash_numba.py`, each with its `along` twin. Points and features are float32, tables float32 or
float16, all sums float32. The gradient of the tables is summed by atomic additions into a float32 buffer.

Their arguments must not be called what Triton's own launcher calls its variables (`params`, `options`): it takes those.

A program takes BLOCK points through one level; in `position_kernel` through all of them, so that nothing need be added
up between programs. Addresses in the tables and in the features are 64-bit: both may exceed 2^31 elements.
"""

# pyright: reportGeneralTypeIssues=false
# (to a type checker, which thinks that Python calls them, functions under @triton.jit never return)

import functools

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from jointdreamer.kernels.hash_grid import Grid, interpreted

BLOCK = 2048 if interpreted() else 128  # in the interpreter a program costs some 30 ms whatever its size
PRIME_Y = tl.constexpr(2654435761)
PRIME_Z = tl.constexpr(805459861)


def gather(grid: Grid, x: Tensor, params: Tensor, along: Tensor | None = None) -> Tensor:
    """Features (N, L * F), or their derivative along a direction (N, 3)."""
    out = torch.empty(len(x), grid.out_features, device=x.device)
    launch(gather_kernel, grid, grid.n_levels, x, along, (params,), out)
    return out


def scatter(grid: Grid, x: Tensor, grad: Tensor, along: Tensor | None = None) -> Tensor:
    """The transpose of `gather`: (N, L * F) -> float32 gradient of the parameters."""
    out = torch.zeros(int(grid.offsets[-1]) * grid.n_features, device=x.device)
    launch(scatter_kernel, grid, grid.n_levels, x, along, (grad,), out)
    return out


def position_gradient(grid: Grid, x: Tensor, params: Tensor, grad: Tensor, along: Tensor | None = None) -> Tensor:
    """Gradient of (grad . features) with respect to the points (N, 3), or its derivative along a direction (N, 3)."""
    out = torch.empty(len(x), 3, device=x.device)
    launch(position_kernel, grid, 1, x, along, (params, grad), out)
    return out


def launch(
    kernel, grid: Grid, rows: int, x: Tensor, along: Tensor | None, tensors: tuple[Tensor, ...], out: Tensor
) -> None:
    """Run a kernel with programs for all blocks of points, times `rows`."""
    if not len(x):
        return
    offsets, resolutions, scales = (tuple(a.tolist()) for a in (grid.offsets, grid.resolutions, grid.scales))
    levels, scales = on_device(offsets, resolutions, scales, x.device)
    blocks = triton.cdiv(len(x), BLOCK)
    with torch.cuda.device_of(x):  # Triton launches on the current device; nothing happens for a tensor on the CPU
        kernel[(blocks, rows)](
            x, x if along is None else along, *tensors, levels, scales, out, len(x), grid.n_levels,
            WIDTH=grid.n_features, ALONG=along is not None, BLOCK=BLOCK,
        )  # fmt: skip


@functools.lru_cache(maxsize=16)
def on_device(
    offsets: tuple[int, ...], resolutions: tuple[int, ...], scales: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """A grid's levels for the kernels: (L, 3) int64, first entry, entries and resolution; and (L,) float32 scales."""
    entries = [last - first for first, last in zip(offsets, offsets[1:], strict=False)]
    levels = torch.tensor([offsets[:-1], entries, resolutions], dtype=torch.int64).t().contiguous()
    return levels.to(device), torch.tensor(scales, dtype=torch.float32).to(device)


@triton.jit
def cell(x, axis: tl.constexpr, i, inside, scale):
    """The cell along one axis as an unsigned 32-bit number, which wraps far outside, and the position in it."""
    position = tl.load(x + i * 3 + axis, mask=inside, other=0.0) * scale + 0.5
    floor = tl.floor(position)
    return floor.to(tl.int64).to(tl.uint32), position - floor


@triton.jit
def entry(cx, cy, cz, corner: tl.constexpr, resolution, entries):
    """Where a corner of a cell lies in its level's table."""
    x = cx + (corner & 1)
    y = cy + ((corner >> 1) & 1)
    z = cz + (corner >> 2)
    if resolution * resolution * resolution <= entries:
        row = resolution.to(tl.uint32)
        at = (x + row * (y + row * z)) % entries.to(tl.uint32)
    else:  # a hashed level has 2^k entries: the modulo is a mask
        at = (x ^ (y * PRIME_Y) ^ (z * PRIME_Z)) & (entries - 1).to(tl.uint32)
    return at.to(tl.int64)


@triton.jit
def linear(fraction, upper: tl.constexpr):
    """The weight of a corner along one axis, and its derivative."""
    if upper:
        weight, slope = fraction, 1.0
    else:
        weight, slope = 1.0 - fraction, -1.0
    return weight, slope


@triton.jit
def weigh(fx, fy, fz, v, i, inside, scale, corner: tl.constexpr, ALONG: tl.constexpr):
    """The trilinear weight of a corner, or its derivative along the direction."""
    wx, sx = linear(fx, corner & 1)
    wy, sy = linear(fy, (corner >> 1) & 1)
    wz, sz = linear(fz, corner >> 2)
    if ALONG:
        vx = tl.load(v + i * 3, mask=inside, other=0.0)
        vy = tl.load(v + i * 3 + 1, mask=inside, other=0.0)
        vz = tl.load(v + i * 3 + 2, mask=inside, other=0.0)
        weight = (vx * sx * wy * wz + vy * wx * sy * wz + vz * wx * wy * sz) * scale
    else:
        weight = wx * wy * wz
    return weight


@triton.jit
def gather_kernel(
    x, v, table, levels, scales, out, n, n_levels,
    WIDTH: tl.constexpr, ALONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Features of the points, or with ALONG their derivative along v.  out (N, L * F)."""
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    feature = tl.arange(0, WIDTH)[None, :]
    start, entries = tl.load(levels + level * 3), tl.load(levels + level * 3 + 1)
    resolution, scale = tl.load(levels + level * 3 + 2), tl.load(scales + level)
    cx, fx = cell(x, 0, i, inside, scale)
    cy, fy = cell(x, 1, i, inside, scale)
    cz, fz = cell(x, 2, i, inside, scale)
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for corner in tl.static_range(8):
        at = (start + entry(cx, cy, cz, corner, resolution, entries))[:, None] * WIDTH + feature
        weight = weigh(fx, fy, fz, v, i, inside, scale, corner, ALONG)
        total += weight[:, None] * tl.load(table + at, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(out + (i * n_levels + level)[:, None] * WIDTH + feature, total, mask=inside[:, None])


@triton.jit
def scatter_kernel(
    x, v, grad, levels, scales, out, n, n_levels,
    WIDTH: tl.constexpr, ALONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The transpose of `gather_kernel`: grad -> gradient with respect to the params.  out (E * F,), zeros."""
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    feature = tl.arange(0, WIDTH)[None, :]
    start, entries = tl.load(levels + level * 3), tl.load(levels + level * 3 + 1)
    resolution, scale = tl.load(levels + level * 3 + 2), tl.load(scales + level)
    cx, fx = cell(x, 0, i, inside, scale)
    cy, fy = cell(x, 1, i, inside, scale)
    cz, fz = cell(x, 2, i, inside, scale)
    g = tl.load(grad + (i * n_levels + level)[:, None] * WIDTH + feature, mask=inside[:, None], other=0.0)
    for corner in tl.static_range(8):
        at = (start + entry(cx, cy, cz, corner, resolution, entries))[:, None] * WIDTH + feature
        weight = weigh(fx, fy, fz, v, i, inside, scale, corner, ALONG)
        tl.atomic_add(out + at, weight[:, None] * g, mask=inside[:, None], sem="relaxed")


@triton.jit
def position_kernel(
    x, v, table, grad, levels, scales, out, n, n_levels,
    WIDTH: tl.constexpr, ALONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of (grad . features) with respect to the points, or with ALONG its derivative along v.  out (N, 3).

    The second derivative has no diagonal: the weights are linear in each coordinate.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    feature = tl.arange(0, WIDTH)[None, :]
    dx = tl.zeros((BLOCK,), tl.float32)
    dy = tl.zeros((BLOCK,), tl.float32)
    dz = tl.zeros((BLOCK,), tl.float32)
    for level in range(n_levels):
        start, entries = tl.load(levels + level * 3), tl.load(levels + level * 3 + 1)
        resolution, scale = tl.load(levels + level * 3 + 2), tl.load(scales + level)
        cx, fx = cell(x, 0, i, inside, scale)
        cy, fy = cell(x, 1, i, inside, scale)
        cz, fz = cell(x, 2, i, inside, scale)
        g = tl.load(grad + (i * n_levels + level)[:, None] * WIDTH + feature, mask=inside[:, None], other=0.0)
        for corner in tl.static_range(8):
            at = (start + entry(cx, cy, cz, corner, resolution, entries))[:, None] * WIDTH + feature
            rows = tl.load(table + at, mask=inside[:, None], other=0.0).to(tl.float32)
            value = tl.sum(rows * g, axis=1) * scale
            wx, sx = linear(fx, corner & 1)
            wy, sy = linear(fy, (corner >> 1) & 1)
            wz, sz = linear(fz, corner >> 2)
            if ALONG:
                vx = tl.load(v + i * 3, mask=inside, other=0.0) * scale
                vy = tl.load(v + i * 3 + 1, mask=inside, other=0.0) * scale
                vz = tl.load(v + i * 3 + 2, mask=inside, other=0.0) * scale
                dx += value * sx * (vy * sy * wz + vz * wy * sz)
                dy += value * sy * (vx * sx * wz + vz * wx * sz)
                dz += value * sz * (vx * sx * wy + vy * wx * sy)
            else:
                dx += value * sx * wy * wz
                dy += value * wx * sy * wz
                dz += value * wx * wy * sz
    tl.store(out + i * 3, dx, mask=inside)
    tl.store(out + i * 3 + 1, dy, mask=inside)
    tl.store(out + i * 3 + 2, dz, mask=inside)
