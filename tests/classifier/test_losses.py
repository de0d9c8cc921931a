"""What the classifier's derivative is taught by, on a classifier whose derivative is known."""

from typing import Any

import pytest
import torch

from jointdreamer.classifier.batches import Corrections
from jointdreamer.classifier.losses import MOST_ERROR, NEARLY_TRUE, Losses, ascend, judge_ascent


class Distance(torch.nn.Module):
    """A classifier that knows how the second view comes from the first, by a gain: logit = -|second - gain first|^2."""

    class Seen(tuple):
        def take(self, index):
            return Distance.Seen(x[index] for x in self)

    def __init__(self, gain):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def encode(self, rgb):
        return self.Seen((rgb,))

    def compare(self, first, second, camera):
        return -(second[0] - self.gain * first[0]).square().flatten(1).sum(1)


def test_the_derivative_is_judged_by_where_it_points():
    g = torch.Generator().manual_seed(0)
    seen, shown = torch.rand(4, 3, 6, 6, generator=g), torch.rand(4, 3, 6, 6, generator=g)
    first = torch.tensor([2, 0, 3, 1])

    def cosine(gain, true, create_graph=False):
        classifier: Any = Distance(gain)
        there = Corrections(first, torch.zeros(4, 16), shown, true, torch.tensor(0))
        return classifier, judge_ascent(classifier, classifier.encode(seen), there, create_graph)[0]

    _, right = cosine(0.5, 0.5 * seen[first])
    _, opposite = cosine(0.5, 2 * shown - 0.5 * seen[first])
    assert right.item() == pytest.approx(1) and opposite.item() == pytest.approx(-1)
    assert not right.requires_grad
    with torch.no_grad():  # as in a validation
        assert cosine(0.5, 0.5 * seen[first])[1].item() == pytest.approx(1)

    classifier, half = cosine(0.3, 0.5 * seen[first], create_graph=True)
    assert half.item() < 1
    half.backward()
    assert classifier.gain.grad is not None and classifier.gain.grad > 0  # towards the gain that is right


def test_the_derivative_is_asked_for_where_its_own_steps_lead():
    """One step of 1/4: the slope of log s(l) is s(-l) 2 (gain first - second)."""
    g = torch.Generator().manual_seed(0)
    seen, shown, true = (torch.rand(4, 3, 6, 6, generator=g) for _ in range(3))
    rows = torch.tensor([2, 0, 3, 1])
    classifier: Any = Distance(0.5)
    logit = -(shown - 0.5 * seen[rows]).square().flatten(1).sum(1)
    arrived = shown + 0.25 * torch.sigmoid(-logit)[:, None, None, None] * 2 * (0.5 * seen[rows] - shown)
    there = Corrections(rows, torch.zeros(4, 16), shown, true, torch.tensor(1))
    features = classifier.encode(seen)
    torch.testing.assert_close(ascend(classifier, features, there, 1, 0.25), arrived)
    found, error = judge_ascent(classifier, features, there, False, 0.25)
    from_there = there._replace(shown=arrived, steps=torch.tensor(0))
    torch.testing.assert_close((found, error), judge_ascent(classifier, features, from_there, False, 0.25))
    unmoved, _ = judge_ascent(classifier, features, there._replace(steps=torch.tensor(0)), False, 0.25)
    assert abs(found - unmoved) > 1e-3


def test_a_step_is_judged_by_the_error_that_it_leaves():
    """logit = -|second - true|^2: a step of a goes 2 a s(-l) of the way; from the true view none is taken."""
    g = torch.Generator().manual_seed(1)
    true, shown = torch.rand(4, 3, 6, 6, generator=g), torch.rand(4, 3, 6, 6, generator=g)
    classifier: Any = Distance(1.0)
    rows = torch.arange(4)

    def error(shown, step_size):
        there = Corrections(rows, torch.zeros(4, 16), shown, true, torch.tensor(0))
        return judge_ascent(classifier, classifier.encode(true), there, False, step_size)[1].item()

    far = (true - shown).square().flatten(1).sum(1)
    way, share = 2 * 0.2 * torch.sigmoid(far), far / (far + NEARLY_TRUE**2 * 108)
    assert error(shown, 0.2) == pytest.approx(((1 - way).square() * share).mean().item(), rel=1e-4)
    assert error(true, 0.2) == 0
    assert error(shown, 1e3) == MOST_ERROR


def test_the_total_is_the_weighted_sum_of_what_is_taught():
    bce, direction, cosine, error = torch.tensor([0.5, 0.25, 0.75, 2.0])
    accuracy = torch.tensor(1.0, dtype=torch.float64)
    plain = Losses(bce, None, None, accuracy)
    assert plain.total(9, 9, 9) == 0.5 and plain.numbers(2).tolist() == [0.25, 0, 0.5, 0, 0]
    taught = Losses(bce, direction, (cosine, error), accuracy)
    assert taught.total(2, 4, 8) == 0.5 + 2 * 0.25 + 4 * (1 - 0.75) + 8 * 2
    assert taught.numbers(4).tolist() == [0.125, 0.0625, 0.25, 0.1875, 0.5]
