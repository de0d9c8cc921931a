"""How the frozen networks stand on their device: their layout there, and whether they are compiled."""

from typing import Any

import torch

from jointdreamer.kernels import enabled


def place(network: Any, device: str | torch.device) -> Any:
    """The network on the device, in the layout that is fast there: on CUDA channels last, for the tensor cores."""
    network = network.to(device)
    if torch.device(device).type == "cuda":
        return network.to(memory_format=torch.channels_last)
    if not enabled():
        return network
    from jointdreamer.kernels.channels_last import channels_last_on_cpu

    return channels_last_on_cpu(network)


def place_unet(unet: Any, device: str | torch.device, compile: bool = False) -> Any:
    """A frozen UNet on the device; on a CPU `fast_unet` may take over its calls without a graph.

    compile: whether torch.compile makes kernels of it at its first call, minutes once for each shape that it sees; on
        CUDA with graphs, since its shapes never change. Everything else about it stays as it is.
    """
    unet = place(unet, device)
    if compile:
        unet.compile(dynamic=False, mode="reduce-overhead" if torch.device(device).type == "cuda" else None)
    elif enabled():
        from jointdreamer.kernels.fast_unet import speed_up

        speed_up(unet)
    return unet
