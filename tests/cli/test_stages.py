"""Second stages, whole: a mesh after a NeRF that is made first or resumed, and what cannot be started from."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from jointdreamer.cli.main import composed
from jointdreamer.cli.stages import start_of
from jointdreamer.errors import UserError
from jointdreamer.runs.folder import run_path
from jointdreamer.runs.records import lock, unlock

MESH = ["prompt=a bear", "scene=dmtet", "scene.resolution=16", "scene.threshold=null", "name=mesh", "schedule.steps=2"]


def folder(out: Path, name: str) -> Path:
    (config,) = out.glob(f"runs/{name}/**/config.yaml")
    return config.parent


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def stderr(out: Path) -> str:
    return (out / "stderr").read_text()


@pytest.fixture(scope="module")
def two_stages(launcher, tiny_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stages")
    assert launcher.run(out, tiny_run(*MESH, "init_from=smoke")) == 0, stderr(out)
    return out


def test_one_command_makes_both_stages(two_stages):
    first, second = folder(two_stages, "smoke"), folder(two_stages, "mesh")
    assert steps(first) == list(range(12)) and steps(second) == [0, 1]
    for run in (first, second):
        assert json.loads((run / "result.json").read_text())["prompt"] == "a bear"
        assert (run / "turntable" / "rgb.mp4").exists() and (run / "mesh" / "mesh.glb").exists()
    assert (two_stages / "stdout").read_text().split() == [str(run.relative_to(two_stages)) for run in (first, second)]


def test_the_second_stage_begins_with_the_colours_of_the_first(two_stages):
    def state(name, step):
        file = folder(two_stages, name) / "checkpoints" / f"step_{step:06d}.pt"
        return torch.load(file, weights_only=True)["parts"]["scene"]

    first, second = state("smoke", 12), state("mesh", 1)
    moved = (second["field.albedo_mlp.first"] - first["field.albedo_mlp.first"]).abs().max()
    assert 0 < moved < 0.01  # one step of the optimiser


def test_the_same_command_again_has_nothing_to_do_even_without_the_first_stage(
    launcher, tiny_run, two_stages, tmp_path
):
    shutil.copytree(folder(two_stages, "mesh").parents[1], tmp_path / "runs" / "mesh")
    assert launcher.run(tmp_path, tiny_run(*MESH, "init_from=smoke")) == 0, stderr(tmp_path)
    assert (tmp_path / "stdout").read_text().count("is complete: nothing to do") == 1
    assert not (tmp_path / "runs" / "smoke").exists()


def test_a_finished_run_is_taken_by_its_folder_and_goes_on_without_it(launcher, tiny_run, two_stages, tmp_path):
    start = folder(two_stages, "smoke")
    given = ["prompt=a cat", *MESH[1:-2], f"init_from={start}", "name=other", "field.encoding_lr=1"]  # 2 there
    assert launcher.run(tmp_path, tiny_run(*given, "schedule.steps=1")) == 0, stderr(tmp_path)
    assert f"init_from={start} was made for 'a bear', this is 'a cat'" in stderr(tmp_path)
    assert launcher.run(tmp_path, tiny_run(*given, "schedule.steps=3")) == 0, stderr(tmp_path)
    assert steps(folder(tmp_path, "other")) == [0, 1, 2]


def test_a_mesh_file_is_taken(launcher, tiny_run, tmp_path):
    trimesh.creation.icosphere(3).export(tmp_path / "ball.glb")
    assert launcher.run(tmp_path, tiny_run(*MESH, f"init_from={tmp_path / 'ball.glb'}")) == 0, stderr(tmp_path)
    made = trimesh.load(folder(tmp_path, "mesh") / "mesh" / "mesh.glb", force="mesh")
    assert made.extents == pytest.approx([1.3] * 3, abs=0.15)


def test_a_first_stage_that_somebody_else_makes_is_waited_for(launcher, tiny_run, tmp_path):
    """Two rows of a table, made at the same time, may share it."""
    first = tmp_path / run_path("runs", "smoke", "a bear", 0)
    first.mkdir(parents=True)
    handle = lock(first)
    launcher.start(tmp_path, tiny_run(*MESH, "init_from=smoke"))
    deadline = time.monotonic() + 120
    try:
        while not (tmp_path / "stderr").exists() or "is working in" not in stderr(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not (tmp_path / "runs" / "mesh").exists()
    finally:
        unlock(handle)
    assert launcher.finish() == 0, stderr(tmp_path)
    assert steps(folder(tmp_path, "smoke")) == list(range(12)) and steps(folder(tmp_path, "mesh")) == [0, 1]


def test_a_second_stage_that_was_interrupted_goes_on_to_the_same_bits(launcher, tiny_run, two_stages, tmp_path):
    given = [*(word for word in MESH if word[:14] != "schedule.steps"), f"init_from={folder(two_stages, 'smoke')}"]
    for out, lengths in (("whole", [4]), ("parts", [1, 3, 4])):
        for length in lengths:
            words = tiny_run(*given, f"schedule.steps={length}")
            assert launcher.run(tmp_path / out, words) == 0, stderr(tmp_path / out)
    whole, parts = (folder(tmp_path / out, "mesh") for out in ("whole", "parts"))
    one, two = (
        torch.load(run / "checkpoints" / "step_000004.pt", weights_only=True)["parts"]["scene"]
        for run in (whole, parts)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    assert (whole / "mesh" / "mesh.glb").read_bytes() == (parts / "mesh" / "mesh.glb").read_bytes()


def first_stage(*words: str) -> dict:
    """The config of what is made first for these words."""
    found = start_of(composed("config", ["prompt=a bear", "models=sd21", *words], "sd21"))
    assert found is not None and found.config is not None
    return found.config


def test_each_stage_keeps_what_is_its_own():
    """What the second is told of the models is handed on; the rates and rescalings of one stage are not."""
    own = "models.text_to_image.source=elsewhere"
    nerf = first_stage("experiment=jointdreamer_dmtet", own, "models.text_to_image.image_size=256")
    assert nerf["models"]["text_to_image"]["cfg_rescale"] == 0 and nerf["background"]["eval_color"] == [1.0] * 3
    assert nerf["models"]["text_to_image"]["source"] == "elsewhere"
    assert nerf["models"]["text_to_image"]["image_size"] == 256
    alone = composed("config", ["experiment=table2/jointdreamer", own, "models.text_to_image.image_size=256"], "sd21")
    assert all(nerf[key] == alone[key] for key in ("models", "field", "background"))
    assert first_stage("experiment=image/magic123_refine")["field"]["encoding_lr"] == 10


def test_three_stages_agree_on_the_grid_or_are_refused_before_the_first():
    geometry = first_stage("experiment=prolificdreamer/texture")
    assert geometry["scene"]["distilled"] == "normal" and geometry["scene"]["resolution"] == 128
    nerf = start_of(geometry)
    assert nerf is not None and nerf.config is not None and nerf.config["scene"] == {"name": "nerf"}
    for word, there in (("scene.resolution=64", "128"), ("scene.max_offset=0.3", "0.44")):
        with pytest.raises(UserError, match=f"{word}, and init_from=prolificdreamer/geometry makes a mesh of {there}"):
            first_stage("experiment=prolificdreamer/texture", word)


FULL_DISK = """
import errno, os
import torch
from jointdreamer.energies.none import NoEnergy

save = torch.save

def full(checkpoint, stream):
    if os.environ.get("FULL_DISK") == "yes" and checkpoint["step"] == 3:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    save(checkpoint, stream)

torch.save = full

class Mine(NoEnergy):
    pass
"""


def test_a_full_disk_in_the_second_stage_is_said_and_the_same_command_goes_on(launcher, tiny_run, two_stages, tmp_path):
    (tmp_path / "full.py").write_text(FULL_DISK)
    given = [*MESH[:-1], f"init_from={folder(two_stages, 'smoke')}", "energy=none", "energy.name=full:Mine"]
    words, path = tiny_run(*given, "schedule.steps=4", "every.checkpoint=1"), {"PYTHONPATH": str(tmp_path)}
    for name in ("whole", "full"):
        (tmp_path / name).mkdir()
    assert launcher.run(tmp_path / "whole", words, **path) == 0, stderr(tmp_path / "whole")
    assert launcher.run(tmp_path / "full", words, FULL_DISK="yes", **path) == 2
    said = stderr(tmp_path / "full")
    assert "no space left on the disk" in said and "Traceback" not in said
    run = folder(tmp_path / "full", "mesh")
    assert max(file.name for file in run.glob("checkpoints/*")) == "step_000002.pt"
    assert launcher.run(tmp_path / "full", words, **path) == 0, stderr(tmp_path / "full")
    for name in ("metrics.jsonl", "mesh/mesh.glb"):
        assert (run / name).read_bytes() == (folder(tmp_path / "whole", "mesh") / name).read_bytes(), name


def test_a_first_stage_that_was_made_by_its_own_command_is_taken(launcher, tiny_run, tmp_path):
    # the experiment's own schedule and name, as the second stage makes it
    words = [w for w in tiny_run("prompt=a bear", "experiment=smoke") if not w.startswith(("schedule.", "energy="))]
    assert launcher.run(tmp_path, words) == 0, stderr(tmp_path)
    assert launcher.run(tmp_path, tiny_run(*MESH, "init_from=smoke")) == 0, stderr(tmp_path)
    assert steps(folder(tmp_path, "mesh")) == [0, 1]


def test_killed_in_either_stage_it_ends_as_if_nothing_had_been(launcher, tiny_run, two_stages, tmp_path):
    words = tiny_run(*MESH, "init_from=smoke")
    for name, n in (("smoke", 5), ("mesh", 1)):
        launcher.start(tmp_path, words)
        deadline = time.monotonic() + 120
        while not ((run := tmp_path / run_path("runs", name, "a bear", 0)) / "metrics.jsonl").exists() or (
            len(steps(run)) < n
        ):
            assert time.monotonic() < deadline, stderr(tmp_path)
            time.sleep(0.002)
        os.kill(int((run / ".lock").read_text()), signal.SIGKILL)
        assert launcher.finish() == -signal.SIGKILL
    assert launcher.run(tmp_path, words) == 0, stderr(tmp_path)
    for name in ("smoke", "mesh"):
        for file in ("metrics.jsonl", "mesh/mesh.glb"):
            made, whole = (folder(out, name) / file for out in (tmp_path, two_stages))
            assert made.read_bytes() == whole.read_bytes(), (name, file)


def damaged(path: Path) -> Path:
    path.write_bytes(b"glTF and nothing more")
    return path


def open_box(path: Path) -> Path:
    mesh = trimesh.creation.box()
    mesh.update_faces(np.arange(12) > 0)
    mesh.export(path)
    return path


def not_a_number(path: Path) -> Path:
    mesh = trimesh.creation.box()
    vertices = mesh.vertices.copy()
    vertices[0] = np.nan
    faces = "\n".join(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in mesh.faces)
    path.write_text("\n".join(f"v {x} {y} {z}" for x, y, z in vertices) + "\n" + faces)
    return path


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (
            lambda tmp: "nowhere",
            "init_from=nowhere: no run folder, no mesh (.glb, .gltf, .obj, .ply) and no experiment",
        ),
        (lambda tmp: damaged(tmp / "a.glb"), "it cannot be read"),
        (lambda tmp: open_box(tmp / "a.ply"), "the mesh is open: 3 of its edges"),
        (lambda tmp: not_a_number(tmp / "a.obj"), "vertices are not finite; wanted a mesh that can be read whole"),
    ],
)
def test_what_cannot_be_started_from_is_one_line(launcher, tiny_run, tmp_path, start, says):
    status = launcher.run(tmp_path, tiny_run(*MESH, f"init_from={start(tmp_path)}"))
    assert status == 2 and says in stderr(tmp_path) and "Traceback" not in stderr(tmp_path), stderr(tmp_path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["field.encoding.n_levels=3"], "field.encoding.n_levels is 2 there, 3 here: wanted the same field"),
        (["scene.resolution=18"], "wanted a multiple of 4"),
        (["scene.resolution=512"], "needs about 73.8 GB and there are"),
        (["scene.threshold=1000000000.0"], "no density above scene.threshold=1e+09"),
        (["schedule.loss.opaque=1"], "unknown key 'schedule.loss.opaque'"),
    ],
)
def test_a_mistake_in_the_second_stage_is_one_line(launcher, tiny_run, two_stages, tmp_path, more, says):
    given = [word for word in MESH if word.partition("=")[0] != more[0].partition("=")[0]]
    status = launcher.run(tmp_path, tiny_run(*given, f"init_from={folder(two_stages, 'smoke')}", *more))
    assert status == 2 and says in stderr(tmp_path) and "Traceback" not in stderr(tmp_path), stderr(tmp_path)


def test_a_run_that_is_not_finished_is_refused(launcher, tiny_run, two_stages, tmp_path):
    first = tmp_path / "first"
    (first / "checkpoints").mkdir(parents=True)
    (first / "config.yaml").write_bytes((folder(two_stages, "smoke") / "config.yaml").read_bytes())
    assert launcher.run(tmp_path / "out", tiny_run(*MESH, f"init_from={first}")) == 2
    assert "that run is not finished" in stderr(tmp_path / "out")
