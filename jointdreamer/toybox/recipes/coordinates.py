"""The coordinate model: SweetDreamer's aligned geometric prior in small, over maps of 16 x 16 coordinates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jointdreamer.cameras import Cameras, mvdream_camera, orbit_cameras, sample_cameras
from jointdreamer.scenes.coordinates import as_latents, as_maps, coordinate_map
from jointdreamer.toybox import data, networks, raycast
from jointdreamer.toybox.recipes.base import EMPTY_SHARE, Recipe
from jointdreamer.toybox.recipes.denoising import ddim, denoising_loss
from jointdreamer.toybox.recipes.shipped import averaged_weights, save_part
from jointdreamer.toybox.solids import solids
from jointdreamer.toybox.world import Toy, parse_caption

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])  # the world is aligned, and no toy leaves it
SHEET = ("a red robot with a blue hat", "a green bear", "a blue rabbit", "a yellow elephant with a red flag")


class Coordinates(Recipe):
    """x0-prediction on coordinate maps of toys that have 3D data, told the caption and the camera.

    Toys and cameras are drawn anew at every step. The text encoder is the text-to-image model's, as it is.
    """

    name, ships_as, lr = "coordinates", "coordinates", 1e-3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(6)
        self.tokenizer = networks.build_tokenizer(self.words)
        self.text = networks.build_text_encoder(self.tokenizer).eval().requires_grad_(False)
        self.text.load_state_dict(averaged_weights(folder, "text-to-image", "text"))
        self.networks = {"unet": networks.build_coordinate_unet()}

    @torch.no_grad()
    def read(self, captions: list[str]) -> Tensor:
        """(N, 24, D)"""
        return self.text(networks.tokens(self.tokenizer, captions)).last_hidden_state

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        toys = data.sample_toys(self.batch, rng, words=self.words)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        cameras = sample_cameras(replace(data.RIG, n_rigs=len(toys), n_views=1), networks.COORDINATE_SIZE, generator)
        captions = []
        for toy, azimuth, elevation in zip(toys, cameras.azimuth.numpy(), cameras.elevation.numpy(), strict=True):
            captions += [""] if rng.random() < EMPTY_SHARE else data.rig_captions(toy, azimuth, elevation, rng)
        x0 = as_latents(toy_maps(toys, cameras)[:, 0], networks.COORDINATE_SCALE)
        return denoising_loss(
            self.networks["unet"],
            x0,
            torch.randint(1000, (len(x0),)),
            self.read(captions),
            class_labels=mvdream_camera(cameras.c2w)[:, 0],
        )

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        """Samples from four directions of four captions, and below them the true maps of such toys."""
        size = networks.COORDINATE_SIZE
        cameras = orbit_cameras(4, size, distance=2.61)
        toys = [parse_caption(text, self.words) for text in SHEET]
        known = [(text, toy) for text, toy in zip(SHEET, toys, strict=True) if toy is not None]
        n = 4 * len(known)
        captions = [text for text, _ in known for _ in range(4)]
        camera = mvdream_camera(cameras.c2w)[0].repeat(len(known), 1)
        noise = torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(0))
        unet = self.networks["unet"]
        x0 = ddim(
            lambda x, t, half: unet(x, t, half, class_labels=camera.repeat(2, 1)).sample,
            noise,
            self.read([*captions, *[""] * n]),
            guidance_scale=3.0,
        )
        true = torch.cat([toy_maps([toy], cameras)[0] for _, toy in known])
        maps = torch.cat([as_maps(x0, networks.COORDINATE_SCALE), true])[:, :3]
        self.write_sheet(step, interpolate(maps, scale_factor=4.0), 8)

    def save(self, where: Path) -> Path:
        save_part(self.networks["unet"], where / "unet")
        networks.build_scheduler().save_pretrained(where / "scheduler")
        return where


def toy_maps(toys: list[Toy], cameras: Cameras) -> Tensor:
    """The true coordinate maps (B, V, 4, R, R) of B toys, from cameras (B, V)."""
    opacity, depth = [], []
    for toy, c2w, fovy in zip(toys, cameras.c2w.double().numpy(), cameras.fovy.double().numpy(), strict=True):
        rgba, t, _ = raycast.render(raycast.pack(solids(toy)), c2w, fovy, cameras.resolution, supersample=3)
        opacity.append(rgba[..., 3])
        depth.append(rgba[..., 3] * t)  # of a pixel's rays together, as a render's
    opacity, depth = (torch.from_numpy(np.stack(x))[:, :, None] for x in (opacity, depth))
    return coordinate_map(opacity, depth, cameras, BOX)
