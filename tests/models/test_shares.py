"""Shares of a network's work on threads of their own."""

import threading

import pytest
import torch

from jointdreamer.models.shares import in_threads


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
