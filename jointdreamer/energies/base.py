"""What an energy sees and what it returns. An author writes no autograd, no schedule and no sign convention."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from jointdreamer.cameras import Cameras, Rig
from jointdreamer.errors import UserError
from jointdreamer.priors.prompts import Prompts, TextPair


@dataclass(frozen=True)
class Views:
    """V views of one object, seen by B camera rigs, at one noise level."""

    x0: Tensor  # (B, V, C, h, w) one-step denoised latents; the only part that carries a gradient
    rgb: Tensor  # (B, V, 3, R, R) in [0, 1], the render, detached
    opacity: Tensor  # (B, V, 1, R, R), detached
    cameras: Cameras  # c2w (B, V, 4, 4), fovy, elevation, azimuth, distance
    timesteps: Tensor  # (B,)
    text: TextPair  # cond, uncond (B, V, L, D): what the text-to-image prior was told
    decode: Callable[[Tensor], Tensor]  # latents -> images, for energies that look at pixels
    latents: Tensor | None = None  # (B, V, C, h, w) clean, of the text-to-image prior's autoencoder, detached
    generator: torch.Generator | None = None  # every random draw goes through it, so that a resume is exact
    encode: Callable[[Tensor], Tensor] | None = None  # images in [0, 1] -> latents, without a gradient
    x0_guided: Tensor | None = None  # (B, V, C, h, w) what the text-to-image prior, guided by the text, makes of x_t
    latent_space: tuple | None = None  # of the text-to-image prior, see `Prior.latent_space`
    negative_prompt: bool = False  # whether text.uncond is the negative prompt


class Energy(nn.Module, ABC):
    """C(x, c) of Eq. 3: how well the views agree. Larger is more coherent."""

    source: Path | None = None  # folder or checkpoint that its model was read from

    def __init__(self) -> None:  # nn.Module's own takes anything: an option of another energy would pass unseen
        super().__init__()

    def check_rig(self, rig: Rig) -> None:
        """Raise UserError, one line, for a rig whose views this energy cannot compare. Asked before training."""

    def check_timesteps(self, n: int) -> None:
        """Raise UserError, one line, for views at n timesteps, if a model behind this energy has another number."""

    def give_prompt(self, prompts: Prompts) -> None:
        """The prompt of a run, for a model with a text encoder of its own. Given before training."""

    def give_reference(self, image: Tensor, elevation: float, azimuth: float, distance: float) -> None:
        """The given image of a run, (3, R, R) in [0, 1], and its camera: radians, world units. Given before training.

        Raises UserError, one line, as here, for an energy that takes none.
        """
        raise UserError(
            f"image=FILE, and the energy {type(self).__name__} takes no image: energy=i2i does, energy=none leaves it "
            "to the terms"
        )

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """Return (B,), one number per rig: a sum over its views, never a mean over the batch."""
