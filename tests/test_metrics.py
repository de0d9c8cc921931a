import math

import numpy as np
import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.metrics import (
    accuracy_by,
    clip_score,
    face_arcs,
    frechet_distance,
    has_front,
    is_janus,
    moments,
    psnr,
    recall_at,
    resultant_length,
    retrieval_ranks,
    roc_auc,
    ssim,
    turn_consistency,
    zero_shot,
)

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
    assert resultant_length(AZIMUTH, AZIMUTH) == pytest.approx(1)
    assert resultant_length(AZIMUTH + 2.0, AZIMUTH) == pytest.approx(1)


def test_the_same_picture_from_everywhere_has_r_0():
    assert resultant_length(torch.zeros(16), AZIMUTH) == pytest.approx(0, abs=1e-6)


def test_two_opposite_fronts_cancel():
    judged = torch.where(AZIMUTH.cos() > 0, AZIMUTH, AZIMUTH - math.pi)
    by_hand = abs(sum(complex(math.cos(e), math.sin(e)) for e in (judged - AZIMUTH).tolist())) / 16
    assert resultant_length(judged, AZIMUTH) == pytest.approx(by_hand, abs=1e-6)
    assert by_hand < 0.1


# Of a classifier


def test_what_looks_the_same_from_everywhere_has_no_front():
    assert (
        has_front(0.99) and has_front(0.4) and not has_front(0.39) and not has_front(0.02) and not has_front(math.nan)
    )


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


# Embeddings

VIEWS = np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
CAPTIONS = np.array([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 1.0, 1.0]])


def test_clip_score_is_100_times_the_mean_cosine_whatever_the_lengths():
    by_hand = 100 * (1 + math.sqrt(0.5) + 0) / 3
    assert clip_score(VIEWS, CAPTIONS[0]) == pytest.approx(by_hand)
    assert clip_score(7 * VIEWS, 0.1 * CAPTIONS[0]) == pytest.approx(by_hand)


def test_retrieval_by_hand():
    # cosines, a row a view: [1, 0, 0], [.707, .707, .5], [0, 0, .707]
    assert retrieval_ranks(VIEWS, CAPTIONS, 0).tolist() == [0, 1, 2]  # a tie is lost, twice
    assert retrieval_ranks(VIEWS, CAPTIONS, 2).tolist() == [2, 2, 0]
    assert recall_at(np.array([0, 1, 2, 0]), 1) == 50
    assert recall_at(np.array([0, 4, 5, 9]), 5) == 50


def test_retrieval_agrees_with_sorting():
    rng = np.random.default_rng(0)
    views, captions = rng.normal(size=(20, 8)), rng.normal(size=(30, 8))
    for view, rank in zip(views, retrieval_ranks(views, captions, 11), strict=True):
        cosine = [float(view @ c / np.linalg.norm(view) / np.linalg.norm(c)) for c in captions]
        assert sorted(range(30), key=lambda c: -cosine[c]).index(11) == rank


def test_a_network_that_tells_nothing_apart_retrieves_nothing():
    assert recall_at(retrieval_ranks(np.ones((4, 3)), np.ones((5, 3)), 2), 1) == 0


def test_turn_consistency_closes_the_turn():
    turned = np.array([[1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0]])
    assert turn_consistency(turned) == pytest.approx(0)
    assert turn_consistency(np.array([[1.0, 0], [1.0, 1.0], [0, 1.0]])) == pytest.approx(2 * math.sqrt(0.5) / 3)
    assert turn_consistency(np.ones((5, 2))) == pytest.approx(1)


def test_zero_shot_is_a_softmax_of_cosines():
    told = zero_shot(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 3.0]]), scale=2.0)
    assert told == pytest.approx(np.array([[math.e**2, 1.0]]) / (math.e**2 + 1))


def test_fid_of_gaussians_that_share_their_axes_is_the_closed_form():
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b, shift = rng.uniform(0.1, 4, 6), rng.uniform(0.1, 4, 6), rng.normal(size=6)
    by_hand = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    cov_a, cov_b = axes * a @ axes.T, axes * b @ axes.T
    assert frechet_distance(shift, cov_a, np.zeros(6), cov_b) == pytest.approx(by_hand)
    assert frechet_distance(np.zeros(6), cov_a, np.zeros(6), cov_a) == pytest.approx(0, abs=1e-9)


def test_fid_of_any_gaussians_agrees_with_the_root_of_the_product():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(30, 5)) + 0.3
    (mean_x, cov_x), (mean_y, cov_y) = moments(x), moments(y)
    assert cov_x == pytest.approx((x - x.mean(0)).T @ (x - x.mean(0)) / 39)
    slow = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * np.real(sqrtm(cov_x @ cov_y)))
    assert frechet_distance(mean_x, cov_x, mean_y, cov_y) == pytest.approx(slow)
    assert frechet_distance(mean_y, cov_y, mean_x, cov_x) == pytest.approx(slow)


def test_fid_of_fewer_images_than_numbers_is_a_number():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(3, 50)), rng.normal(size=(4, 50))
    assert frechet_distance(*moments(x), *moments(x)) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(frechet_distance(*moments(x), *moments(y)))


def test_fid_of_one_image_is_refused():
    with pytest.raises(UserError, match="two or more images on each side, got 1"):
        moments(np.ones((1, 4)))


def test_psnr_and_ssim_of_known_pictures():
    truth = torch.rand(2, 3, 16, 16)
    assert psnr(truth, truth).tolist() == [100, 100] and ssim(truth, truth).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(psnr(truth + 0.1, truth), torch.full((2,), 20.0), atol=1e-3, rtol=0)


def test_ssim_is_scikit_image_s():
    from skimage.metrics import structural_similarity

    a, b = torch.rand(2, 1, 3, 24, 24, dtype=torch.float64)
    theirs = structural_similarity(
        a[0].numpy(), b[0].numpy(), channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )[1][:, 5:-5, 5:-5].mean()  # fmt: skip
    assert float(ssim(a, b)[0]) == pytest.approx(float(theirs), abs=1e-3)
