"""A diffusion model over pixels as a prior: the first stage of DeepFloyd IF, 64 x 64, without an autoencoder.

Pictures in [0, 1] are 2 x - 1 where they are noised. IF's UNet predicts the variance beside the noise; that is dropped.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jointdreamer.arguments import Pixels, Positive, Share
from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.latent import load_text_parts, no_single_clip
from jointdreamer.priors.network import NetworkPrior
from jointdreamer.priors.placement import place_unet
from jointdreamer.priors.prompts import Prompts, TextEmbeddings, encode_prompt, encode_prompts
from jointdreamer.priors.t5 import embed_t5
from jointdreamer.reading import Unreadable, read_json
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import load_part
from jointdreamer.weights.roles import about

T5_TOKENS = 77  # with which IF was trained


class PixelDiffusion(NetworkPrior):
    """A frozen text-to-image diffusion model over pixels; views are independent to it.

    unet: UNet2DConditionModel, 3 channels in, and 3 or 6 out: the prediction, then perhaps the variance
    process: noise process and prediction type
    embed_prompts: embeds the prompts; text encoders are read for this and dropped
    image_size: pixels; by default the UNet's sample_size
    guidance: how its predictions with and without the text become one

    Raises UserError for a UNet that needs other inputs.
    """

    text_parts = staticmethod(no_single_clip)
    latent_space = ("pixels",)  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        unet: Any,
        process: NoiseProcess,
        embed_prompts: Callable[[Prompts], TextEmbeddings],
        image_size: int | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
    ):
        super().__init__(unet, process, image_size or unet.config.sample_size, guidance)
        self.embed_prompts = embed_prompts

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
    ) -> "PixelDiffusion":
        """The first stage of DeepFloyd IF, or another of its layout; its text encoder may also be a CLIP.

        source: folder or hub id with unet/, scheduler/, text_encoder/, tokenizer/; or a list, tried in order
        image_size: by default the UNet's sample_size
        dtype, x0_limit, cfg_rescale, x0_rescale, compile: as of `LatentDiffusion.build`

        Raises UserError, one line, if the weights are missing, damaged or of another kind.
        """
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        device = torch.device(device)
        dtype = network_dtype(dtype, device)
        known = about("text_to_image", {"kind": "pixel"})
        folder = find_weights(source, "text_to_image", needs=known.needs, download=device.type == "cuda", known=known)
        process = load_noise_process(folder).to(device)
        unet: Any = load_part(UNet2DConditionModel, folder, "unet", dtype)
        cls.check_unet(unet, folder / "unet")
        prior = cls(
            place_unet(unet, device, compile),
            process,
            partial(embed_prompts, folder, dtype, device),
            image_size,
            Guidance(cfg_rescale=cfg_rescale, x0_rescale=x0_rescale, x0_limit=x0_limit),
        )
        prior.source = folder
        return prior

    @staticmethod
    def check_unet(unet: Any, where: Any = "the UNet") -> None:
        """Raise UserError for a UNet that wants more than noisy pictures and text."""
        config = unet.config
        if config.in_channels != 3 or config.out_channels not in (3, 6):
            raise UserError(
                f"{where} takes {config.in_channels} channels and makes {config.out_channels}: a model over pixels "
                "takes 3 and makes 3, or 6 with the variance; of IF take the first stage"
            )
        if config.class_embed_type or config.addition_embed_type not in (None, "text"):
            raise UserError(
                f"{where} wants more than noisy pictures and text (class_embed_type {config.class_embed_type!r}, "
                f"addition_embed_type {config.addition_embed_type!r}); of IF take the first stage"
            )

    @property
    def text_width(self) -> int:
        return self.unet.config.encoder_hid_dim or self.unet.config.cross_attention_dim

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size

    def embed(self, prompts: Prompts) -> TextEmbeddings:
        return self.embed_prompts(prompts)

    def encode(
        self, rgb: Tensor, generator: torch.Generator | None, grad: bool = True, chunk: int | None = None
    ) -> Tensor:
        """Images (B, V, 3, R, R) in [0, 1] -> 2 x - 1, (B, V, 3, h, w), resized bilinearly (align_corners off)."""
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            images = rgb.flatten(0, 1).float()
            size = (self.image_size, self.image_size)
            if images.shape[-2:] != size:
                images = interpolate(images, size, mode="bilinear", align_corners=False)
            return (2 * images - 1).unflatten(0, rgb.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 2 + 0.5

    def network(self, x_t: Tensor, t: Tensor, conditions: Sequence[Condition], cameras: Cameras | None) -> Tensor:
        return super().network(x_t, t, conditions, cameras)[:, :3]


def embed_prompts(folder: Path, dtype: torch.dtype, device: torch.device, prompts: Prompts) -> TextEmbeddings:
    """The prompts by the text encoder of a folder: T5, told lower-case text as IF was trained with, or CLIP."""
    path = folder / "text_encoder" / "config.json"
    try:
        config = read_json(path)
    except Unreadable as error:
        raise UserError(f"cannot read {path}: {error.why}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "clip_text_model":
        tokenizer, encoder = load_text_parts(folder, dtype, device)
        return encode_prompt(tokenizer=tokenizer, text_encoder=encoder, **vars(prompts))
    if kind != "t5":
        raise UserError(f"{path}: model_type {kind!r}: wanted a T5 ('t5') or a CLIP ('clip_text_model')")

    def embed(texts: list[str]) -> tuple[Tensor, None]:
        lower = [text.lower().strip() for text in texts]
        embeddings = embed_t5(folder, "text_encoder", "tokenizer", lower, T5_TOKENS, dtype, masked=True)
        return embeddings.to(device, dtype), None

    return encode_prompts(prompts, embed)
