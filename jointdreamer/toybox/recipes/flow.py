"""The flow: a rectified flow in Stable Diffusion 3's structure, over the latents of the text-to-image model."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointdreamer.toybox import networks
from jointdreamer.toybox.recipes import denoising
from jointdreamer.toybox.recipes.base import Recipe, half_precision
from jointdreamer.toybox.recipes.denoising import decode, latents_of
from jointdreamer.toybox.recipes.shipped import averaged_weights, load_vae, save_part, save_tokenizer


class Flow(Recipe):
    """Velocity noise - x0 at sigma = sigmoid(normal) (Esser et al. 2024, logit-normal), transformer and text encoder.

    The text encoder starts as the text-to-image model's, and pools the text as well. The transformer reads its last
    hidden state but one, as Stable Diffusion 3's does.
    """

    name, ships_as, lr = "flow", "flow", 1e-3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(4)
        self.tokenizer = networks.build_tokenizer(self.words)
        text = networks.build_pooled_text_encoder(self.tokenizer)
        trained = averaged_weights(folder, "text-to-image", "text")
        text.text_model.load_state_dict({key.removeprefix("text_model."): value for key, value in trained.items()})
        self.networks = {"unet": networks.build_transformer(self.edition.latent_channels), "text": text}
        self.vae = load_vae(folder)
        self.latents = latents_of(folder, "flat", self.flat, self.vae)

    def velocity(self, x: Tensor, sigma: Tensor, words: tuple[Tensor, Tensor]) -> Tensor:
        """x (N, C, 16, 16) at noise levels (N,), told the states and the pooled text of N captions."""
        states, pooled = words
        out = self.networks["unet"](
            x, timestep=1000 * sigma, encoder_hidden_states=states, pooled_projections=pooled, return_dict=False
        )
        return out[0].float()

    def read(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """What the transformer is told: states (N, 24, D) and pooled text (N, P)."""
        out = self.networks["text"](networks.tokens(self.tokenizer, captions), output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.flat), size=self.batch)
        captions = self.flat_captions(rows, rng)
        x0 = torch.from_numpy(self.latents[rows, 0].astype(np.float32))
        noise, sigma = torch.randn_like(x0), torch.randn(len(x0)).sigmoid()
        wide = sigma[:, None, None, None]
        with half_precision():
            predicted = self.velocity((1 - wide) * x0 + wide * noise, sigma, self.read(captions))
        return (predicted - (noise - x0)).square().mean()

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        captions = self.sheet_captions()
        words = self.read([*captions, *[""] * len(captions)])
        x = torch.randn(16, self.edition.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
        levels = torch.linspace(1, 0, denoising.SHEET_STEPS + 1)
        for now, after in zip(levels[:-1], levels[1:], strict=True):
            cond, uncond = self.velocity(torch.cat([x, x]), now.expand(2 * len(x)), words).chunk(2)
            x = x + (after - now) * (uncond + 4.0 * (cond - uncond))
        self.write_sheet(step, decode(self.vae, x), 8)

    def save(self, where: Path) -> Path:
        save_part(self.networks["unet"], where / "transformer")
        save_part(self.networks["text"], where / "text_encoder")
        save_tokenizer(self.tokenizer, where / "tokenizer")
        networks.build_flow_scheduler().save_pretrained(where / "scheduler")
        return where
