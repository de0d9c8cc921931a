"""The architectures of the toybox models: stock diffusers and transformers classes, small."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jointdreamer.files import write_text
from jointdreamer.toybox.world import COLORS, FIRST, SECOND, SHIPPED_WORDS, Words, vocabulary
from jointdreamer.weights.parts import clip_tokenizer_class

TEXT_LENGTH = 24  # tokens; the longest caption takes 17
TEXT_WIDTH = 128
LATENT_SIZE = 16
PIXEL_SIZE = 32  # of the pixel model's pictures
COORDINATE_SIZE = 16  # of the coordinate model's maps
COORDINATE_SCALE = 5.0  # their coordinates vary by a fifth of what Stable Diffusion's noise levels are made for


@dataclass(frozen=True)
class Edition:
    """What all models of one training share: the words of their world and the channels of their latents."""

    words: Words
    latent_channels: int
    vae_channels: tuple[int, int, int]  # of the autoencoder's levels: 64, 32 and 16 pixels wide


EDITIONS = {1: Edition(FIRST, 4, (32, 64, 96)), 2: Edition(SECOND, 16, (16, 64, 128))}
SHIPPED_EDITION = next(number for number, edition in EDITIONS.items() if edition.words is SHIPPED_WORDS)
LATENT_CHANNELS = EDITIONS[SHIPPED_EDITION].latent_channels


def build_tokenizer(words: Words = SHIPPED_WORDS) -> Any:
    """A CLIPTokenizer that knows every word of the world as one token; other words fall apart into letters.

    The merges build each word from its letters, left to right, so the stock class needs nothing else.
    """
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    ranks: dict[tuple[str, str], int] = {}
    for word in vocabulary(words):
        # Earlier merges come first when the word is read, so they are applied before it gets merges of its own.
        pieces = _merge([*word[:-1], word[-1] + "</w>"], ranks)
        while len(pieces) > 1:
            ranks[(pieces[0], pieces[1])] = len(ranks)
            tokens.append(pieces[0] + pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = list(dict.fromkeys(tokens))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return tokenizer_of(vocab, list(ranks), model_max_length=TEXT_LENGTH, unk_token="<|endoftext|>")


def tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """(N, 24) token numbers, padded as StableDiffusionPipeline pads."""
    return tokenizer(
        texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def tokenizer_of(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> Any:
    """A CLIPTokenizer of these tokens and merges, through the files that every release of transformers reads."""
    with tempfile.TemporaryDirectory(prefix="jointdreamer-") as folder:
        write_text(Path(folder) / "vocab.json", json.dumps(vocab))
        write_text(Path(folder) / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
        return clip_tokenizer_class().from_pretrained(folder, **options)


def _merge(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: the pair of lowest rank is joined until none is known."""
    while len(pieces) > 1:
        pairs = list(zip(pieces[:-1], pieces[1:], strict=True))
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        if pairs[best] not in ranks:
            break
        pieces = [*pieces[:best], pieces[best] + pieces[best + 1], *pieces[best + 2 :]]
    return pieces


def _byte_letters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE: printable ones as they are, the rest from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _text_config(tokenizer: Any, layers: int = 2) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "projection_dim": TEXT_WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_text_config(tokenizer)))


def build_pooled_text_encoder(tokenizer: Any) -> Any:
    """The text encoder with a projection of its pooled text, for the flow."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**_text_config(tokenizer)))


def build_clip(tokenizer: Any) -> Any:
    """Two small towers that embed 64x64 images and captions into 128 dimensions."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": TEXT_WIDTH,
    }
    return CLIPModel(CLIPConfig(text_config=_text_config(tokenizer), vision_config=vision, projection_dim=TEXT_WIDTH))


def build_vae(edition: Edition = EDITIONS[SHIPPED_EDITION]) -> Any:
    """64x64 RGB -> 16x16 latents."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    options: dict[str, Any] = {
        "block_out_channels": edition.vae_channels,
        "layers_per_block": 1,
        "latent_channels": edition.latent_channels,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "sample_size": 64,
    }
    return AutoencoderKL(**options)


@torch.no_grad()
def normalize_latents(vae: Any, mean: Tensor, std: Tensor) -> None:
    """Give the latents of an AutoencoderKL, whose means and spreads are (C,) by channel, mean 0 and spread 1.

    The 1x1 convolutions on both sides of the latents take it over, so images stay what they are, and every reader
    that knows a scaling factor alone finds 1.
    """
    into, out, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()  # the posterior's log variance
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)


def build_vision_tower() -> Any:
    """64x64 RGB -> one embedding, as wide as a word's; what a novel-view model looks at its image with."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=TEXT_WIDTH,
    )
    return CLIPVisionModelWithProjection(config)


def _unet(size: int, in_channels: int, out_channels: int, widths: tuple[int, int, int], **more: Any) -> Any:
    """A UNet of three levels that reads the text on the lower two."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
        **more,
    )


CAMERA_LABELS = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}


def build_unet(multiview: bool = False, in_channels: int | None = None, latent_channels: int = LATENT_CHANNELS) -> Any:
    """Attention at 8x8 and 4x4 only. `multiview` adds the 16-number camera as MVDream's projection class embedding.

    in_channels: by default as many as the latents have
    """
    camera = CAMERA_LABELS if multiview else {}
    return _unet(LATENT_SIZE, in_channels or latent_channels, latent_channels, (64, 128, 144), **camera)


def build_coordinate_unet() -> Any:
    """Over maps of coordinates and opacity, 16x16, told the camera as the multi-view UNet is."""
    return _unet(COORDINATE_SIZE, 4, 4, (32, 64, 96), **CAMERA_LABELS)


def build_transformer(latent_channels: int = LATENT_CHANNELS) -> Any:
    """Stable Diffusion 3's joint attention over 8x8 patches and the words."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=LATENT_SIZE // 2,
        qk_norm="rms_norm",
    )


def build_flow_scheduler() -> Any:
    """A rectified flow without a shift, which larger pictures need."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def build_pixel_unet() -> Any:
    """Over 32x32 RGB; attention at 16x16 and 8x8."""
    return _unet(PIXEL_SIZE, 3, 3, (48, 64, 64))


def build_pixel_scheduler() -> Any:
    """DeepFloyd IF's cosine noise; the network predicts x0, as all of the toybox's."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, prediction_type="sample")


def build_scheduler() -> Any:
    """Stable Diffusion's noise; the networks predict x0 (learned faces in minutes where noise prediction did not)."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="sample",
        timestep_spacing="trailing",
    )


AZIMUTH_BINS = 16


class JudgeNet(nn.Module):
    """A plain convolutional network: 64x64 RGB -> the judge's answers, each a set of logits."""

    def __init__(self, words: Words = SHIPPED_WORDS, width: int = 32):
        super().__init__()
        answers = {
            "azimuth": AZIMUTH_BINS,
            "face": 2,
            "kind": len(words.kinds),
            "color": len(COLORS),
            "pattern": len(words.patterns),
            "accessory": len(words.accessories),
            "accessory_color": len(COLORS),
        }
        layers: list[nn.Module] = []
        channels = 3
        for k, wide in enumerate((width, 2 * width, 3 * width, 4 * width)):
            layers += [nn.Conv2d(channels, wide, 3, 2 if k else 1, 1), nn.GroupNorm(8, wide), nn.SiLU()]
            layers += [nn.Conv2d(wide, wide, 3, 2 if k == 0 else 1, 1), nn.GroupNorm(8, wide), nn.SiLU()]
            channels = wide
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, 256), nn.SiLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({name: nn.Linear(256, n) for name, n in answers.items()})

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """rgb (N, 3, 64, 64) in [0, 1] -> logits (N, n) by head."""
        seen = self.trunk(2 * rgb - 1)
        return {name: head(seen) for name, head in self.heads.items()}
