"""What FID compares the runs with: a folder of pictures, or true toys, seen by the same network; each kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.evaluation.measure import Instruments, once
from jointdreamer.evaluation.networks import BATCH, resized

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TRUE_TOYS = 4  # shapes of each caption among the true renders


def name_toys(prompts: Sequence[str]) -> bool:
    """Whether all prompts are captions of the toybox, of which there are true renders."""
    from jointdreamer.toybox.world import parse_caption

    return all(parse_caption(prompt) is not None for prompt in prompts)


def folder_features(
    pictures: Path, background: Sequence[float], instruments: Instruments, folder: Path
) -> tuple[np.ndarray, str]:
    """FID's features of the pictures in a folder, and what to call them; transparent ones lie on `background`.

    Raises UserError for fewer than two, or one that cannot be read.
    """
    files = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in PICTURES) if pictures.is_dir() else []
    if len(files) < 2:
        found = f"{len(files)} in it" if pictures.is_dir() else "no such folder"
        raise UserError(
            f"reference={pictures}: wanted a folder with two or more pictures ({', '.join(PICTURES)}); {found}"
        )
    stamps = [(str(p.relative_to(pictures)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]

    def compute() -> np.ndarray:
        found = []
        for k in range(0, len(files), BATCH):
            part = [_picture(file, background, instruments.resolution) for file in files[k : k + BATCH]]
            found.append(instruments.fid_images(torch.stack(part)))
        return np.concatenate(found)

    key = instruments.key("pictures", stamps, list(background))
    return once(folder / f"reference-{key}.npz", compute), f"{len(files)} pictures of {pictures}"


def _picture(file: Path, background: Sequence[float], resolution: int) -> Tensor:
    """The middle square of a picture, (3, R, R) in [0, 1]."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            rgba = torch.from_numpy(np.array(image.convert("RGBA"), np.float32) / 255).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file} cannot be read as a picture ({str(error)[:120]}): remove it, or mend it") from error
    height, width = rgba.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    rgba = rgba[:, top : top + side, left : left + side]
    ground = torch.tensor(list(background), dtype=torch.float32)[:, None, None]
    return resized((rgba[:3] * rgba[3:] + ground * (1 - rgba[3:]))[None], resolution)[0]


def toybox_features(
    prompts: Sequence[str],
    orbit: Mapping[str, float],
    background: Sequence[float],
    instruments: Instruments,
    folder: Path,
) -> tuple[np.ndarray, str]:
    """FID's features of true toys: the ray-cast truth of every prompt from the runs' own cameras, and its name.

    Each in TRUE_TOYS shapes that nothing was trained on. Raises UserError for a prompt that names no toy.
    """
    from jointdreamer.toybox.world import HELD_OUT_SHAPES, parse_caption

    toys = []
    for prompt in prompts:
        toy = parse_caption(prompt)
        if toy is None:
            raise UserError(
                f"reference=toybox: {prompt!r} names no toy, so there are no true renders of it; name a folder of "
                "reference pictures, or reference=none"
            )
        toys.append(toy)

    def compute() -> np.ndarray:
        from jointdreamer.cameras import orbit_cameras
        from jointdreamer.toybox import data, raycast
        from jointdreamer.toybox.world import solids

        cameras = orbit_cameras(instruments.n_views, instruments.resolution, **orbit)
        c2w, fovy = cameras.c2w[0].double().numpy(), cameras.fovy[0].double().numpy()
        ground = np.full((instruments.n_views, 3), background)
        found = []
        for toy in toys:
            for shape in range(TRUE_TOYS):
                packed = raycast.pack(solids(replace(toy, shape_seed=HELD_OUT_SHAPES + shape)))
                rgba, _, _ = raycast.render(packed, c2w, fovy, instruments.resolution)
                rgb = data.composite(np.round(rgba * 255).astype(np.uint8), ground)
                found.append(instruments.fid_images(rgb))
        return np.concatenate(found)

    key = instruments.key("toybox", list(prompts), dict(orbit), list(background), TRUE_TOYS)
    name = f"{len(toys) * TRUE_TOYS * instruments.n_views} true renders of {len(toys)} captions"
    return once(folder / f"reference-{key}.npz", compute), name
