"""Variational score distillation: what is subtracted is the noise prediction of a LoRA that learns the renders.

ProlificDreamer (Wang et al. 2023). The LoRA is an addition to the prior's own network, on for the subtracted prediction
e_phi and off for the prior's: nothing is in memory twice. Before the first step e_phi is the prior's prediction, to the
bit: what is added starts as zero. ESD (Wang et al. 2024) is the same with a guidance scale of 0.5 between the camera
and no camera.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from jointdreamer.arguments import Range, Share
from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import Noised, add_noise
from jointdreamer.distillation.baselines import AskingBaseline
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Conditions
from jointdreamer.priors.guidance import guided
from jointdreamer.priors.network import NetworkPrior
from jointdreamer.ranks import per_rig

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # of every attention
OF_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # of those that attend to text and picture at once
CAMERA = 16  # numbers that tell a view: its camera-to-world matrix, row by row


class LowRank(nn.Module):
    """What a LoRA adds to a linear layer: up(down(x)), float32 whatever the layer's precision."""

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, layer.in_features, device=layer.weight.device) / rank)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.float(), self.down), self.up).to(x.dtype)


class CameraLoRA(nn.Module):
    """Trainable additions to a frozen UNet, there only inside of `on`; all of them start as zero.

    They are to the projections of its attentions, and a camera's embedding beside that of the timestep.

    Raises UserError for a network without attentions of diffusers.
    """

    def __init__(self, unet: Any, rank: int):
        super().__init__()
        attentions = [module for module in unet.modules() if type(module).__name__ == "Attention"]
        layers: list[Any] = [attention.get_submodule(part) for attention in attentions for part in PROJECTIONS]
        joint = (getattr(attention, part, None) for attention in attentions for part in OF_TEXT)
        layers += [layer for layer in joint if isinstance(layer, nn.Linear)]
        time = getattr(unet, "time_embedding", None)
        if time is None:  # a transformer's
            time = getattr(getattr(unet, "time_text_embed", None), "timestep_embedder", None)
        width = getattr(time, "linear_2", None)
        if time is None or not layers or width is None:
            raise UserError(f"baseline lora wants a UNet of diffusers with attentions, got {type(unet).__name__}")
        self.layers = nn.ModuleList(LowRank(layer, rank) for layer in layers)
        last = nn.Linear(width.out_features, width.out_features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = nn.Linear(CAMERA, width.out_features)
        self.camera = nn.Sequential(first, nn.SiLU(), last).to(width.weight.device)
        self._rows: Tensor | None = None  # cameras of the call inside `on`, (N, 16)
        for layer, addition in zip(layers, self.layers, strict=True):
            layer.register_forward_hook(partial(self._add, addition))
        time.register_forward_hook(self._add_camera)

    @contextmanager
    def on(self, rows: Tensor) -> Iterator[None]:
        """What is added is there; rows: the camera of each of the network's input rows, (N, 16), zeros for none."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def _add(self, addition: nn.Module, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        return None if self._rows is None else out + addition(inputs[0])

    def _add_camera(self, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        return None if self._rows is None else out + self.camera(self._rows).to(out.dtype)


class LoRA(AskingBaseline):
    """B of VSD: e_phi(x_t; y, t, c), the prior's network with a LoRA that is trained on the renders as it goes.

    prior: whose network it shares
    text: the prompt; e_phi is told it without view words, and where the camera stands
    rank: of what is added to each projection
    drop_camera: how often training shows it no camera
    guidance_scale: e_phi(none) + s (e_phi(camera) - e_phi(none)); 1 is VSD, 0.5 ESD

    Its own loss, `lora` in `schedule.loss`: the mean squared error of its prediction, at a timestep and with a noise of
    its own. Its parameters have the role `lora` in `schedule.lr`.
    Raises UserError for a prior without a UNet of diffusers.
    """

    loss_names = ("lora",)

    def __init__(
        self,
        prior: Prior,
        text: Conditions,
        rank: Annotated[int, Range(1, 256)] = 4,
        drop_camera: Share = 0.1,
        guidance_scale: Annotated[float, Range(0, 100)] = 1.0,
    ):
        super().__init__(prior, text)
        if not isinstance(prior, NetworkPrior):
            raise UserError(f"baseline lora wants a prior with a UNet of diffusers, got {type(prior).__name__}")
        self.drop_camera, self.guidance_scale = drop_camera, guidance_scale
        self.lora = CameraLoRA(prior.unet, rank)

    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        process, camera = self.prior.process, cameras.c2w.flatten(-2)  # (B, V, 16)
        with torch.no_grad():
            noise = process.noise(self.predict(noised, cameras, camera), noised.x_t, noised.t)
            if self.guidance_scale != 1:
                without = self.predict(noised, cameras, torch.zeros_like(camera))
                noise = guided(noise, process.noise(without, noised.x_t, noised.t), self.guidance_scale)
        return noise

    def losses(self, noised: Noised, cameras: Cameras, generator: torch.Generator) -> dict[str, Tensor]:
        process, latents = self.prior.process, noised.latents
        t = per_rig(partial(torch.randint, process.last + 1), (len(latents),), generator)
        own = add_noise(process, latents, t, generator)
        kept = per_rig(torch.rand, (*cameras.azimuth.shape, 1), generator) >= self.drop_camera
        camera = cameras.c2w.flatten(-2) * kept.to(cameras.c2w)
        target = process.target(own.noise, own.latents, own.t)
        # of few tokens on a CPU, the other kernels' backward pass takes twice as long
        with sdpa_kernel(SDPBackend.MATH) if latents.device.type == "cpu" else nullcontext():
            return {"lora": F.mse_loss(self.predict(own, cameras, camera), target)}

    def predict(self, noised: Noised, cameras: Cameras, camera: Tensor) -> Tensor:
        """The network's own output with the LoRA on, (B, V, C, h, w) float32. camera: (B, V, 16), zeros for none."""
        with self.lora.on(camera.flatten(0, 1)):
            rows = self.prior.network(noised.x_t, noised.t, [self.text.without_view(cameras)], cameras)
        return rows.float().unflatten(0, noised.x_t.shape[:2])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"lora": list(self.lora.parameters())}
