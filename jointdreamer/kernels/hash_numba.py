"""Numba kernels of the multiresolution hash grid (CPU, float32). `encoding.py` explains the grid and wraps them.

    x        (3, N)     points, [0, 1] inside          L levels, F features, E entries in all
    params   (E * F,)   the tables, level by level, entry by entry, features adjacent
    offsets  (L + 1,)   int64, the first entry of each level
    scales   (L,)       float32;  resolutions (L,) int64, vertices per axis
    grad     (N, L * F) gradient with respect to the features
    v        (3, N)     a direction in the space of the points; read only by the kernels made with along=True
    begin, end          what a call does, begin to end - 1: of the points, or for scatter of the tasks (part, level)
    order    (L,)       scatter: in which order the levels are taken

A block of points goes through a level in two passes. The first finds the eight entries and weights of every point and
holds nothing that keeps the compiler from vectorising it: arrays made on the spot (which cannot overlap), a constant
count, no branch. The second reads or writes the table, at addresses that are all known in advance, so that the
processor waits for many of them at once. A thread takes all its points through one level before the next, so that the
level's table stays in the second-level cache.

A point's features do not depend on how the points are shared out, and sums over points are split into a number of parts
that does not depend on the number of threads: results are the same bit for bit whatever that is.
"""

import functools
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import int64, njit, types
from numba.extending import intrinsic
from torch import Tensor

from jointdreamer.kernels.compiled import array, cached_njit, in_shares
from jointdreamer.kernels.hash_grid import Grid

BLOCK = 256  # points: their 8 entries and weights, 16 kB, stay in the first-level cache
MIN_TASKS = 16  # tasks a scatter is split into, at least: a constant and not the thread count, for the sake of the bits

HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
PRIME_Y, PRIME_Z = np.uint32(2654435761), np.uint32(805459861)


def gather(grid: Grid, x: Tensor, params: Tensor, along: Tensor | None = None) -> Tensor:
    """Features (N, L * F), or their derivative along a direction (N, 3)."""
    out = torch.empty(len(x), grid.out_features)
    run(gather_kernel(grid.n_features, along is not None), len(x), grid, x, along, (params,), out)
    return out


def scatter(grid: Grid, x: Tensor, grad: Tensor, along: Tensor | None = None) -> Tensor:
    """The transpose of `gather`: (N, L * F) -> gradient of the parameters."""
    parts = scatter_parts(len(x), grid.n_levels, int(grid.offsets[-1]))
    # NumPy takes zeros from the system, a huge page at a time: half the time of torch.zeros where they are 50 MB
    out = torch.from_numpy(np.zeros((parts, int(grid.offsets[-1]) * grid.n_features), np.float32))
    kernel = scatter_kernel(grid.n_features, along is not None)
    run(kernel, parts * grid.n_levels, grid, x, along, (grad, scatter_order(grid.n_levels)), out)
    # NumPy adds them on this thread: torch would wait for all of its own once more, for a tenth of a millisecond's work
    return out[0] if parts == 1 else torch.from_numpy(out.numpy().sum(0))


def position_gradient(grid: Grid, x: Tensor, params: Tensor, grad: Tensor, along: Tensor | None = None) -> Tensor:
    """Gradient of (grad . features) with respect to the points (N, 3), or its derivative along a direction (N, 3)."""
    out = torch.zeros(len(x), 3)
    kernel = position_kernel(grid.n_features, along is not None)
    run(kernel, len(x), grid, x, along, (params, grad), out)
    return out


def run(kernel, n: int, grid: Grid, x: Tensor, along: Tensor | None, arrays: tuple[Any, ...], out: Tensor):
    """Call a kernel on as many threads as torch uses.

    n: the range that they share; arrays: the kernel's own arguments, between the points and the levels.
    """
    columns = np.ascontiguousarray(x.detach().numpy().T)  # torch takes six times as long
    directions = columns if along is None else np.ascontiguousarray(along.detach().numpy().T)
    own = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arrays]
    in_shares(kernel, n, columns, directions, *own, grid.offsets, grid.scales, grid.resolutions, out.numpy())


def scatter_parts(n_points: int, n_levels: int, n_entries: int) -> int:
    """Parts of a scatter: enough tasks for several threads also where there are few levels.

    Every part costs a pass over all tables, so there are no more of them than the points write to each entry.
    """
    return max(1, min(-(-MIN_TASKS // n_levels), 8 * n_points * n_levels // n_entries))


@functools.cache
def scatter_order(n_levels: int) -> np.ndarray:
    """The levels by their reversed bits: neighbours, which one thread takes, are coarse and fine (cheap and dear)."""
    return np.array(sorted(range(n_levels), key=lambda level: f"{level:032b}"[::-1]))


compiled = cached_njit(fastmath={"contract"})  # fused multiply-add: 15% faster


def row_sum(typing, fresh, out, i, weight, rows, k, width):
    """out[i] += weight * rows[k], or with `fresh` =, for flat float32 arrays of rows of `width`, each as one vector.

    Written in LLVM's language, because LLVM does not make vectors of two floats by itself, and they save a fifth.
    """
    vector = ir.VectorType(ir.FloatType(), width.literal_value)

    def generate(context, builder, signature, arguments):
        def row(array, number):
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            start = builder.mul(arguments[number], ir.Constant(arguments[number].type, width.literal_value))
            return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())

        factor = ir.Constant(vector, ir.Undefined)
        for lane in range(width.literal_value):
            factor = builder.insert_element(factor, arguments[3], ir.Constant(ir.IntType(32), lane))
        total = builder.fmul(factor, builder.load(row(4, 5), align=4), flags=["contract"])
        if not fresh.literal_value:
            total = builder.fadd(builder.load(row(1, 2), align=4), total, flags=["contract"])
        builder.store(total, row(1, 2), align=4)
        return context.get_dummy_value()

    return types.void(fresh, out, types.uintp, types.float32, rows, types.uintp, width), generate


add_row: Any = intrinsic(prefer_literal=True)(row_sum)  # called without `typing`, which type checkers cannot know


@njit(forceinline=True)
def load(columns, first, count, block):
    """A block of points, or of directions, out of the three columns; past `count`, zeros."""
    for axis in range(3):
        for i in range(count):
            block[axis, np.uintp(i)] = columns[axis, np.uintp(first + i)]  # unsigned: no test for numbers from the end
        for i in range(count, BLOCK):
            block[axis, i] = ZERO


@njit(forceinline=True)
def cell(points, axis, i, scale):
    """The cell along one axis, and the position in it, in [0, 1)."""
    position = points[axis, i] * scale + HALF
    floor = np.floor(position)
    return np.uint32(np.int64(floor)), position - floor  # by way of 64 bits: far outside, vertex numbers wrap


@njit(forceinline=True)
def locate(points, scale, resolution, entries, index, fraction):
    """The eight entries of every point's cell, x fastest, and its position in the cell."""
    size, row = np.uint32(entries), np.uint32(resolution)
    slab = np.uint32(row * row)
    if resolution * resolution * resolution <= entries:
        highest = np.uint32(0)
        for i in range(BLOCK):
            cx, fraction[0, i] = cell(points, 0, i, scale)
            cy, fraction[1, i] = cell(points, 1, i, scale)
            cz, fraction[2, i] = cell(points, 2, i, scale)
            first = np.uint32(cx + np.uint32(np.uint32(cy * row) + np.uint32(cz * slab)))
            for corner in range(8):
                at = np.uint32(first + np.uint32(1)) if corner & 1 else first
                at = np.uint32(at + row) if corner & 2 else at
                at = np.uint32(at + slab) if corner & 4 else at
                at = np.uint32(at - size) if at >= size else at  # the modulo, up to the upper border of the box
                highest = max(highest, at)
                index[corner, i] = at
        if highest >= size:
            for corner in range(8):
                for i in range(BLOCK):
                    index[corner, i] = index[corner, i] % size
    else:
        mask = np.uint32(size - np.uint32(1))  # a hashed level has 2^k entries: the modulo is a mask
        for i in range(BLOCK):
            cx, fraction[0, i] = cell(points, 0, i, scale)
            cy, fraction[1, i] = cell(points, 1, i, scale)
            cz, fraction[2, i] = cell(points, 2, i, scale)
            y, z = np.uint32(cy * PRIME_Y), np.uint32(cz * PRIME_Z)
            for corner in range(8):
                vx = np.uint32(cx + np.uint32(1)) if corner & 1 else cx
                vy = np.uint32(y + PRIME_Y) if corner & 2 else y
                vz = np.uint32(z + PRIME_Z) if corner & 4 else z
                index[corner, i] = (vx ^ vy ^ vz) & mask


@njit(forceinline=True)
def linear(fraction, corner, i):
    """The weights of a corner along the three axes."""
    x, y, z = fraction[0, i], fraction[1, i], fraction[2, i]
    return x if corner & 1 else ONE - x, y if corner & 2 else ONE - y, z if corner & 4 else ONE - z


@njit(forceinline=True)
def slopes(corner):
    """The derivatives of these weights."""
    return ONE if corner & 1 else -ONE, ONE if corner & 2 else -ONE, ONE if corner & 4 else -ONE


@njit(forceinline=True)
def weigh(fraction, direction, scale, along, weight):
    """The trilinear weights of the eight corners, or with `along` their derivatives along the direction."""
    for i in range(BLOCK):
        for corner in range(8):
            wx, wy, wz = linear(fraction, corner, i)
            if along:
                sx, sy, sz = slopes(corner)
                vx, vy, vz = direction[0, i], direction[1, i], direction[2, i]
                weight[corner, i] = (vx * sx * wy * wz + vy * wx * sy * wz + vz * wx * wy * sz) * scale
            else:
                weight[corner, i] = wx * wy * wz


@functools.cache
def gather_kernel(n_features, along):
    """Features of the points, or with along=True their derivative along v.  out (N, L * F)."""

    @compiled
    def gather(begin, end, x, v, params, offsets, scales, resolutions, out):
        n_levels = scales.shape[0]
        points, direction = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
        index, weight = np.empty((8, BLOCK), np.uint32), np.empty((8, BLOCK), np.float32)
        fraction = np.empty((3, BLOCK), np.float32)
        for level in range(n_levels):
            table = params[offsets[level] * n_features : offsets[level + 1] * n_features]
            entries = offsets[level + 1] - offsets[level]
            for first in range(begin, end, BLOCK):
                count = min(BLOCK, end - first)
                load(x, first, count, points)
                if along:
                    load(v, first, count, direction)
                locate(points, scales[level], resolutions[level], entries, index, fraction)
                weigh(fraction, direction, scales[level], along, weight)
                for i in range(count):
                    row = np.uintp((first + i) * n_levels + level)
                    add_row(True, out, row, weight[0, i], table, np.uintp(index[0, i]), n_features)
                    for corner in range(1, 8):
                        add_row(False, out, row, weight[corner, i], table, np.uintp(index[corner, i]), n_features)

    return gather


@functools.cache
def scatter_kernel(n_features, along):
    """The transpose of `gather_kernel`: grad -> gradient with respect to the params.  out (parts, E * F), zeros.

    Each part sums its own share of the points; the caller adds the parts. `scatter_parts` says how many there are.
    """

    @compiled
    def scatter(begin, end, x, v, grad, order, offsets, scales, resolutions, out):
        n, n_levels, n_parts = x.shape[1], scales.shape[0], out.shape[0]
        size = (n + n_parts - 1) // n_parts
        for task in range(begin, end):
            points, direction = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
            index, weight = np.empty((8, BLOCK), np.uint32), np.empty((8, BLOCK), np.float32)
            fraction = np.empty((3, BLOCK), np.float32)
            level, part = order[task % n_levels], task // n_levels
            table = out[part, offsets[level] * n_features : offsets[level + 1] * n_features]
            entries, last = offsets[level + 1] - offsets[level], min(n, (part + 1) * size)
            for first in range(part * size, last, BLOCK):
                count = min(BLOCK, last - first)
                load(x, first, count, points)
                if along:
                    load(v, first, count, direction)
                locate(points, scales[level], resolutions[level], entries, index, fraction)
                weigh(fraction, direction, scales[level], along, weight)
                for i in range(count):
                    row = np.uintp((first + i) * n_levels + level)
                    for corner in range(8):
                        add_row(False, table, np.uintp(index[corner, i]), weight[corner, i], grad, row, n_features)

    return scatter


@functools.cache
def position_kernel(n_features, along):
    """Gradient of (grad . features) with respect to the points, or with along=True its derivative along v.

    out (N, 3), zeros. The second derivative has no diagonal: the weights are linear in each coordinate.
    """
    width = np.uintp(n_features)

    @compiled
    def position(begin, end, x, v, params, grad, offsets, scales, resolutions, out):
        n_levels = scales.shape[0]
        points, direction = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
        index, value = np.empty((8, BLOCK), np.uint32), np.zeros((8, BLOCK), np.float32)
        fraction, total = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
        for level in range(n_levels):
            scale = scales[level]
            table = params[offsets[level] * n_features : offsets[level + 1] * n_features]
            entries = offsets[level + 1] - offsets[level]
            for first in range(begin, end, BLOCK):
                count = min(BLOCK, end - first)
                load(x, first, count, points)
                if along:
                    load(v, first, count, direction)
                locate(points, scale, resolutions[level], entries, index, fraction)
                for i in range(count):
                    for corner in range(8):
                        dot = ZERO
                        for f in range(n_features):
                            feature = table[np.uintp(index[corner, i]) * width + np.uintp(f)]
                            dot += grad[first + i, level * n_features + f] * feature
                        value[corner, i] = dot
                for i in range(BLOCK):
                    dx, dy, dz = ZERO, ZERO, ZERO
                    vx, vy, vz = direction[0, i] * scale, direction[1, i] * scale, direction[2, i] * scale
                    for corner in range(8):
                        wx, wy, wz = linear(fraction, corner, i)
                        sx, sy, sz = slopes(corner)
                        if along:
                            dx += value[corner, i] * sx * (vy * sy * wz + vz * wy * sz)
                            dy += value[corner, i] * sy * (vx * sx * wz + vz * wx * sz)
                            dz += value[corner, i] * sz * (vx * sx * wy + vy * wx * sy)
                        else:
                            dx += value[corner, i] * sx * wy * wz
                            dy += value[corner, i] * wx * sy * wz
                            dz += value[corner, i] * wx * wy * sz
                    total[0, i], total[1, i], total[2, i] = dx * scale, dy * scale, dz * scale
                for i in range(count):
                    for axis in range(3):
                        out[first + i, axis] += total[axis, i]

    return position


def signatures(n_features: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """The kernels of a step without normals and the types that they are called with."""
    one, two, whole = array(1), array(2), array(1, int64)
    before, after = (int64, int64, two, two), (whole, one, whole, two)
    return [
        (gather_kernel(n_features, False), (*before, one, *after)),
        (scatter_kernel(n_features, False), (*before, two, whole, *after)),
    ]
