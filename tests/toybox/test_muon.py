"""Muon, against torch's own and against the singular value decomposition that it approximates."""

import pytest
import torch
from torch import nn

from jointdreamer.toybox import muon
from jointdreamer.toybox.muon import Muon, orthogonal


def steps(optimizer, weight, n=3):
    torch.manual_seed(1)
    for _ in range(n):
        weight.grad = torch.randn(weight.shape)
        optimizer.step()
    return weight.detach()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch older than 2.9")
@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_equals_torch_s(shape, monkeypatch):
    monkeypatch.setattr(muon, "has_bfloat16_units", lambda: True)
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(w) for w in torch.randn(shape).expand(2, *shape).clone())
    other = torch.optim.Muon([theirs], lr=1e-2, momentum=0.95, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
    torch.testing.assert_close(steps(Muon([ours], 1e-2), ours), steps(other, theirs), atol=1e-7, rtol=0)


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    between = u.T @ orthogonal(matrix) @ vt.T
    assert torch.all((between.diagonal() > 0.65) & (between.diagonal() < 1.25))
    assert (between - torch.diag(between.diagonal())).abs().max() < 1e-4


def test_a_convolution_is_a_matrix_of_a_row_for_each_channel(monkeypatch):
    monkeypatch.setattr(muon, "has_bfloat16_units", lambda: False)
    torch.manual_seed(0)
    flat = nn.Parameter(torch.randn(16, 4 * 9))
    wide = nn.Parameter(flat.detach().clone().view(16, 4, 3, 3))
    assert torch.equal(steps(Muon([wide], 1e-2), wide).flatten(1), steps(Muon([flat], 1e-2), flat))


def test_a_weight_without_gradient_stays():
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight], 1.0).step()
    assert torch.equal(weight, torch.ones(2, 2))
