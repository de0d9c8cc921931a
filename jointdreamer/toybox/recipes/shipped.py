"""The networks that a recipe starts from, of the package or trained here; and how trained ones are written to ship."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path
from jointdreamer.toybox.networks import EDITIONS, SHIPPED_EDITION
from jointdreamer.toybox.recipes.pictures import edition_number

WEIGHTS = Path(__file__).parents[1] / "weights"
FAMILY = WEIGHTS / "text_to_image"  # the Stable Diffusion folder; its autoencoder and text encoder serve all


def averaged_weights(folder: Path, model: str, network: str) -> dict[str, Tensor]:
    """What an earlier model gives to a later one: its checkpoint's averaged weights, or those of the package.

    Raises UserError if there is no checkpoint and the package's are of another edition.
    """
    checkpoint = folder / model / "checkpoint.pt"
    if checkpoint.exists():
        return torch.load(checkpoint, weights_only=True)["average"][network]
    refuse_shipped(folder, model)
    return shipped_weights(model, network)


def refuse_shipped(folder: Path, model: str) -> None:
    """Raises UserError if the package's weights do not belong to what is trained in `folder`."""
    number = edition_number(folder)
    if number != SHIPPED_EDITION:
        mine, theirs = EDITIONS[number], EDITIONS[SHIPPED_EDITION]
        raise UserError(
            f"train {model} in {folder} first: its latents have {mine.latent_channels} channels (edition {number}), "
            f"the package's {theirs.latent_channels} (edition {SHIPPED_EDITION}); "
            f"python -m jointdreamer.toybox.train {model} --folder {folder}"
        )


# Where the package keeps each trained network, and what its names begin with there
SHIPPED = {
    ("vae", "vae"): ("text_to_image/vae", ""),
    ("text-to-image", "unet"): ("text_to_image/unet", ""),
    ("text-to-image", "text"): ("text_to_image/text_encoder", ""),
    ("multi-view", "unet"): ("multi_view/unet", ""),
    ("novel-view", "unet"): ("novel_view/unet", ""),
    ("novel-view", "tower"): ("novel_view/image_encoder", ""),
    ("novel-view", "projection"): ("novel_view/clip_camera_projection", "proj."),
    ("coordinates", "unet"): ("coordinates/unet", ""),
    ("flow", "unet"): ("flow/transformer", ""),
    ("flow", "text"): ("flow/text_encoder", ""),
    ("pixel", "unet"): ("pixel/unet", ""),
    ("clip", "clip"): ("clip", ""),
    ("judge", "judge"): ("judge", ""),
}


def shipped_weights(model: str, network: str) -> dict[str, Tensor]:
    """The package's weights of a network, in float32, by the names that the network has.

    Raises UserError for a model that the package does not have.
    """
    from safetensors.torch import load_file

    if (model, network) not in SHIPPED:
        raise UserError(f"the package has no weights of {model}: train it from scratch, without --from-shipped")
    folder, prefix = SHIPPED[model, network]
    if (model, network) == ("text-to-image", "text"):
        prefix = _text_prefix()
    file = next((WEIGHTS / folder).glob("*.safetensors"))
    return {key.removeprefix(prefix): value.float() for key, value in load_file(file).items()}


def _text_prefix() -> str:
    """What the names of the shipped text encoder begin with, and those of the installed transformers' do not."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        names = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1)).state_dict()
    return "" if any(name.startswith("text_model.") for name in names) else "text_model."


def trained_family(folder: Path) -> Path:
    """The Stable Diffusion folder that was trained in `folder`, or the package's."""
    trained = folder / "text-to-image" / "model"
    if trained.exists():
        return trained
    refuse_shipped(folder, "text-to-image")
    return FAMILY


def load_vae(folder: Path) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    trained = folder / "vae" / "model"
    if not trained.exists():
        refuse_shipped(folder, "vae")
        trained = FAMILY / "vae"
    vae: Any = AutoencoderKL.from_pretrained(trained)
    vae.register_to_config(_name_or_path="")  # else the path of the training folder ships with the weights
    return vae.eval().float().requires_grad_(False)


def save_part(module: Any, where: Path) -> Path:
    """Write a diffusers or transformers part as fp16 safetensors; the module itself stays float32.

    As every release of transformers that we allow reads it: a text encoder by the names of the hub's files, which
    releases from 5.6 on no longer write and earlier ones need; and to be computed in float32 like its neighbours, which
    diffusers loads so unless it is told otherwise: half precision is how the files are stored.
    """
    from safetensors.torch import load_file, save_file

    copy.deepcopy(module).half().save_pretrained(where, safe_serialization=True)
    config, weights = where / "config.json", where / "model.safetensors"
    if not weights.exists():  # of diffusers
        return where
    said = json.loads(config.read_text())
    for key in {"dtype", "torch_dtype"} & said.keys():
        said[key] = "float32"
    config.write_text(json.dumps(said, indent=2) + "\n")
    state = load_file(weights)
    if "embeddings.token_embedding.weight" in state:
        state = {f"text_model.{key}": value for key, value in state.items()}
        with atomic_path(weights) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
    return where


def save_tokenizer(tokenizer: Any, where: Path) -> None:
    """Write tokenizer.json and, for the CLIPTokenizer of transformers 4, vocab.json and merges.txt."""
    tokenizer.save_pretrained(where)
    if hasattr(tokenizer, "backend_tokenizer"):
        tokenizer.backend_tokenizer.model.save(str(where))
