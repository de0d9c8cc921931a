"""The run folder: whose it is, what survives a kill, a full disk and damage, and that resuming changes nothing."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jointdreamer.errors import UserError
from jointdreamer.runs import folder as run_module
from jointdreamer.runs.folder import (
    CONTRACT,
    RunFolder,
    environment,
    peak_memory_gb,
    run_path,
    seed_everything,
    slug,
    truncate_metrics,
)

CONFIG = {"prompt": "a corgi", "seed": 0, "guidance": {"scale": 30.0}, "out_dir": "runs", "every": {"log": 10}}
ROOT = Path(__file__).parents[2]


class Counter:
    """The smallest thing with a state."""

    def __init__(self, value: float = 0.0):
        self.value = torch.tensor([value])

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"].clone()


# Names


@pytest.mark.parametrize(
    "text",
    ["../../etc", "/", "a\nb\0c", "🦊🦊", "日本のキツネ", "", " ", "x" * 10_000, "..", "CON:*?<>|", "\udcff", "-rf"],
)
def test_slug_of_any_text_is_one_short_plain_name(text):
    name = slug(text)
    assert len(name) <= 60
    assert all(character.isascii() and (character.isalnum() or character in "_-") for character in name)
    assert not name.startswith("-")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=50), st.text(st.characters(), max_size=50))
def test_two_prompts_never_share_a_slug(first, second):
    assert (slug(first) == slug(second)) == (first == second)


def test_slug_says_what_the_prompt_says():
    assert slug("A DSLR photo of a corgi, 8K").startswith("a_dslr_photo_of_a_corgi_8k-")
    assert slug("crème brûlée").startswith("creme_brulee-")


def test_run_path_is_a_function_of_name_prompt_and_seed():
    path = run_path("runs", "table3/mvs", "a corgi", 2)
    assert path == Path("runs/table3/mvs") / slug("a corgi") / "seed2"


@pytest.mark.parametrize("name", ["", "..", "a/../../b", "/etc", "a//b", "a\nb", "x" * 300, "a\\b"])
def test_run_path_refuses_a_name_that_could_leave_out_dir(name):
    with pytest.raises(UserError, match="name="):
        run_path("runs", name, "a corgi", 0)


# Whose folder it is


def test_config_comes_back_whole_whatever_the_prompt(tmp_path):
    prompt = "a: 'corgi', \"8K\" [1]\n🦊 \u0085 \udcff # {x}"
    config = {**CONFIG, "prompt": prompt, "lr": 1e-6, "big": 1e22, "none": None, "pair": (1, 2)}
    RunFolder.open(tmp_path / "run", config).close()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text()) == {**config, "pair": [1, 2]}
    RunFolder.open(tmp_path / "run", config).close()  # and is recognised


def begin(folder, config):
    """A run folder with a step done in it: from then on it belongs to its config."""
    RunFolder.open(folder, config).close()
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')


def test_foreign_config_is_refused_by_the_names_of_its_keys(tmp_path):
    begin(tmp_path, CONFIG)
    other = {**CONFIG, "guidance": {"scale": 50.0}, "extra": 1}
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path, other)
    message = str(caught.value)
    assert "guidance.scale is 30.0 there, 50.0 here" in message
    assert "extra is absent there, 1 here" in message
    assert "\n" not in message and "name=" in message


def test_foreign_config_message_stays_short(tmp_path):
    begin(tmp_path, {**CONFIG, "prompt": "x" * 10_000, **{f"k{i}": 0 for i in range(50)}})
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path, {**CONFIG, "prompt": "y" * 10_000, **{f"k{i}": 1 for i in range(50)}})
    assert len(str(caught.value)) < 1000 and "46 more" in str(caught.value)


def test_before_the_first_step_a_corrected_command_takes_the_folder(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.write_command(["python", "train.py", "seed=0"])
    run.close()
    (tmp_path / "metrics.jsonl").touch()
    RunFolder.open(tmp_path, {**CONFIG, "seed": 1}).close()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 1
    assert not (tmp_path / "command.txt").exists()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000001.pt.damaged").touch()
    with pytest.raises(UserError, match="another config"):
        RunFolder.open(tmp_path, CONFIG)


def test_what_does_not_change_the_numbers_may_differ(tmp_path):
    begin(tmp_path, CONFIG)
    RunFolder.open(tmp_path, {**CONFIG, "out_dir": "elsewhere", "every": {"log": 1}, "logger": {"wandb": {}}}).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    for name in ("thesis.tex", ".tmp-thesis.tex"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path, CONFIG)
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "thesis.tex", ".tmp-thesis.tex"}


def test_a_folder_whose_first_file_was_cut_by_a_kill_is_taken_up(tmp_path):
    (tmp_path / ".lock").write_text("1")
    (tmp_path / ".tmp-1-config.yaml").write_text("prom")
    RunFolder.open(tmp_path, CONFIG).close()
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "config.yaml"}


def test_broken_config_file_is_one_line(tmp_path):
    begin(tmp_path, CONFIG)
    (tmp_path / "config.yaml").write_text("{a: [")
    with pytest.raises(UserError, match="cannot be read") as caught:
        RunFolder.open(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)


def test_unwritable_places_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "run", tmp_path / "file", tmp_path / ("x" * 300)]
    if Path("/proc/self").exists():
        places.append(Path("/proc/run"))
    for place in places:
        with pytest.raises(UserError, match="cannot write in the run folder"):
            RunFolder.open(place, CONFIG)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        RunFolder.open(tmp_path, CONFIG)
    tmp_path.chmod(0o700)


def test_one_process_at_a_time(tmp_path):
    first = RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(UserError, match=f"pid {os.getpid()}"):
        RunFolder.open(tmp_path, CONFIG)
    first.close()
    RunFolder.open(tmp_path, CONFIG).close()


def test_a_refused_folder_is_not_left_locked(tmp_path):
    begin(tmp_path, CONFIG)
    with pytest.raises(UserError, match="another config"):
        RunFolder.open(tmp_path, {**CONFIG, "seed": 1})
    RunFolder.open(tmp_path, CONFIG).close()


# Checkpoints


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
    run = RunFolder.open(tmp_path, CONFIG, keep=2)
    for step in (1, 2, 9, 10):
        run.save(step, counter=Counter(step))
    assert [step for step, _ in run.checkpoints] == [9, 10]

    run.keep = 1

    def refuse(*_):
        raise RuntimeError("killed here")

    monkeypatch.setattr(run_module.torch, "save", refuse)
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
            patched.setattr(run_module.torch, "load", fail)
        elif isinstance(error, RuntimeError):
            pytest.skip("torch's own")
        elif where == "zip":
            patched.setattr(run_module.zipfile.ZipFile, "testzip", fail)
        else:
            patched.setattr(run_module, "_step_of", fail)
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


def test_looking_at_a_run_changes_nothing(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.save(5, counter=Counter(5.0))
    (tmp_path / "checkpoints" / "step_000010.pt").write_text("rubbish")
    config, checkpoint = run_module.read_run(tmp_path)
    assert config == CONFIG and checkpoint["step"] == 5
    assert (tmp_path / "checkpoints" / "step_000010.pt").exists()


@pytest.mark.parametrize("name", run_module.RECORDS)
@pytest.mark.parametrize("odd", ["fifo", "loop", "folder"])
def test_a_pipe_in_place_of_a_record_is_one_line_and_nobody_waits(tmp_path, name, odd):
    begin(tmp_path, CONFIG)
    (tmp_path / name).unlink(missing_ok=True)
    if odd == "fifo":
        os.mkfifo(tmp_path / name)
    elif odd == "loop":
        (tmp_path / name).symlink_to(name)
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name}.*move it away"):
        RunFolder.open(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"before": 5}', '{"weights": {"a": 1}, "before": [1]}', "\0" * 9, "[" * 100_000]
)
def test_a_damaged_environment_stops_no_run(tmp_path, text):
    begin(tmp_path, CONFIG)
    (tmp_path / "environment.json").write_text(text)
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.check_weights([{"path": "a", "sha256": "1"}], 5)
        run.write_environment([{"path": "a", "sha256": "1"}])
    assert json.loads((tmp_path / "environment.json").read_text())["weights"] == [{"path": "a", "sha256": "1"}]


def test_an_environment_that_cannot_be_read_now_is_left_as_it_is(tmp_path, monkeypatch, caplog):
    begin(tmp_path, CONFIG)
    (tmp_path / "environment.json").write_text('{"commit": "precious"}')
    real = os.open

    def refusing(file, *more, **options):
        if str(file).endswith("environment.json"):
            raise OSError(errno.EIO, "Input/output error")
        return real(file, *more, **options)

    with RunFolder.open(tmp_path, CONFIG) as run, monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing)
        with caplog.at_level("WARNING", logger="jointdreamer"):
            run.write_environment()
    assert (tmp_path / "environment.json").read_text() == '{"commit": "precious"}' and "left as it is" in caplog.text


# The same run under another config


def test_settings_that_are_not_numbers_are_equal_to_themselves(tmp_path):
    config = {**CONFIG, "a": float("nan"), "b": [1, float("nan"), {"c": float("nan")}]}
    begin(tmp_path, config)
    RunFolder.open(tmp_path, config).close()
    with pytest.raises(UserError, match="a is nan there, 1 here"):
        RunFolder.open(tmp_path, {**config, "a": 1})


def test_a_config_with_one_list_twice_is_read_again(tmp_path):
    both = [0, 1]
    begin(tmp_path, {**CONFIG, "a": both, "b": both})
    RunFolder.open(tmp_path, {**CONFIG, "a": both, "b": both}).close()


@pytest.mark.parametrize("text", ["a: &a [*a]", "[" * 100_000, "", "5", "- 1", "\0"])
def test_an_odd_config_is_one_line(tmp_path, text):
    begin(tmp_path, CONFIG)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml cannot be read") as caught:
        RunFolder.open(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)


def finished(folder, config, steps=4):
    with RunFolder.open(folder, config) as run:
        run.save(steps, counter=Counter(steps))
        run.write_environment([{"path": "here", "sha256": "1"}])
        run.write_command(["first"])
        run.write_result(**{key: 1 for key in run_module.CONTRACT} | {"steps": steps})


def test_a_finished_run_makes_other_outputs_and_is_complete_again(tmp_path):
    first, second = ({**CONFIG, "output": {"fps": fps, "views": 3}} for fps in (30, 10))
    finished(tmp_path, first)
    with RunFolder.open(tmp_path, first) as run:
        assert run.result(4) and run.result(5) is None
    with RunFolder.open(tmp_path, second) as run:
        assert run.result() and run.result(4) is None
        assert (tmp_path / "result.json").exists()  # until the run goes on: a mistake further on costs nothing
        run.check_weights([{"path": "gone", "sha256": "2"}], 4)  # nothing is left to be trained
        assert run.resume(counter=Counter()) == 4
        assert run.result() is None and yaml.safe_load((tmp_path / "config.yaml").read_text()) == second
        run.write_command(["second"])
        run.write_result(**{key: 1 for key in run_module.CONTRACT} | {"steps": 4})
    assert (tmp_path / "command.txt").read_text() == "second\n"
    assert run_module.is_complete(tmp_path, second, 4) and not run_module.is_complete(tmp_path, first, 4)
    # a version that knows more outputs finds this one complete
    assert run_module.is_complete(tmp_path, {**second, "output": {**second["output"], "mesh": True}}, 4)


def test_a_finished_run_whose_checkpoint_is_gone_is_not_trained_again_unasked(tmp_path):
    finished(tmp_path, CONFIG)
    next((tmp_path / "checkpoints").iterdir()).unlink()
    with RunFolder.open(tmp_path, CONFIG) as run:
        assert run.result(4)
        with pytest.raises(UserError, match="without its checkpoint"):
            run.resume(counter=Counter())
    assert (tmp_path / "result.json").exists()


def test_weights_are_compared_by_content(tmp_path):
    finished(tmp_path, CONFIG)

    def check(weights, steps, elsewhere=()):
        comparison = run_module.Comparison(elsewhere=elsewhere)
        run = RunFolder(tmp_path, CONFIG, None, 1, comparison)
        run.check_weights([{"path": f"there/{sha}", "sha256": sha} for sha in weights], steps)

    named = ("source is a there, b here",)
    check("1", 9)
    check("1", 4, named)
    check("12", 9)  # a folder that was completed since
    for weights, steps, elsewhere in (("2", 9, ()), ("2", 4, named), ("12", 4, named), ("", 4, named)):
        with pytest.raises(UserError, match="made with other weights"):
            check(weights, steps, elsewhere)
    (tmp_path / "environment.json").unlink()
    check("2", 9)
    with pytest.raises(UserError, match="source is a there, b here, and its environment.json does not say"):
        check("1", 9, named)


def test_nan_is_never_saved_over_good_parameters(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG, keep=1)
    run.save(1, counter=Counter(1.0))
    with pytest.raises(UserError, match=r"step 2: counter\.value holds NaN"):
        run.save(2, counter=Counter(float("nan")))
    assert [step for step, _ in run.checkpoints] == [1]


@pytest.mark.parametrize("how", ["plain", "inside torch"])
def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path, monkeypatch, how):
    run = RunFolder.open(tmp_path, CONFIG, keep=1)
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
        patched.setattr(run_module.torch, "save", full)
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
        checkpoint = run.read_checkpoint()
        assert checkpoint is not None and checkpoint["step"] == expected[where]
        assert torch.equal(checkpoint["parts"]["part"], torch.arange(300_000.0) + checkpoint["step"] - 1)
        run.close()


# Resuming changes nothing


def train(folder: Path, steps: int, stop_at: int | None = None) -> torch.Tensor:
    """A noisy optimisation that draws from every generator, with a row each third step and a checkpoint each fourth."""
    with RunFolder.open(folder, CONFIG) as run:
        generator = seed_everything(3)
        point = torch.nn.Linear(2, 1)
        adam = torch.optim.Adam(point.parameters())
        for step in range(run.resume(point=point, adam=adam, generator=generator), steps):
            if step == stop_at:
                break
            noise = torch.randn(5, 2, generator=generator) + torch.rand(1) + np.random.rand() + random.random()
            loss = point(noise).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            if step % 3 == 0:
                with (folder / "metrics.jsonl").open("a") as stream:
                    stream.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
            if (step + 1) % 4 == 0:
                run.save(step + 1, point=point, adam=adam, generator=generator)
        return point.weight.detach()


def test_interrupted_and_uninterrupted_runs_end_alike(tmp_path):
    weight = train(tmp_path / "whole", 20)
    for stop_at in ([0], [1], [7, 8], [13, 5, 19], [16]):
        folder = tmp_path / f"stopped-{stop_at}"
        for stop in stop_at:
            train(folder, 20, stop)
            (folder / "metrics.jsonl").open("a").write('{"step": 1')  # killed while a row was written
        assert torch.equal(train(folder, 20), weight)
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_metrics_are_cut_at_the_step_and_at_a_row_that_is_not_whole(tmp_path):
    file = tmp_path / "metrics.jsonl"
    truncate_metrics(file, 3)  # none there: nothing to do
    file.write_text('{"step": 0}\n{"step": 2}\n{"step": 3}\n')
    truncate_metrics(file, 3)
    assert file.read_text() == '{"step": 0}\n{"step": 2}\n'
    file.write_text('{"step": 0}\n{"step": 1}\n{"step": 2')
    truncate_metrics(file, 3)
    assert file.read_text() == '{"step": 0}\n{"step": 1}\n'


@pytest.mark.parametrize(
    "odd", ["\n", "rubbish\n", "[" * 100_000 + "\n", "null\n", '{"step": "1"}\n', "\0" * 3_000_000 + "\n"]
)
def test_a_line_that_is_no_row_costs_no_other_row(tmp_path, odd):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 0}}\n{odd}{{"step": 1}}\n{{"step": 2}}\n{{"step": 3}}\n')
    truncate_metrics(file, 3)
    assert file.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


# Records


def test_result_is_the_last_word(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    assert run.result() is None
    with pytest.raises(KeyError, match="minutes"):
        run.write_result(prompt="a corgi")
    result = {key: 1 for key in run_module.CONTRACT} | {"steps": 100, "clip": float("nan")}
    run.write_result(**result)
    assert run.result(steps=100) == result | {"clip": None}
    assert run.result(steps=200) is None
    (tmp_path / "result.json").write_text('{"steps": 1')
    assert run.result() is None


def test_seconds_go_on_where_they_stopped(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: clock[0])
    run = RunFolder.open(tmp_path, CONFIG)
    clock[0] += 60
    run.save(1, counter=Counter())
    run.close()
    clock[0] += 1000  # nothing runs
    run = RunFolder.open(tmp_path, CONFIG)
    run.resume(counter=Counter())
    clock[0] += 5
    assert run.seconds == 65


def test_environment_says_what_ran(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    weights = [{"role": "multi-view", "path": Path("w/unet.safetensors"), "sha256": "ab" * 32}]
    run.write_environment(weights, models="toybox")
    run.write_environment(weights, models="toybox")
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["torch"] == torch.__version__ and record["packages"]["numpy"] == np.__version__
    assert record["weights"] == [{**weights[0], "path": "w/unet.safetensors"}]
    assert {"commit", "dirty", "python", "cuda", "gpu", "cpu_count"} <= record.keys() and "before" not in record
    run.write_environment(weights, models="sd21")
    [before] = json.loads((tmp_path / "environment.json").read_text())["before"]
    assert before["models"] == "toybox"


def test_commit_and_dirty_are_git_s(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "package.py"
    file.write_text("a = 1\n")
    assert run_module._commit(file) == (None, None)
    git("init", "-q")
    assert run_module._commit(file) == (None, None)  # some repository, but not this file's
    git("add", "package.py")
    git("commit", "-q", "-m", "one")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    ).stdout.strip()
    assert run_module._commit(file) == (head, False)
    file.write_text("a = 2\n")
    assert run_module._commit(file) == (head, True)


def test_command_is_quoted_for_a_shell(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.write_command(["python", "train.py", "prompt=it's a corgi, \udcff"])
    run.write_command(["python", "other.py"])
    assert (tmp_path / "command.txt").read_bytes() == b"python train.py 'prompt=it'\"'\"'s a corgi, \xff'\n"


def test_peak_memory_and_seed():
    assert 0.01 < peak_memory_gb() < 1000
    assert torch.equal(torch.rand(2, generator=seed_everything(5)), torch.rand(2, generator=seed_everything(5)))
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="seed="):
            seed_everything(seed)
    assert environment()["cpu_count"] == os.cpu_count()


# The folder's own numbers, and a folder that goes away


def test_what_a_run_computes_with_is_kept_for_all_its_starts(tmp_path):
    threads = torch.get_num_threads()
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        assert run.use_threads() == threads
        assert run.pin(rays_per_chunk=512, images_per_chunk=None)["rays_per_chunk"] == 512
        run.save(1, field=torch.zeros(1))
    try:
        torch.set_num_threads(threads + 1)
        with RunFolder.open(tmp_path / "run", CONFIG) as run:
            assert run.use_threads() == threads == torch.get_num_threads()
            pinned = {"threads": threads, "rays_per_chunk": 512, "images_per_chunk": None}
            assert run.pin(rays_per_chunk=64, images_per_chunk=2) == run.pinned() == pinned
    finally:
        torch.set_num_threads(threads)


def test_a_run_that_never_began_keeps_no_numbers(tmp_path):
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        run.pin(threads=7)
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        assert run.pinned() == {}


@pytest.mark.parametrize(
    ("content", "left"),
    [("", {}), ("[]", {}), ('{"threads": "many", "rays_per_chunk": 4}', {"rays_per_chunk": 4}),
     ('{"threads": true}', {}), ('{"threads": 0}', {}), ('{"threads": [[[]]]}', {}), ('{"threads": 1e99}', {})],
)  # fmt: skip
def test_numbers_that_nobody_can_use_are_a_warning(tmp_path, caplog, content, left):
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        (run.path / "numerics.json").write_text(content)
        assert run.pinned() == left and "numerics.json" in caplog.text
        assert run.use_threads() == torch.get_num_threads()


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_went_away_is_not_made_again(tmp_path, again):
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        assert run.still_there() == tmp_path / "run"
        shutil.rmtree(tmp_path / "run")
        if again:  # by somebody else
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / ".lock").touch()
        for write in (lambda: run.save(1, field=torch.zeros(1)), lambda: run.write_result(**dict.fromkeys(CONTRACT))):
            with pytest.raises(UserError, match="was deleted or moved"):
                write()
    assert [file.name for file in tmp_path.rglob("*")] == (["run", ".lock"] if again else [])


def test_the_room_for_the_checkpoints_to_come(tmp_path):
    field = torch.nn.Linear(10, 10, bias=False)
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        assert run.room(9, 1, field) == 3 * 3 * 400  # two stay, while a third is written
        assert run.room(9, 0, field) == run.room(1, 5, field) == 3 * 400
        assert run.room(0, 1, field) == 0
        for step in (1, 2):
            run.save(step, field=field)
        assert run.room(9, 1, field) == 3 * 400


def test_a_result_that_misses_something_is_not_complete(tmp_path):
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        result = dict.fromkeys(CONTRACT, 1)
        run.write_result(**result, missing={"mesh": "out of memory"})
        assert run.result() is None and run.result(1) is None
        run.write_result(**result, missing={})
        assert run.result() == run.result(1) == {**result, "missing": {}}
