"""The judge's network: what a view shows, and from where."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jointdreamer.files import atomic_path
from jointdreamer.toybox import data, networks
from jointdreamer.toybox.recipes.base import Recipe
from jointdreamer.toybox.recipes.degrade import degraded_views
from jointdreamer.toybox.world import COLORS, SHIPPED_WORDS, Words

FACE_ANGLE = np.radians(75)  # from the side and further round, no more than a sliver of the face shows


class Judge(Recipe):
    """Says what is seen; trained on clean, blurred and noisy views of all pictures, those of fitted NeRFs included."""

    name, ships_as, lr = "judge", "judge", 1e-3
    EXTRA = 4000  # objects of every word from every side: a judge must know them all

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, 2 * batch)
        torch.manual_seed(4)
        self.networks = {"judge": networks.JudgeNet(self.words)}
        self.nerf = data.Pictures.load(folder / "nerf")
        self.extra = data.rigs(self.EXTRA, seed=11, scarce=False, words=self.words)

    @property
    def sources(self) -> tuple[data.Pictures, ...]:
        return self.flat, self.rigs, self.extra, self.nerf

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rgb, origins = degraded_views(self, rng, self.batch)
        return judge_loss(self.networks["judge"](rgb), *judge_targets(origins, self.words))

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        pictures = data.rigs(100, seed=97, scarce=False, shape="held_out", words=self.words)
        rgb = data.composite(
            pictures.rgba.reshape(400, 64, 64, 4), data.random_background(np.random.default_rng(0), 400)
        )
        origins = [(pictures, row, view) for row in range(100) for view in range(4)]
        answers, (targets, worn) = self.networks["judge"](rgb), judge_targets(origins, self.words)
        right = {name: (answers[name].argmax(1) == targets[name]).float() for name in targets}
        right["accessory_color"] = right["accessory_color"][worn]
        print("judge:", {name: f"{float(r.mean()):.1%}" for name, r in right.items()}, flush=True)

    def save(self, where: Path) -> Path:
        from safetensors.torch import save_file

        where.mkdir(parents=True, exist_ok=True)
        with atomic_path(where / "model.safetensors") as temporary:
            save_file({k: v.half().contiguous() for k, v in self.networks["judge"].state_dict().items()}, temporary)
        return where


def judge_targets(origins: list, words: Words = SHIPPED_WORDS) -> tuple[dict[str, Tensor], Tensor]:
    """The true answers by head, and which of the toys wear something."""
    colors, kinds, patterns, accessories = map(list, (COLORS, words.kinds, words.patterns, words.accessories))
    azimuth = np.array([source.azimuth[row, view] for source, row, view in origins])
    toys = [source.toys[row] for source, row, _ in origins]
    bins = np.round(azimuth / (2 * np.pi) * networks.AZIMUTH_BINS).astype(int) % networks.AZIMUTH_BINS
    wrapped = (azimuth + np.pi) % (2 * np.pi) - np.pi
    targets = {
        "azimuth": bins,
        "face": (np.abs(wrapped) < FACE_ANGLE).astype(int),
        "kind": [kinds.index(t.kind) for t in toys],
        "color": [colors.index(t.color) for t in toys],
        "pattern": [patterns.index(t.pattern) for t in toys],
        "accessory": [accessories.index(t.accessory) for t in toys],
        "accessory_color": [colors.index(t.accessory_color) for t in toys],
    }
    return {k: torch.as_tensor(v) for k, v in targets.items()}, torch.tensor([t.accessory != "none" for t in toys])


def judge_loss(answers: dict[str, Tensor], targets: dict[str, Tensor], worn: Tensor) -> Tensor:
    """Cross-entropy of every head; the colour of clothes only where there are some."""
    total = torch.zeros(())
    for name, logits in answers.items():
        each = F.cross_entropy(logits, targets[name], reduction="none")
        total = total + (each[worn].mean() if name == "accessory_color" and worn.any() else each.mean())
    return total
