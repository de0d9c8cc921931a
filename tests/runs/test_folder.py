"""The run folder: whose it is, what comes back, and that resuming changes nothing."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jointdreamer.errors import UserError
from jointdreamer.runs import folder as folder_module
from jointdreamer.runs.checkpoint import seed_everything
from jointdreamer.runs.folder import CONTRACT, RunFolder, is_complete, read_run, run_path, slug
from jointdreamer.runs.same_config import Comparison
from jointdreamer.runs.signals import Stop
from tests.runs.small_run import CONFIG, Counter, begin

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


# Checkpoints


def test_looking_at_a_run_changes_nothing(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.save(5, counter=Counter(5.0))
    (tmp_path / "checkpoints" / "step_000010.pt").write_text("rubbish")
    config, checkpoint = read_run(tmp_path)
    assert config == CONFIG and checkpoint["step"] == 5
    assert (tmp_path / "checkpoints" / "step_000010.pt").exists()


# The same run under another config


def finished(folder, config, steps=4):
    with RunFolder.open(folder, config) as run:
        run.save(steps, counter=Counter(steps))
        run.write_environment([{"path": "here", "sha256": "1"}])
        run.write_command(["first"])
        run.write_result(**{key: 1 for key in CONTRACT} | {"steps": steps})


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
        run.write_result(**{key: 1 for key in CONTRACT} | {"steps": 4})
    assert (tmp_path / "command.txt").read_text() == "second\n"
    assert is_complete(tmp_path, second, 4) and not is_complete(tmp_path, first, 4)
    # a version that knows more outputs finds this one complete
    assert is_complete(tmp_path, {**second, "output": {**second["output"], "mesh": True}}, 4)


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
        comparison = Comparison(elsewhere=elsewhere)
        run = RunFolder(tmp_path, CONFIG, None, comparison)
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


# Records


def test_result_is_the_last_word(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    assert run.result() is None
    with pytest.raises(KeyError, match="minutes"):
        run.write_result(prompt="a corgi")
    result = {key: 1 for key in CONTRACT} | {"steps": 100, "clip": float("nan")}
    run.write_result(**result)
    assert run.result(steps=100) == result | {"clip": None}
    assert run.result(steps=200) is None
    (tmp_path / "result.json").write_text('{"steps": 1')
    assert run.result() is None


def test_seconds_go_on_where_they_stopped(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(folder_module.time, "monotonic", lambda: clock[0])
    run = RunFolder.open(tmp_path, CONFIG)
    clock[0] += 60
    run.save(1, counter=Counter())
    run.close()
    clock[0] += 1000  # nothing runs
    run = RunFolder.open(tmp_path, CONFIG)
    run.resume(counter=Counter())
    clock[0] += 5
    assert run.seconds == 65


def test_command_is_quoted_for_a_shell(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.write_command(["python", "train.py", "prompt=it's a corgi, \udcff"])
    run.write_command(["python", "other.py"])
    assert (tmp_path / "command.txt").read_bytes() == b"python train.py 'prompt=it'\"'\"'s a corgi, \xff'\n"


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


def test_a_process_alone_saves_its_random_stream_when_a_checkpoint_is_due(tmp_path):
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        ends = [run.save_if_due(done, 4, 2, Stop(), generator=torch.Generator()) for done in (1, 2, 3, 4)]
        assert ends == [False] * 4 and [step for step, _ in run.checkpoints] == [2, 4]
