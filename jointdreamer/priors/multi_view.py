"""A multi-view diffusion model as the prior that distillation follows: MVDream's own way, a baseline of the paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jointdreamer.arguments import Pixels, Positive, Scale, Share
from jointdreamer.diffusion import alpha_sigma, noise_from_x0
from jointdreamer.errors import UserError
from jointdreamer.priors.autoencoder import scale_factor
from jointdreamer.priors.base import AutoencodedGuidance, NoisePrediction, NoisyLatents
from jointdreamer.priors.latent import load_text_parts
from jointdreamer.priors.multi_view_unet import SHARED, find_multiview, guided_x0
from jointdreamer.priors.prompts import Conditioning
from jointdreamer.weights.find import find_weights


class MultiViewGuidance(AutoencodedGuidance):
    """The multi-view model of Eq. 8 as a prior over its own latents, in which the views of a rig are drawn together.

    Followed with the weighting "x0" it is MVDream-style distillation: the gradient of 1/2 |z - x0_mv|^2 / rows.

    text: diffusers folder or hub id, or a list, with the tokenizer and text encoder (Stable Diffusion 2.1's are
        MVDream's), and the autoencoder where `vae` is "shared"
    source, file, vae: see `find_multiview`
    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    guidance_scale: the usual uncond + s (text - uncond), constant: the schedule's is the text-to-image model's
    rescale: blend of x0_mv brought to the spread of the text-only estimate (over a whole rig); MVDream uses 0.5
    x0_limit: clamp x0_mv to +- this; off by default
    dtype, compile: as of the other priors

    Raises UserError, one line, if the weights are missing, damaged or do not fit.
    """

    def __init__(
        self,
        text: str | Path | Sequence[str],
        source: str | Path | Sequence[str],
        file: str | None = None,
        vae: str | Path | None = None,
        image_size: Pixels | None = None,
        guidance_scale: Scale = 50.0,
        rescale: Share = 0.5,
        x0_limit: Positive | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        compile: bool = False,
    ):
        super().__init__()
        download = torch.device(device).type == "cuda"
        self.text_folder = find_weights(text, "text_to_image", download=download)
        autoencoder = self.text_folder if vae == SHARED else vae
        model, self.folder = find_multiview(source, file, autoencoder, dtype, device, compile)
        self.unet, self.vae, self.prediction_type = model.unet, model.vae, model.prediction_type
        self.register_buffer("alphas_cumprod", model.alphas_cumprod, persistent=False)
        self.image_size = image_size or self.unet.config.sample_size * scale_factor(self.vae)
        self.guidance_scale = guidance_scale
        self.rescale = rescale
        self.x0_limit = x0_limit

    @torch.no_grad()
    def predict_noise(self, noised: NoisyLatents, text: Conditioning, guidance_scale: float) -> NoisePrediction:
        """The noise whose x0 is the model's guided, rescaled and clamped one; `guidance_scale` is not looked at.

        Raises UserError if the text does not say where the views stand.
        """
        if text.c2w is None:
            raise UserError("a multi-view prior wants to know where the views stand: Conditioning.c2w is None")
        x_t = noised.latents_noisy
        x0, cond, uncond = guided_x0(
            self.unet, x_t, noised.timesteps, text.cond, text.uncond, text.c2w,
            self.alphas_cumprod, self.prediction_type, self.guidance_scale, self.rescale,
        )  # fmt: skip
        if self.x0_limit is not None:
            x0 = x0.clamp(-self.x0_limit, self.x0_limit)
        alpha_t, sigma_t = alpha_sigma(self.alphas_cumprod, noised.timesteps)
        return NoisePrediction(noise_from_x0(x_t, x0, alpha_t, sigma_t), cond, uncond)

    def text_parts(self) -> tuple[Any, Any]:
        """`load_text_parts` of the text-to-image folder, on the UNet's device in its dtype."""
        return load_text_parts(self.text_folder, self.unet.dtype, self.unet.device)
