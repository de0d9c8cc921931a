"""What a prior is: a frozen diffusion model over views, over latents or pixels, alone or together."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.priors.autoencoder import decode_latents, encode_images
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.prompts import Prompts, TextEmbeddings


class Prior(nn.Module, ABC):
    """A frozen diffusion model over the views of rigs. Shapes: B rigs, V views, latents C h w.

    process: its noise process, and what its network predicts
    guidance: how its predictions with and without a condition become one
    """

    process: NoiseProcess
    guidance: Guidance = Guidance()
    image_size: int  # pixels that `encode` resizes to
    source: Path | None = None  # folder or checkpoint that it was read from
    what = "prior"  # in error messages

    @property
    def latent_space(self) -> tuple | None:
        """What latents mean: priors of which this is equal share theirs. None where it is not known."""
        return None

    @abstractmethod
    def embed(self, prompts: Prompts) -> TextEmbeddings:
        """The prompt from every direction. Text encoders are read for this and dropped."""

    @abstractmethod
    def encode(
        self, rgb: Tensor, generator: torch.Generator | None, grad: bool = True, chunk: int | None = None
    ) -> Tensor:
        """Images (B, V, 3, R, R) in [0, 1] of any size -> latents (B, V, C, h, w), float32; graph kept if `grad`.

        chunk: images that are in memory at a time, all by default; changes nothing but that, and the last bits.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, V, C, h, w) -> images (B, V, 3, H, W); differentiable, about [0, 1] but not clamped.

        A clamp would kill the gradient of an energy wherever the decoder overshoots; whoever saves an image clamps.
        """

    @abstractmethod
    def predict(
        self,
        x_t: Tensor,  # (B, V, C, h, w)
        t: Tensor,  # (B,) shared by a rig's views
        conditions: Sequence[Condition],
        cameras: Cameras | None,  # (B, V); None where the prior does not look at them
    ) -> list[Tensor]:
        """The noise (B, V, C, h, w), float32, under each condition, from one call of the network; without a graph."""


class AutoencodedPrior(Prior):
    """A prior over the latents of a diffusers autoencoder `vae`."""

    vae: Any  # None where another model encodes for this one

    @property
    def latent_space(self) -> tuple | None:
        if self.vae is None:
            return None
        config = self.vae.config
        return config.latent_channels, config.scaling_factor, config.get("shift_factor") or 0.0

    def encode(
        self, rgb: Tensor, generator: torch.Generator | None, grad: bool = True, chunk: int | None = None
    ) -> Tensor:
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            return encode_images(self.vae, rgb, self.image_size, generator, chunk)

    def decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.vae, latents)
