"""Stable Diffusion XL as a prior (Podell et al. 2023): two text encoders, pooled text, size and crop."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from jointdreamer.arguments import Pixels, Positive, Range, Share
from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.latent import LatentDiffusion, load_text_parts, no_single_clip
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.priors.prompts import Prompts, TextEmbeddings, embed_by_all, encode_prompts
from jointdreamer.reading import Unreadable, read_json
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import load_part
from jointdreamer.weights.roles import about

TIME_IDS = 6  # original height and width, top and left of the crop, height and width now
Crop = Annotated[int, Range(0, 8192)]


class SDXL(LatentDiffusion):
    """A frozen latent diffusion model whose UNet is told pooled text and time ids beside the text.

    text_parts: each gives (tokenizer, text encoder); the last one pools the text
    original_size: pixels of the picture that a training picture would have been made of; by default image_size
    crop: its first row and column that are seen
    zero_empty: whether an empty text is zeros, as the model was trained without a text (force_zeros_for_empty_prompt)
    Otherwise as `LatentDiffusion`.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        process: NoiseProcess,
        text_parts: Sequence[Callable[[], tuple[Any, Any]]],
        image_size: int | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
        original_size: int | None = None,
        crop: Sequence[int] = (0, 0),
        zero_empty: bool = True,
    ):
        super().__init__(unet, vae, process, no_single_clip, image_size, guidance)
        self.encoders, self.zero_empty = text_parts, zero_empty
        original = original_size or self.image_size
        self.time_ids = (original, original, *crop, self.image_size, self.image_size)

    @classmethod
    def build(
        cls,
        source: str | Path | Sequence[str],
        vae: str | Path | None = None,
        image_size: Pixels | None = None,
        original_size: Pixels | None = None,
        crop: tuple[Crop, Crop] = (0, 0),
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        x0_limit: Positive | None = None,
        cfg_rescale: Share = 0.0,
        x0_rescale: Share = 0.0,
        compile: bool = False,
    ) -> "SDXL":
        """Stable Diffusion XL base, or another of its layout.

        source: folder or hub id with unet/, vae/, scheduler/, text_encoder/, text_encoder_2/, tokenizer/, tokenizer_2/;
            or a list, tried in order
        vae: folder or hub id of an autoencoder in place of its own, which overflows in half precision and runs in
            float32 where it says so (force_upcast)
        image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
        original_size, crop: see above
        dtype, x0_limit, cfg_rescale, x0_rescale, compile: as of `LatentDiffusion.build`

        Raises UserError, one line, if the weights are missing, damaged or of another kind.
        """
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        device = torch.device(device)
        dtype, download = network_dtype(dtype, device), device.type == "cuda"
        known = about("text_to_image", {"kind": "sdxl", "vae": vae})
        folder = find_weights(source, "text_to_image", needs=known.needs, download=download, known=known)
        process = load_noise_process(folder).to(device)
        unet: Any = load_part(UNet2DConditionModel, folder, "unet", dtype)
        cls.check_unet(unet, folder / "unet")
        if vae is None:
            where, part = folder, "vae"
        else:
            needs = ("config.json",)
            where, part = find_weights(vae, "autoencoder", needs=needs, download=download), ""
        autoencoder = load_autoencoder(where, dtype, part)
        check_autoencoder(autoencoder, unet.config.in_channels, where)
        if dtype == torch.float16 and autoencoder.config.get("force_upcast", True):
            autoencoder = autoencoder.float()
        encoders = [
            partial(load_text_parts, folder, dtype, device),
            partial(load_text_parts, folder, dtype, device, "_2", projected=True),
        ]
        prior = cls(
            place_unet(unet, device, compile),
            place(autoencoder, device),
            process,
            encoders,
            image_size,
            Guidance(cfg_rescale=cfg_rescale, x0_rescale=x0_rescale, x0_limit=x0_limit),
            original_size,
            crop,
            zeros_for_nothing(folder),
        )
        prior.source = folder
        return prior

    @staticmethod
    def check_unet(unet: Any, where: Any = "the UNet") -> None:
        """Raise UserError for a UNet that is not told pooled text and time ids, or more than these."""
        config = unet.config
        if config.class_embed_type or config.addition_embed_type != "text_time":
            raise UserError(
                f"{where} is no UNet of Stable Diffusion XL: wanted addition_embed_type 'text_time', got "
                f"{config.addition_embed_type!r} (class_embed_type {config.class_embed_type!r})"
            )
        if config.in_channels != config.out_channels:
            raise UserError(
                f"{where} takes {config.in_channels} channels and makes {config.out_channels}: it wants more than "
                "noisy latents; take a base model"
            )

    @property
    def pooled_width(self) -> int:
        """P of the pooled text that the UNet reads."""
        config = self.unet.config
        return config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim

    def embed(self, prompts: Prompts) -> TextEmbeddings:
        def embed(texts: list[str]) -> tuple[Tensor, Tensor | None]:
            states, (*_, pooled) = embed_by_all(self.encoders, texts, prompts.prompt)
            if pooled is None or pooled.shape[-1] != self.pooled_width:
                came = "none" if pooled is None else pooled.shape[-1]
                raise UserError(
                    f"the UNet reads pooled text of width {self.pooled_width}, the text encoders give {came}"
                )
            empty = torch.tensor([self.zero_empty and not text for text in texts], device=pooled.device)
            return states.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)

        return encode_prompts(prompts, embed)

    def labels(self, conditions: Sequence[Condition], cameras: Cameras | None) -> dict[str, Any]:
        pooled = self.pooled(conditions)
        time_ids = pooled.new_tensor(self.time_ids).expand(len(pooled), -1)
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}


def zeros_for_nothing(folder: Path) -> bool:
    """Whether a pipeline's model_index.json says that an empty text is zeros; yes, as in diffusers, if it says nothing.

    Raises UserError, one line, for a file that cannot be read.
    """
    path = folder / "model_index.json"
    if not path.exists():
        return True
    try:
        index = read_json(path)
    except Unreadable as error:
        raise UserError(f"cannot read {path}: {error.why}") from error
    return index.get("force_zeros_for_empty_prompt", True) if isinstance(index, dict) else True
