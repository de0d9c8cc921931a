"""Meshes and pictures of any method: drawn from the sides that they have, scored against captions and true views."""

import json
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from PIL import Image

import evaluate
from jointdreamer.classifier.views import ViewFolder
from jointdreamer.cli import main as cli
from jointdreamer.data.meshes import draw as lit
from jointdreamer.data.meshes import load_mesh
from jointdreamer.data.render_views import FOVY_DEG
from jointdreamer.data.render_views import main as render_views
from jointdreamer.errors import UserError
from jointdreamer.evaluation import foreign
from jointdreamer.evaluation.networks import toybox_clip


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """A folder of a.glb, b.obj and c.ply: a box that is red in front, green to its left (+y here), blue elsewhere.

    In files the front is +z and the left +x, unless a PLY says otherwise.
    """
    folder = tmp_path_factory.mktemp("boxes")
    for name in ("a.glb", "b.obj", "c.ply"):
        box = trimesh.creation.box(extents=(0.8, 0.8, 0.8))
        corners, normals = box.vertices[box.faces].reshape(-1, 3), box.face_normals
        color = np.tile(np.array([0, 0, 255, 255], np.uint8), (len(normals), 1))
        color[normals[:, 2] > 0.9] = (255, 0, 0, 255)
        color[normals[:, 0] > 0.9] = (0, 255, 0, 255)
        faces = np.arange(len(corners)).reshape(-1, 3)
        mesh = trimesh.Trimesh(corners, faces, vertex_colors=np.repeat(color, 3, 0), process=False)
        mesh.export(folder / name)
    return folder


@pytest.mark.parametrize("name", ["a.glb", "b.obj", "c.ply"])
def test_the_sides_are_where_our_own_objects_have_them(boxes, name):
    seen = foreign.mesh_views(foreign.load(boxes / name), 4, 32)  # azimuth 0, 90, 180, 270; 90 is +y
    assert seen.shape == (4, 3, 32, 32) and seen[:, :, 0, 0].min() == 1
    colors = [view[:, 18, 16].argmax().item() for view in seen]
    assert colors[0] == 0 and colors[2] == colors[3] == 2
    assert colors[1] == 1


def test_the_outline_is_that_of_the_other_rasteriser(boxes):
    mesh = load_mesh(boxes / "a.glb")
    cameras = foreign.orbit_cameras(3, 48, **foreign.ORBIT)
    ours = foreign.draw(mesh, mesh.corners, cameras)
    for view, c2w in zip(ours, cameras.c2w[0].double().numpy(), strict=True):
        theirs = lit(mesh, c2w, float(cameras.fovy[0, 0]), 48)[..., 3] > 127
        assert (((view < 0.99).any(0).numpy()) == theirs).mean() > 0.98


def test_against_captions_and_the_true_views_of_the_same_mesh(boxes, tmp_path):
    assert render_views(["--meshes", str(boxes), "--out", str(tmp_path / "views"), "--views", "3"]) == 0
    truth, clip = ViewFolder(tmp_path / "views"), toybox_clip().load("cpu")
    files = foreign.find_objects([str(boxes / "*")], meshes=True)
    assert [file.name for file in files] == ["a.glb", "b.obj", "c.ply"]
    rows = foreign.score(files, ["a red robot", "a green bear", "a blue owl"], truth, clip, 2, 64)
    assert FOVY_DEG == 49.1
    for row in rows:
        assert row["psnr"] > 14 and row["clip_similarity"] > 0.8  # the true ones are lit
        assert 0 <= row["r_precision"] <= 100 and -100 <= row["clip_score"] <= 100
    moved = foreign.load(files[0])
    turned = foreign.draw(moved, -moved.corners, foreign.true_views(truth, "a", 64)[1])
    straight = foreign.draw(moved, moved.corners, foreign.true_views(truth, "a", 64)[1])
    true = foreign.true_views(truth, "a", 64)[0]
    assert (straight - true).square().mean() < (turned - true).square().mean()


def test_pictures_are_a_folder_for_each_object(tmp_path):
    for name, color in (("one", (255, 0, 0)), ("two", (0, 0, 255))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), color).save(tmp_path / name / "0.png")
    files = foreign.find_objects([str(tmp_path / "*")], meshes=False)
    assert foreign.picture_views(files[0], 8).mean((0, 2, 3)).tolist() == pytest.approx([1, 0, 0])
    rows = foreign.score(files, ["a red robot", "a blue robot", "a cat"], None, toybox_clip().load("cpu"), 1, 64)
    assert [set(row) for row in rows] == [{"object", "caption", "clip_score", "r_precision"}] * 2
    table = foreign.markdown(rows, {"clip_score": "CLIP Score"}, 0.95)
    assert "| all 2 |" in table and "| one |" in table


class Colors:
    """CLIP's place: a picture is its mean colour, a text that of its first word."""

    def images(self, rgb):
        return rgb.mean((2, 3)).numpy()

    def texts(self, texts):
        return np.array([{"red": (1, 0, 0), "blue": (0, 0, 1), "green": (0, 1, 0)}[one.split()[0]] for one in texts])


def test_objects_may_share_a_caption_and_few_captions_recall_nothing(tmp_path):
    for name, color in (("one", (255, 0, 0)), ("three", (0, 0, 255)), ("two", (255, 0, 0))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), color).save(tmp_path / name / "0.png")
    files, clip = foreign.find_objects([str(tmp_path / "*")], meshes=False), Colors()
    rows = foreign.score(files, ["red robot", "blue robot", "red robot"], None, clip, 1, 8)  # pyright: ignore
    assert [row["r_precision"] for row in rows] == [100] * 3 and [row["clip_score"] for row in rows] == [100] * 3
    rows = foreign.score(files, ["green robot"] * 3, None, clip, 1, 8)  # pyright: ignore
    assert [set(row) for row in rows] == [{"object", "caption", "clip_score"}] * 3
    (tmp_path / "folder.glb").mkdir()
    with pytest.raises(UserError, match="matches nothing"):
        foreign.find_objects([str(tmp_path / "*")], meshes=True)


def test_what_a_mesh_lacks_is_said(boxes, capsys, monkeypatch):
    mesh = load_mesh(boxes / "a.glb")
    monkeypatch.setattr(foreign, "load_mesh", lambda file: replace(mesh, notes=("its picture is gone",)))
    assert foreign.load(boxes / "a.glb").notes
    assert capsys.readouterr().err == f"incomplete {boxes / 'a.glb'}: its picture is gone\n"


def test_what_cannot_be_scored_is_one_line(boxes, tmp_path):
    clip = toybox_clip().load("cpu")
    files = foreign.find_objects([str(boxes / "*.glb")], meshes=True)
    with pytest.raises(UserError, match="0 for 1 objects"):
        foreign.score(files, [], None, clip, 2, 64)
    with pytest.raises(UserError, match="matches nothing"):
        foreign.find_objects([str(tmp_path / "*.glb")], meshes=True)
    (tmp_path / "bad.glb").write_bytes(b"no mesh")
    with pytest.raises(UserError, match=r"bad\.glb"):
        foreign.score([tmp_path / "bad.glb"], ["a cat"], None, clip, 2, 64)


def test_the_command(boxes, tmp_path, monkeypatch, capsys):
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["evaluate.py", *words])
        return cli.main("evaluate", evaluate.evaluate), capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a red robot\na green bear\na blue owl\na cat\n")
    status, said = run(f"meshes={boxes}/*", "captions=captions.txt", "clip=toybox", "views=2", "device=cpu")
    assert status == 0, said
    found = json.loads((tmp_path / "evaluation" / "objects.json").read_text())
    assert [row["caption"] for row in found["objects"]] == ["a red robot", "a green bear", "a blue owl"]
    assert "| all 3 |" in (tmp_path / "evaluation" / "objects.md").read_text()
    for words, says in (
        ([f"meshes={boxes}/*"], "captions=FILE"),
        (["meshes=nowhere/*", "captions=captions.txt"], "matches nothing"),
        ([f"meshes={boxes}/*", "runs=x"], "both given"),
    ):
        status, said = run(*words)
        assert status == 2 and says in said and said.count("\n") == 1, said
