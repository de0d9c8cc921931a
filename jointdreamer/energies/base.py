"""What an energy sees and what it returns. An author writes no autograd, no schedule and no sign convention."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from jointdreamer.cameras import Cameras, Rig
from jointdreamer.errors import UserError
from jointdreamer.priors.prompts import Conditioning


@dataclass(frozen=True)
class Views:
    """V views of one object, seen by B camera rigs, at one noise level."""

    x0: Tensor  # (B, V, C, h, w) one-step denoised latents; the only part that carries a gradient
    rgb: Tensor  # (B, V, 3, R, R) in [0, 1], the render, detached
    opacity: Tensor  # (B, V, 1, R, R), detached
    cameras: Cameras  # c2w (B, V, 4, 4), fovy, elevation, azimuth, distance
    timesteps: Tensor  # (B,)
    text: Conditioning  # cond, uncond (B, V, L, D): what the text-to-image prior was told
    decode: Callable[[Tensor], Tensor]  # latents -> images, for energies that look at pixels
    latents: Tensor | None = None  # (B, V, C, h, w) clean, of the text-to-image prior's autoencoder, detached
    generator: torch.Generator | None = None  # every random draw goes through it, so that a resume is exact
    encode: Callable[[Tensor], Tensor] | None = None  # images in [0, 1] -> latents, without a gradient
    x0_guided: Tensor | None = None  # (B, V, C, h, w) what the text-to-image prior, guided by the text, makes of x_t


class Energy(nn.Module, ABC):
    """C(x, c) of Eq. 3: how well the views agree. Larger is more coherent."""

    views_decoded: float = 0  # of a rig, with a graph at a time: what the forecast of memory counts; inf is all of them

    def __init__(self) -> None:  # nn.Module's own takes anything: an option of another energy would pass unseen
        super().__init__()

    def check_rig(self, rig: Rig) -> None:
        """Raise UserError, one line, for a rig whose views this energy cannot compare. Asked before training."""

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """Return (B,), one number per rig: a sum over its views, never a mean over the batch."""


def fit_latents(target: Tensor, x0: Tensor, model: str) -> Tensor:
    """What another model sees, (B, K, C, h', w'), at the size (h, w) of the text-to-image prior's x0 (B, V, C, h, w).

    Raises UserError, one line, if their latents have different numbers of channels; model: what the error calls it.
    """
    if target.shape[2] != x0.shape[2]:
        raise UserError(
            f"the {model}'s latents have {target.shape[2]} channels, the text-to-image model's {x0.shape[2]}: they "
            "must share one kind of autoencoder"
        )
    if target.shape[-2:] == x0.shape[-2:]:
        return target
    resized = interpolate(target.flatten(0, 1), x0.shape[-2:], mode="bilinear", align_corners=False)
    return resized.unflatten(0, target.shape[:2])
