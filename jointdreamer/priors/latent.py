"""Any Stable-Diffusion-like diffusers folder as a prior: Stable Diffusion 2.1-base, or the bundled toybox model."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jointdreamer.arguments import Pixels, Positive, Share
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder, scale_factor
from jointdreamer.priors.base import AutoencodedPrior
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.network import NetworkPrior
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.priors.prompts import Prompts, TextEmbeddings, encode_prompt
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import load_part, load_tokenizer


class LatentDiffusion(NetworkPrior, AutoencodedPrior):
    """A frozen text-to-image latent diffusion model; views are independent to it.

    unet: UNet2DConditionModel that takes noisy latents and text
    vae: AutoencoderKL
    process: noise process and prediction type
    text_parts: gives (tokenizer, text encoder) when the prompt is embedded; kept by nobody
    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    guidance: how its predictions with and without the text become one

    Raises UserError for a UNet that needs other inputs.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        process: NoiseProcess,
        text_parts: Callable[[], tuple[Any, Any]],
        image_size: int | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
    ):
        own_size = unet.config.sample_size * scale_factor(vae) if vae is not None else 0
        super().__init__(unet, process, image_size or own_size, guidance)
        self.vae, self.text_parts = vae, text_parts

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        size = self.image_size // scale_factor(self.vae)
        return self.unet.config.in_channels, size, size

    @classmethod
    def build(
        cls,
        source: str | Path | Sequence[str],
        image_size: Pixels | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        x0_limit: Positive | None = None,
        cfg_rescale: Share = 0.0,
        x0_rescale: Share = 0.0,
        compile: bool = False,
    ) -> "LatentDiffusion":
        """Stable Diffusion 2.1-base, the toybox's model, or another like them.

        source: folder or hub id with unet/, vae/, scheduler/, text_encoder/, tokenizer/; or a list, tried in order
        image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
        dtype: "auto", "float32", "bfloat16" or "float16", see `network_dtype`; of UNet, autoencoder and text encoder
        x0_limit, cfg_rescale, x0_rescale: see `Guidance`; all off in the paper's NeRF stages
        compile: whether torch.compile takes the UNet, see `place_unet`

        Raises UserError, one line, if the weights are missing, damaged or of a kind that needs other inputs.
        """
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        device = torch.device(device)
        dtype = network_dtype(dtype, device)
        hint = "name a folder, models.text_to_image.source=FOLDER; models=toybox needs no download"
        folder = find_weights(source, "text_to_image", hint=hint, download=device.type == "cuda")
        process = load_noise_process(folder).to(device)
        vae = place(load_autoencoder(folder, dtype), device)
        unet: Any = load_part(UNet2DConditionModel, folder, "unet", dtype)
        cls.check_unet(unet, folder / "unet")
        check_autoencoder(vae, unet.config.in_channels, folder)
        unet = place_unet(unet, device, compile)
        guidance = Guidance(cfg_rescale=cfg_rescale, x0_rescale=x0_rescale, x0_limit=x0_limit)
        prior = cls(unet, vae, process, partial(load_text_parts, folder, dtype, device), image_size, guidance)
        prior.source = folder
        return prior

    @staticmethod
    def check_unet(unet: Any, where: Any = "the UNet") -> None:
        """Raise UserError for a UNet that wants more than noisy latents and text."""
        config = unet.config
        if config.addition_embed_type == "text_time":
            raise UserError(
                f"{where} is a UNet of Stable Diffusion XL: say models=sdxl or models.text_to_image.kind=sdxl"
            )
        if config.class_embed_type or config.addition_embed_type or config.in_channels != config.out_channels:
            raise UserError(
                f"{where} is no plain text-to-image UNet: it wants more than noisy latents and text "
                f"(class_embed_type {config.class_embed_type!r}, addition_embed_type {config.addition_embed_type!r}, "
                f"{config.in_channels} channels in, {config.out_channels} out); use a Stable Diffusion 1 or 2 base"
            )

    def embed(self, prompts: Prompts) -> TextEmbeddings:
        tokenizer, encoder = self.text_parts()
        options = vars(prompts)
        return encode_prompt(tokenizer=tokenizer, text_encoder=encoder, **options)


def no_single_clip() -> tuple[Any, Any]:
    """The `text_parts` of a model whose text is not a single CLIP's. Raises UserError."""
    raise UserError("this model's text is not a single CLIP's: wanted a Stable Diffusion 1 or 2, models=sd21")


def load_text_parts(
    folder: Path, dtype: torch.dtype, device: torch.device | str, number: str = "", projected: bool = False
) -> tuple[Any, Any]:
    """A diffusers folder's (tokenizer, text_encoder), for prompts.encode_prompt; nothing here keeps them.

    number: "_2" for the second of several; projected: whether it is one that pools the text

    Raises UserError, one line, if either is missing, damaged, or if they do not belong together.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar per loaded file, on the stderr where our own messages go
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    encoder = load_part(kind, folder, f"text_encoder{number}", dtype).to(device)
    where = folder / f"tokenizer{number}"
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
