"""The blocked network against plain layers under autograd, to second order."""

import os
import subprocess
import sys

import pytest
import torch

from jointdreamer.scenes.nerf import mlp
from jointdreamer.scenes.nerf.mlp import MLP, together


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


def in_one_pass(x: torch.Tensor, networks: list[MLP], weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Answers, and gradients of sum(weights * answers) with respect to the points and all parameters."""
    answers = together(x, *networks)
    loss = torch.stack([(a * w).sum() for a, w in zip(answers, weights, strict=True)]).sum()
    return [*answers, *torch.autograd.grad(loss, [x, *(p for network in networks for p in network.parameters())])]


@pytest.mark.parametrize("n", [0, 1, 127, 128, 5000])
@pytest.mark.parametrize("n_in", [5, 12])
@pytest.mark.kernels
def test_compiled_networks_are_the_plain_ones(n, n_in):
    """Of other sizes than multiples of four, and more points than one block and one sum take."""
    torch.manual_seed(0)
    networks = [MLP(n_in, 11, 1), MLP(n_in, 16, 3)]
    x, weights = torch.randn(n, n_in, requires_grad=True), [torch.randn(n, 1), torch.randn(n, 3)]
    assert all(network.compiled for network in networks)
    ours = in_one_pass(x, networks, weights)

    plain = [MLP(n_in, 11, 1, "torch"), MLP(n_in, 16, 3, "torch")]
    for network, twin in zip(networks, plain, strict=True):
        twin.double().load_state_dict(network.state_dict())
        assert not twin.compiled
    theirs = in_one_pass(x.detach().double().requires_grad_(), plain, [w.double() for w in weights])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            mine.double(), other, rtol=1e-5, atol=1e-6 * max(1, float(other.detach().abs().max()) if n else 0)
        )


@pytest.mark.kernels
def test_compiled_gradients_do_not_depend_on_the_number_of_threads():
    network, x, weight = MLP(12, 32, 3), torch.randn(20_000, 12, requires_grad=True), torch.randn(20_000, 3)
    found = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        try:
            found.append(in_one_pass(x, [network], [weight]))
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_point_that_is_no_number_does_not_become_one():
    x = torch.zeros(3, 5, requires_grad=True)
    with torch.no_grad():
        x[1] = float("nan")
    answers, *grads = in_one_pass(x, [MLP(5, 8, 1)], [torch.ones(3, 1)])
    assert answers.isnan().flatten().tolist() == [False, True, False]
    assert all(grad.isnan().any() for grad in grads[1:])  # of the parameters


BITS = """
import hashlib
import torch
from jointdreamer.kernels import mlp_numba
for kernel, types in mlp_numba.signatures():
    kernel.compile(types)
generator = torch.Generator().manual_seed(0)
x, first, last, grad = (torch.randn(*size, generator=generator) for size in ((5000, 16), (64, 16), (4, 64), (4, 5000)))
bits = hashlib.sha256()
for answer in (mlp_numba.forward(x, first, last), *mlp_numba.backward(x, first, last, grad)):
    bits.update(answer.numpy().tobytes())
hits = sum(sum(kernel.stats.cache_hits.values()) for kernel, _ in mlp_numba.signatures())
print(bits.hexdigest(), hits)
"""


def test_kernels_give_the_same_bits_compiled_and_read_from_the_disk(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    cold, warm = (
        subprocess.run(
            [sys.executable, "-c", BITS], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    )
    assert (cold[1], warm[1]) == ("0", "2")
    assert cold[0] == warm[0]
