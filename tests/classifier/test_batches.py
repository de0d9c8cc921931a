"""Batches of the classifier's training."""

import numpy as np
import pytest
import torch

from jointdreamer.classifier.batches import Batch, Corrections, as_estimates, as_guided_estimates


def test_what_is_to_be_corrected_is_an_estimate_with_the_rest_or_alone():
    def look_through(share):
        return lambda rgb, rng: rgb + 1 if rng.random() < share else rgb

    zero, nothing = torch.zeros(2, 3, 4, 4), torch.zeros(0)
    corrections = Corrections(nothing, nothing, zero, zero, nothing)
    batch = Batch(zero, *[nothing] * 7, corrections=corrections)
    rng, kinds = np.random.default_rng(0), []
    for _ in range(400):
        out = as_estimates(batch, look_through(0.3), rng)
        assert out.corrections is not None and not out.corrections.true.any()
        kinds.append((out.rgb.mean().item(), out.corrections.shown.mean().item()))
    shares = {kind: kinds.count(kind) / 400 for kind in set(kinds)}
    assert shares == pytest.approx({(1, 1): 0.3, (0, 1): 0.21, (0, 0): 0.49}, abs=0.08)
    assert as_estimates(batch._replace(corrections=None), look_through(1), rng).rgb.mean() == 1


def test_guided_estimates_are_shown_only_to_be_corrected():
    zero, nothing = torch.zeros(2, 3, 4, 4), torch.zeros(0)
    corrections = Corrections(nothing, nothing, zero + 0.5, zero, nothing)
    batch = Batch(zero, *[nothing] * 7, corrections=corrections)
    out = as_guided_estimates(batch, lambda rgb: rgb + torch.arange(4.0)[:, None, None, None])
    assert not out.rgb.any() and out.corrections is not None and not out.corrections.true.any()
    assert out.corrections.seen is not None
    assert out.corrections.seen[:, 0, 0, 0].tolist() == [0, 1]
    assert out.corrections.shown[:, 0, 0, 0].tolist() == [2.5, 3.5]
    there = out.to("cpu").corrections
    assert there is not None and there.seen is not None and batch.to("cpu").corrections.seen is None  # pyright: ignore[reportOptionalMemberAccess]
    bare = batch._replace(corrections=None)
    assert as_guided_estimates(bare, lambda rgb: rgb + 1) is bare
