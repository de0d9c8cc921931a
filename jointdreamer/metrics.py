"""Measures: of a finished object, from what an observer says about its views; of a classifier, from its scores.

The observer is a judge, or the embeddings of an image-text network (CLIP), as arrays.
"""

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError

FRONT = 0.4  # R, below which nothing of an object follows the camera as a front does
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


def resultant_length(judged_azimuth: Tensor, true_azimuth: Tensor) -> float:
    """Mean resultant length R = |mean exp(i (judged - true))| over views (K,), radians.

    1: the object turns with the camera. 0: it looks the same from everywhere. A wrong but constant front keeps 1.
    """
    error = judged_azimuth - true_azimuth
    return float(torch.complex(error.cos(), error.sin()).mean().abs())


def has_front(resultant_length: float) -> bool:
    """Whether an object with this R has a front. Without one it cannot be Janus, nor be free of it."""
    return resultant_length >= FRONT


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


# Embeddings: V views, C captions, D numbers each, of any length; computed in float64


def unit(vectors: np.ndarray) -> np.ndarray:
    """(..., D) -> the same directions, of length 1; zero stays zero."""
    vectors = np.asarray(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def clip_score(views: np.ndarray, caption: np.ndarray) -> float:
    """100 times the mean cosine of each view (V, D) and the object's caption (D,): docs/conventions.md, Metrics."""
    return float(100 * (unit(views) @ unit(caption)).mean())


def retrieval_ranks(views: np.ndarray, captions: np.ndarray, own: int) -> np.ndarray:
    """How many of the other captions (C, D) are at least as near to each view (V, D) as number `own`: (V,) int.

    0: the view retrieves its own caption. A tie is lost, so that a network which tells nothing apart scores nothing.
    """
    cosines = unit(views) @ unit(captions).T
    return (np.delete(cosines, own, axis=1) >= cosines[:, own : own + 1]).sum(1)


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Percent of the views whose own caption is among the first k. R-Precision is k = 1: one caption is relevant."""
    return float(100 * (np.asarray(ranks) < k).mean())


def turn_consistency(views: np.ndarray) -> float:
    """Mean cosine of neighbouring views (V, D) of a closed turn, the last next to the first.

    The "frame consistency" of Esser et al. (Structure and Content-Guided Video Synthesis with Diffusion Models, ICCV
    2023), of the frames of a turn. It compares neighbours as A-LPIPS does (Hong et al., Debiasing Scores and Prompts of
    2D Diffusion for View-consistent Text-to-3D Generation, NeurIPS 2023). An object that looks the same from all sides
    is consistent, and Janus: read it beside the Janus rate.
    """
    turned = unit(views)
    return float((turned * np.roll(turned, -1, axis=0)).sum(-1).mean())


def roughness(normal: Tensor, opacity: Tensor) -> float:
    """Mean angle (degrees) between normals (V, 3, R, R) of pixels side by side, both with an opacity (V, 1, R, R) above
    one half; NaN if there are none. Normals need not have unit length."""
    unit, inside = torch.nn.functional.normalize(normal.double(), dim=1), opacity[:, 0] > 0.5
    angles = []
    for axis in (1, 2):  # of (V, R, R)
        n = unit.shape[axis + 1] - 1
        pairs = inside.narrow(axis, 0, n) & inside.narrow(axis, 1, n)
        cosine = (unit.narrow(axis + 1, 0, n) * unit.narrow(axis + 1, 1, n)).sum(1)
        angles.append(cosine[pairs].clamp(-1, 1).arccos())
    return float(torch.cat(angles).mean().rad2deg())


def zero_shot(views: np.ndarray, texts: np.ndarray, scale: float = 100.0) -> np.ndarray:
    """What each view (V, D) is told to be by texts (C, D): (V, C) probabilities, softmax of `scale` times the cosine.

    100 is where CLIP's learned temperature ended (Radford et al. 2021, section 2.5).
    """
    logits = scale * (unit(views) @ unit(texts).T)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D). Raises UserError for fewer than two."""
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise UserError(f"FID compares distributions: wanted two or more images on each side, got {len(features)}")
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(
    mean_a: np.ndarray,  # (D,)
    covariance_a: np.ndarray,  # (D, D)
    mean_b: np.ndarray,
    covariance_b: np.ndarray,
) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): FID of Heusel et al. 2017 (Eq. 6), whatever made the features.

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: no
    root of a matrix that rounding made singular or complex.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(min=0)).sum()
    apart = np.square(np.asarray(mean_a) - mean_b).sum()
    return float(max(0.0, apart + np.trace(covariance_a) + np.trace(covariance_b) - 2 * shared))


# Pictures against true ones


def psnr(image: Tensor, truth: Tensor) -> Tensor:
    """-10 log10 of the mean squared error, dB: images (..., 3, H, W) in [0, 1] -> (...); 100 for equal ones."""
    return -10 * (image - truth).square().mean((-3, -2, -1)).clamp_min(1e-10).log10()


def ssim(image: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, Eq. 13): images (V, 3, H, W) in [0, 1] -> (V,), at most 1.

    A Gaussian window of 11 x 11 pixels and deviation 1.5, without a border; K 0.01 and 0.03; the mean of the channels.
    """
    at = torch.arange(11, dtype=image.dtype, device=image.device) - 5
    line = torch.exp(-at.square() / (2 * 1.5**2))
    line = line / line.sum()
    window = (line[:, None] * line)[None, None]
    x, y = (one.flatten(0, 1)[:, None] for one in (image, truth))

    def blurred(values: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(values, window)

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    found = found / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return found.mean((1, 2, 3)).unflatten(0, image.shape[:2]).mean(1)
