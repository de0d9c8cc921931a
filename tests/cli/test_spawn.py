"""Several processes of one job."""

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jointdreamer.cli.job import Job, ranks_of
from jointdreamer.cli.spawn import spawn


@pytest.fixture
def script(tmp_path):
    """script("...") -> a command; its `rank` is known to it, as is a folder to write to."""

    def write(text: str) -> list[str]:
        file = tmp_path / "script.py"
        file.write_text(f"import os, sys, time, signal, pathlib\nrank = os.environ['RANK']\n{text}")
        return [str(file), str(tmp_path)]

    return write


def test_each_rank_knows_its_number_and_where_the_others_are(script, tmp_path):
    keys = "'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR'"
    line = script(f"pathlib.Path(sys.argv[1], rank).write_text(' '.join(os.environ[key] for key in ({keys})))")
    assert spawn(2, line) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["0 0 2 127.0.0.1", "1 1 2 127.0.0.1"]


def test_the_first_failure_is_the_status_and_ends_the_others(script, monkeypatch):
    monkeypatch.setattr("jointdreamer.cli.spawn.GRACE_SECONDS", 0.5)
    began = time.monotonic()
    assert spawn(2, script("sys.exit(2) if rank == '1' else time.sleep(60)")) == 2
    assert spawn(2, script("os.kill(os.getpid(), 9) if rank == '1' else time.sleep(60)")) == 128 + 9
    assert time.monotonic() - began < 30


def test_a_signal_reaches_every_rank(script, tmp_path):
    def heard() -> None:
        while not all(Path(tmp_path, rank).exists() for rank in "01"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    threading.Thread(target=heard, daemon=True).start()
    stop = "signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(128 + number))\n"
    line = script(stop + "pathlib.Path(sys.argv[1], rank).touch()\ntime.sleep(60)")
    assert spawn(2, line) == 128 + signal.SIGUSR2


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ({"gpus_per_node": 4}, 4),  # hydra/launcher=slurm
        ({"gpus_per_node": 1}, 1),
        ({"gpus_per_node": None}, 1),  # submitit_local
        ({"ray": {"remote": {"num_gpus": 2}}}, 2),  # hydra/launcher=ray
        ({"ray": {"remote": {"num_gpus": 0.5}}}, 1),
        ({}, 1),
    ],
)
def test_a_job_has_as_many_ranks_as_its_launcher_gives_it_gpus(launcher, ranks):
    assert ranks_of(OmegaConf.create(launcher)) == ranks


def test_a_job_in_a_launcher_s_process_starts_its_ranks(script, monkeypatch):
    import train

    job = pickle.loads(pickle.dumps(Job(train.train, multirun=True)))
    seen = []
    monkeypatch.setattr("jointdreamer.cli.spawn.spawn", lambda ranks, command: seen.append((ranks, command)) or 3)
    monkeypatch.setattr("jointdreamer.cli.job.typed", ["train.py", "seed=1"])
    status, said = job.run_ranks(4)
    assert seen == [(4, [train.__file__, "seed=1"])] and status == job.status == 3
    assert said is not None and "status 3" in said
