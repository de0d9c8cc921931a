"""MVS energy (Eq. 8): the views agree when a multi-view diffusion model would have drawn them together."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from jointdreamer.arguments import Pixels, Positive, Scale, Share
from jointdreamer.diffusion import alpha_sigma, noise_like
from jointdreamer.energies.base import Energy, Views, fit_latents
from jointdreamer.errors import UserError
from jointdreamer.priors.autoencoder import encode_images, scale_factor
from jointdreamer.priors.multi_view_unet import find_multiview, guided_x0


class MultiViewEnergy(Energy):
    """C = -1/2 sum over the rig's views, channels and pixels of (x0 - x0_mv)^2, with x0_mv a constant.

    x0_mv is the multi-view model's own one-step estimate for the same renders: own encoding, own noise, the same
    timestep and text (release; the 1/2, which Eq. 8 lacks, gives dC/dx0 = x0_mv - x0). A sum over ONE rig: the release
    also divides by the views of the whole batch, so energy_weight 1.25 here is its 5 at the paper's batch of 4.

    source: diffusers folder, MVDream checkpoint, or a hub id of either; or a list, tried in order
    file: the checkpoint's name inside a folder or repository
    vae: folder or hub id whose vae/ encodes the renders; by default the one that comes with `source`. "shared": the
        text-to-image model's latents (`views.latents`, posterior sample included) are taken as they are: for two
        models of one autoencoder and size, which would otherwise encode every render twice
    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    guidance_scale: the usual uncond + s (text - uncond), unlike the paper's form elsewhere; MVDream uses 50
    rescale: blend of x0_mv brought to the spread of the text-only estimate (over a whole rig); the release uses 0.5
    x0_limit: clamp x0_mv to +- this; off by default
    dtype: "auto", "float32", "bfloat16" or "float16", see `network_dtype`
    compile: whether torch.compile takes the UNet, see `place_unet`

    Raises UserError, one line, if the weights are missing, damaged or do not fit.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
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
        model, self.folder = find_multiview(source, file, vae, dtype, device, compile)  # or the checkpoint's file
        self.unet, self.vae = model.unet, model.vae
        self.register_buffer("alphas_cumprod", model.alphas_cumprod, persistent=False)
        self.prediction_type = model.prediction_type
        self.image_size = image_size
        if self.vae is not None and image_size is None:
            self.image_size = self.unet.config.sample_size * scale_factor(self.vae)
        self.guidance_scale = guidance_scale
        self.rescale = rescale
        self.x0_limit = x0_limit

    def forward(self, views: Views) -> Tensor:
        target = self.estimate(views)  # (B, V, C, h', w')
        target = fit_latents(target, views.x0, "multi-view model")
        return -0.5 * (views.x0 - target).square().sum((1, 2, 3, 4))

    @torch.no_grad()
    def estimate(self, views: Views) -> Tensor:
        """x0_mv (B, V, C, h', w'): what the multi-view model sees in the noised renders. Without a graph.

        Draws from `views.generator`: the autoencoder's posterior, unless that is shared, then the noise.
        """
        latents = self._encode(views)
        alpha_t, sigma_t = alpha_sigma(self.alphas_cumprod, views.timesteps)
        x_t = alpha_t * latents + sigma_t * noise_like(latents, views.generator)

        text = views.text
        x0, _, _ = guided_x0(
            self.unet, x_t, views.timesteps, text.cond, text.uncond, views.cameras.c2w,
            self.alphas_cumprod, self.prediction_type, self.guidance_scale, self.rescale,
        )  # fmt: skip
        return x0 if self.x0_limit is None else x0.clamp(-self.x0_limit, self.x0_limit)

    def _encode(self, views: Views) -> Tensor:
        if self.vae is not None and self.image_size is not None:
            return encode_images(self.vae, views.rgb, self.image_size, views.generator)
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        if views.latents is None or views.latents.shape[2:] != (channels, size, size):
            came = "none" if views.latents is None else "x".join(map(str, views.latents.shape[2:]))
            raise UserError(
                f"energy.vae=shared: the multi-view model reads latents of {channels}x{size}x{size}, the text-to-image "
                f"model's are {came}: name a folder that has its own autoencoder, energy.vae=FOLDER"
            )
        return views.latents
