"""The autoencoder: 64x64 pictures to 16x16 latents."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jointdreamer.metrics import psnr
from jointdreamer.toybox import data, networks
from jointdreamer.toybox.recipes.base import Recipe, half_precision
from jointdreamer.toybox.recipes.shipped import save_part


class Vae(Recipe):
    """L1 + RMS of each image + a little KL; every channel of the latents is brought to mean 0 and spread 1.

    The RMS keeps pulling when errors are small, where a squared error would have no gradient left.
    """

    name, ships_as, lr = "vae", "text_to_image/vae", 2e-3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(0)
        vae = networks.build_vae(self.edition)
        for name, module in vae.named_modules():
            if name.endswith("conv2"):  # residual blocks start as the identity
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        self.networks = {"vae": vae}

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rgba, _ = self.random_views(rng, self.batch)
        ground = data.random_background(rng, self.batch)
        colored = rng.random(self.batch) < 0.15  # a training render may have any background
        ground[colored] = rng.random((int(colored.sum()), 3))
        rgb = data.composite(rgba, ground)
        with half_precision():
            posterior = self.networks["vae"].encode(2 * rgb - 1).latent_dist
            out = self.networks["vae"].decode(posterior.sample()).sample
        error = out.float() - (2 * rgb - 1)
        kl = posterior.kl().float().mean() / rgb[0].numel()
        rms = (error.square().mean((1, 2, 3)) + 1e-6).sqrt().mean()
        return error.abs().mean() + rms + 1e-5 * kl

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        vae, rng = self.networks["vae"], np.random.default_rng(0)
        pictures = data.rigs(4, seed=99, scarce=False, shape="held_out", words=self.words)
        rgb = data.composite(pictures.rgba.reshape(16, 64, 64, 4), data.random_background(rng, 16))
        latents = vae.encode(2 * rgb - 1).latent_dist
        out = vae.decode(latents.mean).sample / 2 + 0.5
        noise = float((latents.std / latents.mean.std((0, 2, 3), keepdim=True)).mean())
        decibels = float(psnr(out.clamp(0, 1), rgb).mean())
        print(
            f"vae: PSNR {decibels:.2f} dB on held-out objects, posterior {noise:.3f} of the latents' spread", flush=True
        )
        self.write_sheet(step, torch.cat([rgb, out]), 16)

    @torch.no_grad()
    def save(self, where: Path) -> Path:
        vae = self.networks["vae"]
        rgba = self.flat.rgba[:192, 0]
        rgb = data.composite(rgba, data.random_background(np.random.default_rng(0), len(rgba)))
        latents = torch.cat([vae.encode(2 * part - 1).latent_dist.mean for part in rgb.split(64)])
        networks.normalize_latents(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        return save_part(vae, where)
