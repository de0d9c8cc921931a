"""Groups of pairs of views as tensors: what the training of M_CLS takes in one step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jointdreamer.cameras import camera_numbers
from jointdreamer.classifier.augment import Augmentation, blur, to_images
from jointdreamer.classifier.pairs import Group, PairSampler, draw_corrections


class Corrections(NamedTuple):
    """What each of N images should become: see `losses.judge_ascent`."""

    first: Tensor  # (N,) rows of Batch.rgb
    camera: Tensor  # (N, 16)
    shown: Tensor  # (N, 3, R, R) instead of the true view
    true: Tensor  # (N, 3, R, R)
    steps: Tensor  # () the classifier's own steps along its derivative that are taken first
    seen: Tensor | None = None  # (N, 3, R, R) instead of Batch.rgb

    def to(self, device: Any) -> "Corrections":
        return Corrections(**{name: x.to(device) for name, x in self._asdict().items() if x is not None})


class Batch(NamedTuple):
    """P pairs among N images, as tensors."""

    rgb: Tensor  # (N, 3, R, R)
    direction: Tensor  # (N, 3) unit vectors from the object to the images' own cameras
    first: Tensor  # (P,) rows of rgb
    second: Tensor
    camera: Tensor  # (P, 16)
    label: Tensor  # (P,) 1 coherent, 0 not
    kind: Tensor  # (P,) of pairs.py: TRUE, WRONG_POSE, OTHER_OBJECT
    angle: Tensor  # (P,) degrees between the two views
    corrections: Corrections | None = None

    def to(self, device: Any) -> "Batch":
        return Batch(**{name: x.to(device) for name, x in self._asdict().items() if x is not None})


def to_batch(
    group: Group,
    rng: np.random.Generator,
    background: tuple[float, float],  # range of greys
    augmentation: Augmentation | None = None,
    most_steps: int | None = None,
) -> Batch:
    """A sampler's group with its images over their backgrounds, augmented; and, unless `most_steps` is None, its
    corrections."""
    direction = torch.from_numpy(group.c2w[:, :3, 2])
    arrays = (group.first, group.second, group.c2w_1, group.c2w_2, group.label, group.kind, group.angle)
    first, second, c2w_1, c2w_2, label, kind, angle = (torch.from_numpy(x) for x in arrays)
    rgb = to_images(group.rgba, background, rng, augmentation)
    batch = Batch(rgb, direction, first, second, camera_numbers(c2w_1, c2w_2), label, kind, angle.float())
    if most_steps is None:
        return batch
    reference, instead, share, radius = draw_corrections(group, rng)
    seed = int(rng.integers(2**63))  # the same greys behind the wrong and the true view
    pictures = blur(group.rgba[instead], radius * group.rgba.shape[1]), group.rgba
    wrong, true = (to_images(x, background, np.random.default_rng(seed)) for x in pictures)
    noise = rng.uniform(0, 0.04) * torch.from_numpy(rng.standard_normal(true.shape, np.float32))
    shown = torch.lerp(wrong, true, torch.from_numpy(share).view(-1, 1, 1, 1)) + noise
    c2w = torch.from_numpy(group.c2w)
    told = camera_numbers(c2w[reference], c2w)
    steps = torch.tensor(int(rng.integers(most_steps + 1)))
    return batch._replace(corrections=Corrections(torch.from_numpy(reference), told, shown, true, steps))


def as_estimates(
    batch: Batch, look_through: Callable[[Tensor, np.random.Generator], Tensor], rng: np.random.Generator
) -> Batch:
    """A batch whose images went through `look_through`, which gives most back as they are.

    What is to be corrected goes with the rest, or alone: in a rig it is the less certain.
    """
    if batch.corrections is None:
        return batch._replace(rgb=look_through(batch.rgb, rng))
    rgb, shown = batch.rgb, batch.corrections.shown
    together = torch.cat([rgb, shown])
    seen = look_through(together, rng)
    rgb, shown = (rgb, look_through(shown, rng)) if seen is together else seen.chunk(2)
    return batch._replace(rgb=rgb, corrections=batch.corrections._replace(shown=shown))


def as_guided_estimates(batch: Batch, see: Callable[[Tensor], Tensor]) -> Batch:
    """A batch whose corrections, what is shown and what it is compared with, are what `see` makes of them; its pairs
    stay as they are. `see` takes both one after the other, (2 N, 3, R, R)."""
    if batch.corrections is None:
        return batch
    seen, shown = see(torch.cat([batch.rgb, batch.corrections.shown])).chunk(2)
    return batch._replace(corrections=batch.corrections._replace(seen=seen, shown=shown))


def load_batch(
    step_and_group: tuple[int, int],
    sampler: PairSampler,
    background: tuple[float, float],  # range of greys
    augmentation: Augmentation,
    most_steps: int | None,
    estimator: Callable[[Batch, Group, np.random.Generator], Batch] | None,
) -> Batch:
    """One group of a step: drawn, read, augmented, and passed through the prior where there is an `estimator`."""
    group, rng = sampler.group(*step_and_group)
    batch = to_batch(group, rng, background, augmentation, most_steps)
    return batch if estimator is None else estimator(batch, group, rng)
