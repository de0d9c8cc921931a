"""Shares of a range on threads, and kernels compiled beside other work."""

import threading

import numba
import numpy as np
import pytest
import torch

from jointdreamer.compiled import array, cached_njit, compile_in_background, in_shares


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
def test_shares_make_up_the_range_once(threads, n_threads, n):
    threads(n_threads)
    done, lock, workers = np.zeros(n, int), threading.Lock(), set()

    def kernel(first, last, step):
        with lock:
            done[first:last] += step
            workers.add(threading.get_ident())

    in_shares(kernel, n, 3, per_thread=4)
    assert (done == 3).all()
    assert workers == {threading.get_ident()} if n_threads == 1 else len(workers) <= max(1, n_threads)


def test_what_a_share_raises_is_raised(threads):
    threads(2)

    def kernel(first, last):
        if last == 8:
            raise ValueError("the last share")

    with pytest.raises(ValueError, match="the last share"):
        in_shares(kernel, 8)


def test_a_kernel_compiled_in_the_background_is_not_compiled_again():
    @cached_njit()
    def double(first, last, x):
        for i in range(first, last):
            x[i] *= 2

    compile_in_background([(double, (numba.int64, numba.int64, array(1)))]).join()
    assert len(double.signatures) == 1
    x = torch.ones(5)
    in_shares(double, 5, x.numpy())
    assert x.tolist() == [2] * 5 and len(double.signatures) == 1
