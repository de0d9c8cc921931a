"""Any Stable-Diffusion-like diffusers folder as a prior: Stable Diffusion 2.1-base, or the bundled toybox model."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.arguments import Pixels, Positive, Share
from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder, scale_factor
from jointdreamer.priors.base import AutoencodedPrior
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.priors.prompts import Prompts, TextEmbeddings, encode_prompt
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import load_part, load_tokenizer


class LatentDiffusion(AutoencodedPrior):
    """A frozen text-to-image latent diffusion model; views are independent to it.

    unet: UNet2DConditionModel that takes noisy latents and text
    vae: AutoencoderKL
    process: noise process and prediction type
    text_parts: gives (tokenizer, text encoder) when the prompt is embedded; kept by nobody
    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    guidance: how its predictions with and without the text become one

    Raises UserError for a UNet that needs other inputs.
    """

    what = "text-to-image model"

    def __init__(
        self,
        unet: Any,
        vae: Any,
        process: NoiseProcess,
        text_parts: Callable[[], tuple[Any, Any]],
        image_size: int | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
    ):
        super().__init__()
        self.check_unet(unet)
        self.unet, self.vae, self.process = unet, vae, process
        self.text_parts = text_parts
        self.image_size = image_size or (unet.config.sample_size * scale_factor(vae) if vae is not None else 0)
        self.guidance = guidance

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

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, conditions: Sequence[Condition], cameras: Cameras | None) -> list[Tensor]:
        """Raises UserError if the text embeddings are of another width than the UNet's."""
        k, (b, v) = len(conditions), x_t.shape[:2]
        if (width := conditions[0].embedding.shape[-1]) != self.unet.config.cross_attention_dim:
            raise UserError(
                f"the {self.what} reads text embeddings of width {self.unet.config.cross_attention_dim}, the text "
                f"encoder gives {width}: take both from the same family"
            )
        with torch.inference_mode():
            prediction = self.network(x_t, t, conditions, cameras)
        # a copy: autograd, an energy's for one, refuses what inference mode has made
        prediction = prediction.to(torch.float32, copy=True).unflatten(0, (k, b, v))
        return [self.process.noise(one, x_t, t) for one in prediction]

    def network(
        self,
        x_t: Tensor,  # (B, V, C, h, w)
        t: Tensor,  # (B,)
        conditions: Sequence[Condition],
        cameras: Cameras | None,
        forward: Callable[..., Any] | None = None,  # instead of the UNet's own
    ) -> Tensor:
        """What the UNet itself answers under K conditions: rows (K B V, C, h, w), in its precision."""
        k, v = len(conditions), x_t.shape[1]
        text = torch.cat([condition.embedding for condition in conditions]).flatten(0, 1)
        return (forward or self.unet)(
            self.beside(torch.cat([x_t] * k).flatten(0, 1), conditions).to(self.unet.dtype),
            t.repeat_interleave(v).repeat(k),
            encoder_hidden_states=text.to(self.unet.dtype),
            return_dict=False,
            **self.labels(cameras, k),
        )[0]

    def beside(self, rows: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """The network's input rows (K B V, C, h, w), with what a model wants beside the noisy latents."""
        return rows

    def labels(self, cameras: Cameras | None, k: int) -> dict[str, Tensor]:
        """What else the network is given, for K conditions of every view."""
        return {}


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
