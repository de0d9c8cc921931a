"""Novel-view models: what other cameras would see of an object, given one image of it.

One call serves them all:

    model = load_novel_view("zero123", path)
    x0 = model(image, reference, latents_noisy, timesteps, cameras, guidance_scale=3.0)

`KINDS` says which there are: Zero-1-to-3 (zero123.py), which is told a relative pose, Stable Zero123, which is also
told where the image was taken from, and Wonder3D (wonder3d.py), which draws six fixed views together. All are latent
diffusion models with the image at two places: its latents beside the noisy ones, and its CLIP embedding where a text
would be. Their conventions are in docs/conventions.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from jointdreamer.cameras import Cameras, Rig
from jointdreamer.diffusion import alpha_sigma, noise_from_x0, to_noise, x0_from_noise
from jointdreamer.errors import UserError
from jointdreamer.priors.autoencoder import check_autoencoder, encode_images, scale_factor
from jointdreamer.weights.checkpoint import differences
from jointdreamer.weights.find import find_weights, load_part

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

KINDS = {  # name -> its class, imported only when chosen
    "zero123": "jointdreamer.priors.zero123:Zero123",
    "stable_zero123": "jointdreamer.priors.zero123:StableZero123",
    "wonder3d": "jointdreamer.priors.wonder3d:Wonder3D",
}


@dataclass(frozen=True)
class Parts:
    """What a novel-view model is made of, frozen, on the CPU."""

    unet: Any  # UNet2DConditionModel, 8 channels in: noisy latents, then the image's
    vae: Any  # AutoencoderKL
    image_encoder: Any  # CLIPVisionModelWithProjection
    alphas_cumprod: Tensor  # (1000,)
    prediction_type: str
    projection: nn.Linear | None = None  # Zero-1-to-3: embedding and pose -> the width of an embedding


@dataclass(frozen=True)
class Condition:
    """One image of each of B objects, as a novel-view model takes it in."""

    embedding: Tensor  # (B, D) of the whole image
    latents: Tensor  # (B, C, h, w)


class NovelView(nn.Module, ABC):
    """A frozen novel-view model. `together` models draw all the views of their rig at once, the reference first."""

    together = False
    alphas_cumprod: Tensor  # (1000,)

    def __init__(self, parts: Parts, image_size: int | None = None, x0_limit: float | None = None):
        super().__init__()
        self.unet, self.vae, self.image_encoder = parts.unet, parts.vae, parts.image_encoder
        self.register_buffer("alphas_cumprod", parts.alphas_cumprod, persistent=False)
        self.prediction_type = parts.prediction_type
        self.image_size = image_size or self.unet.config.sample_size * scale_factor(self.vae)
        self.x0_limit = x0_limit

    @classmethod
    @abstractmethod
    def read(cls, path: Path, vae: Any, dtype: torch.dtype) -> Parts:
        """The parts in a folder or checkpoint; `vae` replaces its autoencoder. Raises UserError, one line."""

    @abstractmethod
    def check_rig(self, rig: Rig) -> None:
        """Raise UserError, one line, for a rig whose views this model cannot draw."""

    @abstractmethod
    def condition(self, image: Tensor) -> Condition:
        """Images (B, 3, R, R) in [0, 1] as the model was shown them in training."""

    @abstractmethod
    def predict(
        self, condition: Condition, reference: Cameras, x_t: Tensor, timesteps: Tensor, cameras: Cameras, scale: float
    ) -> Tensor:
        """x0 (B, K, C, h, w) of x_t (B, K, C, h, w), guided: uncond + scale (cond - uncond)."""

    def start(self, condition: Condition, x_t: Tensor, timesteps: Tensor, generator: torch.Generator | None) -> Tensor:
        """What is denoised (B, K, C, h, w): the views x_t (B, V, C, h, w), perhaps behind others of the model's own."""
        return x_t

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,  # (B, 3, R, R) in [0, 1], what the reference cameras see
        reference: Cameras,  # (B, 1)
        latents_noisy: Tensor,  # (B, V, C, h, w) of the views, at `timesteps`
        timesteps: Tensor,  # (B,)
        cameras: Cameras,  # (B, V)
        guidance_scale: float = 3.0,
        steps: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The views' clean latents x0 (B, V, C, h, w), float32: one estimate, or after `steps` of DDIM down to 0."""
        condition = self.condition(image)
        x_t, now = self.start(condition, latents_noisy, timesteps, generator), timesteps
        x0 = self.predict(condition, reference, x_t, now, cameras, guidance_scale)
        for k in range(1, steps):
            noise = noise_from_x0(x_t, x0, *alpha_sigma(self.alphas_cumprod, now))
            now = timesteps * (steps - k) // steps
            alpha_t, sigma_t = alpha_sigma(self.alphas_cumprod, now)
            x_t = alpha_t * x0 + sigma_t * noise
            x0 = self.predict(condition, reference, x_t, now, cameras, guidance_scale)
        return x0[:, -latents_noisy.shape[1] :]

    @torch.no_grad()
    def encode(self, rgb: Tensor, generator: torch.Generator | None) -> Tensor:
        """Views (B, V, 3, R, R) in [0, 1] -> latents (B, V, C, h, w), sampled and scaled; without a graph."""
        return encode_images(self.vae, rgb, self.image_size, generator)

    def mode(self, image: Tensor) -> Tensor:
        """The mode of the autoencoder's posterior (B, C, h, w), not scaled, of images (B, 3, R, R)."""
        size = (self.image_size, self.image_size)
        small = interpolate(image, size, mode="bilinear", align_corners=False)
        return self.vae.encode((2 * small - 1).to(self.vae.dtype)).latent_dist.mode().float()

    def embed(self, image: Tensor, **resize: bool) -> Tensor:
        """CLIP's embedding (B, D) of images (B, 3, R, R), not normalised; `resize` as in `interpolate`, bicubic."""
        config = self.image_encoder.config
        size = getattr(config, "vision_config", config).image_size
        small = interpolate(image, (self.image_size,) * 2, mode="bilinear", align_corners=False)
        if size != self.image_size:
            small = interpolate(small, (size, size), mode="bicubic", **resize)
        mean, std = (small.new_tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        pixels = ((small - mean) / std).to(self.image_encoder.dtype)
        return self.image_encoder(pixel_values=pixels).image_embeds.float()

    def noise(self, prediction: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """The network's prediction (B, K, C, h, w) as noise."""
        return to_noise(prediction.float(), x_t, *alpha_sigma(self.alphas_cumprod, timesteps), self.prediction_type)

    def x0(self, noise: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """x0 (B, K, C, h, w) of the noise, clamped to +- x0_limit."""
        x0 = x0_from_noise(x_t, noise, *alpha_sigma(self.alphas_cumprod, timesteps))
        return x0 if self.x0_limit is None else x0.clamp(-self.x0_limit, self.x0_limit)


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    return uncond + scale * (cond - uncond)


def load_novel_view(
    kind: str,
    path: str | Path,
    vae: str | Path | None = None,
    image_size: int | None = None,
    x0_limit: float | None = None,
    dtype: torch.dtype = torch.float32,
    download: bool = True,
) -> NovelView:
    """A novel-view model from a diffusers folder or the original checkpoint, frozen, on the CPU.

    vae: folder or hub id whose vae/ takes the place of the model's own autoencoder
    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    download: whether the network may be asked for the autoencoder

    Raises UserError, one line, for an unknown kind, and for weights that are missing, damaged or of another kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of novel-view model {kind!r}: choose one of {', '.join(KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    cls: type[NovelView] = getattr(import_module(module), name)
    autoencoder = None
    if vae is not None:
        folder = find_weights(vae, "autoencoder of the novel-view model", needs=("vae/config.json",), download=download)
        autoencoder = load_part(_autoencoder(), folder, "vae", dtype)
    parts = cls.read(Path(path), autoencoder, dtype)
    check_autoencoder(parts.vae, parts.unet.config.out_channels, path)
    return cls(parts, image_size, x0_limit).eval().requires_grad_(False)


def folder_parts(folder: Path, vae: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """The autoencoder (or `vae` instead) and the image encoder of a diffusers folder."""
    from transformers import CLIPVisionModelWithProjection
    from transformers.utils import logging

    logging.disable_progress_bar()
    if vae is None and not (folder / "vae").is_dir():
        raise UserError(f"{folder} has no autoencoder: name a folder that has one, energy.vae=FOLDER")
    own = vae if vae is not None else load_part(_autoencoder(), folder, "vae", dtype)
    return own, load_part(CLIPVisionModelWithProjection, folder, "image_encoder", dtype)


def _autoencoder() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL


def check_unet(unet: Any, path: Path, what: str, image_encoder: Any, **wanted: Any) -> None:
    """Refuse a UNet whose config is not that of `what`, or that does not read the image encoder's embeddings."""
    wanted = {"in_channels": 8, "cross_attention_dim": image_encoder.config.projection_dim, **wanted}
    for key, value in wanted.items():
        if (came := unet.config.get(key)) != value:
            raise UserError(f"{path} is no {what}: its UNet's {key} must be {value!r}, got {came!r}")


def build_exactly(
    make: Callable[[], Any], state: Mapping[str, Tensor], dtype: torch.dtype, where: str, names: Mapping[str, str]
) -> Any:
    """A frozen network that holds every tensor of `state` once and nothing else; nothing is initialised at random.

    where: opens the error; names: what the tensors are called in the file, where that is not what they are called here.
    Raises UserError, one line, with the first missing and the first unexpected key.
    """
    with torch.device("meta"):  # 866 million random numbers would take longer than the reading
        model = make()
    wanted = model.state_dict()
    if wanted.keys() != state.keys():
        came = (key if key in wanted else names.get(key, key) for key in state)
        raise UserError(f"{where}: {differences(wanted, came, seen=())}")
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            came, right = tuple(state[key].shape), tuple(value.shape)
            raise UserError(f"{where}: {names.get(key, key)} has the shape {came}, wanted {right}")
    model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True, assign=True)
    for name, buffer in list(model.named_buffers()):  # not in any file: transformers counts the patches with it
        if buffer.is_meta and name.endswith("position_ids"):
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.position_ids = torch.arange(buffer.shape[-1]).expand(buffer.shape)
    return model.eval().requires_grad_(False)
