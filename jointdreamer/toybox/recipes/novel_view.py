"""The novel-view model: Zero-1-to-3's structure in small, from the rigs' latents.

It ships as a diffusers folder that priors/zero123.py reads: unet/, image_encoder/, clip_camera_projection/, scheduler/.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jointdreamer.diffusion import add_noise
from jointdreamer.files import atomic_path
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.novel_view import CLIP_MEAN, CLIP_STD
from jointdreamer.priors.prompts import embed_texts
from jointdreamer.priors.zero123 import POSE
from jointdreamer.toybox import data, networks
from jointdreamer.toybox.recipes.base import Recipe, half_precision
from jointdreamer.toybox.recipes.denoising import ddim, decode, denoising_loss, latents_of
from jointdreamer.toybox.recipes.shipped import averaged_weights, load_vae, save_part, trained_family
from jointdreamer.toybox.world import caption, direction_word

VIEWS = 4  # of a rig


class NovelView(Recipe):
    """The other views of a rig from one: its latents beside the noisy ones, its embedding and the pose for words.

    It starts from the text-to-image UNet, whose first layer gets four more channels of zeros. A tenth of the rows see
    neither image nor pose (zeros), for guidance. The rigs are the scarce ones of the multi-view model. Their views are
    90 degrees apart at one height and distance, and so are the poses it learns.

    Half of the images are what the text-to-image model, guided by the caption, makes of the view in one step from the
    noise level of the views that are asked for: as the I2I energy shows it (`reference_image: estimate`), blurred at a
    large t. Seven in ten show the rig's view nearest to the front, where that energy has its reference.
    """

    name, ships_as, lr = "novel-view", "novel_view", 6e-4
    DROP = 0.1
    ESTIMATES, FRONTS = 0.5, 0.7

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(6)
        unet = networks.build_unet(
            in_channels=2 * self.edition.latent_channels, latent_channels=self.edition.latent_channels
        )
        start = averaged_weights(folder, "text-to-image", "unet")
        start["conv_in.weight"] = widened(start["conv_in.weight"])
        unet.load_state_dict(start)
        projection = nn.Linear(networks.TEXT_WIDTH + POSE, networks.TEXT_WIDTH)
        nn.init.eye_(projection.weight)  # the embedding as it is, no pose yet; the authors' start
        nn.init.zeros_(projection.bias)
        self.networks = {"unet": unet, "projection": projection, "tower": networks.build_vision_tower()}
        self.vae = load_vae(folder)
        self.latents = latents_of(folder, "rigs", self.rigs, self.vae)
        # `latents_of` puts each rig on a light grey of its own, drawn from this seed in this order
        self.ground = data.random_background(np.random.default_rng(5), len(self.rigs))
        self.prior = LatentDiffusion.build(trained_family(folder), dtype="float32", x0_limit=4.0, x0_rescale=0.7)
        self.text_parts = self.prior.text_parts()

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.rigs), size=max(1, self.batch // (VIEWS - 1)))
        nearest = np.cos(self.rigs.azimuth[rows]).argmax(1)
        reference = np.where(rng.random(len(rows)) < self.FRONTS, nearest, rng.integers(VIEWS, size=len(rows)))
        others = (reference[:, None] + np.arange(1, VIEWS)) % VIEWS  # (N, 3)
        latents = torch.from_numpy(self.latents[rows].astype(np.float32))
        images = data.composite(self.rigs.rgba[rows, reference], self.ground[rows])
        n = torch.arange(len(rows))
        x0 = latents[n[:, None], torch.from_numpy(others)].flatten(0, 1)
        beside = latents[n, torch.from_numpy(reference)] / self.vae.config.scaling_factor  # unscaled, as the authors
        timesteps = torch.randint(1000, (len(rows),))
        estimated = np.flatnonzero(rng.random(len(rows)) < self.ESTIMATES)
        if len(estimated):
            images[estimated], beside[estimated] = self.estimates(
                beside[estimated] * self.vae.config.scaling_factor,
                timesteps[estimated],
                rows[estimated],
                reference[estimated],
                rng,
            )
        pose = rig_poses(self.rigs, rows[:, None], reference[:, None], others)
        seen = torch.from_numpy(rng.random(len(x0)) >= self.DROP).float()
        with half_precision():
            context = self.context(images, pose).float()
        beside = beside.repeat_interleave(VIEWS - 1, 0) * seen[:, None, None, None]
        context = context.flatten(0, 1)[:, None] * seen[:, None, None]
        unet = self.networks["unet"]

        def beside_it(noisy: Tensor, timesteps: Tensor, words: Tensor) -> Any:
            return unet(torch.cat([noisy, beside], 1), timesteps, words)

        return denoising_loss(beside_it, x0, timesteps.repeat_interleave(VIEWS - 1), context)

    @torch.no_grad()
    def estimates(
        self, latents: Tensor, timesteps: Tensor, rows: np.ndarray, reference: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """What the prior makes of views (N, C, 16, 16): images (N, 3, 64, 64) in [0, 1], their unscaled latents."""
        texts = []
        for r, view in zip(rows, reference, strict=True):
            word = direction_word(float(self.rigs.azimuth[r, view]), float(self.rigs.elevation[r, view]))
            texts.append(f"{caption(self.rigs.toys[r])}, {word} view")
        cond, uncond = embed_texts([*texts, ""], *self.text_parts).split([len(texts), 1])
        prior, noised = self.prior, add_noise(self.prior.process, latents[:, None], timesteps, None)
        words = [Condition(cond[:, None]), Condition(uncond[:, None].expand_as(cond[:, None]))]
        given, none = prior.predict(noised.x_t, noised.t, words, None)
        noise = prior.guidance.noise(prior.process, noised.x_t, noised.t, given, none, 1 + rng.uniform(1, 4))
        x0 = noised.x0(noise)[:, 0]
        images = decode(self.vae, x0).clamp(0, 1)
        return images, self.vae.encode(2 * images - 1).latent_dist.mean

    def context(self, images: Tensor, pose: Tensor) -> Tensor:
        """Images (N, 3, 64, 64) in [0, 1] and poses (N, K, 4) -> what cross-attention reads (N, K, D)."""
        mean, std = (images.new_tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        embedding = self.networks["tower"](pixel_values=(images - mean) / std).image_embeds
        together = torch.cat([embedding[:, None].expand(-1, pose.shape[1], -1).to(pose), pose], -1)
        return self.networks["projection"](together)

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        """Rows of the image, the three true other views, the three drawn ones; half of the images show the back."""
        pictures = data.rigs(6, seed=95, scarce=False, shape="held_out", words=self.words)
        rgb = data.composite(pictures.rgba, np.full((6, VIEWS, 3), 0.85))
        truth = self.vae.encode(2 * rgb.flatten(0, 1) - 1).latent_dist.mean.unflatten(0, (6, VIEWS))  # unscaled
        front = np.abs((pictures.azimuth + np.pi) % (2 * np.pi) - np.pi).argmin(1)
        reference = np.where(np.arange(6) % 2 == 0, front, (front + 2) % VIEWS)
        others = (reference[:, None] + np.arange(1, VIEWS)) % VIEWS
        n = torch.arange(6)
        images, beside = rgb[n, torch.from_numpy(reference)], truth[n, torch.from_numpy(reference)]
        pose = rig_poses(pictures, np.arange(6)[:, None], reference[:, None], others)
        context = self.context(images, pose).flatten(0, 1)[:, None]
        beside = beside.repeat_interleave(VIEWS - 1, 0)
        unet, none = self.networks["unet"], torch.zeros_like(beside)
        latents = ddim(
            lambda x, t, words: unet(torch.cat([x, torch.cat([beside, none])], 1), t, words).sample,
            torch.randn(18, self.edition.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0)),
            torch.cat([context, torch.zeros_like(context)]),
            guidance_scale=3.0,
        )
        drawn = decode(self.vae, latents).unflatten(0, (6, VIEWS - 1))
        wanted = rgb[n[:, None], torch.from_numpy(others)]
        error = (drawn.clamp(0, 1) - wanted).square().mean((2, 3, 4))
        copied = (images[:, None] - wanted).square().mean((2, 3, 4))  # what repeating the image would give
        psnr, idle = (float(-10 * torch.log10(x).mean()) for x in (error, copied))
        print(f"novel-view: PSNR {psnr:.2f} dB on held-out objects; the image repeated has {idle:.2f} dB", flush=True)
        self.write_sheet(step, torch.cat([images[:, None], wanted, drawn], 1).flatten(0, 1), 2 * VIEWS - 1)

    def save(self, where: Path) -> Path:
        from safetensors.torch import save_file

        save_part(self.networks["unet"], where / "unet")
        save_part(self.networks["tower"], where / "image_encoder")
        networks.build_scheduler().save_pretrained(where / "scheduler")
        folder = where / "clip_camera_projection"
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"proj.{k}": v.half().contiguous() for k, v in self.networks["projection"].state_dict().items()}
        with atomic_path(folder / "diffusion_pytorch_model.safetensors") as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        config = {"additional_embeddings": POSE, "embedding_dim": networks.TEXT_WIDTH}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        return where


def widened(conv: Tensor) -> Tensor:
    """First-layer weights (K, C, h, w) -> (K, 2 C, h, w): the new channels are not looked at yet."""
    return torch.cat([conv, torch.zeros_like(conv)], 1)


def rig_poses(pictures: data.Pictures, rows: np.ndarray, reference: np.ndarray, others: np.ndarray) -> Tensor:
    """Zero-1-to-3's four numbers (N, K, 4) of the views `others` (N, K) relative to `reference` (N, 1).

    The views of a rig are equally far away.
    """
    azimuth = torch.from_numpy(pictures.azimuth[rows, others] - pictures.azimuth[rows, reference])
    polar = torch.from_numpy(pictures.elevation[rows, reference] - pictures.elevation[rows, others])
    return torch.stack([polar, azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], -1)
