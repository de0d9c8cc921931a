"""The toybox's pictures: view-biased flat ones, and scarce rigs of four views. Remade from seeds, never shipped.

Like the pictures of the real world, the flat ones mostly show fronts, and few of their captions name the direction, not
all of them rightly. The rigs (the 3D data) know their cameras, but cover only some words and combinations.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdreamer.cameras import Cameras, Rig, look_at, mvdream_camera, sample_cameras
from jointdreamer.toybox import raycast
from jointdreamer.toybox.solids import solids
from jointdreamer.toybox.world import DIRECTION_WORDS, Toy, caption, direction_word, has_3d_data, sample_toy

RESOLUTION = 64
# The cameras of the world: MVDream's, in a narrower range of fov and distance. conf/models/toybox.yaml agrees (tested).
RIG = Rig(elevation_deg=(0.0, 30.0), fovy_deg=(30.0, 50.0), relative_distance=(0.9, 1.0))
FRONTAL_SHARE, FRONTAL_SPREAD = 0.8, np.radians(20)
NAMED_SHARE, WRONG_SHARE = 0.4, 0.3  # captions with a direction word, and how many of those have a random one


@dataclass
class Pictures:
    """`rgba` (N, V, 64, 64, 4) uint8 with straight colour; one toy and one rig of V views a row."""

    rgba: np.ndarray
    toys: list[Toy]
    azimuth: np.ndarray  # (N, V) radians
    elevation: np.ndarray  # (N, V) radians
    camera: np.ndarray  # (N, V, 16) as the multi-view UNet gets it

    def __len__(self) -> int:
        return len(self.toys)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("rgba", "azimuth", "elevation", "camera"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "toys.json").write_text(json.dumps([asdict(toy) for toy in self.toys]))

    @classmethod
    def load(cls, folder: Path) -> "Pictures":
        toys = [Toy(**row) for row in json.loads((folder / "toys.json").read_text())]
        arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("rgba", "azimuth", "elevation", "camera")}
        return cls(toys=toys, **arrays)


def flat_pictures(n: int, seed: int, progress: Callable[[int, int], None] | None = None, **sets: Any) -> Pictures:
    """N single views of n toys: four in five within about 20 degrees of the front. `sets` as in `sample_toy`."""
    rng = np.random.default_rng([seed, 1])
    toys = [sample_toy(rng, **sets) for _ in range(n)]
    frontal = rng.random(n) < FRONTAL_SHARE
    azimuth = np.where(frontal, rng.normal(0, FRONTAL_SPREAD, n), rng.uniform(-np.pi, np.pi, n))
    drawn = sample_cameras(replace(RIG, n_rigs=n, n_views=1), RESOLUTION, _generator(seed))
    c2w = look_at(drawn.elevation, torch.as_tensor(azimuth, dtype=torch.float32)[:, None], drawn.distance)
    return _render_all(toys, c2w, drawn.fovy, azimuth[:, None], drawn.elevation, progress)


def rigs(
    n: int, seed: int, progress: Callable[[int, int], None] | None = None, scarce: bool = True, **sets: Any
) -> Pictures:
    """N rigs of four views 90 degrees apart; with `scarce` only of toys that have 3D data."""
    toys = sample_toys(n, np.random.default_rng([seed, 2]), scarce, **sets)
    rig = replace(RIG, n_rigs=n, n_views=4)
    drawn = sample_cameras(rig, RESOLUTION, _generator(seed + 1))
    return _render_all(toys, drawn.c2w, drawn.fovy, drawn.azimuth.numpy(), drawn.elevation, progress)


def sample_toys(n: int, rng: np.random.Generator, scarce: bool = True, **sets: Any) -> list[Toy]:
    """N toys; with `scarce` only such as have 3D data. `sets` as in `sample_toy`."""
    toys: list[Toy] = []
    while len(toys) < n:
        toy = sample_toy(rng, **sets)
        if not scarce or has_3d_data(toy):
            toys.append(toy)
    return toys


def fronts(toys: list[Toy], seed: int) -> torch.Tensor:
    """One near-front rgb (N, 3, 64, 64) of each toy, on light grey."""
    rng = np.random.default_rng([seed, 3])
    azimuth = np.clip(rng.normal(0, FRONTAL_SPREAD, len(toys)), -0.6, 0.6)
    drawn = sample_cameras(replace(RIG, n_rigs=len(toys), n_views=1), RESOLUTION, _generator(seed))
    c2w = look_at(drawn.elevation, torch.as_tensor(azimuth, dtype=torch.float32)[:, None], drawn.distance)
    pictures = _render_all(toys, c2w, drawn.fovy, azimuth[:, None], drawn.elevation, None)
    return composite(pictures.rgba[:, 0], random_background(rng, len(toys)))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _render_all(toys, c2w, fovy, azimuth, elevation, progress) -> Pictures:
    n, v = fovy.shape
    rgba = np.empty((n, v, RESOLUTION, RESOLUTION, 4), dtype=np.uint8)
    poses, fovs = c2w.double().numpy(), fovy.double().numpy()

    def one(i: int) -> None:
        image, _, _ = raycast.render(raycast.pack(solids(toys[i])), poses[i], fovs[i], RESOLUTION)
        rgba[i] = np.round(image * 255)
        if progress and i % 500 == 0:
            progress(i, n)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the ray caster releases the GIL
        list(pool.map(one, range(n)))
    camera = mvdream_camera(c2w).numpy().astype(np.float32)
    return Pictures(rgba, toys, np.asarray(azimuth, np.float32), elevation.numpy().astype(np.float32), camera)


def cast(toy: Toy, cameras: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the ray caster sees of a toy from the one rig, as `raycast.render` returns it."""
    c2w, fovy = cameras.c2w[0].numpy(), cameras.fovy[0].numpy()
    return raycast.render(raycast.pack(solids(toy)), c2w, fovy, cameras.resolution)


def true_views(toy: Toy, cameras: Cameras, background: float | Sequence[float]) -> torch.Tensor:
    """Rgb (V, 3, R, R) of a toy from the one rig, in steps of 1/255 before `background`, grey or (3,)."""
    rgba = np.round(cast(toy, cameras)[0] * 255).astype(np.uint8)
    return composite(rgba, np.full((len(rgba), 3), background))


def composite(rgba: np.ndarray, background: np.ndarray) -> torch.Tensor:
    """RGBA (..., R, R, 4) uint8 over a background (..., 3) in [0, 1] -> rgb (..., 3, R, R) in [0, 1]."""
    image = torch.from_numpy(np.asarray(rgba, dtype=np.float32)) / 255
    color, alpha = image[..., :3], image[..., 3:]
    ground = torch.as_tensor(background, dtype=torch.float32)[..., None, None, :]
    return (color * alpha + ground * (1 - alpha)).movedim(-1, -3)


def random_background(rng: np.random.Generator, n: int) -> np.ndarray:
    """(N, 3): light grey, as in the renders of a training step (conf/models/toybox.yaml)."""
    return np.repeat(rng.uniform(0.6, 1.0, (n, 1)), 3, axis=1)


def flat_caption(toy: Toy, azimuth: float, elevation: float, rng: np.random.Generator) -> str:
    """A caption as found on the web: the direction is mostly missing, and sometimes wrong."""
    text = caption(toy, rng)
    if rng.random() >= NAMED_SHARE:
        return text
    word = direction_word(azimuth, elevation)
    if rng.random() < WRONG_SHARE:
        word = DIRECTION_WORDS[int(rng.integers(3))]
    return f"{text}, {word} view"


def rig_captions(toy: Toy, azimuth: np.ndarray, elevation: np.ndarray, rng: np.random.Generator) -> list[str]:
    """One caption a view: 3D data knows its cameras, so the direction is right; half of the rigs do not name it."""
    text = caption(toy, rng)
    if rng.random() < 0.5:
        return [text] * len(azimuth)
    return [f"{text}, {direction_word(a, e)} view" for a, e in zip(azimuth, elevation, strict=True)]
