"""python -m jointdreamer.export: any run's object, without training; and what a command can be wrong about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jointdreamer import export
from jointdreamer.data.meshes import load_mesh
from jointdreamer.formats.glb import read_accessor, read_glb
from jointdreamer.runs.folder import RunFolder
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.registry import build_scene

CONFIG: dict[str, Any] = {
    "scene": {"name": "nerf"},
    "field": {"encoding": {"n_levels": 2, "log2_table_size": 6, "base_resolution": 4, "backend": "torch"}, "hidden": 8},
    "renderer": {"grid_resolution": 8, "n_samples": 8, "backend": "torch"},
    "background": {},
    "output": {"views": 3, "resolution": 16, "elevation_deg": 15, "distance": 2.6, "fovy_deg": 40},
}
SMALL = ("mesh.resolution=16", "texture=32")
ALL = {"mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply", "mesh.usdz", "export.json"}


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """make_run("runs/a", seed=0, **config) -> the folder of a run that was stopped after step 7: a coloured blob."""

    def make(name: str = "runs/a", seed: int = 0, **changes: Any) -> Path:
        config = {**CONFIG, **changes}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            scene = build_scene(groups=config, **config["scene"])
        with RunFolder.open(tmp_path / name, config) as run:
            run.save(7, scene=scene)
        return tmp_path / name

    return make


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_stopped_run_is_written_in_all_formats(make_run, capsys):
    run = make_run()
    before = names(run)
    assert export.main([str(run), *SMALL]) == 0
    place = run / "export"
    assert names(place) == ALL and names(run) == before | {"export"}
    assert capsys.readouterr().out == f"{place}\n"
    assert Image.open(place / "mesh.png").size == (32, 32)
    for suffix in ("glb", "obj", "ply"):
        mesh = load_mesh(place / f"mesh.{suffix}")
        assert mesh.notes == () and len(mesh.textures) == (suffix != "ply")


def test_the_same_again_is_complete_and_other_wishes_are_not(make_run, capsys, monkeypatch):
    run = make_run()
    assert export.main([str(run), *SMALL, "format=glb,obj"]) == 0
    written = {file: file.stat().st_mtime_ns for file in (run / "export").iterdir()}

    def no_loading(*_):
        raise AssertionError("loaded")

    for words in (("format=glb,obj",), ("format=obj",)):
        with monkeypatch.context() as patched:
            patched.setattr("jointdreamer.runs.pictures.load_scene", no_loading)
            capsys.readouterr()
            assert export.main([str(run), *SMALL, *words]) == 0
            assert "is complete: nothing to do" in capsys.readouterr().out
    assert written == {file: file.stat().st_mtime_ns for file in (run / "export").iterdir()}

    def said(*words: str) -> str:
        assert export.main([str(run), *words]) == 0
        return capsys.readouterr().out

    assert "complete" not in said("mesh.resolution=16", "texture=16", "format=glb")
    assert "complete" not in said("mesh.resolution=20", "texture=16", "format=glb")
    assert "complete" not in said("mesh.resolution=20", "texture=16", "format=ply")
    (run / "export" / "mesh.ply").unlink()
    assert "complete" not in said("mesh.resolution=20", "texture=16", "format=ply")
    checkpoint = run / "checkpoints" / "step_000007.pt"
    stored = torch.load(checkpoint, weights_only=True)
    torch.save({**stored, "step": 9}, run / "checkpoints" / "step_000009.pt")
    assert "complete" not in said("mesh.resolution=20", "texture=16", "format=ply")


def test_finer_and_smaller_are(make_run):
    run, faces = make_run(), []
    for resolution, texture in ((12, 16), (32, 64)):
        assert export.main([str(run), f"mesh.resolution={resolution}", f"texture={texture}", "format=glb,obj"]) == 0
        tree, binary = read_glb((run / "export" / "mesh.glb").read_bytes())
        faces.append(len(read_accessor(tree, binary, 0)) // 3)
        assert Image.open(run / "export" / "mesh.png").size == (texture, texture)
    assert faces[1] > 3 * faces[0]


def test_the_files_show_the_colours_of_the_scene(make_run):
    """At the vertices, which are corners of charts: what the PLY says, and what the texture says within two texels."""
    run = make_run()
    assert export.main([str(run), "mesh.resolution=24", "texture=512", "format=glb,ply"]) == 0
    seen = []
    for suffix in ("glb", "ply"):
        mesh = load_mesh(run / "export" / f"mesh.{suffix}")
        color = mesh.color.reshape(-1, mesh.color.shape[-1])[:, :3].astype(float)
        if mesh.textures:
            color = color * mesh.textures[0].sample(mesh.uv.reshape(-1, 2))[:, :3]
        order = np.lexsort(np.round(mesh.corners.reshape(-1, 3), 4).T)
        seen.append((mesh.corners.reshape(-1, 3)[order], color[order]))
    assert np.allclose(seen[0][0], seen[1][0], atol=1e-4)
    assert np.abs(seen[0][1] - seen[1][1]).max() < 0.03 and np.ptp(seen[1][1]) > 0.002


def test_without_a_texture_there_are_colours_at_the_vertices(make_run):
    run = make_run()
    assert export.main([str(run), "mesh.resolution=16", "texture=0"]) == 0
    assert names(run / "export") == {"mesh.glb", "mesh.obj", "mesh.ply", "export.json"}


def test_several_runs_each_in_a_folder_of_its_own(make_run, tmp_path, capsys):
    made = [make_run(f"runs/mvs/{name}/seed{seed}", seed) for name in ("pig", "robot") for seed in (0, 1)]
    out = tmp_path / "assets"
    words = [str(tmp_path / "runs" / "mvs" / "*" / "seed*"), str(made[0]), *SMALL, "format=glb", f"out={out}"]
    assert export.main(words) == 0
    assert {str(file.parent.relative_to(out)) for file in out.rglob("mesh.glb")} == {
        "pig/seed0", "pig/seed1", "robot/seed0", "robot/seed1"
    }  # fmt: skip
    assert not (made[0] / "export").exists() and len(capsys.readouterr().out.splitlines()) == 4
    assert export.main([str(tmp_path / "runs"), *SMALL, "format=glb", f"out={tmp_path / 'again'}"]) == 0
    assert len(list((tmp_path / "again").rglob("mesh.glb"))) == 4
    assert export.main([str(made[0]), *SMALL, "format=glb", f"out={tmp_path / 'one'}"]) == 0
    assert names(tmp_path / "one") == {"mesh.glb", "export.json"}


def test_a_run_of_several_that_fails_does_not_stop_the_others(make_run, capsys):
    bad, good = make_run("runs/a"), make_run("runs/b")
    for file in (bad / "checkpoints").iterdir():
        file.unlink()
    assert export.main([str(bad), str(good), *SMALL, "format=ply"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "runs/a has no checkpoint yet" in said.err
    assert said.out == f"{good / 'export'}\n"


def test_cameras_of_a_turntable_that_has_none(make_run):
    run = make_run()
    (run / "turntable").mkdir()
    (run / "turntable" / "rgb.mp4").write_bytes(b"a video")
    assert export.main([str(run), *SMALL, "format=ply"]) == 0
    said = json.loads((run / "turntable" / "transforms.json").read_text())
    assert len(said["frames"]) == 3 and said["w"] == 16


# Mistakes


def complaint(capsys, *words: str) -> str:
    """The one line that a mistake costs."""
    assert export.main(list(words)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    return said.err


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("mesh.resolution=4", "mesh.resolution=4: wanted a whole number from 8 to 1024"),
        ("mesh.resolution=2000", "from 8 to 1024"),
        ("mesh.resolution=fine", "mesh.resolution=fine: wanted a whole number"),
        ("texture=8", "texture=8: wanted 0 or a whole number from 16 to 8192"),
        ("texture=-1", "from 16 to 8192"),
        ("texture=1e3", "texture=1e3"),
        ("texture=99999999999999999999", "from 16 to 8192"),
        ("format=glb,fbx", "unknown format 'fbx', choose from glb, obj, ply, usdz"),
        ("format=", "unknown format ''"),
        ("out=", "out is empty"),
        ("resolution=64", "unknown key 'resolution': there are mesh.resolution, texture, format, out"),
        ("--fine", "--fine: wanted RUN folders and KEY=VALUE"),
    ],
)
def test_a_word_with_a_mistake(make_run, capsys, word, says):
    run = make_run()
    assert says in complaint(capsys, str(run), word)
    assert not (run / "export").exists()


def test_usdz_wants_a_texture(make_run, capsys):
    assert "format=usdz wants a texture" in complaint(capsys, str(make_run()), "texture=0", "format=usdz")


def test_what_is_no_run(make_run, tmp_path, capsys):
    assert "no run: say which" in complaint(capsys, *SMALL)
    assert "matches no run" in complaint(capsys, str(tmp_path / "nowhere" / "*"))
    (tmp_path / "empty").mkdir()
    assert "empty is no run folder: it has no config.yaml" in complaint(capsys, str(tmp_path / "empty"))
    (tmp_path / "file").write_text("no folder")
    assert "matches no run" in complaint(capsys, str(tmp_path / "file"))
    run = make_run()
    (run / "config.yaml").write_text("prompt: [")
    assert "runs/a is no run folder" in complaint(capsys, str(run))


def test_a_run_without_a_checkpoint_or_with_a_damaged_one(make_run, capsys):
    run = make_run()
    (file,) = (run / "checkpoints").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert export.main([str(run), *SMALL]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err.splitlines()[-1]
    assert file.exists()  # looked at only


def test_an_unwritable_place(make_run, tmp_path, capsys):
    run = make_run()
    (tmp_path / "taken").write_text("a file")
    assert "taken" in complaint(capsys, str(run), *SMALL, f"out={tmp_path / 'taken'}")
    assert "taken" in complaint(capsys, str(run), *SMALL, f"out={tmp_path / 'taken' / 'below'}")
    (run / "export" / "mesh.glb").mkdir(parents=True)
    assert export.main([str(run), *SMALL]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: cannot write in {run / 'export'}")
    assert not (run / "export" / "export.json").exists()


def test_an_empty_scene(make_run, capsys, monkeypatch):
    monkeypatch.setattr(HashGridField, "density", lambda self, x: torch.zeros(len(x)))
    run = make_run()
    assert export.main([str(run), *SMALL]) == 2
    assert f"error: {run}: the field is empty" in capsys.readouterr().err
    assert not names(run / "export")


def test_more_than_there_is_memory(make_run, capsys, monkeypatch):
    monkeypatch.setattr("jointdreamer.machine.free_bytes", lambda device: 1e6)
    run = make_run()
    said = complaint(capsys, str(run), "mesh.resolution=1024")
    assert "mesh.resolution=1024 with texture=2048 needs about 29" in said and "take lower ones" in said


def test_a_run_of_another_version_of_the_code(make_run, capsys):
    run = make_run()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("hidden: 8", "hidden: 16"))
    assert "was made by another version of this code" in complaint(capsys, str(run), *SMALL)
    (run / "config.yaml").write_text(config.replace("hidden: 8", "hidden: 8\n  gone: 3"))
    assert "another version" in complaint(capsys, str(run), *SMALL)
    (run / "config.yaml").write_text("prompt: a red robot\n")
    assert "another version" in complaint(capsys, str(run), *SMALL)


def test_a_run_from_before_scenes(make_run):
    """Its checkpoint keeps field, background and renderer apart, and its config has no scene."""
    run = make_run()
    file = run / "checkpoints" / "step_000007.pt"
    stored = torch.load(file, weights_only=True)
    parts: dict[str, dict] = {"field": {}, "background": {}, "renderer": {}}
    for key, value in stored["parts"]["scene"].items():
        part, _, rest = key.partition(".")
        parts[part][rest] = value
    torch.save({**stored, "parts": parts}, file)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("scene:\n  name: nerf\n", ""))
    assert export.main([str(run), *SMALL, "format=glb"]) == 0
    assert (run / "export" / "mesh.glb").stat().st_size > 1000


def test_help_and_no_words(capsys):
    assert export.main(["--help"]) == 0 and "mesh.resolution=256" in capsys.readouterr().out
    assert export.main([]) == 2
