"""The multi-view diffusion model (MVDream) on diffusers' own UNet2DConditionModel and AutoencoderKL.

The stock UNet holds every MVDream weight: the 16 camera numbers go in as class labels (class_embed_type "projection")
and are added to the time embedding. What differs is one attention processor, which lets self-attention see the tokens
of all V views of a rig at once. Names and layouts: docs/conventions.md, Multi-view UNet.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.diffusion import NoiseProcess, scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.weights.checkpoint import advice, differences, first_line, read_checkpoint
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import load_part, part_keys, read_part

SHARED = "shared"  # the autoencoder that is the text-to-image model's
HEADS = 8  # of every attention of Stable Diffusion 1
HEAD_CHANNELS = 64  # channels per attention head in Stable Diffusion 2 and MVDream
LDM_UNET = "model.diffusion_model."
SCALING_FACTOR = 0.18215


class MultiViewAttnProcessor:
    """Self-attention over the tokens of all views of a rig; attention to text stays each view's own.

    Rows must be consecutive views: (B V, L, C) is seen as (B, V L, C).
    """

    def __init__(self, n_views: int):
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.n_views = n_views
        self.within = AttnProcessor2_0()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs) -> Tensor:
        if encoder_hidden_states is not None or self.n_views == 1:
            return self.within(attn, hidden_states, encoder_hidden_states, **kwargs)
        rows, tokens, channels = hidden_states.shape
        if rows % self.n_views:
            raise ValueError(f"{rows} rows are not whole rigs of {self.n_views} views")
        joint = hidden_states.reshape(rows // self.n_views, self.n_views * tokens, channels)
        return self.within(attn, joint, **kwargs).reshape(rows, tokens, channels)


def set_views(unet: Any, n_views: int) -> None:
    """Tell a multi-view UNet (or make a stock one into a UNet) that sees rigs of `n_views`; 1 is the plain network."""
    for processor in unet.attn_processors.values():
        if not isinstance(processor, MultiViewAttnProcessor) or processor.n_views != n_views:
            unet.set_attn_processor(MultiViewAttnProcessor(n_views))
            return


@dataclass(frozen=True)
class MultiViewModel:
    """A multi-view diffusion model, frozen."""

    unet: Any  # UNet2DConditionModel whose class labels are cameras
    vae: Any  # AutoencoderKL; None if the folder or checkpoint has none, or another model's latents are taken
    process: NoiseProcess


def load_multiview(path: str | Path, dtype: torch.dtype = torch.float32) -> MultiViewModel:
    """Read a diffusers folder (unet/, scheduler/, perhaps vae/) or an MVDream checkpoint (.pt, .ckpt, .safetensors).

    Raises UserError, one line, if it is missing, damaged or no multi-view model.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, dtype)
    state = read_checkpoint(path)
    unet = _original(lambda: unet_from_ldm(state, dtype), path)
    has_vae = any(key.startswith("first_stage_model.") for key in state)
    vae = _original(lambda: vae_from_ldm(state, dtype), path) if has_vae else None
    alphas_cumprod = state.get("alphas_cumprod", scaled_linear_alphas_cumprod()).float().clone()
    return MultiViewModel(unet, vae, NoiseProcess.variance_preserving(alphas_cumprod))


def _original(build: Callable[[], Any], where: Path) -> Any:
    """A network that `build` makes of weights with the original names. Raises UserError where they are not whole."""
    try:
        return build()
    except UserError as error:
        raise UserError(f"{where} is no complete MVDream checkpoint: {error}") from error
    except (KeyError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{where} is no complete MVDream checkpoint: {type(error).__name__}: {first_line(error)}"
        ) from error


def find_multiview(
    source: str | Path | Sequence[str],
    file: str | None = None,
    vae: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> tuple[MultiViewModel, Path]:
    """A multi-view model on its device, and the folder or checkpoint that it came from.

    source: diffusers folder, MVDream checkpoint, or a hub id of either; or a list, tried in order
    file: the checkpoint's name inside a folder or repository
    vae: folder or hub id whose vae/ takes the place of its own; SHARED for none

    Raises UserError, one line, if the weights are missing, damaged or do not fit.
    """
    device = torch.device(device)
    dtype = network_dtype(dtype, device)
    download = device.type == "cuda"
    hint = "name the checkpoint's file, models.multi_view.source=FILE (or a diffusers folder, with "
    hint += "models.multi_view.file=null); models=toybox needs no download"
    path = find_weights(source, "multi_view", file=file, hint=hint, download=download)
    model = load_multiview(path, dtype)
    if vae == SHARED:
        autoencoder = None
    elif vae is not None:
        role = "autoencoder of the multi-view model"
        folder = find_weights(vae, role, needs=("vae/config.json",), download=download)
        autoencoder = load_autoencoder(folder, dtype)
    elif model.vae is not None:
        autoencoder = model.vae
    else:
        raise UserError(f"{path} has no autoencoder: name a folder that has one, models.multi_view.vae=FOLDER")
    if autoencoder is not None:
        check_autoencoder(autoencoder, model.unet.config.in_channels, path)
    unet = place_unet(model.unet, device, compile)
    autoencoder = autoencoder if autoencoder is None else place(autoencoder, device)
    return MultiViewModel(unet, autoencoder, model.process.to(device)), path


def _load_folder(folder: Path, dtype: torch.dtype) -> MultiViewModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    process = load_noise_process(folder)
    if any(key.endswith("camera_embed.0.weight") for key in part_keys(folder / "unet")):
        # the widely used diffusers copies keep the original names, for a class of their own
        unet = _original(lambda: unet_from_ldm(read_part(folder / "unet"), dtype), folder / "unet")
    else:
        unet = load_part(UNet2DConditionModel, folder, "unet", dtype)
    labels = (unet.config.class_embed_type, unet.config.projection_class_embeddings_input_dim)
    if labels != ("projection", 16):
        raise UserError(
            f"{folder / 'unet'} is no multi-view UNet: its config needs class_embed_type 'projection' with "
            f"projection_class_embeddings_input_dim 16 (the camera), got {labels[0]!r} with {labels[1]}"
            f"{advice(part_keys(folder / 'unet'), 'multi_view')}"
        )
    vae = load_autoencoder(folder, dtype) if (folder / "vae").is_dir() else None
    return MultiViewModel(unet, vae, process)


# Layout of the original latent-diffusion code -> diffusers (docs/conventions.md, Multi-view UNet)


def _strip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _rename(key: str, rules: Iterable[tuple[str, str]]) -> str:
    """The first rule that matches a prefix of the key, up to a dot, applies; no rule leaves the key as it is."""
    for old, new in rules:
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key


def _count(keys: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern's group finds; 0 if it finds none."""
    return 1 + max((int(found[1]) for key in keys if (found := re.match(pattern, key))), default=-1)


RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)


def unet_from_ldm(state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """MVDream's UNet as a UNet2DConditionModel, frozen; its shape is read off the `model.diffusion_model.*` tensors.

    Raises UserError without a UNet or without cameras in it; KeyError or RuntimeError if weights lack or are left over.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    ldm = _strip(state, LDM_UNET) or (state if "camera_embed.0.weight" in state else {})  # or the UNet alone
    if "camera_embed.0.weight" not in ldm:
        what = "has no camera_embed: a single-view model" if ldm else "has no model.diffusion_model.* weights"
        known = (LDM_UNET, "first_stage_model.", "cond_stage_model.")
        odd = [key for key in state if not key.startswith(known)]
        keys = differences([f"{LDM_UNET}camera_embed.0.weight"], odd, seen=state)
        raise UserError(f"it {what} ({keys}); expected e.g. sd-v2.1-base-4view.pt")
    config, per_level = ldm_unet_config(ldm)
    mapped = {_unet_key(key, per_level): value for key, value in ldm.items()}
    return _build(UNet2DConditionModel, config, mapped, dtype)


def ldm_unet_config(ldm: dict[str, Tensor]) -> tuple[dict[str, Any], int]:
    """The UNet2DConditionModel config that weights of `model.diffusion_model` fit, and the modules a level has there.

    No weight tells the number of heads, but what surrounds them does: Stable Diffusion 1, whose transformers stand
    between 1x1 convolutions, has 8 at every level; 2, with linear maps there, has heads of 64 channels.
    Raises KeyError if the weights that tell are missing.
    """
    n_inputs = _count(ldm, r"input_blocks\.(\d+)\.")
    downsamplers = [i for i in range(n_inputs) if f"input_blocks.{i}.0.op.weight" in ldm]
    per_level = downsamplers[0] if downsamplers else n_inputs  # residual blocks + 1
    levels = n_inputs // per_level
    first = [1 + level * per_level for level in range(levels)]
    channels = tuple(ldm[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in first)
    attends = [f"input_blocks.{i}.1.norm.weight" in ldm for i in first]
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
    linear = ldm["middle_block.1.proj_in.weight"].ndim == 2
    config: dict[str, Any] = {
        "sample_size": 32,
        "in_channels": ldm["input_blocks.0.0.weight"].shape[1],
        "out_channels": ldm["out.2.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": per_level - 1,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "cross_attention_dim": ldm["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        # historic name: NUMBER of heads
        "attention_head_dim": tuple(max(1, c // HEAD_CHANNELS) if linear else HEADS for c in channels),
        "use_linear_projection": linear,
    }
    if "camera_embed.0.weight" in ldm:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = ldm["camera_embed.0.weight"].shape[1]
    return config, per_level


def _unet_key(key: str, per_level: int) -> str:
    outside = (
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("camera_embed.0", "class_embedding.linear_1"),
        ("camera_embed.2", "class_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    )
    if (renamed := _rename(key, outside)) != key:
        return renamed
    group, *rest = key.split(".")
    if group == "middle_block":
        module, inside = rest[0], ".".join(rest[1:])
        where = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[module]
        return f"mid_block.{where}.{_rename(inside, RESNET)}"
    block, module, inside = int(rest[0]), rest[1], ".".join(rest[2:])
    if group == "input_blocks":
        level, position = divmod(block - 1, per_level)
        if inside.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{inside[3:]}"
        side = f"down_blocks.{level}"
    elif group == "output_blocks":
        level, position = divmod(block, per_level)
        if inside.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.{inside}"
        side = f"up_blocks.{level}"
    else:
        raise KeyError(f"unknown weight {key}")
    if module == "0":
        return f"{side}.resnets.{position}.{_rename(inside, RESNET)}"
    return f"{side}.attentions.{position}.{inside}"


def vae_from_ldm(state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """The `first_stage_model.*` of a checkpoint as an AutoencoderKL, frozen.

    Raises KeyError, RuntimeError or UserError if weights lack or are left over.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    ldm = _strip(state, "first_stage_model.")
    levels = _count(ldm, r"encoder\.down\.(\d+)\.")
    latent_channels = ldm["post_quant_conv.weight"].shape[0]
    config = {
        "in_channels": ldm["encoder.conv_in.weight"].shape[1],
        "out_channels": ldm["decoder.conv_out.weight"].shape[0],
        "latent_channels": latent_channels,
        "block_out_channels": tuple(ldm[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        "layers_per_block": _count(ldm, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in ldm,
        "scaling_factor": SCALING_FACTOR,
    }
    mapped = {}
    for key, value in ldm.items():
        new = _vae_key(key, levels)
        # the original attends with 1x1 convolutions, diffusers with matrices
        mapped[new] = value[..., 0, 0] if ".attentions.0.to_" in new and value.ndim == 4 else value
    return _build(AutoencoderKL, config, mapped, dtype)


def _vae_key(key: str, levels: int) -> str:
    half, *rest = key.split(".")
    if half not in ("encoder", "decoder"):
        return key  # quant_conv, post_quant_conv
    inside = ".".join(rest)
    if rest[0] in ("down", "up"):
        index, what = int(rest[1]), ".".join(rest[2:])
        level = index if rest[0] == "down" else levels - 1 - index  # decoder levels are stored from the image up
        sampler = {"down": "downsamplers", "up": "upsamplers"}[rest[0]]
        rules = (("block", "resnets"), ("downsample", f"{sampler}.0"), ("upsample", f"{sampler}.0"))
        inside = f"{rest[0]}_blocks.{level}.{_rename(what, rules)}"
    else:
        rules = (
            ("mid.block_1", "mid_block.resnets.0"),
            ("mid.block_2", "mid_block.resnets.1"),
            ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
            ("mid.attn_1.q", "mid_block.attentions.0.to_q"),
            ("mid.attn_1.k", "mid_block.attentions.0.to_k"),
            ("mid.attn_1.v", "mid_block.attentions.0.to_v"),
            ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
            ("norm_out", "conv_norm_out"),
        )
        inside = _rename(inside, rules)
    return f"{half}.{inside.replace('.nin_shortcut.', '.conv_shortcut.')}"


def _build(kind: Any, config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """A model of these weights, strictly: nothing missing, nothing left over, nothing initialised at random."""
    with torch.device("meta"):  # 866 million random numbers would take longer than the reading
        model = kind(**config)
    wanted = model.state_dict()
    if wanted.keys() != state.keys():
        raise UserError(f"of its {kind.__name__}, {differences(wanted, state, seen=())}")
    model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)
