"""What FID compares the runs with: a folder of pictures, or true toys, seen by the same network; each kept."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError, one_line
from jointdreamer.evaluation.measure import Instruments, once
from jointdreamer.evaluation.networks import BATCH, resized
from jointdreamer.images import read_picture
from jointdreamer.reading import Unreadable, entries, folders

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

    Pictures that cannot be read are named on stderr and left out. Raises UserError for fewer than two that can.
    """
    found = (entry for inner in folders(pictures) for entry in entries(inner))
    files = [Path(entry.path) for entry in found if entry.name.lower().endswith(PICTURES)]
    few = f"reference={pictures}: wanted a folder with two or more pictures ({', '.join(PICTURES)}); "
    if len(files) < 2:
        raise UserError(few + (f"{len(files)} in it" if os.path.isdir(pictures) else "no such folder"))
    stamps = [(str(file.relative_to(pictures)), *_stamp(file)) for file in files]

    def compute() -> np.ndarray:
        found, waiting = [], []
        for file in files:
            try:
                waiting.append(_picture(file, background, instruments.resolution))
            except Unreadable as error:
                print(one_line(f"left out: {error}"), file=sys.stderr)
            if len(waiting) == BATCH or file is files[-1] and waiting:
                found.append(instruments.fid_images(torch.stack(waiting)))
                waiting = []
        if sum(map(len, found)) < 2:
            raise UserError(few + f"{sum(map(len, found))} of {len(files)} can be read")
        return np.concatenate(found)

    key = instruments.key("pictures", stamps, list(background))
    features = once(folder / f"reference-{key}.npz", compute, width=fid_width(instruments))
    unread = f" ({len(files) - len(features)} more cannot be read)" if len(features) < len(files) else ""
    return features, f"{len(features)} pictures of {pictures}{unread}"


def fid_width(instruments: Instruments) -> int | None:
    """How many numbers FID's features have, where they are CLIP's."""
    return instruments.clip_files.width if instruments.fid_file is None else None


def _stamp(file: Path) -> tuple[int, int]:
    try:
        about = file.stat()
    except OSError:  # a link to nothing: it will be named
        return 0, 0
    return about.st_size, about.st_mtime_ns


def _picture(file: Path, background: Sequence[float], resolution: int) -> Tensor:
    """The middle square of a picture, (3, R, R) in [0, 1]. Raises Unreadable."""
    rgba = torch.from_numpy(read_picture(file).astype(np.float32) / 255).permute(2, 0, 1)
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
        from jointdreamer.toybox import data

        cameras = orbit_cameras(instruments.n_views, instruments.resolution, **orbit)
        found = []
        for toy in toys:
            for shape in range(TRUE_TOYS):
                rgb = data.true_views(replace(toy, shape_seed=HELD_OUT_SHAPES + shape), cameras, background)
                found.append(instruments.fid_images(rgb))
        return np.concatenate(found)

    key = instruments.key("toybox", list(prompts), dict(orbit), list(background), TRUE_TOYS)
    name = f"{len(toys) * TRUE_TOYS * instruments.n_views} true renders of {len(toys)} captions"
    rows = len(toys) * TRUE_TOYS * instruments.n_views
    return once(folder / f"reference-{key}.npz", compute, rows, fid_width(instruments)), name
