"""Checkpoint files: what survives a kill, a full disk and damage, and that nothing executes code."""

import errno
import os
import random
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.runs import checkpoint, records
from jointdreamer.runs.checkpoint import read_newest_checkpoint, seed_everything
from jointdreamer.runs.folder import RunFolder
from tests.runs.small_run import CONFIG, Counter

ROOT = Path(__file__).parents[2]


def test_save_and_resume_give_every_state_back(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    net = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(net.parameters())
    generator = seed_everything(7)
    net(torch.randn(4, 3)).sum().backward()
    adam.step()
    run.save(1, net=net, adam=adam, generator=generator)

    def draw():
        return [torch.rand(3, generator=generator), torch.rand(3), np.random.normal(size=3), random.gauss(0, 1)]

    expected = draw() + [net.weight.detach().clone(), adam.state_dict()["state"][0]["exp_avg"].clone()]
    with torch.no_grad():
        net.weight.zero_()
    seed_everything(8)
    adam.state.clear()
    assert run.resume(net=net, adam=adam, generator=generator) == 1
    got = draw() + [net.weight.detach(), adam.state_dict()["state"][0]["exp_avg"]]
    for one, other in zip(expected, got, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_a_checkpoint_is_read_without_executing_code(tmp_path):
    file = RunFolder.open(tmp_path, CONFIG).save(
        3, counter=Counter(2.0), note={"a": (1, None, "x"), 2: np.float64(0.5)}
    )
    content = torch.load(file, weights_only=True)
    assert file.name == "step_000003.pt"
    assert content["parts"]["note"] == {"a": (1, None, "x"), 2: 0.5}


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(TypeError, match=r"thing\.a\.0 is a Path|thing\.a\.0 is a PosixPath"):
        run.save(1, thing={"a": [Path("x")]})
    assert run.checkpoints == []


def test_a_view_does_not_drag_its_storage_into_the_file(tmp_path):
    file = RunFolder.open(tmp_path, CONFIG).save(1, view=torch.zeros(1_000_000)[:10])
    assert file.stat().st_size < 100_000


def test_only_the_newest_are_kept_and_never_none(tmp_path, monkeypatch):
    run = RunFolder.open(tmp_path, CONFIG)
    for step in (1, 2, 9, 10):
        run.save(step, counter=Counter(step))
    assert [step for step, _ in run.checkpoints] == [9, 10]

    run.keep = 1

    def refuse(*_):
        raise RuntimeError("killed here")

    monkeypatch.setattr(checkpoint.torch, "save", refuse)
    with pytest.raises(RuntimeError, match="killed here"):
        run.save(11, counter=Counter(11))
    assert [step for step, _ in run.checkpoints] == [9, 10]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "renamed", "foreign"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    run = RunFolder.open(tmp_path, CONFIG)
    run.save(5, counter=Counter(5.0), noise=Noise())
    newest = run.save(10, counter=Counter(10.0), noise=Noise())
    content = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "flipped":  # torch.load alone would take it
        middle = len(content) // 2
        newest.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
        torch.load(newest, weights_only=True)
    elif damage == "text":
        newest.write_text("not a checkpoint")
    elif damage == "renamed":
        newest = newest.rename(newest.with_name("step_000011.pt"))
    else:
        torch.save({"weights": torch.zeros(3)}, newest)
    counter = Counter()
    with caplog.at_level("WARNING", logger="jointdreamer"):
        assert run.resume(counter=counter, noise=Noise()) == 5
    assert counter.value.item() == 5.0
    [record] = caplog.records
    assert newest.name in record.getMessage() and "step 5" in record.getMessage()
    assert "\n" not in record.getMessage()
    run.save(6, counter=counter, noise=Noise())  # the damaged one, though it says 10, is not the newest any more
    assert run.resume(counter=counter, noise=Noise()) == 6


class Noise(Counter):
    """A part big enough that the middle of the file is inside it."""

    def __init__(self):
        self.value = torch.arange(50_000.0)


def test_with_no_readable_checkpoint_the_run_starts_again(tmp_path, caplog):
    run = RunFolder.open(tmp_path, CONFIG)
    assert run.resume(counter=Counter()) == 0
    run.save(5, counter=Counter()).write_bytes(b"")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    with caplog.at_level("WARNING", logger="jointdreamer"):
        assert run.resume(counter=Counter()) == 0
    assert "starting again at step 0" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_checkpoint_of_other_parts_is_refused(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.save(1, counter=Counter())
    with pytest.raises(UserError, match="another version"):
        run.resume(counter=Counter(), grid=Counter())


ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.mark.parametrize(
    "error",
    [RuntimeError(ALLOCATOR), RuntimeError("something of torch's"), MemoryError(), OSError(errno.EIO, "I/O error")],
    ids=["allocator", "torch", "memory", "EIO"],
)
@pytest.mark.parametrize("where", ["torch", "zip", "metrics"])
def test_what_cannot_be_read_now_is_left_as_it_is(tmp_path, monkeypatch, error, where):
    """The whole file is good, as its checksums say: no memory for it, or a disk that stutters, condemns nothing."""
    run = RunFolder.open(tmp_path, CONFIG)
    for step in (5, 10):
        run.save(step, counter=Counter(step))
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(12)))

    def files():
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    before = files()

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patched:
        if where == "torch":
            patched.setattr(checkpoint.torch, "load", fail)
        elif isinstance(error, RuntimeError):
            pytest.skip("torch's own")
        elif where == "zip":
            patched.setattr(checkpoint.zipfile.ZipFile, "testzip", fail)
        else:
            patched.setattr(records, "_step_of", fail)
        with pytest.raises(UserError, match="cannot be read now") as caught:
            run.resume(counter=Counter())
    assert "\n" not in str(caught.value) and files() == before
    assert run.resume(counter=Counter()) == 10


@pytest.mark.parametrize("odd", ["fifo", "loop", "folder", "zip", "bomb"])
def test_something_else_under_a_checkpoint_s_name_is_set_aside_at_once(tmp_path, odd):
    run = RunFolder.open(tmp_path, CONFIG)
    run.save(5, counter=Counter(5.0))
    file = tmp_path / "checkpoints" / "step_000010.pt"
    if odd == "fifo":
        os.mkfifo(file)
    elif odd == "loop":
        file.symlink_to(file.name)
    elif odd == "folder":
        file.mkdir()
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl" if odd == "bomb" else "letter.txt", b"\0" * 10**7)
    counter = Counter()
    assert run.resume(counter=counter) == 5 and counter.value.item() == 5.0
    assert file.with_name(file.name + ".damaged").is_symlink() or file.with_name(file.name + ".damaged").exists()


def test_nan_is_never_saved_over_good_parameters(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.keep = 1
    run.save(1, counter=Counter(1.0))
    with pytest.raises(UserError, match=r"step 2: counter\.value holds NaN"):
        run.save(2, counter=Counter(float("nan")))
    assert [step for step, _ in run.checkpoints] == [1]


@pytest.mark.parametrize("how", ["plain", "inside torch"])
def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path, monkeypatch, how):
    run = RunFolder.open(tmp_path, CONFIG)
    run.keep = 1
    run.save(1, counter=Counter(1.0))

    def full(_, stream):
        stream.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            if how == "plain":
                raise
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904  (what torch.save makes of it)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.torch, "save", full)
        with pytest.raises(UserError, match="no space left on the disk"):
            run.save(2, counter=Counter(2.0))
    counter = Counter()
    assert run.resume(counter=counter) == 1 and counter.value.item() == 1.0
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step_000001.pt"]


KILLED = """
import os, signal, sys, torch
from jointdreamer.runs.folder import RunFolder

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

folder, where = sys.argv[1:]
run = RunFolder.open(folder, {"seed": 0})
part = torch.arange(300_000.0)
run.save(1, part=part)
if where == "half written":
    whole = torch.save
    def save(value, stream):
        class Half:
            def write(self, data):
                stream.write(bytes(data)[: len(data) // 2])
                stream.flush()
                die()
        whole(value, Half())
    torch.save = save
elif where == "before the move":
    os.replace = die
else:
    from pathlib import Path
    Path.unlink = die      # the new one is complete, the old one about to go
    run.keep = 1
run.save(2, part=part + 1)
"""


def test_sigkill_while_a_checkpoint_is_written_leaves_a_folder_to_resume(tmp_path):
    expected = {"half written": 1, "before the move": 1, "before the old one goes": 2}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = {
        where: subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / where), where], env=environment)
        for where in expected
    }
    for where, process in started.items():
        assert process.wait(timeout=100) == -signal.SIGKILL
        left = [entry.name for entry in (tmp_path / where / "checkpoints").iterdir()]
        assert any(name.startswith(".tmp-") for name in left) == (expected[where] == 1)
        run = RunFolder.open(tmp_path / where, {"seed": 0})  # the lock went with the process
        assert not list((tmp_path / where).rglob(".tmp-*"))
        newest = read_newest_checkpoint(tmp_path / where)
        assert newest is not None and newest["step"] == expected[where]
        assert torch.equal(newest["parts"]["part"], torch.arange(300_000.0) + newest["step"] - 1)
        run.close()


def test_a_seed_is_the_same_numbers_again():
    assert torch.equal(torch.rand(2, generator=seed_everything(5)), torch.rand(2, generator=seed_everything(5)))
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="seed="):
            seed_everything(seed)
