"""ImageDream (Wang & Shi 2023): MVDream that is told a picture of the object as well as a text.

The picture enters twice. Sixteen tokens, which a resampler makes of CLIP's penultimate features, stand beside the
text's and have keys and values of their own in every cross-attention; and in the "pixel" model its latents are a fifth
view, without a camera, whose prediction is dropped. The "local" model has the tokens alone. Guidance steers away from
the empty text and, in both places, from zeros. Names are the authors', so their checkpoints fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointdreamer.arguments import Pixels, Positive, Scale, Share
from jointdreamer.cameras import Cameras, mvdream_camera
from jointdreamer.diffusion import NoiseProcess, scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.latent import load_text_parts
from jointdreamer.priors.ldm import UNET, VAE, strip, unet_from_ldm, unet_names, vae_from_ldm
from jointdreamer.priors.multi_view import TEXT_ENCODER, MultiViewDiffusion
from jointdreamer.priors.multi_view_unet import CAMERA, MultiViewAttnProcessor
from jointdreamer.priors.novel_view import CLIP_MEAN, CLIP_STD
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.priors.prompts import Prompts, TextEmbeddings
from jointdreamer.priors.zero123 import vision_tower
from jointdreamer.weights.checkpoint import advice, read_checkpoint
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import build_exactly, load_part, part_keys, read_part

RESAMPLER, OWN_KEYS = "image_embed.", (".attn2.to_k_ip.weight", ".attn2.to_v_ip.weight")
CLIP = "cond_stage_model.model."
# What a whole model calls its parts, and what the checkpoints of MVDream and Stable Diffusion do
OTHER_NAMES = {"clip_model.": "cond_stage_model.", "vae_model.": VAE}
HEAD_CHANNELS = {1280: 80}  # of OpenCLIP's vision towers, by their width, where it is not 64: ViT-H
RESAMPLER_HEAD_CHANNELS = 64
Variant = Literal["pixel", "local"]


class PerceiverAttention(nn.Module):
    """Queries (N, Q, D) look at features (N, L, D) and at themselves."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.heads = max(1, inner // RESAMPLER_HEAD_CHANNELS)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        features, queries = self.norm1(features), self.norm2(queries)
        key, value = self.to_kv(torch.cat([features, queries], 1)).chunk(2, -1)
        return self.to_out(attend(self.to_q(queries), key, value, self.heads))


class Resampler(nn.Module):
    """CLIP's features (N, L, D) as tokens (N, Q, D'): IP-Adapter-plus's, by the names that it has there."""

    def __init__(self, tokens: int, width: int, features: int, out: int, inner: int, hidden: int, depth: int):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, tokens, width))
        self.proj_in, self.proj_out = nn.Linear(features, width), nn.Linear(width, out)
        self.norm_out = nn.LayerNorm(out)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            forward = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, hidden, bias=False),
                nn.GELU(),
                nn.Linear(hidden, width, bias=False),
            )
            self.layers.append(nn.ModuleList([PerceiverAttention(width, inner), forward]))

    def forward(self, features: Tensor) -> Tensor:
        queries, features = self.latents.expand(len(features), -1, -1), self.proj_in(features)
        for layer in self.layers:
            look, forward = layer  # pyright: ignore[reportGeneralTypeIssues]
            queries = queries + look(features, queries)
            queries = queries + forward(queries)
        return self.norm_out(self.proj_out(queries))


class ImageAttnProcessor(nn.Module):
    """Cross-attention whose last `n_tokens` tokens are the picture's, with keys and values of their own.

    What the two find is added. The picture's heads start from the text's queries.
    """

    def __init__(self, to_k: nn.Linear, to_v: nn.Linear, n_tokens: int):
        super().__init__()
        self.to_k_ip, self.to_v_ip, self.n_tokens = to_k, to_v, n_tokens

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs) -> Tensor:
        assert encoder_hidden_states is not None
        text, image = encoder_hidden_states.tensor_split([-self.n_tokens], 1)
        query = attn.to_q(hidden_states)
        found = attend(query, attn.to_k(text), attn.to_v(text), attn.heads)
        found = found + attend(query, self.to_k_ip(image), self.to_v_ip(image), attn.heads)
        return attn.to_out[0](found)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of (N, L, C) to (N, M, C) in so many heads, (N, L, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class WithImage(TextEmbeddings):
    """A prompt, with which a picture is shown; without the prompt it is not."""

    def at(self, cameras: Cameras) -> Condition:
        return _showing(super().at(cameras), 1.0)

    def without_view(self, cameras: Cameras) -> Condition:
        return _showing(super().without_view(cameras), 1.0)

    def nothing(self, cameras: Cameras, negative: bool = False) -> Condition:
        return _showing(super().nothing(cameras, negative), 0.0)


def _showing(condition: Condition, share: float) -> Condition:
    shown = condition.embedding.new_full(condition.embedding.shape[:2], share)
    return Condition(condition.embedding, {**condition.extra, "shown": shown})


@dataclass(frozen=True)
class Parts:
    """What ImageDream is made of, frozen, on the CPU."""

    unet: Any  # UNet2DConditionModel whose cross-attentions have an ImageAttnProcessor
    resampler: Resampler
    image_encoder: Any  # CLIPVisionModelWithProjection; None if the file or folder has none
    vae: Any  # AutoencoderKL; None if the file or folder has none
    process: NoiseProcess


class ImageDream(MultiViewDiffusion):
    """ImageDream as a prior. `give_image` comes before everything else that is asked.

    variant: "pixel" sees the picture's latents as a fifth view, "local" does not; the weights do not tell
    Otherwise as `MultiViewDiffusion`.
    """

    what = "ImageDream model"

    def __init__(self, parts: Parts, variant: Variant, text_parts: Any, image_size: int | None, guidance: Guidance):
        super().__init__(parts.unet, parts.vae, parts.process, text_parts, image_size, guidance)
        self.resampler, self.image_encoder, self.variant = parts.resampler, parts.image_encoder, variant
        self.features: Tensor | None = None  # (1, L, D) of the picture
        self.picture: Tensor | None = None  # (1, C, h, w) its latents

    @classmethod
    def build(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        source: str | Path | Sequence[str],
        file: str | None = None,
        vae: str | Path | None = None,
        image_encoder: str | Path | None = None,
        image_size: Pixels | None = None,
        variant: Variant = "pixel",
        guidance_scale: Scale = 5.0,
        rescale: Share = 0.2,
        x0_limit: Positive | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        compile: bool = False,
        text: str | Path | Sequence[str] | None = None,
    ) -> "ImageDream":
        """From the authors' checkpoint, or a folder with unet/ and scheduler/ by the authors' names.

        source: checkpoint, folder, or a hub id of either; or a list, tried in order
        file: the checkpoint's name inside a folder or repository
        vae, image_encoder: folder or hub id whose vae/ or image_encoder/ takes the place of its own
        image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
        variant: pixel or local
        guidance_scale, rescale, x0_limit, dtype, compile: as of `MultiViewDiffusion.build`
        text: diffusers folder or hub id, or a list, with the tokenizer and text encoder (Stable Diffusion 2.1's)

        Raises UserError, one line, if the weights are missing, damaged or do not fit.
        """
        device = torch.device(device)
        dtype, download = network_dtype(dtype, device), device.type == "cuda"
        path = find_weights(source, "imagedream", file=file, download=download)
        parts = load_imagedream(path, dtype)
        own = {"vae": parts.vae, "image_encoder": parts.image_encoder}
        for name, other in {"vae": vae, "image_encoder": image_encoder}.items():
            if other is not None:
                needs = (f"{name}/config.json",)
                folder = find_weights(other, f"{name} of ImageDream", needs=needs, download=download)
                own[name] = _part_of(folder, name, dtype)
            elif own[name] is None:
                raise UserError(f"{path} has no {name}: name a folder that has one, models.imagedream.{name}=FOLDER")
        check_autoencoder(own["vae"], parts.unet.config.in_channels, path)
        if own["image_encoder"].config.hidden_size != (width := parts.resampler.proj_in.in_features):
            came = own["image_encoder"].config.hidden_size
            raise UserError(
                f"models.imagedream.image_encoder gives features of width {came}, {path} reads {width}: wanted "
                "OpenCLIP's ViT-H-14"
            )
        words = path
        if text is not None:
            words = find_weights(text, "text encoder of ImageDream", needs=TEXT_ENCODER.needs, download=download)
        # no `fast_unet`: it does not know the picture's attention
        unet = place_unet(parts.unet, device, compile) if compile else place(parts.unet, device)
        guidance = Guidance(scale=guidance_scale, x0_rescale=rescale, x0_limit=x0_limit, over="rig")
        parts = Parts(
            unet,
            parts.resampler.to(device),
            own["image_encoder"].to(device),
            place(own["vae"], device),
            parts.process.to(device),
        )
        prior = cls(parts, variant, partial(load_text_parts, words, dtype, device), image_size, guidance)
        prior.source = path
        return prior

    @torch.no_grad()
    def give_image(self, image: Tensor) -> None:
        """The picture (3, R, R) in [0, 1] of all that follows, before the background that renders have."""
        image = image.to(self.unet.device, torch.float32)[None].clamp(0, 1)
        size = self.image_encoder.config.image_size
        small = F.interpolate(image, (size, size), mode="bicubic", align_corners=False, antialias=True)
        mean, std = (small.new_tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        pixels = ((small - mean) / std).to(self.image_encoder.dtype)
        # the last block is left out, the class token is not
        self.features = self.image_encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        drawn = torch.Generator().manual_seed(0)  # of the autoencoder's posterior: the same for every run
        self.picture = self.encode(image[None], drawn, grad=False)[0]

    def embed(self, prompts: Prompts) -> TextEmbeddings:
        """Raises UserError without a picture."""
        self._given()
        return WithImage(**vars(super().embed(prompts)))

    def _given(self) -> tuple[Tensor, Tensor]:
        if self.features is None or self.picture is None:
            raise UserError("ImageDream is told a picture of the object: give one, image=FILE")
        return self.features, self.picture

    def network(
        self,
        x_t: Tensor,  # (B, V, C, h, w)
        t: Tensor,  # (B,)
        conditions: Sequence[Condition],
        cameras: Cameras | None,
    ) -> Tensor:
        if cameras is None:
            raise UserError("a multi-view prior must be told where the views stand")
        features, picture = self._given()
        k, (b, v), fifth = len(conditions), x_t.shape[:2], self.variant == "pixel"
        dtype = self.unet.dtype
        shown = torch.cat([condition.extra["shown"][:, :1] for condition in conditions]).to(dtype)  # (K B, 1)
        tokens = self.resampler((shown[..., None] * features).to(dtype))  # (K B, Q, D)
        rows, camera = torch.cat([x_t] * k).to(dtype), mvdream_camera(cameras.c2w.to(x_t.device)).repeat(k, 1, 1)
        words = torch.cat([condition.embedding for condition in conditions]).to(dtype)  # (K B, V, L, D)
        if fifth:
            rows = torch.cat([rows, (shown[..., None, None] * picture)[:, None].to(dtype)], 1)
            camera = torch.cat([camera, torch.zeros_like(camera[:, :1])], 1)
            words = torch.cat([words, words[:, :1]], 1)
        frames = rows.shape[1]
        for processor in self.unet.attn_processors.values():
            if isinstance(processor, MultiViewAttnProcessor):
                processor.n_views = frames
        words = torch.cat([words, tokens[:, None].expand(-1, frames, -1, -1)], 2)
        out = self.unet(
            rows.flatten(0, 1),
            t.repeat_interleave(frames).repeat(k),
            encoder_hidden_states=words.flatten(0, 1),
            class_labels=camera.flatten(0, 1).to(dtype),
            return_dict=False,
        )[0]
        return out.unflatten(0, (k * b, frames))[:, :v].flatten(0, 1)


def _part_of(folder: Path, name: str, dtype: torch.dtype) -> Any:
    from transformers import CLIPVisionModelWithProjection

    if name == "vae":
        return load_autoencoder(folder, dtype)
    return load_part(CLIPVisionModelWithProjection, folder, name, dtype)


def load_imagedream(path: Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Read the authors' checkpoint (.pt, .safetensors), or a folder whose unet/ has the authors' names.

    Raises UserError, one line, if it is missing, damaged or no ImageDream.
    """
    where = f"{path} is no complete ImageDream"
    if path.is_dir():
        ldm = read_part(path / "unet") if part_keys(path / "unet") else {}
        unet, resampler = _network(strip(ldm, UNET) or ldm, dtype, where, part_keys(path / "unet"))
        vae, encoder = (
            _part_of(path, name, dtype) if (path / name).is_dir() else None for name in ("vae", "image_encoder")
        )
        return Parts(unet, resampler, encoder, vae, load_noise_process(path))
    state = _as_mvdream_names(read_checkpoint(path))
    unet, resampler = _network(strip(state, UNET), dtype, where, state)
    visual = {key: value for key, value in strip(state, CLIP).items() if key.startswith("visual.")}
    encoder = None
    if visual:
        width = visual["visual.conv1.weight"].shape[0] if "visual.conv1.weight" in visual else 0
        encoder = vision_tower(visual, dtype, where, HEAD_CHANNELS.get(width, 64), "gelu")
    vae = vae_from_ldm(state, dtype, where) if any(key.startswith(VAE) for key in state) else None
    alphas_cumprod = state.get("alphas_cumprod", scaled_linear_alphas_cumprod()).float().clone()
    return Parts(unet, resampler, encoder, vae, NoiseProcess.variance_preserving(alphas_cumprod))


def _as_mvdream_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        old = next((old for old in OTHER_NAMES if key.startswith(old)), None)
        renamed[key if old is None else OTHER_NAMES[old] + key.removeprefix(old)] = value
    return renamed


def _network(ldm: Mapping[str, Tensor], dtype: torch.dtype, where: str, seen: Any) -> tuple[Any, Resampler]:
    """The UNet with the picture's attention, and the resampler, of weights by their original names."""
    of_image = {key: value for key, value in ldm.items() if key.startswith(RESAMPLER) or key.endswith(OWN_KEYS)}
    if CAMERA not in ldm or not any(key.endswith(OWN_KEYS) for key in of_image):
        lacks = "camera_embed" if CAMERA not in ldm else "attn2.to_k_ip"
        raise UserError(
            f"{where}: it has no {lacks}; expected e.g. sd-v2.1-base-4view-ipmv.pt{advice(seen, 'imagedream')}"
        )
    unet = unet_from_ldm({key: value for key, value in ldm.items() if key not in of_image}, dtype, where)
    resampler = _resampler(strip(of_image, RESAMPLER), dtype, where)
    names = unet_names(ldm, unet.config.layers_per_block)
    n_tokens = resampler.latents.shape[1]
    processors = {}
    for name, processor in unet.attn_processors.items():
        module = name.removesuffix(".processor")
        old = [names.get(f"{module}.{which}.weight") for which in ("to_k_ip", "to_v_ip")]
        if name.endswith(".attn1.processor"):
            processors[name] = MultiViewAttnProcessor(1)
        elif None not in old:
            to_k, to_v = (_linear(ldm[str(key)], dtype) for key in old)
            processors[name] = ImageAttnProcessor(to_k, to_v, n_tokens)
        else:
            processors[name] = processor  # reads the picture's tokens as it does words
    unet.set_attn_processor(processors)
    return unet.eval().requires_grad_(False), resampler


def _linear(weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return linear


def _resampler(state: Mapping[str, Tensor], dtype: torch.dtype, where: str) -> Resampler:
    try:
        _, tokens, width = state["latents"].shape
        out, features = len(state["proj_out.weight"]), state["proj_in.weight"].shape[1]
        inner, hidden = len(state["layers.0.0.to_q.weight"]), len(state["layers.0.1.1.weight"])
    except (KeyError, IndexError, ValueError) as error:
        said = f"first missing key {UNET}{RESAMPLER}{error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: {said}") from error
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))

    def make() -> Resampler:
        return Resampler(tokens, width, features, out, inner, hidden, depth)

    return build_exactly(make, state, dtype, f"{where}: its resampler ({UNET}{RESAMPLER[:-1]})", {})
