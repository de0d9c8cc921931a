"""Toys from cameras all round, one by one at random: what the toybox's pair classifier learns from.

Every view has a camera of its own, within the ranges of the world's rigs (data.RIG), so a pose says nothing about what
other views there are.
"""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from jointdreamer.cameras import sample_cameras
from jointdreamer.classifier.views import CAPTIONS, write_packed
from jointdreamer.errors import printable
from jointdreamer.files import write_text
from jointdreamer.toybox import data, raycast
from jointdreamer.toybox.solids import solids
from jointdreamer.toybox.world import Toy, caption, sample_toy

N_VIEWS = 12


def toy_names(n: int, seed: int) -> list[str]:
    return [f"toy_{seed}_{index:06d}" for index in range(n)]


def toy(index: int, seed: int) -> Toy:
    """Toy number `index` of a seed: all words, none of the held-out sets."""
    return sample_toy(np.random.default_rng([seed, 5, index]))


def toy_views(index: int, seed: int, resolution: int, n_views: int = N_VIEWS) -> tuple[np.ndarray, np.ndarray]:
    """rgba (V, R, R, 4) uint8 with straight colour and c2w (V, 4, 4) of `toy(index, seed)`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    drawn = sample_cameras(replace(data.RIG, n_rigs=n_views, n_views=1), resolution, generator)
    c2w = drawn.c2w[:, 0].double().numpy()
    image, _, _ = raycast.render(
        raycast.pack(solids(toy(index, seed))), c2w, drawn.fovy[:, 0].double().numpy(), resolution
    )
    return np.round(image * 255).astype(np.uint8), c2w


def pack_toy_views(
    folder: Path, n: int, seed: int, resolution: int = 64, progress: Callable[[int, int], None] | None = None
) -> None:
    """Render n toys into memory-mapped arrays in `folder` (classifier.views.PackedViews), 200 kB each at 64 pixels."""

    def rendered() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the ray caster releases the GIL
            for start in range(0, n, 64):
                if progress and start % 512 == 0:
                    progress(start, n)
                yield from pool.map(lambda i: toy_views(i, seed, resolution), range(start, min(n, start + 64)))

    names = toy_names(n, seed)
    write_text(folder / CAPTIONS, json.dumps({name: caption(toy(index, seed)) for index, name in enumerate(names)}))
    write_packed(folder, names, (N_VIEWS, resolution), rendered())


def render_toys(folder: Path, n: int, seed: int, resolution: int) -> None:
    """`pack_toy_views`, unless something is there; how far it is stands on stderr."""
    if (folder / "ids.json").exists() or (folder.is_dir() and any(folder.iterdir()) and not _unfinished(folder)):
        return

    def progress(done: int, total: int) -> None:
        print(printable(f"rendering toys into {folder}: {done} of {total}"), file=sys.stderr, flush=True)

    pack_toy_views(folder, n, seed, resolution, progress)


def _unfinished(folder: Path) -> bool:
    parts = ("rgba.npy", "c2w.npy", CAPTIONS)
    return all(entry.name.startswith(".tmp-") or entry.name in parts for entry in folder.iterdir())
