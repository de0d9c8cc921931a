"""The multi-view model: MVDream's structure in small, from rigs of four views."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointdreamer.priors.multi_view_unet import set_views
from jointdreamer.toybox import data, networks
from jointdreamer.toybox.recipes.base import Recipe
from jointdreamer.toybox.recipes.denoising import ddim, decode, denoising_loss, latents_of
from jointdreamer.toybox.recipes.shipped import averaged_weights, load_vae, save_part
from jointdreamer.toybox.world import WORDS_OF_TEXT_TO_IMAGE_ONLY, caption, sample_toy


class MultiView(Recipe):
    """Rigs of four views with their cameras; three steps in ten on flat pictures, as MVDream does, to keep the words.

    Not all words: some stay the text-to-image model's own (WORDS_OF_TEXT_TO_IMAGE_ONLY). It starts from the
    text-to-image weights and keeps that model's text encoder. A flat picture has no camera: zeros.
    """

    name, ships_as, lr = "multi-view", "multi_view", 6e-4
    FLAT_SHARE = 0.3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(2)
        unet = networks.build_unet(multiview=True, latent_channels=self.edition.latent_channels)
        unet.load_state_dict(
            averaged_weights(folder, "text-to-image", "unet"), strict=False
        )  # all but the camera's embedding
        self.networks = {"unet": unet}
        self.tokenizer = networks.build_tokenizer(self.words)
        self.text = networks.build_text_encoder(self.tokenizer).eval().requires_grad_(False)
        self.text.load_state_dict(averaged_weights(folder, "text-to-image", "text"))
        self.vae = load_vae(folder)
        self.flat_latents = latents_of(folder, "flat", self.flat, self.vae)
        self.rig_latents = latents_of(folder, "rigs", self.rigs, self.vae)
        unknown = WORDS_OF_TEXT_TO_IMAGE_ONLY
        self.flat_rows = np.array([row for row, toy in enumerate(self.flat.toys) if not toy.words & unknown])

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        unet, texts = self.networks["unet"], []
        flat = rng.random() < self.FLAT_SHARE
        views = 1 if flat else 4
        source = self.flat if flat else self.rigs
        known = self.flat_rows if flat else np.arange(len(source))
        rows = known[rng.integers(len(known), size=self.batch // views)]
        for r in rows:
            azimuth, elevation = source.azimuth[r], source.elevation[r]
            if rng.random() < 0.1:
                texts += [""] * views
            elif flat:
                texts.append(data.flat_caption(source.toys[r], azimuth[0], elevation[0], rng))
            else:
                texts += data.rig_captions(source.toys[r], azimuth, elevation, rng)
        x0 = torch.from_numpy((self.flat_latents if flat else self.rig_latents)[rows].astype(np.float32)).flatten(0, 1)
        camera = torch.zeros(len(x0), 16) if flat else torch.from_numpy(source.camera[rows]).flatten(0, 1)
        timesteps = torch.randint(1000, (len(rows),)).repeat_interleave(views)
        with torch.no_grad():
            words = self.text(networks.tokens(self.tokenizer, texts)).last_hidden_state
        set_views(unet, views)
        return denoising_loss(unet, x0, timesteps, words, class_labels=camera)

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        unet, rng = self.networks["unet"], np.random.default_rng(3)
        pictures = data.rigs(6, seed=98, scarce=False, shape="held_out", words=self.words)
        texts = [caption(sample_toy(rng, shape="held_out", words=self.words)) for _ in range(6)]
        words = self.text(
            networks.tokens(self.tokenizer, [t for t in texts for _ in range(4)] + [""] * 24)
        ).last_hidden_state
        camera = torch.from_numpy(pictures.camera[:1]).expand(6, 4, 16).flatten(0, 1)
        noise = torch.randn(24, self.edition.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
        set_views(unet, 4)
        latents = ddim(
            lambda x, t, half: unet(x, t, half, class_labels=camera.repeat(2, 1)).sample,
            noise,
            words,
            guidance_scale=4.0,
        )
        self.write_sheet(step, decode(self.vae, latents), 8)

    def save(self, where: Path) -> Path:
        save_part(self.networks["unet"], where / "unet")
        networks.build_scheduler().save_pretrained(where / "scheduler")
        return where
