"""Views of true objects as a NeRF shows them, half-fitted and fitted: what the judge must not be confused by.

A NeRF of our own is fitted to ray-cast pictures of a training object, and rendered all round at three moments.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from jointdreamer.cameras import Cameras, mvdream_camera, sample_cameras
from jointdreamer.optim import build_optimizer
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.scene import NeRF
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.toybox import data, raycast
from jointdreamer.toybox.solids import solids
from jointdreamer.toybox.world import SHIPPED_WORDS, Toy, Words, sample_toy

MOMENTS = (45, 75, 120)  # steps: mush, blurred, nearly sharp
VIEWS = 8  # at each moment
RATES = SimpleNamespace(geometry=0.01, appearance=0.01, background=0.0)


def nerf_views(
    n: int, seed: int, progress: Callable[[int, int], None] | None = None, words: Words = SHIPPED_WORDS
) -> data.Pictures:
    """Pictures of n toys, 24 views each: eight at every moment. All words, none of the held-out sets."""
    rng = np.random.default_rng([seed, 4])
    toys = [sample_toy(rng, words=words) for _ in range(n)]
    found: list[tuple[np.ndarray, ...]] = []
    for i, toy in enumerate(toys):
        if progress and i % 10 == 0:
            progress(i, n)
        found.append(_fit_and_look(toy, torch.Generator().manual_seed(seed * 100_003 + i)))
    rgba, azimuth, elevation, camera = (np.stack(part) for part in zip(*found, strict=True))
    return data.Pictures(rgba, toys, azimuth, elevation, camera)


def _fit_and_look(toy: Toy, generator: torch.Generator) -> tuple[np.ndarray, ...]:
    """rgba (24, 64, 64, 4) uint8, azimuth (24,), elevation (24,), camera (24, 16) of one toy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # the field's initial weights
        field = HashGridField(
            {"n_levels": 6, "log2_table_size": 14, "base_resolution": 8, "growth": 1.41}, hidden=32, encoding_lr=2.0
        )
    black = SphericalBackground(random_probability=1.0, random_grey_range=(0.0, 0.0), eval_color=(0.0, 0.0, 0.0))
    scene = NeRF(field, black, VolumeRenderer(n_samples=96))
    optimizer = build_optimizer(scene.parameter_groups(), scene.lr_scale)
    packed, looks = raycast.pack(solids(toy)), []
    for step in range(1, MOMENTS[-1] + 1):
        cameras = sample_cameras(data.RIG, data.RESOLUTION // 2, generator)
        rgba, _, _ = raycast.render(packed, cameras.c2w[0].double().numpy(), cameras.fovy[0].double().numpy(), 32)
        truth = torch.from_numpy(rgba)
        scene.before_step(step - 1, generator)
        render = scene.render(cameras, generator=generator, normals=False)
        true_rgb, alpha = (truth[..., :3] * truth[..., 3:]).movedim(-1, 1), truth[..., 3]
        loss = (render.rgb[0] - true_rgb).square().sum() + (render.opacity[0, :, 0] - alpha).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(RATES)
        if step in MOMENTS:
            rig = replace(data.RIG, n_views=VIEWS)
            looks.append(_look(scene, sample_cameras(rig, data.RESOLUTION, generator)))
    return tuple(np.concatenate(part) for part in zip(*looks, strict=True))


@torch.no_grad()
def _look(scene: NeRF, cameras: Cameras) -> tuple[np.ndarray, ...]:
    render = scene.render(cameras, normals=False)
    opacity = render.opacity[0]
    straight = render.rgb[0] / opacity.clamp(min=1e-3)
    rgba = (torch.cat([straight.clamp(0, 1), opacity], 1) * 255).round().byte().permute(0, 2, 3, 1)
    camera = mvdream_camera(cameras.c2w)[0]
    return tuple(
        x.numpy().astype(dtype)
        for x, dtype in (
            (rgba, np.uint8),
            (cameras.azimuth[0], np.float32),
            (cameras.elevation[0], np.float32),
            (camera, np.float32),
        )
    )
