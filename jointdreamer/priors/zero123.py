"""Zero-1-to-3 (XL): any relative pose, as four numbers beside the image's embedding. docs/conventions.md, Zero-1-to-3.

Read from the authors' .ckpt, or from a diffusers folder with unet/, image_encoder/, clip_camera_projection/ (or
cc_projection/), scheduler/, and perhaps vae/. The UNet is the stock one with 8 channels in.
"""

import re
from math import pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jointdreamer.cameras import Cameras, Rig
from jointdreamer.diffusion import NoiseProcess, scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition, Conditions
from jointdreamer.priors.ldm import UNET, VAE, strip, unet_from_ldm, vae_from_ldm
from jointdreamer.priors.novel_view import NovelView, Parts, check_unet, folder_parts
from jointdreamer.weights.checkpoint import advice, differences, read_checkpoint
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import build_exactly, load_part

POSE = 4  # numbers
# what the authors, and who converted their files, call Zero-1-to-3
PLAIN_NAME = re.compile(r"zero-?(?:123|1-?to-?3)[-_.](?:xl|hf|\d+|165000|diffusers)|^105000\.ckpt", re.IGNORECASE)
HEAD_CHANNELS = 64  # of OpenAI's CLIP
PROJECTIONS = ("clip_camera_projection", "cc_projection")  # folders, after two conversions of the checkpoint
EMA, CLIP, PROJECTION = "model_ema.", "cond_stage_model.model.", "cc_projection."
# What is left of CLIP's text tower, which was deleted before training: nobody's
REST = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight")
REST += ("ln_final.weight", "ln_final.bias")
# One of each group, as the original code names them: what a checkpoint must have to be taken apart at all
SIGNATURE = (
    "cc_projection.weight",
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.out.2.weight",
    "first_stage_model.post_quant_conv.weight",
    "cond_stage_model.model.visual.conv1.weight",
)


def relative_numbers(reference: Cameras, cameras: Cameras) -> Tensor:
    """(B, V, 4): difference of the polar angle from +z, sine and cosine of that of the azimuth, and of the distance.

    reference (B, 1), cameras (B, V). Target minus reference; radians and world units. The polar angle falls where the
    elevation rises.
    """
    polar = reference.elevation - cameras.elevation
    azimuth = cameras.azimuth - reference.azimuth
    return torch.stack([polar, azimuth.sin(), azimuth.cos(), cameras.distance - reference.distance], -1)


def stable_numbers(reference: Cameras, cameras: Cameras) -> Tensor:
    """(B, V, 4) of Stable Zero123: as `relative_numbers`, but last the polar angle of the reference itself, radians."""
    polar = (pi / 2 - reference.elevation).expand_as(cameras.elevation)
    return torch.cat([relative_numbers(reference, cameras)[..., :3], polar[..., None]], -1)


class Zero123(NovelView):
    """Views of arbitrary pose relative to the image's; each is drawn for itself."""

    numbers = staticmethod(relative_numbers)  # what the network is told of a pose

    def __init__(self, parts: Parts, *args: Any, **options: Any):
        super().__init__(parts, *args, **options)
        assert parts.projection is not None
        self.cc_projection = parts.projection

    @classmethod
    def read(cls, path: Path, vae: Any, dtype: torch.dtype) -> Parts:
        cls.check_name(path)
        return _read_folder(path, vae, dtype) if path.is_dir() else _read_checkpoint(path, vae, dtype)

    @classmethod
    def check_name(cls, path: Path) -> None:
        """Raise UserError for Stable Zero123, which has the same names and shapes, and another pose."""
        if _is_stable(path):
            raise UserError(
                f"{path} is Stable Zero123 by its name: it has Zero-1-to-3's weights, but wants the reference's polar "
                "angle where that wants a distance: models.novel_view.kind=stable_zero123"
            )

    def check_rig(self, rig: Rig) -> None:
        if rig.projection != "perspective" or rig.n_views < 2:
            raise UserError(
                f"Zero-1-to-3 sees through perspective cameras, at least two in a rig: cameras.projection is "
                f"{rig.projection}, cameras.n_views is {rig.n_views}"
            )

    def embed_image(self, image: Tensor, reference: Cameras, cameras: Cameras) -> Condition:
        return self.placed(*self.look(image), reference, cameras)

    @torch.no_grad()
    def look(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's embedding (B, D) and the latents (B, C, h, w) of images (B, 3, R, R).

        The latents are the posterior's mode, NOT scaled, unlike those that are denoised.
        """
        return self.image_embedding(image, align_corners=True), self.mode(image)

    @torch.no_grad()
    def placed(self, embedding: Tensor, latents: Tensor, reference: Cameras, cameras: Cameras) -> Condition:
        """`look` of one image, or of B, that `reference` (B, 1) saw, for views from `cameras` (B, V)."""
        b, v = cameras.azimuth.shape
        pose = self.numbers(reference, cameras).to(embedding.device)
        embedding = embedding[:, None].expand(b, v, -1)
        token = self.cc_projection(torch.cat([embedding, pose], -1).to(self.unet.dtype))  # (B, V, D)
        return Condition(token[:, :, None], {"image": latents[:, None].expand(b, v, -1, -1, -1)})

    def told(self, image: Tensor, reference: Cameras) -> "GivenImage":
        return GivenImage(self, image, reference)


class GivenImage(Conditions):
    """One given image as Zero-1-to-3 is told of it from each camera, in the place of a `TextEmbeddings`."""

    def __init__(self, model: Zero123, image: Tensor, reference: Cameras):
        self.model = model
        device = next(model.parameters()).device
        self.reference = reference.to(device)
        self.seen = model.look(image[None].to(device))

    def at(self, cameras: Cameras) -> Condition:
        """The image, and where each camera (B, V) stands relative to its own."""
        return self.model.placed(*self.seen, self.reference, cameras)

    def nothing(self, cameras: Cameras, negative: bool = False) -> Condition:
        """Neither an image nor a pose; there is no other negative."""
        return self.at(cameras).zeros()

    def without_view(self, cameras: Cameras) -> Condition:
        return self.at(cameras)


class StableZero123(Zero123):
    """Zero-1-to-3 trained further, told where the image was taken from instead of how far away a view is."""

    numbers = staticmethod(stable_numbers)

    @classmethod
    def check_name(cls, path: Path) -> None:
        """Raise UserError for Zero-1-to-3, which has the same names and shapes, and another pose."""
        if not _is_stable(path) and any(PLAIN_NAME.search(name) for name in _names(path)):
            raise UserError(
                f"{path} is Zero-1-to-3 by its name: it wants a distance where Stable Zero123 wants the reference's "
                "polar angle: models.novel_view.kind=zero123"
            )


def _is_stable(path: Path) -> bool:
    """Whether a file, or the folder or hub repository that it is from, is called after Stable Zero123.

    Its weights do not tell it from Zero-1-to-3 XL.
    """
    return any(re.search(r"stable[-_ ]?zero", name, re.IGNORECASE) for name in _names(path))


def _names(path: Path) -> list[str]:
    """What a file or folder of weights is called: its own name, its hub repository's, its folder's, its pipeline's."""
    names = [path.name, *(part for part in path.parts if part.startswith("models--"))]
    names += [path.parent.name] if path.is_file() else []
    if (path / "model_index.json").is_file():
        names.append((path / "model_index.json").read_text(encoding="utf-8", errors="replace"))
    return names


def _read_folder(folder: Path, vae: Any, dtype: torch.dtype) -> Parts:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    what = "Zero-1-to-3 model"
    there = next((name for name in PROJECTIONS if (folder / name).is_dir()), None)
    if there is None:
        raise UserError(f"{folder} is no {what}: it has neither {' nor '.join(f'{name}/' for name in PROJECTIONS)}")
    process = load_noise_process(folder)
    own_vae, image_encoder = folder_parts(folder, vae, dtype)
    unet: Any = load_part(UNet2DConditionModel, folder, "unet", dtype)
    check_unet(unet, folder, what, image_encoder, class_embed_type=None)
    stored = read_projection(folder / there)
    projection = _projection(stored, dtype, f"{folder / there} is no projection of {what}s")
    _check_projection(projection, image_encoder, unet.config.cross_attention_dim, folder)
    return Parts(unet, own_vae, image_encoder, process, projection)


def read_projection(folder: Path) -> dict[str, Tensor]:
    """The projection's `weight` and `bias`, whatever module they were saved in."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise UserError(f"cannot load the projection: there is no .safetensors file in {folder}; download it again")
    state = read_checkpoint(files[0])
    return {key.rpartition(".")[2] if key.count(".") <= 1 else key: value for key, value in state.items()}


def _projection(state: dict[str, Tensor], dtype: torch.dtype, where: str) -> nn.Linear:
    weight = state.get("weight")
    width_out, width_in = weight.shape if weight is not None and weight.ndim == 2 else (1, 1)
    names = {key: f"{PROJECTION}{key}" for key in ("weight", "bias")}
    return build_exactly(lambda: nn.Linear(width_in, width_out), state, dtype, where, names)


def _check_projection(projection: nn.Linear, image_encoder: Any, context: int, path: Path) -> None:
    shape = (projection.in_features, projection.out_features)
    wanted = (image_encoder.config.projection_dim + POSE, context)
    if shape != wanted:
        raise UserError(f"{path} is no Zero-1-to-3 model: its projection maps {shape}, wanted {wanted}")


def _read_checkpoint(path: Path, vae: Any, dtype: torch.dtype) -> Parts:
    state = read_checkpoint(path)
    where = f"{path} is no complete Zero-1-to-3 checkpoint"
    missing = next((key for key in SIGNATURE if key not in state), None)
    # Top-level names without a dot are the noise schedule's tables
    known = (UNET, EMA, VAE, CLIP, PROJECTION)
    unexpected = next((key for key in state if "." in key and not key.startswith(known)), None)
    if missing == SIGNATURE[0]:  # another latent diffusion model: what it has instead is what tells
        unexpected = unexpected or next((key for key in state if _is_foreign(key)), None)
    if missing or unexpected:
        raise UserError(
            f"{where}: first missing key {missing or '(none)'}, first unexpected key {unexpected or '(none)'}"
            f"{advice(state, 'novel_view')}"
        )
    unet = unet_from_ldm(_averaged(state, where), dtype, where)
    image_encoder = vision_tower(strip(state, CLIP), dtype, where)
    if vae is None:
        vae = vae_from_ldm(state, dtype, f"{where}: its autoencoder (first_stage_model)")
    projection = _projection(strip(state, PROJECTION), dtype, where)
    check_unet(unet, path, "Zero-1-to-3 checkpoint", image_encoder)
    _check_projection(projection, image_encoder, unet.config.cross_attention_dim, path)
    alphas_cumprod = state.get("alphas_cumprod", scaled_linear_alphas_cumprod()).float().clone()
    return Parts(unet, vae, image_encoder, NoiseProcess.variance_preserving(alphas_cumprod), projection)


def _is_foreign(key: str) -> bool:
    """Whether Zero-1-to-3 has no such weight."""
    if "." not in key or key.removeprefix(CLIP) in REST:
        return False
    ours = (f"{UNET}{group}." for group in ("input_blocks", "middle_block", "output_blocks", "time_embed", "out"))
    return not key.startswith((*ours, EMA, VAE, f"{CLIP}visual.", PROJECTION))


def _averaged(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The UNet's weights by their original names: their running average if the checkpoint has it, as the authors use.

    The average's names are the weights' own without the dots; what is not averaged is as it is in the network.
    """
    raw = strip(state, UNET)
    flat = {f"{EMA}diffusion_model{key.replace('.', '')}": key for key in raw}
    average = {key: value for key, value in state.items() if key.startswith(EMA)}
    if not average:
        return raw
    for counter in ("decay", "num_updates"):
        average.pop(EMA + counter, None)
    if flat.keys() != average.keys():
        raise UserError(f"{where}: {differences(flat, average, seen=())}")
    return {flat[key]: value for key, value in average.items()}


def vision_tower(
    clip: dict[str, Tensor],
    dtype: torch.dtype,
    where: str,
    head_channels: int = HEAD_CHANNELS,
    activation: str = "quick_gelu",  # OpenAI's; OpenCLIP's is gelu
) -> Any:
    """The vision tower of OpenAI's CLIP, or of OpenCLIP's, by its own names as a CLIPVisionModelWithProjection."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    mapped, names = {}, {}

    def put(new: str, value: Tensor, key: str) -> None:
        mapped[new], names[new] = value, CLIP + key

    outside = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    }
    inside = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    inside["attn.out_proj"] = "self_attn.out_proj"
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    for key, value in clip.items():
        module, _, kind = key.rpartition(".")
        if key in REST:
            continue
        if key in outside:
            put(outside[key], value, key)
        elif module in norms:
            put(f"{norms[module]}.{kind}", value, key)
        elif key == "visual.proj":
            put("visual_projection.weight", value.T, key)
        elif key.startswith("visual.transformer.resblocks."):
            _, _, _, number, *rest_of = module.split(".")
            layer, part = f"vision_model.encoder.layers.{number}", ".".join(rest_of)
            if kind in ("in_proj_weight", "in_proj_bias"):
                for name, third in zip("qkv", value.chunk(3), strict=True):
                    put(f"{layer}.self_attn.{name}_proj.{kind.removeprefix('in_proj_')}", third, key)
            else:
                put(f"{layer}.{inside.get(part, part)}.{kind}", value, key)
        else:
            put(key, value, key)
    try:
        width, _, patch, _ = clip["visual.conv1.weight"].shape
        side = round((clip["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=clip["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=len({key.split(".")[3] for key in clip if key.startswith("visual.transformer.resbl")}),
            num_attention_heads=max(1, width // head_channels),
            image_size=side * patch,
            patch_size=patch,
            projection_dim=clip["visual.proj"].shape[1],
            hidden_act=activation,
        )
    except KeyError as error:
        raise UserError(f"{where}: first missing key {CLIP}{error.args[0]}, first unexpected key (none)") from error
    return build_exactly(lambda: CLIPVisionModelWithProjection(config), mapped, dtype, where, names)
