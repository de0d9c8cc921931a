"""The pixel model: diffusion over pictures of 32 x 32 in the structure of DeepFloyd IF's first stage."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from jointdreamer.toybox import data, networks
from jointdreamer.toybox.recipes.base import Recipe
from jointdreamer.toybox.recipes.denoising import ddim, denoising_loss
from jointdreamer.toybox.recipes.shipped import averaged_weights, save_part, save_tokenizer


class Pixel(Recipe):
    """x0-prediction on pictures 2 x - 1; the text encoder is the text-to-image model's, as it is."""

    name, ships_as, lr = "pixel", "pixel", 1e-3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(5)
        self.tokenizer = networks.build_tokenizer(self.words)
        self.text = networks.build_text_encoder(self.tokenizer).eval().requires_grad_(False)
        self.text.load_state_dict(averaged_weights(folder, "text-to-image", "text"))
        self.networks = {"unet": networks.build_pixel_unet()}
        self.scheduler = networks.build_pixel_scheduler()

    @torch.no_grad()
    def read(self, captions: list[str]) -> Tensor:
        """(N, 24, D)"""
        return self.text(networks.tokens(self.tokenizer, captions)).last_hidden_state

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.flat), size=self.batch)
        captions = self.flat_captions(rows, rng)
        pictures = data.composite(self.flat.rgba[rows, 0], data.random_background(rng, len(rows)))
        x0 = 2 * avg_pool2d(pictures, data.RESOLUTION // networks.PIXEL_SIZE) - 1
        timesteps = torch.randint(1000, (self.batch,))
        return denoising_loss(
            self.networks["unet"], x0, timesteps, self.read(captions), abar=self.scheduler.alphas_cumprod
        )

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        captions = self.sheet_captions()
        size = networks.PIXEL_SIZE
        noise = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))
        unet = self.networks["unet"]
        x0 = ddim(
            lambda x, t, half: unet(x, t, half).sample,
            noise,
            self.read([*captions, *[""] * 16]),
            guidance_scale=4.0,
            abar=self.scheduler.alphas_cumprod,
        )
        self.write_sheet(step, x0 / 2 + 0.5, 8)

    def save(self, where: Path) -> Path:
        save_part(self.networks["unet"], where / "unet")
        save_part(self.text, where / "text_encoder")
        save_tokenizer(self.tokenizer, where / "tokenizer")
        self.scheduler.save_pretrained(where / "scheduler")
        return where
