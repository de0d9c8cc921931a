"""The small networks of a field, block by block.

A field asks its networks about a hundred thousand points and more at a time, and each has only a few thousand weights.
Written as plain layers, most of the time goes into moving hidden activations in and out of memory (on a CPU), or they
fill it (on a GPU). Here a block of points passes through the whole network at once, and backward computes the hidden
layer again instead of keeping it: half the time on a CPU, and memory for inputs and outputs only. Compiled kernels
(`mlp_numba`, float32 on the CPU) take half of that, as all networks that are asked about a point see it in one pass.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jointdreamer.kernels import enabled

CPU_BLOCK = 2048  # the hidden layer of a block fits into a core's cache
GPU_BLOCK = 2**20

relu_backward = torch.ops.aten.threshold_backward  # (grad, hidden, 0) -> grad where hidden > 0


class MLP(nn.Module):
    """y = W2 relu(W1 x), without biases. Differentiable once (`with_gradient` covers losses on the gradient).

    backend: "numba" or "auto": the compiled kernels where they run, for float32 on the CPU; any other word: torch.
    """

    def __init__(self, n_in: int, hidden: int, n_out: int, backend: str = "auto") -> None:
        super().__init__()
        self.requested_backend = backend
        self.first = nn.Parameter(torch.empty(hidden, n_in))
        self.last = nn.Parameter(torch.empty(n_out, hidden))
        for weight in self.parameters():
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in) -> (N, n_out)."""
        return together(x, self)[0]

    @property
    def compiled(self) -> bool:
        """Whether the compiled kernels take the weights as they are now."""
        weight = self.first
        wanted = self.requested_backend == "numba" or (self.requested_backend == "auto" and enabled())
        return wanted and weight.is_cpu and weight.dtype == torch.float32

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (N, n_out), and the gradient of their sum with respect to x (N, n_in); both differentiable.

        The gradient is piecewise constant in x, so that no derivative passes from it to x.
        """
        return self._apply_layers(x, True)

    def _apply_layers(self, x: Tensor, with_slope: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # half precision would coarsen the density
            return TwoLayers.apply(x.to(self.first.dtype), self.first, self.last, with_slope)


def together(x: Tensor, *networks: MLP) -> tuple[Tensor, ...]:
    """What each network says of the same points: (N, n_in) -> (N, n_out) of each."""
    if not all(network.compiled for network in networks):
        return tuple(network._apply_layers(x, False)[0] for network in networks)
    with torch.autocast("cpu", enabled=False):
        weights = (weight for network in networks for weight in (network.first, network.last))
        return Together.apply(x.to(torch.float32), *weights)


class Together(torch.autograd.Function):
    """Networks by the compiled kernels, as one: their hidden layers side by side, and each reads its own outputs."""

    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        from jointdreamer.kernels import mlp_numba

        first, last = torch.cat(weights[::2]), torch.block_diag(*weights[1::2])
        ctx.save_for_backward(x, first, last)
        ctx.sizes = [tuple(weight.shape) for weight in weights[1::2]]
        n_outs = [n_out for n_out, _ in ctx.sizes]
        return tuple(out.t() for out in mlp_numba.forward(x, first, last).split(n_outs))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        from jointdreamer.kernels import mlp_numba

        x, first, last = ctx.saved_tensors
        grad_x, grad_first, grad_last = mlp_numba.backward(x, first, last, torch.cat([grad.t() for grad in grads]))
        of_weights, row, column = [], 0, 0
        for n_out, hidden in ctx.sizes:
            of_last = grad_last[row : row + n_out, column : column + hidden]
            of_weights += [grad_first[column : column + hidden], of_last]
            row, column = row + n_out, column + hidden
        return grad_x, *of_weights


class TwoLayers(torch.autograd.Function):
    """h = relu(x W1'),  y = h W2',  and if asked for  slope = ((h > 0) * sum W2) W1."""

    @staticmethod
    def forward(ctx, x: Tensor, first: Tensor, last: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, first, last)
        ctx.set_materialize_grads(False)
        outputs, slopes = x.new_empty(len(x), len(last)), torch.empty_like(x) if with_slope else None
        total = last.sum(0, keepdim=True)
        for block in blocks(x):
            hidden = torch.relu_(x[block] @ first.T)
            torch.mm(hidden, last.T, out=outputs[block])
            if slopes is not None:
                torch.mm(relu_backward(total.expand_as(hidden), hidden, 0), first, out=slopes[block])
        return outputs, slopes

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_outputs, grad_slopes):
        x, first, last = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        grad_first, grad_last = torch.zeros_like(first), torch.zeros_like(last)
        total = last.sum(0, keepdim=True)
        for block in blocks(x):
            hidden = torch.relu_(x[block] @ first.T)
            if grad_outputs is not None:
                grad_last.addmm_(grad_outputs[block].T, hidden)
                grad_hidden = relu_backward(grad_outputs[block] @ last, hidden, 0)
                grad_first.addmm_(grad_hidden.T, x[block])
                torch.mm(grad_hidden, first, out=grad_x[block])
            if grad_slopes is not None:
                active = relu_backward(total.expand_as(hidden), hidden, 0)
                grad_first.addmm_(active.T, grad_slopes[block])
                grad_last += relu_backward(grad_slopes[block] @ first.T, hidden, 0).sum(0)
        return grad_x, grad_first, grad_last, None


def blocks(x: Tensor) -> list[slice]:
    size = CPU_BLOCK if x.device.type == "cpu" else GPU_BLOCK
    return [slice(start, start + size) for start in range(0, len(x), size)]
