"""The command that makes views: from meshes and from toys, whole objects only, and what it skips."""

from typing import Any

import numpy as np
import pytest
import trimesh as _trimesh

from jointdreamer.classifier.views import ViewFolder, open_views
from jointdreamer.data import render_views
from tests.glb_builder import GlbBuilder

trimesh: Any = _trimesh  # its stubs know half of it


@pytest.fixture
def meshes(tmp_path):
    folder = tmp_path / "meshes"
    (folder / "more").mkdir(parents=True)
    trimesh.creation.box().export(folder / "a.glb")
    trimesh.creation.cone(0.5, 1.0).export(folder / "more" / "b.obj")
    return folder


def render(*words, resolution=16):
    return render_views.main([*map(str, words), "--resolution", str(resolution), "--views", "3"])


def test_meshes_become_the_layout(meshes, tmp_path, capsys):
    out = tmp_path / "views"
    assert render("--meshes", meshes, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"a", "more_b"}
    names = sorted(path.name for path in (out / "a").iterdir())
    assert names == ["000.npy", "000.png", "001.npy", "001.png", "002.npy", "002.png"]
    assert "2 objects, 0 skipped" in capsys.readouterr().out
    source = open_views(out)
    assert source.images(0, [0, 1, 2], 16)[..., 3].mean() > 10
    distance = np.linalg.norm(source.poses(0)[:, :3, 3], axis=-1)
    assert ((distance > 1.5) & (distance < 2.2)).all()


def test_a_pose_shows_the_object_from_where_it_says(tmp_path):
    """A box that is red on the file's +x side, seen red from that side only."""
    mesh = trimesh.creation.box()
    mesh.unmerge_vertices()  # GLB has colours of vertices only
    mesh.visual.face_colors = np.where(mesh.face_normals[:, :1] > 0.5, (255, 0, 0, 255), (0, 0, 255, 255))
    (tmp_path / "meshes").mkdir()
    mesh.export(tmp_path / "meshes" / "a.glb")
    words = ["--meshes", tmp_path / "meshes", "--out", tmp_path / "views", "--elevation", "0", "1"]
    assert render_views.main([*map(str, words), "--resolution", "16", "--views", "40"]) == 0
    source = ViewFolder(tmp_path / "views")
    images, poses = source.images(0, range(40), 16).astype(int), source.poses(0)
    red: Any = np.asarray(images[..., 0] > images[..., 2]).any((1, 2))
    facing = poses[:, 0, 3] - 0.5  # the camera is in front of the plane x = 0.5
    clear: Any = np.abs(facing) > 0.05
    assert np.array_equal(red[clear], facing[clear] > 0) and 5 < red.sum() < 35


def test_bad_meshes_are_skipped_named_and_counted(meshes, tmp_path, capsys):
    (meshes / "broken.glb").write_bytes(b"?")
    (meshes / "empty.obj").write_text("v 0 0 0\n")
    trimesh.creation.icosphere(subdivisions=2).export(meshes / "huge.glb")
    out = tmp_path / "views"
    assert render("--meshes", meshes, "--out", out, "--max-faces", 100) == 0
    said = capsys.readouterr()
    assert "2 objects, 3 skipped" in said.out
    assert all(f"skipped {name}: " in said.err for name in ("broken", "empty", "huge"))
    assert {path.name for path in out.iterdir()} == {"a", "more_b"}


def test_hidden_files_are_no_meshes(meshes, tmp_path, capsys):
    """macOS writes ._a.glb beside a.glb on foreign disks and into archives."""
    for name in ("._a.glb", "more/._b.obj", ".trash/c.glb"):
        (meshes / name).parent.mkdir(exist_ok=True)
        (meshes / name).write_bytes(b"\0\5\x16\7Mac OS X")
    assert set(render_views.find_meshes(meshes)) == {"a", "more_b"}


def test_a_mesh_that_is_gone_when_its_turn_comes_is_skipped(meshes, tmp_path, capsys, monkeypatch):
    found = render_views.find_meshes(meshes)
    (meshes / "a.glb").unlink()
    monkeypatch.setattr(render_views, "find_meshes", lambda folder: found)
    assert render("--meshes", meshes, "--out", tmp_path / "views") == 0
    said = capsys.readouterr()
    assert "skipped a: it cannot be read (No such file" in said.err and "1 objects, 1 skipped" in said.out
    assert [path.name for path in (tmp_path / "views").iterdir()] == ["more_b"]


def test_what_was_left_out_of_an_object_is_one_line(tmp_path, capsys):
    builder = GlbBuilder().textured(b"no picture")
    (tmp_path / "meshes").mkdir()
    builder.save(tmp_path / "meshes" / "a.glb")
    assert render("--meshes", tmp_path / "meshes", "--out", tmp_path / "views") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("incomplete")]
    assert line.startswith("incomplete a: a texture is left out: image image 0 (image/png) cannot be read")


def test_the_same_command_makes_what_is_missing(meshes, tmp_path):
    out = tmp_path / "views"
    render("--meshes", meshes, "--out", out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    stamp = (out / "a" / "000.png").stat().st_mtime_ns
    for file in (out / "more_b").iterdir():
        file.unlink()
    (out / "more_b").rmdir()
    (out / ".tmp-1-more_b").mkdir()  # a killed command left it
    (out / ".tmp-1-more_b" / "000.png").write_bytes(b"half")
    assert render("--meshes", meshes, "--out", out) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert (out / "a" / "000.png").stat().st_mtime_ns == stamp


def test_an_object_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def dies(path, pose):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        render_views.write_object(tmp_path / "a", lambda: render_views.toy_views(0, 0, 2, 8))
    assert not list(tmp_path.iterdir())


def test_toys_by_the_cameras_of_their_world(tmp_path):
    assert render("--toybox", 2, "--seed", 5, "--out", tmp_path / "views", resolution=8) == 0
    source = open_views(tmp_path / "views")
    assert source.ids == ["toy_5_000000", "toy_5_000001"]
    rgba, c2w = render_views.toy_views(1, 5, 3, 8)
    assert np.allclose(source.poses(1), c2w, atol=1e-6)
    seen = rgba[..., 3] > 0  # resizing forgets the colour of what is not there
    assert np.array_equal(source.images(1, range(3), 8)[seen], rgba[seen])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--meshes", "/nowhere", "--out", "x"], "no such folder"),
        (["--toybox", "0", "--out", "x"], "wanted 1 or more"),
        (["--toybox", "1", "--out", "x", "--distance", "0.1", "1"], "--distance"),
        (["--toybox", "1", "--out", "x", "--elevation", "30", "10"], "--elevation"),
        (["--toybox", "1", "--out", "/proc/x"], "--out"),
    ],
)
def test_mistakes_are_one_line(words, says, capsys):
    assert render_views.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and says in said


def test_nothing_to_draw(meshes, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert render("--meshes", tmp_path / "none", "--out", tmp_path / "views") == 2
    assert "no mesh in it" in capsys.readouterr().err
    assert render("--meshes", meshes, "--out", tmp_path / "views", "--max-faces", 1) == 2
    assert "none of the 2 objects" in capsys.readouterr().err
    trimesh.creation.box().export(meshes / "more_b.glb")
    assert render("--meshes", meshes, "--out", tmp_path / "views") == 2
    assert "both be called more_b" in capsys.readouterr().err
