"""Stable Diffusion 3 and 3.5 as a prior (Esser et al. 2024): a rectified flow over shifted latents of 16 channels.

Timesteps of this package ascend with the noise, in those of diffusers' scheduler they descend: t here is index 999 - t
there. The network is told 1000 sigma_t, after the shift; with t / 1000 = 0.7 and a shift of 3 sigma_t is 0.875.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from jointdreamer.arguments import Pixels, Positive, Share
from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder, scale_factor
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.latent import LatentDiffusion, load_text_parts, no_single_clip
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.priors.prompts import Prompts, TextEmbeddings, embed_by_all, encode_prompts
from jointdreamer.priors.t5 import WITHOUT_T5, embed_t5
from jointdreamer.reading import Unreadable, read_json
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.folders import refuse_distilled_folder
from jointdreamer.weights.noise_process import load_rectified_flow
from jointdreamer.weights.parts import load_part
from jointdreamer.weights.roles import about

T5_TOKENS = 256

EmbedT5 = Callable[[Sequence[str]], Tensor]  # texts -> (N, L, D)


class RectifiedFlow(LatentDiffusion):
    """A frozen latent rectified flow whose network is an SD3Transformer2DModel; it predicts the velocity noise - x0.

    unet: the transformer
    text_parts: CLIP encoders: each gives (tokenizer, text encoder); all of them pool the text
    t5: T5's embeddings of texts; None for zeros, with which the model was trained too
    t5_tokens: of T5's part of the text, 256 in Stable Diffusion 3; 0 for a model without that part
    Otherwise as `LatentDiffusion`.

    Raises UserError for an image size that the transformer cannot cut into its patches.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        process: NoiseProcess,
        text_parts: Sequence[Callable[[], tuple[Any, Any]]],
        t5: EmbedT5 | None = None,
        t5_tokens: int = T5_TOKENS,
        image_size: int | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
    ):
        super().__init__(unet, vae, process, no_single_clip, image_size, guidance)
        self.encoders, self.t5, self.t5_tokens = text_parts, t5, t5_tokens
        patch = scale_factor(vae) * unet.config.patch_size
        most = patch * unet.config.pos_embed_max_size
        if self.image_size % patch or self.image_size > most:
            raise UserError(
                f"models.text_to_image.image_size={self.image_size}: the transformer reads patches of {patch} pixels, "
                f"and at most {most} pixels: wanted a multiple of {patch} up to that"
            )

    @classmethod
    def build(
        cls,
        source: str | Path | Sequence[str],
        vae: str | Path | None = None,
        image_size: Pixels | None = None,
        text_encoders: Literal[1, 2, 3] = 3,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        x0_limit: Positive | None = None,
        cfg_rescale: Share = 0.0,
        x0_rescale: Share = 0.0,
        compile: bool = False,
    ) -> "RectifiedFlow":
        """Stable Diffusion 3.5 medium or large, Stable Diffusion 3, or another of their layout.

        source: folder or hub id with transformer/, vae/, scheduler/, and text_encoder/, tokenizer/, both also with _2
            and _3; or a list, tried in order
        vae: folder or hub id whose vae/ takes the place of its own
        image_size: pixels that the autoencoder sees; by default the transformer's sample_size times its factor
        text_encoders: how many are read: 3; 2 without T5, for which zeros stand; 1 for a small model that has one CLIP
        dtype, x0_limit, cfg_rescale, x0_rescale, compile: as of `LatentDiffusion.build`

        Raises UserError, one line, if the weights are missing, damaged or of another kind, such as FLUX.
        """
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        device = torch.device(device)
        dtype = network_dtype(dtype, device)
        known = about("text_to_image", {"kind": "flow", "text_encoders": text_encoders, "vae": vae})
        download = device.type == "cuda"
        check_transformer(source)
        folder = find_weights(source, "text_to_image", needs=known.needs, download=download, known=known)
        check_transformer(folder)
        process = load_rectified_flow(folder).to(device)
        unet: Any = load_part(SD3Transformer2DModel, folder, "transformer", dtype)
        cls.check_unet(unet, folder / "transformer")
        where = folder
        if vae is not None:
            where = find_weights(vae, "autoencoder", needs=("vae/config.json",), download=download)
        autoencoder = load_autoencoder(where, dtype)
        check_autoencoder(autoencoder, unet.config.in_channels, where)
        clips = [
            partial(load_text_parts, folder, dtype, device, number, projected=True)
            for number in ("", "_2")[:text_encoders]
        ]
        t5 = partial(embed_t5, folder, "text_encoder_3", "tokenizer_3", length=T5_TOKENS, dtype=dtype, spare=WITHOUT_T5)
        prior = cls(
            place_unet(unet, device, compile),
            place(autoencoder, device),
            process,
            clips,
            t5 if text_encoders == 3 else None,
            0 if text_encoders == 1 else T5_TOKENS,
            image_size,
            Guidance(cfg_rescale=cfg_rescale, x0_rescale=x0_rescale, x0_limit=x0_limit),
        )
        prior.source = folder
        return prior

    @staticmethod
    def check_unet(unet: Any, where: Any = "the transformer") -> None:
        """Raise UserError for a transformer that wants more than noisy latents and text."""
        if unet.config.in_channels != unet.config.out_channels:
            raise UserError(
                f"{where} takes {unet.config.in_channels} channels and makes {unet.config.out_channels}: it wants more "
                "than noisy latents; take a base model"
            )

    @property
    def text_width(self) -> int:
        return self.unet.config.joint_attention_dim

    def embed(self, prompts: Prompts) -> TextEmbeddings:
        def embed(texts: list[str]) -> tuple[Tensor, Tensor]:
            states, each = embed_by_all(self.encoders, texts, prompts.prompt)
            pooled = torch.cat([one for one in each if one is not None], -1)
            if pooled.shape[-1] != (wanted := self.unet.config.pooled_projection_dim):
                raise UserError(
                    f"the transformer reads pooled text of width {wanted}, the text encoders give {pooled.shape[-1]}"
                )
            states = pad(states, (0, self.text_width - states.shape[-1]))
            t5 = states.new_zeros(len(texts), self.t5_tokens, self.text_width)
            if self.t5 is not None:
                t5 = self.t5(texts).to(states)
            if t5.shape[-1] != self.text_width:
                raise UserError(f"the transformer reads T5 of width {self.text_width}, this one's is {t5.shape[-1]}")
            return torch.cat([states, t5], 1), pooled

        return encode_prompts(prompts, embed)

    def network(
        self,
        x_t: Tensor,  # (B, V, C, h, w)
        t: Tensor,  # (B,)
        conditions: Sequence[Condition],
        cameras: Cameras | None,
    ) -> Tensor:
        k, v = len(conditions), x_t.shape[1]
        timestep = self.process.sigma.to(t.device)[t] * len(self.process)
        return self.unet(
            hidden_states=torch.cat([x_t] * k).flatten(0, 1).to(self.unet.dtype),
            timestep=timestep.repeat_interleave(v).repeat(k),
            encoder_hidden_states=self.text(conditions),
            pooled_projections=self.pooled(conditions),
            return_dict=False,
        )[0]


def check_transformer(folder: Any) -> None:
    """Raise UserError, one line, for another transformer than this prior asks, such as FLUX's.

    folder: what is no folder here, or has no transformer, passes.
    """
    if not isinstance(folder, str | Path):
        return
    refuse_distilled_folder(Path(folder))
    path = Path(folder) / "transformer" / "config.json"
    try:
        config = read_json(path) if path.exists() else {}
    except Unreadable:  # whoever loads it says what is wrong
        return
    wanted = "SD3Transformer2DModel"
    name = str(config.get("_class_name", wanted)) if isinstance(config, dict) else wanted
    if name != wanted:
        raise UserError(f"{path}: wanted an {wanted} (Stable Diffusion 3 or 3.5), got {name[:60]}")
