"""Novel-view models: what other cameras would see of an object, given one image of it.

    model = load_novel_view("zero123", path)
    seen = model.embed_image(image, reference, cameras)
    cond, uncond = model.predict(x_t, t, [seen, seen.zeros()], cameras)

Zero-1-to-3 (zero123.py), which is told a relative pose, Stable Zero123, which is also
told where the image was taken from, and Wonder3D (wonder3d.py), which draws six fixed views together. All are latent
diffusion models with the image at two places: its latents beside the noisy ones, and its CLIP embedding where a text
would be. Their conventions are in docs/conventions.md.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from jointdreamer.arguments import Pixels, Positive, Scale
from jointdreamer.cameras import Cameras, Rig
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder
from jointdreamer.priors.condition import Condition, Conditions
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.parts import load_part
from jointdreamer.weights.roles import about

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Parts:
    """What a novel-view model is made of, frozen, on the CPU."""

    unet: Any  # UNet2DConditionModel, 8 channels in: noisy latents, then the image's
    vae: Any  # AutoencoderKL
    image_encoder: Any  # CLIPVisionModelWithProjection
    process: NoiseProcess
    projection: nn.Linear | None = None  # Zero-1-to-3: embedding and pose -> the width of an embedding


class NovelView(LatentDiffusion):
    """A frozen novel-view model: a latent diffusion model whose condition is an image and where each view stands.

    together: whether it draws all the views of its rig at once, the reference first.

    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    guidance_scale: s' of e(0) + s' (e(image) - e(0)); the authors of both models use 3
    x0_limit: clamp x0 to +- this; off by default
    """

    together = False
    role = "novel_view"  # of `weights.roles`
    what = "novel-view model"

    def __init__(
        self,
        parts: Parts,
        image_size: int | None = None,
        x0_limit: float | None = None,
        guidance_scale: float = 3.0,
    ):
        guidance = Guidance(scale=guidance_scale, x0_limit=x0_limit)
        super().__init__(parts.unet, parts.vae, parts.process, self.no_text, image_size, guidance)
        self.image_encoder = parts.image_encoder

    @classmethod
    def build(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        source: str | Path | Sequence[str],
        file: str | None = None,
        vae: str | Path | None = None,
        image_size: Pixels | None = None,
        x0_limit: Positive | None = None,
        guidance_scale: Scale = 3.0,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        compile: bool = False,
    ) -> "NovelView":
        """From a diffusers folder, the original checkpoint, a hub id, or a list of these, on its device.

        file: the name of a checkpoint inside a folder
        vae, image_size, x0_limit, guidance_scale: see `load`
        dtype: "auto", "float32", "bfloat16" or "float16", see `network_dtype`
        compile: whether torch.compile takes the UNet, see `place_unet`

        Raises UserError, one line, if the weights are missing, damaged or do not fit.
        """
        device = torch.device(device)
        download = device.type == "cuda"
        needs = None if file else about(cls.role, {"vae": vae}).needs
        hint = "name a folder or file, models.novel_view.source=...; models=toybox needs no download"
        path = find_weights(source, cls.role, file=file, needs=needs, hint=hint, download=download)
        dtype = network_dtype(dtype, device)
        model = cls.load(path, vae, image_size, x0_limit, guidance_scale, dtype, download).to(device)
        model.source = path
        model.vae = place(model.vae, device)
        model.unet = place_unet(model.unet, device, compile)
        return model

    @classmethod
    def load(
        cls,
        path: str | Path,
        vae: str | Path | None = None,
        image_size: int | None = None,
        x0_limit: float | None = None,
        guidance_scale: float = 3.0,
        dtype: torch.dtype = torch.float32,
        download: bool = True,
    ) -> "NovelView":
        """From a diffusers folder or the original checkpoint, frozen, on the CPU.

        vae: folder or hub id whose vae/ takes the place of the model's own autoencoder
        image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
        download: whether the network may be asked for the autoencoder

        Raises UserError, one line, for weights that are missing, damaged or of another kind.
        """
        own = None
        if vae is not None:
            needs = ("vae/config.json",)
            folder = find_weights(vae, "autoencoder of the novel-view model", needs=needs, download=download)
            own = load_autoencoder(folder, dtype)
        parts = cls.read(Path(path), own, dtype)
        check_autoencoder(parts.vae, parts.unet.config.out_channels, path)
        return cls(parts, image_size, x0_limit, guidance_scale).eval().requires_grad_(False)

    @staticmethod
    def check_unet(unet: Any, where: Any = "the UNet") -> None:
        """Nothing: `check_unet` below has looked."""

    @staticmethod
    def no_text() -> tuple[Any, Any]:
        raise UserError("a novel-view model reads an image, not a text")

    @classmethod
    @abstractmethod
    def read(cls, path: Path, vae: Any, dtype: torch.dtype) -> Parts:
        """The parts in a folder or checkpoint; `vae` replaces its autoencoder. Raises UserError, one line."""

    @abstractmethod
    def check_rig(self, rig: Rig) -> None:
        """Raise UserError, one line, for a rig whose views this model cannot draw."""

    def told(self, image: Tensor, reference: Cameras) -> Conditions:
        """What stands in for a prompt's `TextEmbeddings`: an image (3, R, R) in [0, 1] that one camera (1, 1) saw.

        Raises UserError for a model of fixed views.
        """
        raise UserError(
            "a model of fixed views cannot be a term's prior, its rigs turn: take Zero-1-to-3, "
            "models.novel_view.kind=zero123"
        )

    @abstractmethod
    def embed_image(self, image: Tensor, reference: Cameras, cameras: Cameras) -> Condition:
        """What the network is told of views from `cameras` (B, V).

        image: (B, 3, R, R) in [0, 1], what the reference cameras (B, 1) see. The condition of nothing is its zeros.
        """

    def start(self, condition: Condition, x_t: Tensor, t: Tensor, cameras: Cameras, generator: torch.Generator | None):
        """What is denoised (B, K, C, h, w): the views x_t (B, V, C, h, w), perhaps behind others of the model's own."""
        return x_t

    def beside(self, rows: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return torch.cat([rows, torch.cat([c.extra["image"] for c in conditions]).flatten(0, 1)], 1)

    def mode(self, image: Tensor) -> Tensor:
        """The mode of the autoencoder's posterior (B, C, h, w), not scaled, of images (B, 3, R, R)."""
        size = (self.image_size, self.image_size)
        small = interpolate(image, size, mode="bilinear", align_corners=False)
        return self.vae.encode((2 * small - 1).to(self.vae.dtype)).latent_dist.mode().float()

    def image_embedding(self, image: Tensor, **resize: bool) -> Tensor:
        """CLIP's embedding (B, D) of images (B, 3, R, R), not normalised; `resize` as in `interpolate`, bicubic."""
        config = self.image_encoder.config
        size = getattr(config, "vision_config", config).image_size
        small = interpolate(image, (self.image_size,) * 2, mode="bilinear", align_corners=False)
        if size != self.image_size:
            small = interpolate(small, (size, size), mode="bicubic", **resize)
        mean, std = (small.new_tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        pixels = ((small - mean) / std).to(self.image_encoder.dtype)
        return self.image_encoder(pixel_values=pixels).image_embeds.float()


def folder_parts(folder: Path, vae: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """The autoencoder (or `vae` instead) and the image encoder of a diffusers folder."""
    from transformers import CLIPVisionModelWithProjection
    from transformers.utils import logging

    logging.disable_progress_bar()
    if vae is None and not (folder / "vae").is_dir():
        raise UserError(f"{folder} has no autoencoder: name a folder that has one, models.novel_view.vae=FOLDER")
    own = vae if vae is not None else load_autoencoder(folder, dtype)
    return own, load_part(CLIPVisionModelWithProjection, folder, "image_encoder", dtype)


def check_unet(unet: Any, path: Path, what: str, image_encoder: Any, **wanted: Any) -> None:
    """Refuse a UNet whose config is not that of `what`, or that does not read the image encoder's embeddings."""
    channels = 2 * unet.config.out_channels  # the noised latents, and those of the image
    wanted = {"in_channels": channels, "cross_attention_dim": image_encoder.config.projection_dim, **wanted}
    for key, value in wanted.items():
        if (came := unet.config.get(key)) != value:
            raise UserError(f"{path} is no {what}: its UNet's {key} must be {value!r}, got {came!r}")
