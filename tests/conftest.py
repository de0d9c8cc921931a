"""What the tests share: no network, one thread, and tiny random models on disk."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

WORDS = ("a", "red", "robot", "with", "hat", "front", "side", "back", "overhead", "view", ",")


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` skip themselves on a machine without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def tiny_tokenizer() -> Any:
    """A CLIPTokenizer that knows the letters and merges of WORDS; any other letter is unknown to it."""
    from transformers import CLIPTokenizer

    vocab, merges = {"<|startoftext|>": 0, "<|endoftext|>": 1}, []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        whole = ""
        for piece in pieces:
            vocab.setdefault(piece, len(vocab))
            if whole and (whole, piece) not in merges:
                merges.append((whole, piece))
            whole += piece
            vocab.setdefault(whole, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A CLIPTokenizer that knows only the words (and letters) of WORDS."""
    return tiny_tokenizer()


def _unet(**changes) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    options: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**{**options, **changes})


def _vae() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    options: dict[str, Any] = {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(**options)


def _scheduler(prediction_type: Any) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _once(factory, name: str) -> Callable[[str], Path]:
    """Each prediction type's folder is written the first time that a test asks for it."""
    made: dict[str, Path] = {}

    def folder(prediction_type: str = "epsilon") -> Path:
        if prediction_type not in made:
            made[prediction_type] = factory.mktemp(f"{name}_{prediction_type}")
            with torch.random.fork_rng():
                torch.manual_seed(1)
                _write(made[prediction_type], name, prediction_type)
        return made[prediction_type]

    return folder


def _write(folder: Path, name: str, prediction_type: str) -> None:
    _scheduler(prediction_type).save_pretrained(folder / "scheduler")
    _vae().save_pretrained(folder / "vae")
    if name == "mv":
        unet = _unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)
        unet.save_pretrained(folder / "unet")
        return
    from transformers import CLIPTextConfig, CLIPTextModel

    _unet().save_pretrained(folder / "unet")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory) -> Callable[[str], Path]:
    """tiny_sd_folder(prediction_type="epsilon") -> a random text-to-image diffusers folder: 16 px, latents 4x8x8.

    Text embeddings are 12 x 16. Shared by the session: copy it before you damage it.
    """
    return _once(tmp_path_factory, "sd")


@pytest.fixture(scope="session")
def tiny_mv_folder(tmp_path_factory) -> Callable[[str], Path]:
    """tiny_mv_folder(prediction_type="epsilon") -> a random multi-view folder of the same sizes, with vae/."""
    return _once(tmp_path_factory, "mv")
