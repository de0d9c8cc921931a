"""Any Stable-Diffusion-like diffusers folder as a prior: Stable Diffusion 2.1-base, or the bundled toybox model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.arguments import Pixels, Positive, Share
from jointdreamer.diffusion import alpha_sigma, noise_from_x0, to_noise, x0_from_noise
from jointdreamer.errors import UserError
from jointdreamer.kernels.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, scale_factor
from jointdreamer.priors.base import AutoencodedGuidance, NoisePrediction, NoisyLatents
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.priors.prompts import Conditioning
from jointdreamer.weights.find import find_weights, load_noise_schedule, load_part, load_tokenizer


class LatentDiffusion(AutoencodedGuidance):
    """A frozen latent diffusion model, read from a diffusers folder or hub id.

    source: local folder or hub id with unet/, vae/, scheduler/, text_encoder/, tokenizer/; or a list, tried in order
    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    dtype: "auto", "float32", "bfloat16" or "float16", see `network_dtype`; of UNet, autoencoder and text encoder
    x0_limit: clamp the clean sample implied by the guided prediction to +- this; off by default
    cfg_rescale: blend phi of Lin et al. (2023): phi times the guided prediction brought to the spread of the text
        prediction, plus (1 - phi) times itself; spreads per view, unbiased. 0 in the paper's NeRF stages
    x0_rescale: the same blend on the implied clean sample, whose spread guidance inflates at large t; off by default
    compile: whether torch.compile takes the UNet, see `place_unet`

    Raises UserError, one line, if the weights are missing, damaged or of a kind that needs other inputs.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str],
        image_size: Pixels | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        x0_limit: Positive | None = None,
        cfg_rescale: Share = 0.0,
        x0_rescale: Share = 0.0,
        compile: bool = False,
    ):
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        device = torch.device(device)
        dtype = network_dtype(dtype, device)
        hint = "name a folder, models.text_to_image.source=FOLDER; models=toybox needs no download"
        self.folder = find_weights(source, "text_to_image", hint=hint, download=device.type == "cuda")
        alphas_cumprod, self.prediction_type = load_noise_schedule(self.folder)
        self.register_buffer("alphas_cumprod", alphas_cumprod.to(device), persistent=False)
        self.vae = place(load_part(AutoencoderKL, self.folder, "vae", dtype), device)
        self.unet: Any = place_unet(load_part(UNet2DConditionModel, self.folder, "unet", dtype), device, compile)
        config = self.unet.config
        if config.class_embed_type or config.addition_embed_type or config.in_channels != config.out_channels:
            raise UserError(
                f"{self.folder / 'unet'} is no plain text-to-image UNet: it wants more than noisy latents and text "
                f"(class_embed_type {config.class_embed_type!r}, addition_embed_type {config.addition_embed_type!r}, "
                f"{config.in_channels} channels in, {config.out_channels} out); use a Stable Diffusion 1 or 2 base"
            )
        check_autoencoder(self.vae, config.in_channels, self.folder)
        self.image_size = image_size or config.sample_size * scale_factor(self.vae)
        self.x0_limit = x0_limit
        self.cfg_rescale = cfg_rescale
        self.x0_rescale = x0_rescale

    @torch.no_grad()
    def predict_noise(self, noised: NoisyLatents, text: Conditioning, guidance_scale: float) -> NoisePrediction:
        """Eq. of Section 4.3: (1 + s) e(y) - s e(0), both from one call of the UNet, text half first.

        Raises UserError if the text embeddings are of another width than the UNet's.
        """
        x_t = noised.latents_noisy
        b, v = x_t.shape[:2]
        width = self.unet.config.cross_attention_dim
        if text.cond.shape[-1] != width:
            raise UserError(f"the UNet reads text embeddings of width {width}, got {text.cond.shape[-1]}")
        words = torch.cat([text.cond, text.uncond]).flatten(0, 1)
        with torch.inference_mode():
            prediction = self.unet(
                torch.cat([x_t, x_t]).flatten(0, 1).to(self.unet.dtype),
                noised.timesteps.repeat_interleave(v).repeat(2),
                encoder_hidden_states=words.to(self.unet.dtype),
                return_dict=False,
            )[0]
        # a copy: autograd, an energy's for one, refuses what inference mode has made
        prediction = prediction.to(torch.float32, copy=True).unflatten(0, (2, b, v))
        alpha_t, sigma_t = alpha_sigma(self.alphas_cumprod, noised.timesteps)
        cond, uncond = (to_noise(half, x_t, alpha_t, sigma_t, self.prediction_type) for half in prediction)

        noise = uncond + (1 + guidance_scale) * (cond - uncond)
        if self.cfg_rescale:
            noise = _blend_spread(noise, cond, self.cfg_rescale)
        if self.x0_rescale or self.x0_limit is not None:
            x0 = x0_from_noise(x_t, noise, alpha_t, sigma_t)
            if self.x0_rescale:
                x0 = _blend_spread(x0, x0_from_noise(x_t, cond, alpha_t, sigma_t), self.x0_rescale)
            if self.x0_limit is not None:
                x0 = x0.clamp(-self.x0_limit, self.x0_limit)
            noise = noise_from_x0(x_t, x0, alpha_t, sigma_t)
        return NoisePrediction(noise, cond, uncond)

    def text_parts(self) -> tuple[Any, Any]:
        """`load_text_parts` of this folder, on the UNet's device in its dtype."""
        return load_text_parts(self.folder, self.unet.dtype, self.unet.device)


def load_text_parts(folder: Path, dtype: torch.dtype, device: torch.device | str) -> tuple[Any, Any]:
    """A diffusers folder's (tokenizer, text_encoder), for prompts.encode_prompt; nothing here keeps them.

    Raises UserError, one line, if either is missing, damaged, or if they do not belong together.
    """
    from transformers import CLIPTextModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar per loaded file, on the stderr where our own messages go
    encoder = load_part(CLIPTextModel, folder, "text_encoder", dtype).to(device)
    where = folder / "tokenizer"
    try:
        tokenizer = load_tokenizer(where)
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"cannot load the tokenizer in {where}: {error}".splitlines()[0]) from error
    # transformers 5 answers missing vocabulary files with a tokenizer of two tokens
    if len(tokenizer) != encoder.config.vocab_size:
        raise UserError(
            f"the tokenizer in {where} has {len(tokenizer)} tokens, its text encoder "
            f"{encoder.config.vocab_size}: its files are incomplete, download it again"
        )
    return tokenizer, encoder


def _blend_spread(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    """`share` of `guided` brought to the spread of `cond`, the rest as it is; spreads per view (B, V), unbiased."""
    spread = cond.std((-3, -2, -1), keepdim=True) / guided.std((-3, -2, -1), keepdim=True)
    return share * spread * guided + (1 - share) * guided
