import json
import os
import struct

import pytest
import yaml

from jointdreamer.errors import UserError
from jointdreamer.evaluation.runs import check_mesh, file_identity, find_runs, same_models


def rewrite(folder, **changes):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))


def test_finished_runs_are_found_and_the_rest_is_named(make_run, tmp_path):
    done, gone, foreign, unfinished = (make_run(prompt) for prompt in ("a red robot", "a blue pig", "x", "a red cat"))
    (unfinished / "result.json").unlink()
    (gone / "checkpoints" / "step_000002.pt").unlink()
    (foreign / "config.yaml").write_text("{learning_rate: 1}")
    (tmp_path / "runs" / "notes").mkdir()
    runs, left_out = find_runs([f"{tmp_path}/runs/*/*/seed*", f"{tmp_path}/runs/notes"])
    assert [run.folder for run in runs] == [done]
    assert (runs[0].prompt, runs[0].models, runs[0].value("energy")) == ("a red robot", "toybox", "mvs")
    why = {one["folder"]: one["why"] for one in left_out}
    assert set(why) == {str(path) for path in (gone, foreign, unfinished, tmp_path / "runs" / "notes")}
    assert "unfinished" in why[str(unfinished)] and "step_000002.pt" in why[str(gone)]
    assert "no run of train.py" in why[str(foreign)] and "no run folder" in why[str(tmp_path / "runs" / "notes")]


def test_a_folder_stands_for_the_runs_below_it_and_each_counts_once(make_run, tmp_path):
    folders = sorted([make_run("a red robot"), make_run("a red robot", seed=1)])
    os.symlink(folders[0], tmp_path / "runs" / "link")
    (tmp_path / "runs" / "train.log").write_text("")
    for patterns in (["runs"], ["runs/**"], ["runs/*", "runs"], ["runs/*/*/*", "runs/**/seed1"]):
        runs, left_out = find_runs([f"{tmp_path}/{one}" for one in patterns])
        assert sorted(run.folder.resolve() for run in runs) == folders
        assert left_out == []


def test_nothing_to_find(make_run, tmp_path):
    with pytest.raises(UserError, match="matches nothing"):
        find_runs([f"{tmp_path}/nowhere/*"])
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match="none of the 1 paths .* no run folder"):
        find_runs([f"{tmp_path}/*"])
    (make_run() / "result.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        find_runs([f"{tmp_path}/runs"])


def test_the_digest_is_the_checkpoint_s_content(make_run, tmp_path):
    one, other = make_run("a red robot"), make_run("a red robot", seed=1)
    (before,), _ = find_runs([str(one)])
    os.utime(before.checkpoint, (1, 1))
    (touched,), _ = find_runs([str(one)])
    (different,), _ = find_runs([str(other)])
    assert before.digest == touched.digest != different.digest


def test_a_checkpoint_that_is_cut_off(make_run, tmp_path):
    file = make_run() / "checkpoints" / "step_000002.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step_000002.pt is damaged"):
        find_runs([f"{tmp_path}/runs"])


def glb(content: dict) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<4sII", b"glTF", 2, 20 + len(text)) + struct.pack("<I4s", len(text), b"JSON") + text


def test_meshes(make_run, tmp_path):
    file = make_run() / "mesh" / "mesh.glb"
    whole = file.read_bytes()
    check_mesh(file)
    empty = {"accessors": [{"count": 0}], "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}]}
    for content, says in [
        (whole[:-1], "its head says"),
        (b"", "damaged"),
        (b"<html>", "damaged"),
        (glb({"meshes": []}), "no triangle"),
        (glb(empty), "no triangle"),
        (glb({}), "no 'meshes'"),
    ]:
        file.write_bytes(content)
        with pytest.raises(UserError, match=says):
            find_runs([f"{tmp_path}/runs"])
    file.unlink()
    with pytest.raises(UserError, match="No such file"):
        find_runs([f"{tmp_path}/runs"])


def test_a_run_that_came_out_empty_is_a_run(make_run, tmp_path):
    folder = make_run()
    (folder / "mesh" / "mesh.glb").unlink()
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"mesh": False}))
    (run,), _ = find_runs([str(folder)])
    assert run.mesh is None


def test_models_do_not_mix(make_run, tmp_path):
    make_run("a red robot")
    rewrite(make_run("a blue pig"), models={"name": "sd21"})
    with pytest.raises(UserError, match="1 of models=sd21 and 1 of models=toybox"):
        same_models(find_runs([f"{tmp_path}/runs"])[0])


def test_weights_are_told_apart_by_content(tmp_path):
    (tmp_path / "a").write_text("1")
    first = file_identity(tmp_path)
    os.utime(tmp_path / "a", (1, 1))
    assert file_identity(tmp_path) == first
    (tmp_path / "a").write_text("2")
    assert file_identity(tmp_path) != first
