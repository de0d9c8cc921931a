"""Muon (Jordan et al. 2024): momentum whose steps are made orthogonal, for the matrices inside a network."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from jointdreamer.precision import has_bfloat16_units

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # its quintic, five times: singular values end between 0.7 and 1.2


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with `match_rms_adamw`, for convolutions too (a row for each output channel).

    A step moves a weight by lr * 0.2 * sqrt(max(rows, columns)) times its orthogonal momentum (Nesterov's). The
    products are in bfloat16 where the CPU multiplies it, as torch's; elsewhere in float32, for emulated they take most
    of a training step.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 1e-2):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        dtype = torch.bfloat16 if has_bfloat16_units() else torch.float32
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                grad, state = weight.grad.flatten(1), self.state[weight]
                average = state.setdefault("momentum_buffer", torch.zeros_like(grad))
                average.lerp_(grad, 1 - momentum)
                step = orthogonal(grad.lerp(average, momentum).to(dtype))
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(step.view_as(weight), alpha=-lr * 0.2 * max(step.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix (N, M) = U S V^T, by Newton and Schulz's iteration."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
