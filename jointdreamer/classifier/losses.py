"""The losses of the pair classifier: the label's, the direction's, and what its derivative is taught by."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, mse_loss

from jointdreamer.classifier.batches import Batch, Corrections
from jointdreamer.classifier.model import Features, PairClassifier, climb

NEARLY_TRUE = 0.03  # levels: from an image as near to the true view as this, no step is as good as a perfect one
MOST_ERROR = 4.0  # of one image, so that few that went astray do not outweigh the rest


class Answers(NamedTuple):
    """What is said of a batch of P pairs among N images."""

    logits: Tensor  # (P,)
    direction: Tensor | None  # (N, 3) where the cameras stand, unless only the pairs are asked about
    ascent: tuple[Tensor, Tensor] | None  # of `judge_ascent`, where there is something to correct


class Losses(NamedTuple):
    """The losses of one batch, scalars; None where a loss is not taught."""

    bce: Tensor
    direction: Tensor | None  # squared error
    ascent: tuple[Tensor, Tensor] | None  # `judge_ascent`: a cosine, which should be 1, and a squared error
    accuracy: Tensor  # float64, no loss

    def total(self, direction_weight: float, derivative_weight: float, step_weight: float) -> Tensor:
        """The weighted sum, which is differentiated."""
        loss = self.bce
        if self.direction is not None:
            loss = loss + direction_weight * self.direction
        if self.ascent is not None:
            cosine, error = self.ascent
            loss = loss + derivative_weight * (1 - cosine) + step_weight * error
        return loss

    def numbers(self, n: int) -> Tensor:
        """The share of one of n batches in the mean: bce, direction, accuracy, cosine, error, (5,) float64."""
        nothing = torch.zeros_like(self.bce)
        direction = nothing if self.direction is None else self.direction
        cosine, error = (nothing, nothing) if self.ascent is None else self.ascent
        shares = [x.detach() / n for x in (self.bce, direction, self.accuracy, cosine, error)]
        return torch.stack([share.double() for share in shares])


def pair_losses(answers: Answers, batch: Batch) -> Losses:
    """What was said of a batch against what is true of it."""
    logits, direction, ascent = answers
    return Losses(
        bce=binary_cross_entropy_with_logits(logits, batch.label),
        direction=None if direction is None else mse_loss(direction, batch.direction),
        ascent=ascent,
        accuracy=((logits > 0) == batch.label.bool()).double().mean(),
    )


def ascend(
    classifier: PairClassifier, reference: Features, corrections: Corrections, steps: int, step_size: float
) -> Tensor:
    """Where `model.climb` leads the images that are shown, (N, 3, R, R)."""
    with torch.no_grad():
        first = reference.take(corrections.first)

    def logits(images: Tensor) -> Tensor:
        return classifier.compare(first, classifier.encode(images), corrections.camera)

    return climb(corrections.shown, logits, steps, step_size)


def judge_ascent(
    classifier: PairClassifier,
    reference: Features,
    corrections: Corrections,
    create_graph: bool,
    step_size: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """How well the ascent's next step leads to the true view: a cosine, and the squared error that it leaves.

    The energy uses nothing of the classifier but its derivative, and that of an ordinary one is noise to the eye:
    following it changes the logit and nothing that one can see. So it is taught: of a pair whose second image shows
    something else (the first again, another side, another object), the derivative with respect to that image should
    point to the view that belongs there: the first number is the mean cosine of the two. How far a step goes is the
    second: of `step_size` times the derivative of log sigmoid(logit), relative to the error before it. So the logit
    has to stay low, and to rise, as long as something is wrong, and no step is taken from a true view.

    The energy takes several steps, and from the second on looks at images that no data set holds. So
    `corrections.steps` of them are taken first, and all this is asked for where they arrive.

    reference: features of the images that `corrections.first` counts.
    create_graph: for training on it, which takes second derivatives.
    """
    shown = ascend(classifier, reference, corrections, int(corrections.steps), step_size).requires_grad_(True)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second derivative
        logits = classifier.compare(reference.take(corrections.first), classifier.encode(shown), corrections.camera)
        (slope,) = torch.autograd.grad(logits.sum(), shown, create_graph=create_graph)
    slope, wanted = slope.flatten(1), (corrections.true - shown.detach()).flatten(1)
    step = step_size * torch.sigmoid(-logits)[:, None] * slope
    error = (wanted - step).square().sum(1) / (wanted.square().sum(1) + NEARLY_TRUE**2 * wanted.shape[1])
    return cosine_similarity(slope, wanted).mean(), error.clamp(max=MOST_ERROR).mean()
