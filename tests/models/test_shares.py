"""Shares of a network's work on threads of their own."""

import threading

import pytest
import torch

from jointdreamer.models import shares
from jointdreamer.models.placement import place
from jointdreamer.models.shares import in_threads
from tests.conftest import _vae


@pytest.fixture(autouse=True)
def three_threads():
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_answers_come_in_order_from_threads_with_one_thread_and_the_callers_modes(inference, graph):
    meet, workers = threading.Barrier(3, timeout=60), set()

    def work(number, add):
        meet.wait()  # all three are at work at once
        workers.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == (inference, graph)
        return number + add

    with torch.inference_mode(inference), torch.set_grad_enabled(graph):
        for _ in range(2):
            assert in_threads(work, [(1, 10), (2, 20), (3, 30)]) == [11, 22, 33]
    assert len(workers) == 3 and threading.get_ident() not in workers
    assert torch.get_num_threads() == 3


def test_what_a_share_raises_is_raised_and_the_threads_come_back():
    def work(number):
        if number == 1:
            raise ValueError("the second share")
        return number

    with pytest.raises(ValueError, match="the second share"):
        in_threads(work, [(0,), (1,), (2,)])
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_an_autoencoder_in_shares_is_the_same_forward_and_backward(monkeypatch, dtype, n):
    vae = place(_vae().to(dtype).eval().requires_grad_(False), "cpu")
    started = []
    monkeypatch.setattr(shares, "in_threads", lambda work, given: started.append(len(given)) or in_threads(work, given))
    answers = []
    images, weights = torch.rand(n, 3, 8, 8), (torch.randn(n, 8, 4, 4), torch.randn(n, 3, 8, 8))
    for threads in (1, 3):
        torch.set_num_threads(threads)
        x = images.to(dtype).requires_grad_()
        moments = vae.encode(x).latent_dist.parameters
        z = moments.detach()[:, :4].requires_grad_()
        decoded = vae.decode(z).sample
        ((moments * weights[0]).sum() + (decoded * weights[1]).sum()).backward()
        with torch.inference_mode():
            assert torch.allclose(vae.decode(z).sample, decoded)
        answers.append([moments, x.grad, z.grad, decoded])
    assert started == ([] if n == 1 else [min(n, 3)] * 5)  # two forwards, two backwards, one without a graph
    for one, three in zip(*answers, strict=True):
        assert (
            one.dtype == three.dtype and (one - three).norm() <= (1e-5 if dtype == torch.float32 else 0.02) * one.norm()
        )


def test_an_autoencoder_that_learns_or_is_large_is_left_alone(monkeypatch):
    vae = place(_vae(), "cpu")
    vae.encode(torch.rand(2, 3, 8, 8)).latent_dist.mean.sum().backward()
    assert vae.encoder.conv_in.weight.grad is not None
    monkeypatch.setattr(shares, "MAX_PARAMETERS", 10)
    assert "forward" not in vars(place(_vae(), "cpu").encoder)
