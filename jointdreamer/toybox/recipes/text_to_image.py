"""The text-to-image model: a UNet and its text encoder, shipped as a Stable Diffusion folder."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointdreamer.files import write_text
from jointdreamer.toybox import networks
from jointdreamer.toybox.recipes.base import Recipe, half_precision
from jointdreamer.toybox.recipes.denoising import ddim, decode, denoising_loss, latents_of
from jointdreamer.toybox.recipes.shipped import load_vae, save_part, save_tokenizer


class TextToImage(Recipe):
    """x0-prediction on latents, text encoder and UNet together; a tenth of the captions is empty (for CFG).

    The text encoder is frozen after a while, so that the multi-view model can start from it and share it.
    """

    name, ships_as, lr = "text-to-image", "text_to_image", 1e-3
    FREEZE_TEXT = 2500  # steps

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(1)
        self.tokenizer = networks.build_tokenizer(self.words)
        self.networks = {
            "unet": networks.build_unet(latent_channels=self.edition.latent_channels),
            "text": networks.build_text_encoder(self.tokenizer),
        }
        self.vae = load_vae(folder)
        self.latents = latents_of(folder, "flat", self.flat, self.vae)

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.flat), size=self.batch)
        captions = self.flat_captions(rows, rng)
        x0 = torch.from_numpy(self.latents[rows, 0].astype(np.float32))
        self.networks["text"].requires_grad_(step < self.FREEZE_TEXT)
        with half_precision():
            words = self.networks["text"](networks.tokens(self.tokenizer, captions)).last_hidden_state
        return denoising_loss(self.networks["unet"], x0, torch.randint(1000, (self.batch,)), words)

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        captions = self.sheet_captions()
        words = self.networks["text"](networks.tokens(self.tokenizer, captions + [""] * 16)).last_hidden_state
        noise = torch.randn(16, self.edition.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
        latents = ddim(lambda x, t, half: self.networks["unet"](x, t, half).sample, noise, words, guidance_scale=4.0)
        self.write_sheet(step, decode(self.vae, latents), 8)

    def save(self, where: Path) -> Path:
        save_part(self.networks["unet"], where / "unet")
        text = save_part(self.networks["text"], where / "text_encoder") / "config.json"
        # transformers reads weights into the type that the config names, diffusers into float32: a pipeline needs one
        write_text(text, json.dumps({**json.loads(text.read_text()), "dtype": "float32"}, indent=2) + "\n")
        save_part(self.vae, where / "vae")
        save_tokenizer(self.tokenizer, where / "tokenizer")
        networks.build_scheduler().save_pretrained(where / "scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (where / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        return where
