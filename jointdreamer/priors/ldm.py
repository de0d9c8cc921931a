"""UNets and autoencoders of original latent-diffusion checkpoints (MVDream, Zero-1-to-3) as diffusers' networks.

The renaming is diffusers' own, which is the same in every release from 0.36 to 0.42. It passes over what it does not
know, so here it renames names alone, and the tensors are then held one by one against what the network wants. Layouts:
docs/conventions.md, Multi-view UNet.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.weights.checkpoint import first_line
from jointdreamer.weights.parts import build_exactly

UNET, VAE = "model.diffusion_model.", "first_stage_model."
HEADS = 8  # of every attention of Stable Diffusion 1
HEAD_CHANNELS = 64  # channels per attention head in Stable Diffusion 2 and MVDream
SCALING_FACTOR = 0.18215
CAMERA = {"class_embedding.linear_1": "camera_embed.0", "class_embedding.linear_2": "camera_embed.2"}  # MVDream's own


def unet_from_ldm(ldm: Mapping[str, Tensor], dtype: torch.dtype, where: str) -> Any:
    """A UNet2DConditionModel, frozen, of a UNet's weights by their original names without `model.diffusion_model.`.

    where: opens the error. Raises UserError, one line, if weights lack or are left over.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with _said_of(where, UNET):
        config = unet_config(ldm)
        names = unet_names(ldm, config["layers_per_block"])
        state = {new: ldm[old] for new, old in names.items()}
        original = {new: UNET + old for new, old in names.items()}
        return build_exactly(lambda: UNet2DConditionModel(**config), state, dtype, where, original)


def vae_from_ldm(state: Mapping[str, Tensor], dtype: torch.dtype, where: str) -> Any:
    """The `first_stage_model.*` of a checkpoint as an AutoencoderKL, frozen.

    where: opens the error. Raises UserError, one line, if weights lack or are left over.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    ldm = strip(state, VAE)
    with _said_of(where, VAE):
        config = vae_config(ldm)
        names = _names(convert_ldm_vae_checkpoint, VAE, ldm, config)
        # the original attends with 1x1 convolutions, diffusers with matrices
        flat = {new for new, old in names.items() if ".attentions.0.to_" in new and ldm[old].ndim == 4}
        mapped = {new: ldm[old][..., 0, 0] if new in flat else ldm[old] for new, old in names.items()}
        original = {new: VAE + old for new, old in names.items()}
        return build_exactly(lambda: AutoencoderKL(**config), mapped, dtype, where, original)


def unet_names(keys: Iterable[str], layers_per_block: int) -> dict[str, str]:
    """The name that diffusers gives to each weight of a UNet -> its original name."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = _names(convert_ldm_unet_checkpoint, UNET, keys, {"layers_per_block": layers_per_block})
    for new, old in CAMERA.items():
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in names:
                names[f"{new}.{kind}"] = names.pop(f"{old}.{kind}")
    return names


def _names(convert: Callable, prefix: str, keys: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """New name -> original name, by a converter of diffusers; what it does not know keeps its name."""
    keys = list(keys)
    numbers = {f"{prefix}{key}": torch.tensor(i) for i, key in enumerate(keys)}  # it looks at the shapes of tensors
    names = {new: keys[int(i)] for new, i in convert(numbers, config).items() if i is not None}
    unknown = set(keys) - set(names.values())
    return names | {key: key for key in keys if key in unknown}


def unet_config(ldm: Mapping[str, Tensor]) -> dict[str, Any]:
    """The UNet2DConditionModel config that weights of `model.diffusion_model` fit.

    No weight tells the number of heads, but what surrounds them does: Stable Diffusion 1, whose transformers stand
    between 1x1 convolutions, has 8 at every level; 2, with linear maps there, has heads of 64 channels.
    Raises KeyError if the weights that tell are missing.
    """
    n_inputs = _count(ldm, r"input_blocks\.(\d+)\.")
    downsamplers = [i for i in range(n_inputs) if f"input_blocks.{i}.0.op.weight" in ldm]
    per_level = downsamplers[0] if downsamplers else n_inputs  # residual blocks + 1
    first = [1 + level * per_level for level in range(n_inputs // per_level)]
    channels = tuple(ldm[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in first)
    attends = [f"input_blocks.{i}.1.norm.weight" in ldm for i in first]
    linear = ldm["middle_block.1.proj_in.weight"].ndim == 2
    config: dict[str, Any] = {
        "sample_size": 32,
        "in_channels": ldm["input_blocks.0.0.weight"].shape[1],
        "out_channels": ldm["out.2.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": per_level - 1,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "cross_attention_dim": ldm["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        # historic name: NUMBER of heads
        "attention_head_dim": tuple(max(1, c // HEAD_CHANNELS) if linear else HEADS for c in channels),
        "use_linear_projection": linear,
    }
    if "camera_embed.0.weight" in ldm:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = ldm["camera_embed.0.weight"].shape[1]
    return config


def vae_config(ldm: Mapping[str, Tensor]) -> dict[str, Any]:
    """The AutoencoderKL config that weights of `first_stage_model` fit. Raises KeyError as `unet_config`."""
    levels = _count(ldm, r"encoder\.down\.(\d+)\.")
    return {
        "in_channels": ldm["encoder.conv_in.weight"].shape[1],
        "out_channels": ldm["decoder.conv_out.weight"].shape[0],
        "latent_channels": ldm["post_quant_conv.weight"].shape[0],
        "block_out_channels": tuple(ldm[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        "layers_per_block": _count(ldm, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in ldm,
        "scaling_factor": SCALING_FACTOR,
    }


def strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _count(keys: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern's group finds; 0 if it finds none."""
    return 1 + max((int(found[1]) for key in keys if (found := re.match(pattern, key))), default=-1)


@contextmanager
def _said_of(where: str, prefix: str) -> Iterator[None]:
    """Whatever weights of another network provoke becomes a UserError, one line, that `where` opens."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{where}: first missing key {prefix}{error.args[0]}, first unexpected key (none)") from error
    except (IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where}: {type(error).__name__}: {first_line(error)}") from error
