"""Measures: of a finished object, from what an observer says about its views; of a classifier, from its scores."""

import torch
from torch import Tensor

ALL_ROUND = 0.75  # share of the circle from which a face shows, above which it shows all round


def face_arcs(face_seen: Tensor) -> int:
    """How many separate arcs of the circle show a face: (K,) bool, azimuth by azimuth, the last next to the first."""
    seen = face_seen.bool()
    if bool(seen.all()):
        return 1
    return int((seen & ~seen.roll(1)).sum())


def is_janus(face_seen: Tensor) -> bool:
    """Whether a face shows from two or more separated sides, or all round (from more than three quarters of them)."""
    return face_arcs(face_seen) >= 2 or float(face_seen.float().mean()) > ALL_ROUND


def turning(judged_azimuth: Tensor, true_azimuth: Tensor) -> float:
    """R = |mean exp(i (judged - true))| over views (K,), radians.

    1: the object turns with the camera. 0: it looks the same from everywhere. A wrong but constant front keeps 1.
    """
    error = judged_azimuth - true_azimuth
    return float(torch.complex(error.cos(), error.sin()).mean().abs())


def roc_auc(score: Tensor, label: Tensor) -> float:
    """The odds that a positive scores above a negative, ties counting half: (P,) scores and labels (0 or 1).

    NaN without any positive, or without any negative.
    """
    label = label.bool()
    _, order, counts = torch.unique(score.double(), return_inverse=True, return_counts=True)
    below = torch.cumsum(counts, 0) - counts  # scores below each distinct one
    rank = (below + (counts - 1) / 2)[order]  # from 0, the mean of a tie's
    n, m = int(label.sum()), int((~label).sum())
    if not n or not m:
        return float("nan")
    return float((rank[label].sum() - n * (n - 1) / 2) / (n * m))


def accuracy_by(value: Tensor, correct: Tensor, edges: list[float]) -> dict[tuple[float, float], float]:
    """Share of correct (P,) among those whose value (P,) is in [low, high), for each two neighbouring edges; the last
    bin includes its upper edge, and a bin without any is left out."""
    found = {}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (value >= low) & ((value < high) | (value == high) & (high == edges[-1]))
        if inside.any():
            found[(low, high)] = float(correct[inside].double().mean())
    return found
