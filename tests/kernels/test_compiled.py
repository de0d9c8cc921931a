"""Shares of a range on threads, and kernels compiled beside other work."""

import errno
import pickle
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from numba.core import caching, config
from numba.core.caching import IndexDataCacheFile

from jointdreamer.kernels import compiled
from jointdreamer.kernels import threads as torch_threads
from jointdreamer.kernels.compiled import array, cached_njit, compile_in_background, in_shares


@pytest.mark.parametrize(
    "damage",
    [None, "empty index", "empty code", "rubbish", "foreign pickle", "folder", "EIO", "no memory", "full disk"],
)
def test_a_kernel_runs_whatever_is_wrong_with_its_cache(tmp_path, monkeypatch, damage):
    """The second process finds what a power cut, a damaged or a full disk left, and afterwards the cache is good."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))

    def fresh():
        def add_one(x):
            return x + 1

        return cached_njit()(add_one)

    if damage != "full disk":
        assert fresh()(1) == 2
    kept = [file for file in tmp_path.rglob("*.nb?") if file.suffix == (".nbc" if damage == "empty code" else ".nbi")]
    assert len(kept) == (damage != "full disk")
    with monkeypatch.context() as patched:
        if damage == "folder":
            kept[0].unlink()
            kept[0].mkdir()
        elif damage in ("EIO", "no memory", "full disk"):

            def fail(*_, **__):
                raise MemoryError if damage == "no memory" else OSError(errno.EIO, "no")

            patched.setattr(IndexDataCacheFile, "_save_data" if damage == "full disk" else "load", fail)
        elif damage is not None:
            content = {"rubbish": b"\x80\x04rubbish", "foreign pickle": pickle.dumps(numba.__version__) + b"."}
            kept[0].write_bytes(content.get(damage, b""))
        kernel = fresh()
        assert kernel(1) == 2
        assert sum(kernel.stats.cache_hits.values()) == (damage is None)
    if damage not in ("folder", "full disk"):
        again = fresh()
        assert again(1) == 2 and sum(again.stats.cache_hits.values()) == 1


def test_no_kernel_is_kept_past_the_guard():
    """Numba's own `cache=True` dies of a read-only installation and of a damaged file."""
    package = Path(compiled.__file__).parent
    assert [file for file in package.rglob("*.py") if "cache=True" in file.read_text(encoding="utf-8")] == []


def test_without_a_folder_for_it_nothing_is_kept(monkeypatch):
    for kind in vars(caching).values():
        if isinstance(kind, type) and hasattr(kind, "_locator_classes"):
            monkeypatch.setattr(kind, "_locator_classes", [])
    assert cached_njit()(lambda x: x + 1)(1) == 2


@pytest.fixture(params=["torch's threads", "ours"])
def threads(request, monkeypatch):
    """torch.set_num_threads, with torch's OpenMP library and as where it has none that we know."""
    if request.param == "ours":
        monkeypatch.setattr(torch_threads, "openmp_parallel", lambda: None)
    elif torch_threads.openmp_parallel() is None:
        pytest.skip("torch's OpenMP library has no GOMP_parallel here")
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch brings another library there")
@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="torch without OpenMP")
def test_torch_brings_the_threads():
    assert torch_threads.openmp_parallel() is not None


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


@pytest.mark.parametrize("where", ["first", "last"])
def test_an_interrupt_is_raised_where_the_caller_waits(threads, where):
    threads(2)

    def kernel(first, last):
        if (first == 0) == (where == "first"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_shares(kernel, 8, per_thread=4)


def test_what_no_share_could_report_is_raised_too(threads, monkeypatch):
    """An interrupt that a library's thread prints and forgets leaves shares undone."""
    threads(2)
    monkeypatch.setattr(compiled, "on_threads", lambda work, n: None)
    with pytest.raises(KeyboardInterrupt):
        in_shares(lambda first, last: None, 8)


def test_the_shares_run_at_the_same_time(threads):
    threads(2)
    both = threading.Barrier(2, timeout=30)
    in_shares(lambda first, last: both.wait(), 2)
    assert both.n_waiting == 0 and not both.broken


def test_two_threads_and_a_kernel_itself_may_ask_for_shares_at_once(threads):
    threads(2)
    x, both = np.zeros(40, int), threading.Barrier(2, timeout=30)

    def inner(first, last, part):
        part[first:last] += 1

    def outer(first, last, part):
        for i in range(first, last):
            in_shares(inner, 5, part[5 * i : 5 * i + 5])

    def call(part):
        torch.set_num_threads(2)  # a new thread starts with OpenMP's own number
        for _ in range(50):
            both.wait()
            in_shares(outer, 4, part, per_thread=2)

    callers = [threading.Thread(target=call, args=(part,)) for part in np.split(x, 2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert (x == 50).all()


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
