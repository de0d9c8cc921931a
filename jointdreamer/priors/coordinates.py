"""A diffusion model over canonical coordinate maps: SweetDreamer's aligned geometric prior (Li et al. 2023, Sec. 4).

Its authors never released their weights, so this reads what others train in their layout: a UNet of Stable Diffusion's
structure over maps of coordinates and opacity as they are, without an autoencoder, which is told a text and a camera.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from jointdreamer.arguments import Positive, Scale, Share
from jointdreamer.cameras import Cameras, mvdream_camera
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.latent import load_text_parts
from jointdreamer.priors.network import NetworkPrior
from jointdreamer.priors.placement import place_unet
from jointdreamer.priors.prompts import Prompts, TextEmbeddings, encode_prompt
from jointdreamer.scenes.coordinates import as_latents, as_maps
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import load_part
from jointdreamer.weights.roles import ROLES

CAMERA = {"projection": 16, "simple_projection": 12}  # class_embed_type -> the numbers that say where a camera stands
DISTANCE = 1.5  # world units; the middle of the official 1.4 to 1.6


class CoordinateDiffusion(NetworkPrior):
    """A frozen diffusion model over coordinate maps (B, V, 4, R, R); views are independent to it.

    unet: UNet2DConditionModel, 4 channels in and out, whose class labels are the camera: 16 numbers with
        class_embed_type "projection" (MVDream's, `mvdream_camera`), or 12 with "simple_projection" (SweetDreamer's)
    process: noise process and prediction type
    text_parts: gives (tokenizer, text encoder) when the prompt is embedded
    scale: of the coordinates in [-1, 1] as they are noised; 1 in the official implementation
    extent: half the side of the canonical cube around the origin, world units; None is the object's own cube
    guidance: how its predictions with and without the text become one

    SweetDreamer's camera embedding is two linear maps with a batch normalisation between them and no activation: at
    inference that is one linear map, a "simple_projection". Its frame has the front at -y, ours at +x.
    Raises UserError for a UNet that needs other inputs.
    """

    what = "coordinate model"
    latent_space = ("coordinates",)  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        unet: Any,
        process: Any,
        text_parts: Any,
        scale: float = 1.0,
        extent: float | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008  (frozen)
    ):
        super().__init__(unet, process, unet.config.sample_size, guidance)
        self.text_parts, self.scale, self.extent = text_parts, scale, extent
        self.official_frame = unet.config.class_embed_type == "simple_projection"

    @classmethod
    def build(
        cls,
        source: str | Path | Sequence[str],
        text: str | Path | Sequence[str] | None = None,
        scale: Positive = 1.0,
        extent: Positive | None = None,
        guidance_scale: Scale | None = None,
        x0_limit: Positive | None = None,
        x0_rescale: Share = 0.0,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        compile: bool = False,
    ) -> "CoordinateDiffusion":
        """A coordinate model that you have trained, or the toybox's.

        source: folder or hub id with unet/ and scheduler/; or a list, tried in order
        text: diffusers folder or hub id, or a list, with the tokenizer and text encoder (Stable Diffusion 2.1's are
            SweetDreamer's); by default the model's own folder
        scale: of the coordinates in [-1, 1] as they are noised
        extent: half the side of the canonical cube around the origin, world units; null is 1.1 times what the object
            fills, around its centre, as the official implementation has it
        guidance_scale: s' of e(0) + s' (e(y) - e(0)), whatever the schedule says; null takes the schedule's
        x0_limit, x0_rescale: see `Guidance`
        dtype, compile: as of the other priors

        Raises UserError, one line, if the weights are missing, damaged or of another kind.
        """
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        device = torch.device(device)
        dtype, download = network_dtype(dtype, device), device.type == "cuda"
        folder = find_weights(source, "coordinates", download=download)
        unet: Any = load_part(UNet2DConditionModel, folder, "unet", dtype)
        cls.check_unet(unet, folder / "unet")
        words = folder
        if text is not None:
            role = "text encoder of the coordinate model"
            words = find_weights(text, role, needs=ROLES["text_encoder"].needs, download=download)
        prior = cls(
            place_unet(unet, device, compile),
            load_noise_process(folder).to(device),
            partial(load_text_parts, words, dtype, device),
            scale,
            extent,
            Guidance(scale=guidance_scale, x0_limit=x0_limit, x0_rescale=x0_rescale),
        )
        prior.source = folder
        return prior

    @staticmethod
    def check_unet(unet: Any, where: Any = "the UNet") -> None:
        """Raise UserError for a UNet that is not over four channels, or is not told a camera."""
        config = unet.config
        kind, numbers = config.class_embed_type, config.projection_class_embeddings_input_dim
        if (config.in_channels, config.out_channels) != (4, 4) or kind not in CAMERA or CAMERA[kind] != numbers:
            raise UserError(
                f"{where} is no UNet over coordinate maps: wanted 4 channels in and out and class_embed_type "
                "'projection' with projection_class_embeddings_input_dim 16 (the camera), or 'simple_projection' with "
                f"12; got {config.in_channels} in, {config.out_channels} out, {kind!r} with {numbers}"
            )

    def embed(self, prompts: Prompts) -> TextEmbeddings:
        tokenizer, encoder = self.text_parts()
        return encode_prompt(tokenizer=tokenizer, text_encoder=encoder, **vars(prompts))

    def encode(
        self, rgb: Tensor, generator: torch.Generator | None, grad: bool = True, chunk: int | None = None
    ) -> Tensor:
        """Coordinate maps (B, V, 4, R, R) in [0, 1] -> what is noised (B, V, 4, h, w): averaged, or bilinear to more.

        The render's pixels of a map's are averaged, so that a silhouette is as soft as a map's own.
        """
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            maps, size = rgb.flatten(0, 1).float(), self.image_size
            if maps.shape[-1] > size:
                maps = interpolate(maps, (size, size), mode="area")
            elif maps.shape[-1] < size:
                maps = interpolate(maps, (size, size), mode="bilinear", align_corners=False)
            maps = maps.unflatten(0, rgb.shape[:2])
            return as_latents(to_front(maps) if self.official_frame else maps, self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, V, 4, h, w) -> coordinate maps (B, V, 4, h, w), about [0, 1]."""
        maps = as_maps(latents, self.scale)
        return from_front(maps) if self.official_frame else maps

    def labels(self, conditions: Sequence[Condition], cameras: Cameras | None) -> dict[str, Any]:
        if cameras is None:
            raise UserError("a coordinate prior must be told where the views stand")
        numbers = (official_camera if self.official_frame else mvdream_camera)(cameras.c2w.to(self.unet.device))
        return {"class_labels": numbers.repeat(len(conditions), 1, 1).flatten(0, 1).to(self.unet.dtype)}


def official_camera(c2w: Tensor) -> Tensor:
    """What SweetDreamer's model is told: (..., 4, 4) -> (..., 12), its first three rows, row by row, in its own frame.

    Its frame is ours turned by -90 degrees about z: (x, y, z) -> (y, -x, z). The position is brought to `DISTANCE`, at
    which its objects fill a picture as ours do. The argument stays as it is: the official code turns it in place.
    """
    turned = torch.stack([c2w[..., 1, :], -c2w[..., 0, :], c2w[..., 2, :]], -2)
    position = DISTANCE * normalize(turned[..., 3], dim=-1)
    return torch.cat([turned[..., :3], position[..., None]], -1).flatten(-2)


def to_front(maps: Tensor) -> Tensor:
    """Coordinate maps (..., 4, R, R) in [0, 1] of our frame, front +x -> of SweetDreamer's: (y, -x, z)."""
    x, y, z, opacity = maps.unbind(-3)
    return torch.stack([y, 1 - x, z, opacity], -3)


def from_front(maps: Tensor) -> Tensor:
    """The inverse of `to_front`."""
    y, x, z, opacity = maps.unbind(-3)
    return torch.stack([1 - x, y, z, opacity], -3)
