"""What distillation needs of a text-to-image prior."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jointdreamer.priors.autoencoder import decode_latents, encode_images
from jointdreamer.priors.prompts import Conditioning


class NoisyLatents(Protocol):
    """The part of distillation.Noised that a prior looks at."""

    @property
    def latents_noisy(self) -> Tensor: ...  # (B, V, C, h, w)

    @property
    def timesteps(self) -> Tensor: ...  # (B,)


@dataclass(frozen=True)
class NoisePrediction:
    """A prior's opinion of the noise, each (B, V, C, h, w), float32, without a graph."""

    noise: Tensor  # guided: what distillation follows
    noise_cond: Tensor  # given the text
    noise_uncond: Tensor  # given the empty (or negative) prompt

    def for_energy(self, energy_x0: str) -> Tensor:
        """The noise whose one-step x0 an energy sees.

        "uncond" is the release's, for an energy that reads the text itself, as Eq. 8's does. "guided" is what is
        distilled, for one that looks at pictures alone: it has to see the second face that the text puts there, and
        corrects that instead of what would be without a text.
        """
        return self.noise if energy_x0 == "guided" else self.noise_uncond


class Guidance(nn.Module, ABC):
    """A frozen text-to-image diffusion prior over latents. Views are independent to it."""

    alphas_cumprod: Tensor  # (1000,) float32

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
    def predict_noise(self, noised: NoisyLatents, text: Conditioning, guidance_scale: float) -> NoisePrediction:
        """The noise in `noised.latents_noisy`, guided as the paper writes it: (1 + s) e(y) - s e(0).

        s = 30 here is 31 in the usual convention e(0) + s' (e(y) - e(0)). No gradient flows through the network.
        """


class AutoencodedGuidance(Guidance):
    """A prior whose latents are those of a diffusers autoencoder `vae`, which sees images of `image_size` pixels."""

    vae: Any
    image_size: int

    def encode(
        self, rgb: Tensor, generator: torch.Generator | None, grad: bool = True, chunk: int | None = None
    ) -> Tensor:
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            return encode_images(self.vae, rgb, self.image_size, generator, chunk)

    def decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.vae, latents)
