"""Validation of the pair classifier on held-out objects, the best one so far, and the training's curves."""

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from jointdreamer.classifier.batches import Batch, to_batch
from jointdreamer.classifier.losses import ascend, judge_ascent
from jointdreamer.classifier.model import PairClassifier
from jointdreamer.classifier.pairs import OTHER_OBJECT, TRUE, WRONG_POSE, PairSampler
from jointdreamer.images import plot_curves
from jointdreamer.metrics import accuracy_by, roc_auc

ANGLES = [0.0, 30.0, 60.0, 90.0, 120.0, 150.0, 180.0]
KINDS = {"true": TRUE, "wrong_pose": WRONG_POSE, "other_object": OTHER_OBJECT}


@dataclass(frozen=True)
class Validation:
    """ROC-AUC and accuracy on the same pairs of held-out objects each time; by kind, and by the angle between views.

    ascent: unless it is None the derivative's cosine too, and, above 0, the squared error to the true views that is
    left after so many steps
    """

    sampler: PairSampler
    n_groups: int
    background: tuple[float, float]  # range of greys
    ascent: int | None
    ascent_step: float

    @torch.no_grad()
    def __call__(self, classifier: PairClassifier, rank: int = 0, processes: int = 1) -> dict[str, float]:
        """The numbers by name, the same in each of the processes, which share the groups."""
        device, found = next(classifier.parameters()).device, []
        for number in range(rank, self.n_groups, processes):
            group, rng = self.sampler.group(0, number)
            batch = to_batch(group, rng, self.background, most_steps=self.ascent).to(device)
            found.append((number, *self._answers(classifier, batch)))
        if processes > 1:
            found = gather_object(found)
        found = sorted(found, key=lambda one: int(one[0]))
        return self._numbers(*(torch.cat([one[i] for one in found]) for i in range(1, 6)))

    def _answers(self, classifier: PairClassifier, batch: Batch) -> tuple[Tensor, ...]:
        """Logits, labels, kinds and angles (P,) of one batch; its derivative's cosine and the error left, (1, 2)."""
        features = classifier.encode(batch.rgb)
        logits = classifier.compare(features.take(batch.first), features.take(batch.second), batch.camera)
        led = logits.new_zeros(1, 2)
        if (wrong := batch.corrections) is not None:
            cosine, _ = judge_ascent(classifier, features, wrong, False, self.ascent_step)
            there = ascend(classifier, features, wrong, self.ascent or 0, self.ascent_step)
            left = (there - wrong.true).square().sum() / (wrong.shown - wrong.true).square().sum()
            led = torch.stack([cosine, left])[None]
        return tuple(x.cpu() for x in (logits, batch.label, batch.kind, batch.angle, led))

    def _numbers(self, logits: Tensor, label: Tensor, kind: Tensor, angle: Tensor, led: Tensor) -> dict[str, float]:
        correct = (logits > 0) == label.bool()
        numbers = {"val/auc": roc_auc(logits, label), "val/accuracy": float(correct.double().mean())}
        if self.ascent is not None:
            numbers["val/derivative_cosine"] = float(led[:, 0].double().mean())
            numbers |= {"val/ascent_error": float(led[:, 1].double().mean())} if self.ascent else {}
        for name, what in KINDS.items():
            if (kind == what).any():
                numbers[f"val/accuracy/{name}"] = float(correct[kind == what].double().mean())
        for (low, high), share in accuracy_by(angle, correct, ANGLES).items():
            numbers[f"val/accuracy_at_deg/{low:03.0f}-{high:03.0f}"] = share
        return numbers


class Best:
    """The best validation so far, by ROC-AUC and, where taught, what the derivative does; it survives a resume."""

    def __init__(self):
        self.score, self.step = -inf, 0

    def improves(self, found: dict[str, float], step: int) -> bool:
        """Whether a validation after `step` steps is better than all before; if so, it is the best from now on."""
        score = found["val/auc"] + found.get("val/derivative_cosine", 0.0) - found.get("val/ascent_error", 0.0)
        better = score > self.score
        if better:
            self.score, self.step = score, step
        return better

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step = state["score"], state["step"]


def save_curves(folder: Path) -> Path:
    """curves.png: the run so far, from its metrics.jsonl."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if "val/auc" in row]

    def curve(key: str) -> tuple[list[float], list[float]]:
        points = [(row["step"] + 1, row[key]) for row in rows if row.get(key) is not None]
        return [x for x, _ in points], [y for _, y in points]

    by_angle = {key: share for key, share in (judged[-1] if judged else {}).items() if "at_deg" in key}
    centres = [sum(map(float, key.rsplit("/")[-1].split("-"))) / 2 for key in by_angle]
    return plot_curves(
        folder / "curves.png",
        {
            "loss": {"training": curve("loss")},
            "accuracy": {"training": curve("accuracy"), "held-out objects": curve("val/accuracy")},
            "ROC-AUC, held-out objects": {"AUC": curve("val/auc")},
            "accuracy by angle between views, degrees": {"accuracy": (centres, list(by_angle.values()))},
        },
    )
