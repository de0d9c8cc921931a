"""The toybox CLIP: which caption belongs to which picture."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jointdreamer.toybox import data, networks
from jointdreamer.toybox.recipes.base import Recipe
from jointdreamer.toybox.recipes.degrade import degraded_views
from jointdreamer.toybox.recipes.shipped import save_part, save_tokenizer
from jointdreamer.toybox.world import SHIPPED_WORDS, Words, caption, sample_toy


class Clip(Recipe):
    """Contrastive, with captions without directions; for measuring only."""

    name, ships_as, lr = "clip", "clip", 1e-3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, 2 * batch)
        torch.manual_seed(3)
        self.tokenizer = networks.build_tokenizer(self.words)
        self.networks = {"clip": networks.build_clip(self.tokenizer)}

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rgb, origins = degraded_views(self, rng, self.batch)
        texts = [caption(source.toys[row], rng) for source, row, _ in origins]
        clip = self.networks["clip"]
        out = clip(input_ids=networks.tokens(self.tokenizer, texts), pixel_values=2 * rgb - 1)
        # Two pictures of one combination share a caption: both are right answers.
        plain = [caption(source.toys[row]) for source, row, _ in origins]
        same = torch.tensor([[float(a == b) for b in plain] for a in plain])
        target = same / same.sum(1, keepdim=True)
        logits = out.logits_per_image
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        right = retrieval(self.networks["clip"], self.tokenizer, *held_out_fronts(100, words=self.words))
        print(f"clip: {right:.1%} of held-out renders retrieve their caption among 100", flush=True)

    def save(self, where: Path) -> Path:
        save_part(self.networks["clip"], where)
        save_tokenizer(self.tokenizer, where)
        return where


def held_out_fronts(n: int, seed: int = 96, words: Words = SHIPPED_WORDS) -> tuple[Tensor, list[str]]:
    """N near-front renders of held-out objects with n different captions, on light grey."""
    rng, toys, captions = np.random.default_rng(seed), [], []
    while len(toys) < n:
        toy = sample_toy(rng, shape="held_out", combination="held_out", words=words)
        if caption(toy) not in captions:
            toys.append(toy)
            captions.append(caption(toy))
    return data.fronts(toys, seed), captions


@torch.no_grad()
def retrieval(clip: Any, tokenizer: Any, rgb: Tensor, captions: list[str]) -> float:
    """Share of the images (N, 3, 64, 64) whose own caption is nearest among all N."""
    out = clip(input_ids=networks.tokens(tokenizer, captions), pixel_values=2 * rgb - 1)
    return float((out.logits_per_image.argmax(1) == torch.arange(len(rgb))).float().mean())
