"""Numba kernels of the small networks (CPU, float32): y = W2 relu(W1 x). `mlp.py` wraps them.

    x (N, n_in), W1 `first` (H, n_in), W2 `last` (n_out, H), out (N, n_out)

BLOCK points at a time pass through the network, forward or all the way back, and never leave the first-level cache.
In there a matrix has a row for each channel and a column for each point, as one flat vector, so that the loops over the
points are the machine's own vectors: two thirds of its matmul rate, where BLAS gets a fifth for matrices this small.
"""

from typing import Any

import numpy as np
from numba import int64, njit
from torch import Tensor
from torch.nn import functional

from jointdreamer.kernels.compiled import array, cached_njit, in_shares

BLOCK = 128  # points: a hidden layer of 64 takes 32 kB
TASK = 4096  # points whose gradients of the weights are summed in one place: not by threads, for the sake of the bits

ZERO = np.float32(0)
ONE, TWO, THREE = np.uintp(BLOCK), np.uintp(2 * BLOCK), np.uintp(3 * BLOCK)
STEP, STEP2, STEP3 = np.uintp(1), np.uintp(2), np.uintp(3)

fast = {"contract", "reassoc"}  # fused multiply-add, and sums over the points in any order
compiled = cached_njit(fastmath=fast)
# Inlined by force: a helper that stays a function of its own may be bound to another copy of it, with sums in another
# order, where it was compiled just now than where it was read from the disk
inlined = njit(fastmath=fast, forceinline=True)


def forward(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Outputs (n_out, N)."""
    out, points = x.new_empty(len(last), len(x)), x.detach().contiguous().numpy()
    in_shares(outputs, -(-len(x) // BLOCK), points, flat(first), flat(last), len(first), out.numpy())
    return out


def backward(x: Tensor, first: Tensor, last: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, first and last; grad (n_out, N) is that of the outputs."""
    tasks = -(-len(x) // TASK)
    grad_x, points, answers = x.new_empty(x.shape), *(t.detach().contiguous().numpy() for t in (x, grad))
    matrices = [flat(matrix) for matrix in (first, first.t(), last.t())]
    sums = [x.new_zeros(tasks, padded(len(m)), padded(m.shape[1])) for m in (first, last)]
    arrays = [sum_.flatten(1).numpy() for sum_ in sums]
    in_shares(gradients, tasks, points, *matrices, len(first), answers, grad_x.numpy(), *arrays)
    grad_first, grad_last = (sum_.sum(0)[: len(m), : m.shape[1]] for sum_, m in zip(sums, (first, last), strict=True))
    return grad_x, grad_first, grad_last


def padded(n: int) -> int:
    return (n + 3) // 4 * 4


def flat(matrix: Tensor) -> np.ndarray:
    """A matrix as the loops below take it: zeros fill its sides up to multiples of 4."""
    rows, columns = matrix.shape
    filled = functional.pad(matrix.detach(), (0, padded(columns) - columns, 0, padded(rows) - rows))
    return filled.contiguous().view(-1).numpy()


@inlined
def load(points, start, count, block):
    """Points (N, channels) as a block; past `count`, zeros."""
    channels = points.shape[1]
    whole = channels // 4 * 4 if count == BLOCK else 0
    for channel in range(0, whole, 4):
        k, to = np.uintp(channel), np.uintp(channel * BLOCK)
        for i in range(BLOCK):
            row, at = np.uintp(start + i), to + np.uintp(i)
            a, b, c, d = points[row, k], points[row, k + STEP], points[row, k + STEP2], points[row, k + STEP3]
            block[at], block[at + ONE], block[at + TWO], block[at + THREE] = a, b, c, d
    for channel in range(whole, channels):
        for i in range(BLOCK):
            block[channel * BLOCK + i] = points[start + i, channel] if i < count else ZERO


@inlined
def store(block, start, count, points):
    """The other way."""
    channels = points.shape[1]
    whole = channels // 4 * 4 if count == BLOCK else 0
    for channel in range(0, whole, 4):
        k, to = np.uintp(channel), np.uintp(channel * BLOCK)
        for i in range(BLOCK):
            row, at = np.uintp(start + i), to + np.uintp(i)
            a, b, c, d = block[at], block[at + ONE], block[at + TWO], block[at + THREE]
            points[row, k], points[row, k + STEP], points[row, k + STEP2], points[row, k + STEP3] = a, b, c, d
    for channel in range(whole, channels):
        for i in range(count):
            points[start + i, channel] = block[channel * BLOCK + i]


@inlined
def multiply(matrix, block, out):
    """out = matrix @ block. Two rows of the one and four of the other at a time: more products than loads."""
    n_in = len(block) // BLOCK
    for row in range(0, len(out) // BLOCK, 2):
        here = np.uintp(row * BLOCK)
        for i in range(2 * BLOCK):
            out[here + np.uintp(i)] = ZERO
        for k in range(0, n_in, 4):
            a, b, source = row * n_in + k, (row + 1) * n_in + k, np.uintp(k * BLOCK)
            a0, a1, a2, a3 = matrix[a], matrix[a + 1], matrix[a + 2], matrix[a + 3]
            b0, b1, b2, b3 = matrix[b], matrix[b + 1], matrix[b + 2], matrix[b + 3]
            for i in range(BLOCK):
                at, to = source + np.uintp(i), here + np.uintp(i)
                x0, x1, x2, x3 = block[at], block[at + ONE], block[at + TWO], block[at + THREE]
                out[to] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                out[to + ONE] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3


@inlined
def add_products(one, other, out):
    """out += one @ other^T: sums over the points of a block."""
    columns = len(other) // BLOCK
    for row in range(0, len(one) // BLOCK, 2):
        here = np.uintp(row * BLOCK)
        for k in range(0, columns, 4):
            a, b, source = row * columns + k, (row + 1) * columns + k, np.uintp(k * BLOCK)
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = ZERO
            for i in range(BLOCK):
                at, to = source + np.uintp(i), here + np.uintp(i)
                x0, x1, x2, x3 = other[at], other[at + ONE], other[at + TWO], other[at + THREE]
                g, h = one[to], one[to + ONE]
                a0, a1, a2, a3 = a0 + g * x0, a1 + g * x1, a2 + g * x2, a3 + g * x3
                b0, b1, b2, b3 = b0 + h * x0, b1 + h * x1, b2 + h * x2, b3 + h * x3
            out[a], out[a + 1], out[a + 2], out[a + 3] = out[a] + a0, out[a + 1] + a1, out[a + 2] + a2, out[a + 3] + a3
            out[b], out[b + 1], out[b + 2], out[b + 3] = out[b] + b0, out[b + 1] + b1, out[b + 2] + b2, out[b + 3] + b3


@inlined
def room(channels):
    """For a block of so many channels, filled up to a multiple of 4."""
    return np.zeros((channels + 3) // 4 * 4 * BLOCK, np.float32)


@compiled
def outputs(begin, end, x, one, two, n_hidden, out):
    """Blocks begin to end - 1; one, two: W1 and W2, `flat`."""
    inputs, hidden, answer = room(x.shape[1]), room(n_hidden), room(len(out))
    for start in range(begin * BLOCK, min(end * BLOCK, len(x)), BLOCK):
        count = min(BLOCK, len(x) - start)
        load(x, start, count, inputs)
        multiply(one, inputs, hidden)
        for i in range(len(hidden)):
            hidden[i] = ZERO if hidden[i] < ZERO else hidden[i]  # a NaN stays one
        multiply(two, hidden, answer)
        for channel in range(len(out)):
            for i in range(count):
                out[channel, start + i] = answer[channel * BLOCK + i]


@compiled
def gradients(begin, end, x, one, one_back, two_back, n_hidden, grad, grad_x, of_one, of_two):
    """Tasks begin to end - 1, each of TASK points with its own sums in of_one and of_two (tasks, ...), zeros.

    one, one_back, two_back: W1 and the transposes of W1 and W2, `flat`, as are the sums.
    """
    inputs, hidden, answer = room(x.shape[1]), room(n_hidden), room(len(grad))
    of_hidden, of_inputs = np.empty_like(hidden), np.empty_like(inputs)
    for start in range(begin * TASK, min(end * TASK, len(x)), BLOCK):
        count, task = min(BLOCK, len(x) - start), start // TASK
        load(x, start, count, inputs)
        for channel in range(len(grad)):
            for i in range(BLOCK):
                answer[channel * BLOCK + i] = grad[channel, start + i] if i < count else ZERO
        multiply(one, inputs, hidden)
        multiply(two_back, answer, of_hidden)
        for i in range(len(hidden)):
            of_hidden[i] = ZERO if hidden[i] <= ZERO else of_hidden[i]
            hidden[i] = ZERO if hidden[i] < ZERO else hidden[i]
        add_products(answer, hidden, of_two[task])
        add_products(of_hidden, inputs, of_one[task])
        multiply(one_back, of_hidden, of_inputs)
        store(of_inputs, start, count, grad_x)


def signatures() -> list[tuple[Any, tuple[Any, ...]]]:
    """The kernels and the types that they are called with."""
    one, two, share = array(1), array(2), (int64, int64)
    return [
        (outputs, (*share, two, one, one, int64, two)),
        (gradients, (*share, two, one, one, one, int64, two, two, two, two)),
    ]
