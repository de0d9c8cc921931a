"""The blocked network against plain layers under autograd, to second order."""

import pytest
import torch

from jointdreamer.fields import mlp
from jointdreamer.fields.mlp import MLP


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(mlp, "CPU_BLOCK", 7)


@pytest.mark.parametrize("n", [0, 1, 7, 30])
@pytest.mark.parametrize("n_out", [1, 3])
def test_outputs_slopes_and_gradients_are_autograds(n, n_out):
    network = MLP(5, 11, n_out).double()
    x = torch.randn(n, 5, dtype=torch.float64, requires_grad=True)
    weight, direction = torch.randn(n, n_out, dtype=torch.float64), torch.randn(n, 5, dtype=torch.float64)
    inputs = (x, network.first, network.last)

    plain = torch.relu(x @ network.first.T) @ network.last.T
    plain_slope = torch.autograd.grad(plain.sum(), x, create_graph=True)[0]
    outputs, slope = network.with_gradient(x)
    torch.testing.assert_close(outputs, plain)
    torch.testing.assert_close(slope, plain_slope)
    torch.testing.assert_close(network(x), plain)

    for first, other in (
        ((plain * weight).sum(), (network(x) * weight).sum()),
        (
            (plain_slope * direction).sum() + (plain * weight).sum(),
            (slope * direction).sum() + (outputs * weight).sum(),
        ),
        ((plain_slope * direction).sum(), (slope * direction).sum()),
    ):
        expected = torch.autograd.grad(first, inputs, retain_graph=True, materialize_grads=True)
        for ours, theirs in zip(torch.autograd.grad(other, inputs, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_starts_like_a_linear_layer():
    network = MLP(16, 64, 3)
    assert network.first.abs().max() <= 0.25 and network.first.std() > 0.1  # U(-1, 1) / sqrt(16)
    assert network.last.abs().max() <= 0.125 and network.last.std() > 0.05
    assert len(list(network.parameters())) == 2
