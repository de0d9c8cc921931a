"""A recipe: the networks of one toybox model, its loss, its sample sheet, and the folder that it ships as."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.images import grid, write_png
from jointdreamer.precision import has_bfloat16_units
from jointdreamer.toybox import data
from jointdreamer.toybox.networks import EDITIONS, Edition
from jointdreamer.toybox.recipes.pictures import edition_number
from jointdreamer.toybox.recipes.shipped import WEIGHTS
from jointdreamer.toybox.world import caption, sample_toy

EMPTY_SHARE = 0.1  # of the flat pictures' captions, for classifier-free guidance


class Recipe(ABC):
    """One model. `networks` are trained; the Trainer calls `loss` and `sheet`, and at the end `save` or `install`."""

    name = ""
    lr = 1e-3
    ships_as = ""  # folder below WEIGHTS

    def __init__(self, folder: Path, batch: int):
        self.folder, self.batch = folder, batch
        self.edition: Edition = EDITIONS[edition_number(folder)]
        self.words = self.edition.words
        self.flat = data.Pictures.load(folder / "flat")
        self.rigs = data.Pictures.load(folder / "rigs")
        self.networks: dict[str, Any] = {}

    @abstractmethod
    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        """The loss of one step; `rng` is the step's own."""

    @abstractmethod
    def sheet(self, step: int) -> None:
        """Show how far the networks are."""

    @abstractmethod
    def save(self, where: Path) -> Path:
        """Write the networks as they ship below `where`."""

    def install(self) -> Path:
        return self.save(WEIGHTS / self.ships_as)

    def write_sheet(self, step: int, rgb: Tensor, columns: int) -> None:
        write_png(self.folder / self.name / "sheets" / f"step_{step:06d}.png", grid(rgb.clamp(0, 1), columns))

    def flat_captions(self, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
        """The captions of flat pictures (N,), some of them empty."""
        flat = self.flat
        return [
            ""
            if rng.random() < EMPTY_SHARE
            else data.flat_caption(flat.toys[r], flat.azimuth[r, 0], flat.elevation[r, 0], rng)
            for r in rows
        ]

    def sheet_captions(self) -> list[str]:
        """Sixteen for a sheet of samples: held-out shapes, and known ones from named directions."""
        rng = np.random.default_rng(3)
        captions = [caption(sample_toy(rng, shape="held_out", words=self.words)) for _ in range(12)]
        captions += [f"a red robot with a blue hat, {way} view" for way in ("front", "side", "back")]
        return [*captions, "a green bear with a yellow scarf, back view"]

    @property
    def sources(self) -> tuple[data.Pictures, ...]:
        """What `random_views` takes in turn."""
        return self.rigs, self.flat

    def random_views(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, list[tuple[Any, int, int]]]:
        """N RGBA views of the sources, and where they come from: (pictures, row, view)."""
        origins = []
        for k in range(n):
            source = self.sources[k % len(self.sources)]
            origins.append((source, int(rng.integers(len(source))), int(rng.integers(source.azimuth.shape[1]))))
        return np.stack([source.rgba[row, view] for source, row, view in origins]), origins


def half_precision() -> torch.autocast:
    """Autocast to bfloat16 where the CPU multiplies it; elsewhere it would be emulated, several times slower."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16_units())
