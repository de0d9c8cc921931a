"""Frozen networks on several threads of a CPU: each takes some of the images through the whole network.

torch divides every operation among its threads, waits for the last of them and does what lies between on one. A small
network's operations take 50 microseconds each, its normalisation is a kernel of one thread, and where another process
wants a core as well, every wait is a wait for that process. Shares wait for each other once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jointdreamer.compiled import pool

MAX_PARAMETERS = (
    10_000_000  # in a larger autoencoder torch's own threads do well, and its graph has to be where memory counts
)


def in_threads(function: Callable[..., Any], shares: Sequence[tuple[Any, ...]]) -> list[Any]:
    """[function(*share) for share in shares], a thread each, within which torch has one thread; grad mode as here."""
    threads, graph, inference = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work(share: tuple[Any, ...]) -> Any:
        torch.set_num_threads(1)  # of this thread; what others may read of it is put right below
        with torch.inference_mode(inference), torch.set_grad_enabled(graph):
            return function(*share)

    try:
        return list(pool(len(shares)).map(work, shares))
    finally:
        torch.set_num_threads(threads)


def share_out(autoencoder: Any) -> Any:
    """A small AutoencoderKL itself, on the CPU from now on with its images shared out to torch's threads."""
    small = sum(p.numel() for p in autoencoder.parameters()) <= MAX_PARAMETERS
    if type(autoencoder).__name__ == "AutoencoderKL" and small:
        for part in (autoencoder.encoder, autoencoder.decoder):
            part.forward = SharedForward(part)
    return autoencoder


class SharedForward:
    """The forward of a frozen encoder or decoder."""

    def __init__(self, module: nn.Module):
        self.module, self.original = module, module.forward

    def __call__(self, images: Tensor) -> Tensor:
        n = min(torch.get_num_threads(), len(images))
        if n < 2 or images.is_cuda or any(p.requires_grad for p in self.module.parameters()):
            return self.original(images)
        return Apart.apply(images, self.original, n)


class Apart(torch.autograd.Function):
    """function(images) from n shares of them, each with a graph of its own; differentiable once, in the images."""

    @staticmethod
    def forward(ctx, images: Tensor, function: Callable[[Tensor], Tensor], n: int) -> Tensor:
        tracked = ctx.needs_input_grad[0]

        def work(share: Tensor) -> tuple[Tensor, Tensor]:
            with torch.set_grad_enabled(tracked):
                share = share.detach().requires_grad_(tracked)
                return share, function(share)

        ctx.shares = in_threads(work, [(share,) for share in images.tensor_split(n)])
        return torch.cat([out.detach() for _, out in ctx.shares])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        def work(share: Tensor, out: Tensor, of_out: Tensor) -> Tensor:
            return torch.autograd.grad(out, share, of_out)[0]

        grads = grad.tensor_split(len(ctx.shares))
        found = in_threads(work, [(*pair, of_out) for pair, of_out in zip(ctx.shares, grads, strict=True)])
        return torch.cat(found), None, None
