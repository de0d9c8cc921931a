"""How the frozen networks stand on their device: their layout there, and whether they are compiled."""

from typing import Any

import torch

from jointdreamer.models.channels_last import channels_last_on_cpu


def place(network: Any, device: str | torch.device) -> Any:
    """The network on the device; on CUDA channels last, which the tensor cores' convolutions want."""
    network = network.to(device)
    return network.to(memory_format=torch.channels_last) if torch.device(device).type == "cuda" else network


def place_unet(unet: Any, device: str | torch.device, compile: bool = False) -> Any:
    """A UNet that is only ever called without a graph, on the device in the layout that is fast there.

    compile: whether torch.compile makes kernels of it at its first call, minutes once for each shape that it sees; on
        CUDA with graphs, since its shapes never change. Everything else about it stays as it is.
    """
    unet = channels_last_on_cpu(place(unet, device))
    if compile:
        unet.compile(dynamic=False, mode="reduce-overhead" if torch.device(device).type == "cuda" else None)
    return unet
