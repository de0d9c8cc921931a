"""Numba kernels of the multiresolution hash grid (CPU, float32). `encoding.py` explains the grid and wraps them.

    x        (N, 3)     points, [0, 1] inside          L levels, F features, E entries in all
    params   (E * F,)   the tables, level by level, entry by entry, features adjacent
    offsets  (L + 1,)   int64, the first entry of each level
    scales   (L,)       float32;  resolutions (L,) int64, vertices per axis
    grad     (N, L * F) gradient with respect to the features
    v        (N, 3)     a direction in the space of the points; read only by the kernels made with along=True

Points are handled in blocks of a fixed size, and sums are split into a fixed number of parts: results are the same bit
for bit whatever the number of threads.
"""

import functools

import numpy as np
from numba import njit, prange

BLOCK = 512  # points taken together through one level, so that its table stays in the cache
MIN_TASKS = 16  # tasks a scatter is split into, at least: a constant and not the thread count, for the sake of the bits

HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
PRIME_Y, PRIME_Z = np.uint32(2654435761), np.uint32(805459861)


def compiled(function):
    """`function` compiled for parallel execution, and kept on disk where Numba finds a folder it may write to."""
    options = {"parallel": True, "nogil": True, "fastmath": {"contract"}}  # fused multiply-add: 15% faster
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # "cannot cache function": a read-only install, and no writable home or NUMBA_CACHE_DIR
        return njit(**options)(function)


@njit(inline="always")
def cell(coordinate, scale):
    """The cell along one axis, as an unsigned 32-bit number that wraps, and the position in it in [0, 1)."""
    position = coordinate * scale + HALF
    floor = np.floor(position)
    return np.uint32(np.int64(floor)), position - floor


@njit(inline="always")
def entry(x, y, z, resolution, entries):
    """Where a vertex lies in its level's table."""
    if resolution * resolution * resolution <= entries:
        index = np.uint32(x + np.uint32(np.uint32(resolution) * np.uint32(y + np.uint32(np.uint32(resolution) * z))))
        if index >= entries:  # the division is slow, and needed only past the upper border
            index = np.uint32(index % np.uint32(entries))
    else:  # a hashed level has 2^k entries, so the modulo is a mask
        index = np.uint32(x ^ np.uint32(y * PRIME_Y) ^ np.uint32(z * PRIME_Z)) & np.uint32(entries - 1)
    return np.uintp(index)  # unsigned: a signed index would be tested for counting from the end


@njit(inline="always")
def vertex(corner, x, y, z):
    """The vertex of a cell that the three low bits of `corner` name."""
    return (
        np.uint32(x + np.uint32(corner & 1)),
        np.uint32(y + np.uint32((corner >> 1) & 1)),
        np.uint32(z + np.uint32(corner >> 2)),
    )


@njit(inline="always")
def weights(corner, x, y, z):
    """The three linear weights of a corner, and the signs of their slopes."""
    wx, sx = (x, ONE) if corner & 1 else (ONE - x, -ONE)
    wy, sy = (y, ONE) if (corner >> 1) & 1 else (ONE - y, -ONE)
    wz, sz = (z, ONE) if corner >> 2 else (ONE - z, -ONE)
    return wx, wy, wz, sx, sy, sz


@functools.cache
def gather_kernel(n_features, along):
    """Features of the points, or with along=True their derivative along v.  out (N, L * F)."""

    @compiled
    def gather(x, v, params, offsets, scales, resolutions, out):
        n, n_levels = x.shape[0], scales.shape[0]
        for block in prange((n + BLOCK - 1) // BLOCK):
            for level in range(n_levels):
                scale, resolution, start = scales[level], resolutions[level], np.uintp(offsets[level])
                entries = offsets[level + 1] - offsets[level]
                for i in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
                    cx, px = cell(x[i, 0], scale)
                    cy, py = cell(x[i, 1], scale)
                    cz, pz = cell(x[i, 2], scale)
                    for f in range(n_features):
                        out[i, level * n_features + f] = ZERO
                    for corner in range(8):
                        vx, vy, vz = vertex(corner, cx, cy, cz)
                        at = (start + entry(vx, vy, vz, resolution, entries)) * np.uintp(n_features)
                        wx, wy, wz, sx, sy, sz = weights(corner, px, py, pz)
                        if along:
                            w = (v[i, 0] * sx * wy * wz + v[i, 1] * wx * sy * wz + v[i, 2] * wx * wy * sz) * scale
                        else:
                            w = wx * wy * wz
                        for f in range(n_features):
                            out[i, level * n_features + f] += w * params[at + np.uintp(f)]

    return gather


@functools.cache
def scatter_kernel(n_features, along):
    """The transpose of `gather_kernel`: grad -> gradient with respect to the params.  out (parts, E * F), zeros.

    Each part sums its own share of the points; the caller adds the parts. `scatter_parts` says how many there are.
    """

    @compiled
    def scatter(x, v, grad, offsets, scales, resolutions, out):
        n, n_levels, n_parts = x.shape[0], scales.shape[0], out.shape[0]
        size = (n + n_parts - 1) // n_parts
        for task in prange(n_levels * n_parts):
            level, part = task % n_levels, task // n_levels
            scale, resolution, start = scales[level], resolutions[level], np.uintp(offsets[level])
            entries = offsets[level + 1] - offsets[level]
            for i in range(part * size, min(n, (part + 1) * size)):
                cx, px = cell(x[i, 0], scale)
                cy, py = cell(x[i, 1], scale)
                cz, pz = cell(x[i, 2], scale)
                for corner in range(8):
                    vx, vy, vz = vertex(corner, cx, cy, cz)
                    at = (start + entry(vx, vy, vz, resolution, entries)) * np.uintp(n_features)
                    wx, wy, wz, sx, sy, sz = weights(corner, px, py, pz)
                    if along:
                        w = (v[i, 0] * sx * wy * wz + v[i, 1] * wx * sy * wz + v[i, 2] * wx * wy * sz) * scale
                    else:
                        w = wx * wy * wz
                    for f in range(n_features):
                        out[part, at + np.uintp(f)] += w * grad[i, level * n_features + f]

    return scatter


def scatter_parts(n_levels: int) -> int:
    """Parts of a scatter: enough tasks for several threads also where there are few levels."""
    return -(-MIN_TASKS // n_levels)


@functools.cache
def position_kernel(n_features, along):
    """Gradient of (grad . features) with respect to the points, or with along=True its derivative along v.  out (N, 3).

    The second derivative has no diagonal: the weights are linear in each coordinate.
    """

    @compiled
    def position(x, v, params, grad, offsets, scales, resolutions, out):
        n, n_levels = x.shape[0], scales.shape[0]
        for block in prange((n + BLOCK - 1) // BLOCK):
            first, last = block * BLOCK, min(n, (block + 1) * BLOCK)
            out[first:last] = ZERO
            for level in range(n_levels):
                scale, resolution, start = scales[level], resolutions[level], np.uintp(offsets[level])
                entries = offsets[level + 1] - offsets[level]
                for i in range(first, last):
                    cx, px = cell(x[i, 0], scale)
                    cy, py = cell(x[i, 1], scale)
                    cz, pz = cell(x[i, 2], scale)
                    dx = dy = dz = ZERO
                    for corner in range(8):
                        vx, vy, vz = vertex(corner, cx, cy, cz)
                        at = (start + entry(vx, vy, vz, resolution, entries)) * np.uintp(n_features)
                        wx, wy, wz, sx, sy, sz = weights(corner, px, py, pz)
                        value = ZERO
                        for f in range(n_features):
                            value += grad[i, level * n_features + f] * params[at + np.uintp(f)]
                        if along:
                            dx += value * sx * (v[i, 1] * sy * wz + v[i, 2] * wy * sz) * scale
                            dy += value * sy * (v[i, 0] * sx * wz + v[i, 2] * wx * sz) * scale
                            dz += value * sz * (v[i, 0] * sx * wy + v[i, 1] * wx * sy) * scale
                        else:
                            dx += value * sx * wy * wz
                            dy += value * wx * sy * wz
                            dz += value * wx * wy * sz
                    out[i, 0] += dx * scale
                    out[i, 1] += dy * scale
                    out[i, 2] += dz * scale

    return position
