import math

import pytest
import torch

from jointdreamer.metrics import accuracy_by, face_arcs, is_janus, roc_auc, turning

AZIMUTH = torch.arange(16) * (2 * math.pi / 16)


def views(*seen: int) -> torch.Tensor:
    return torch.tensor([k in seen for k in range(16)])


@pytest.mark.parametrize(
    ("seen", "arcs", "janus"),
    [
        ((), 0, False),
        ((14, 15, 0, 1, 2), 1, False),  # one front, across the seam
        ((0, 1, 8, 9), 2, True),
        ((0, 4, 8, 12), 4, True),
        (tuple(range(16)), 1, True),
        (tuple(range(13)), 1, True),  # all but a sliver
        (tuple(range(12)), 1, False),
    ],
)
def test_a_second_face_is_a_second_arc(seen, arcs, janus):
    assert face_arcs(views(*seen)) == arcs
    assert is_janus(views(*seen)) == janus


def test_an_object_that_turns_with_the_camera_has_r_1_whatever_its_front():
    assert turning(AZIMUTH, AZIMUTH) == pytest.approx(1)
    assert turning(AZIMUTH + 2.0, AZIMUTH) == pytest.approx(1)


def test_the_same_picture_from_everywhere_has_r_0():
    assert turning(torch.zeros(16), AZIMUTH) == pytest.approx(0, abs=1e-6)


def test_two_opposite_fronts_cancel():
    judged = torch.where(AZIMUTH.cos() > 0, AZIMUTH, AZIMUTH - math.pi)
    by_hand = abs(sum(complex(math.cos(e), math.sin(e)) for e in (judged - AZIMUTH).tolist())) / 16
    assert turning(judged, AZIMUTH) == pytest.approx(by_hand, abs=1e-6)
    assert by_hand < 0.1


# Of a classifier


def test_roc_auc_is_the_odds_that_a_positive_scores_higher():
    g = torch.Generator().manual_seed(0)
    score, label = torch.randn(60, generator=g).mul(2).round(), torch.rand(60, generator=g) < 0.4  # many ties
    won = [float(p > n) + 0.5 * float(p == n) for p in score[label] for n in score[~label]]
    assert roc_auc(score, label) == pytest.approx(sum(won) / len(won))
    assert roc_auc(label.float(), label) == 1 and roc_auc(-label.float(), label) == 0
    assert math.isnan(roc_auc(score, torch.ones(60)))


def test_accuracy_by_bins():
    value, correct = torch.tensor([0.0, 29.9, 30.0, 180.0]), torch.tensor([True, False, True, False])
    found = accuracy_by(value, correct, [0.0, 30.0, 90.0, 180.0])
    assert found == {(0.0, 30.0): 0.5, (30.0, 90.0): 1.0, (90.0, 180.0): 0.0}
    assert accuracy_by(value[:1], correct[:1], [0.0, 30.0, 90.0]) == {(0.0, 30.0): 1.0}
