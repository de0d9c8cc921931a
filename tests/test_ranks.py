"""Several ranks: what two of them compute is what one process with all rigs does, and how a run on them ends.

The ranks are children of two launchers (tests/launcher.py), which meet at a free port, as torchrun would have them do.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jointdreamer import ranks
from jointdreamer.ranks import ALONE, RankGenerator, Ranks, per_rig, ranks_of, shared

SECONDS = 90  # of a run, at most


def free_port() -> int:
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return there.getsockname()[1]


class Two:
    """Two ranks in one folder, each with its output in a folder of its own."""

    def __init__(self, launchers: tuple[Any, Any], folder: Path):
        self.launchers, self.folder = launchers, folder

    def start(self, words: list[str], *other: str, port: int | None = None) -> None:
        """Begin a run; `other` are words of the second rank alone."""
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port())}
        common["GLOO_SOCKET_IFNAME"] = "lo"
        place = [f"out_dir={self.folder / 'runs'}"]
        for rank, launcher in enumerate(self.launchers):
            env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            more = list(other) if rank else []
            launcher.start(self.folder / f"rank{rank}", [*words, *place, *more], SECONDS, **env)

    def finish(self) -> list[int]:
        return [launcher.finish() for launcher in self.launchers]

    def run(self, words: list[str], *other: str) -> list[int]:
        self.start(words, *other)
        return self.finish()

    @property
    def said(self) -> list[str]:
        """The lines of both on stderr, but for the progress of the first."""
        text = "".join((self.folder / f"rank{rank}" / "stderr").read_text() for rank in (0, 1))
        return [line for line in text.splitlines() if line.startswith("error") or "Traceback" in line]

    @property
    def path(self) -> Path:
        (config,) = (self.folder / "runs").glob("**/config.yaml")
        return config.parent

    def wait_for_rows(self, n: int) -> None:
        end = time.monotonic() + SECONDS
        while sum(file.read_bytes().count(b"\n") for file in self.folder.glob("runs/**/metrics.jsonl")) < n:
            assert time.monotonic() < end, self.said
            time.sleep(0.005)


@pytest.fixture
def two(launcher, second_launcher, tmp_path) -> Two:
    return Two((launcher, second_launcher), tmp_path / "two")


@pytest.fixture(scope="module")
def words(tiny_run) -> Callable[..., list[str]]:
    """words("energy=mvs") -> the command line of a run of ten steps with two rigs.

    Adam's eps is of the size of the gradients: with 1e-15 a gradient that is zero but for rounding moves as far as any.
    """

    def line(*more: str) -> list[str]:
        own = ["schedule.steps=10", "cameras.n_rigs=2", "cameras.n_views=2", "every.checkpoint=10", "device=cpu"]
        own += ["optimizer.eps=1.0e-4", "output.views=0", "output.mesh_resolution=8", "output.texture=0"]
        own += ["prompt=a green bear"]
        given = {word.partition("=")[0] for word in more}
        return tiny_run(*(word for word in own if word.partition("=")[0] not in given), *more)

    return line


def state(run: Path, step: int = 10) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"step_{step:06d}.pt", weights_only=True)["parts"]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


METHODS = {
    "sds": ["energy=none", "schedule.loss.orient=0.1", "schedule.loss.z_variance=0.1", "schedule.shading=true"],
    "joint": ["energy=mvs", "distillation=vsd"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_compute_what_one_process_with_two_rigs_does(method, two, launcher, words, tmp_path):
    line = words(*METHODS[method])
    assert launcher.run(tmp_path / "one", line, SECONDS) == 0, (tmp_path / "one" / "stderr").read_text()
    assert two.run(line) == [0, 0], two.said
    (one,) = (tmp_path / "one").glob("runs/**/config.yaml")
    here, there = state(two.path), state(one.parent)
    assert torch.equal(here["generator"], there["generator"])
    found = {key: (here["scene"][key], value) for key, value in there["scene"].items()}
    for role, group in there.get("terms", {}).items():
        found |= {f"{role}.{n}": pair for n, pair in enumerate(zip(here["terms"][role], group, strict=True))}
    for key, (mine, other) in found.items():
        assert (mine.float() - other.float()).norm() <= 1e-3 * other.float().norm(), key
    for mine, other in zip(rows(two.path), rows(one.parent), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)


# Draws


def test_ranks_draw_together_what_one_process_draws():
    one = torch.Generator().manual_seed(3)
    whole = per_rig(torch.randn, (4, 3), one)
    parts = [per_rig(torch.randn, (2, 3), Ranks(n, 2).generator(torch.Generator().manual_seed(3))) for n in (0, 1)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_draw_that_knows_of_no_ranks_is_another_one_on_each_and_in_each_step():
    common = torch.Generator().manual_seed(3)
    found = [torch.rand(4, generator=Ranks(n, 2).generator(common)) for n in (0, 1)]
    torch.rand(1, generator=common)  # a step later
    found += [torch.rand(4, generator=Ranks(n, 2).generator(common)) for n in (0, 1)]
    assert len({tuple(one.tolist()) for one in found}) == 4


def test_one_process_draws_from_the_generator_itself():
    generator = torch.Generator()
    assert ALONE.generator(generator) is generator and shared(generator) is generator and ranks_of(None) is ALONE
    of_two = Ranks(1, 2).generator(generator)
    assert isinstance(of_two, RankGenerator) and shared(of_two) is generator and ranks_of(of_two).count == 2


def test_the_ranks_share_all_rigs():
    assert [Ranks(n, 2).rigs(6) for n in (0, 1)] == [slice(0, 3), slice(3, 6)]
    assert ALONE.rigs(3) == slice(0, 3)


# Ends


def test_the_first_rank_stays_until_the_others_have_asked_who_speaks(monkeypatch):
    """The count is gone with it, and both would say why the run ended."""
    store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    monkeypatch.setattr(ranks, "_store", [store])
    monkeypatch.setattr(Ranks, "joined", Ranks(0, 2))
    said: list[bool] = []
    first = threading.Thread(target=lambda: said.append(ranks.may_speak()))
    first.start()
    time.sleep(0.2)
    assert first.is_alive() and not said
    monkeypatch.setattr(Ranks, "joined", Ranks(1, 2))
    assert not ranks.may_speak()
    first.join(5)
    assert said == [True]


def test_a_rank_that_is_killed_ends_all_with_one_line(two, words):
    two.start(words("schedule.steps=4000", "every.checkpoint=0"))
    two.wait_for_rows(3)
    for child in Path(f"/proc/{two.launchers[1].process.pid}/task").glob("*/children"):
        for pid in child.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    first, second = two.finish()
    assert first == 2 and second == -signal.SIGKILL
    assert len(two.said) == 1 and "another rank of this run has ended" in two.said[0]
    assert "the same command goes on" in two.said[0]


def test_a_signal_to_one_rank_saves_and_stops_all_and_the_run_goes_on_on_one(two, launcher, words):
    line = words("schedule.steps=300", "every.checkpoint=0")
    two.start(line)
    two.wait_for_rows(3)
    for child in Path(f"/proc/{two.launchers[1].process.pid}/task").glob("*/children"):
        os.kill(int(child.read_text()), signal.SIGTERM)
    assert two.finish() == [128 + signal.SIGTERM] * 2, two.said
    (saved,) = two.path.glob("checkpoints/*.pt")
    done = int(saved.stem[5:])
    more = [word for word in line if not word.startswith("schedule.steps")] + [f"schedule.steps={done + 2}"]
    folder = two.folder / "alone"
    assert launcher.run(folder, [*more, f"out_dir={two.folder / 'runs'}"], SECONDS) == 0, (
        folder / "stderr"
    ).read_text()
    assert "begun on 2 rank(s), it goes on on 1: not bit for bit" in (two.path / "train.log").read_text()
    assert [row["step"] for row in rows(two.path)] == list(range(done + 2))


@pytest.mark.parametrize(
    ("own", "other", "wanted"),
    [
        (["cameras.n_rigs=1"], [], "cameras.n_rigs=1 on 2 ranks: more ranks than rigs"),
        (["cameras.n_rigs=3"], [], "ranks cannot share evenly; wanted a multiple, e.g. cameras.n_rigs=4"),
        ([], ["seed=1"], "seed is 0 on rank 0, 1 on rank 1"),
    ],
)
def test_ranks_that_do_not_fit_are_one_line_before_anything_is_made(own, other, wanted, two, words):
    assert two.run(words(*own), *other) == [2, 2]
    assert len(two.said) == 1 and wanted in two.said[0]
    assert not list(two.folder.glob("runs/**/config.yaml"))


def test_a_port_in_use_is_one_line(launcher, words, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        assert launcher.run(tmp_path, words(), SECONDS, **env, MASTER_PORT=str(taken.getsockname()[1])) == 2
    (line,) = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("error")]
    assert "is in use: give another one" in line
