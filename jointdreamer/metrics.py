"""Measures of a finished object that need nothing but what an observer says about its views."""

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
