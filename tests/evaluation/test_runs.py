import copy
import json
import math
import os
import struct
from typing import Any

import pytest
import yaml

from jointdreamer.errors import UserError
from jointdreamer.evaluation.runs import BOUNDS, FORM, check_mesh, file_identity, find_runs, same_models


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
    with pytest.raises(UserError, match=r"step_000002.pt: damaged"):
        find_runs([f"{tmp_path}/runs"])
    other = make_run("a blue pig")
    runs, left_out = find_runs([f"{tmp_path}/runs"])
    assert [run.folder for run in runs] == [other]
    assert left_out[0]["folder"] == str(file.parent.parent) and left_out[0]["why"].startswith(
        "checkpoints/step_000002.pt: damaged"
    )


def changed(config, key, value):
    """The config with another value at a dotted key; without the key where the value is DELETE."""
    config = copy.deepcopy(config)
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    if value is DELETE:
        del node[last]
    else:
        node[last] = value
    return config


DELETE = object()
ODD = (None, [], {}, [1, 2], {"a": 1}, math.nan, math.inf, -1e30, 10**30, True, "x", DELETE, [[[]]])


@pytest.mark.parametrize("key", [*FORM, *BOUNDS])
def test_a_config_that_says_what_cannot_be_is_left_out(make_run, tmp_path, key):
    good, odd = make_run("a blue pig"), make_run("a red robot")
    config = yaml.safe_load((odd / "config.yaml").read_text())
    for value in ODD:
        fits = (key in ("prompt", "name", "models.name", "energy.name") and value == "x") or (
            key in ("field", "renderer") and isinstance(value, dict)
        )
        fits |= key in BOUNDS and value is DELETE
        (odd / "config.yaml").write_text(yaml.safe_dump(changed(config, key, value)))
        runs, left_out = find_runs([f"{tmp_path}/runs"])
        assert [run.folder for run in runs] == (sorted([good, odd]) if fits else [good]), (key, value)
        assert [one["folder"] for one in left_out] == ([] if fits else [str(odd)])


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
@pytest.mark.parametrize(
    "what", ["empty", "junk", "null", "list", "deep", "bomb", "pipe", "folder", "loop", "long", "nothing"]
)
def test_files_that_are_something_else_are_left_out_without_waiting(make_run, tmp_path, name, what):
    good, odd = make_run("a blue pig"), make_run("a red robot")
    file = odd / name
    contents = {
        "empty": b"",
        "junk": bytes(range(256)),
        "null": b"null",
        "list": b"[1, 2]",
        "deep": b"[" * 100_000,
        "bomb": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "long": b'{"steps": 2, "x": "' + b"a" * 2**21 + b'"}',
    }
    file.unlink()
    if what in contents:
        file.write_bytes(contents[what])
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        os.symlink(file if what == "loop" else tmp_path / "nowhere", file)
    runs, left_out = find_runs([f"{tmp_path}/runs"])
    assert [run.folder for run in runs] == [good]
    assert [one["folder"] for one in left_out] == [str(odd)] and name in left_out[0]["why"]


@pytest.mark.parametrize("steps", [None, [], "2", 2.0, -1, True, math.inf, 10**8, 10**18, 10**40])
def test_a_number_of_steps_that_cannot_be_or_that_nobody_made(make_run, tmp_path, steps):
    good, odd = make_run("a blue pig"), make_run("a red robot")
    (odd / "result.json").write_text(json.dumps({"steps": steps}))
    runs, left_out = find_runs([f"{tmp_path}/runs"])
    assert [run.folder for run in runs] == [good] and [one["folder"] for one in left_out] == [str(odd)]


def test_links_that_lead_upwards_do_not_keep_it(make_run, tmp_path):
    folder = make_run()
    for name in ("one", "two", "three"):
        os.symlink(tmp_path, folder.parent / name)
    for patterns in (["runs"], ["runs/**"], ["**/seed*"]):
        runs, left_out = find_runs([f"{tmp_path}/{one}" for one in patterns])
        assert [run.folder for run in runs] == [folder] and left_out == []


def test_where_a_clip_is_named(make_run):
    for clip, found in (({"source": "a/b"}, "a/b"), ({"source": ["a", "b"]}, ["a", "b"]), ({"source": None}, None),
                        ({"source": 3}, None), ({"source": []}, None), (None, None), ([], None)):  # fmt: skip
        (run,), _ = find_runs([str(make_run(seed=len(str(clip)), models={"name": "sd21", "clip": clip}))])
        assert run.clip == found


def glb(content: Any) -> bytes:
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
        (glb({"meshes": {"a": 1}}), "damaged"),
        (glb({"accessors": [{"count": "9"}], "meshes": empty["meshes"]}), "no triangle"),
        (glb({"accessors": [{"count": float("nan")}], "meshes": empty["meshes"]}), "no triangle"),
        (glb(None), "damaged"),
        (b"glTF" + struct.pack("<III", 2, 100_020, 100_000) + b"JSON" + b"[" * 100_000, "deep"),
        (glb(empty), "no triangle"),
        (glb({}), "no 'meshes'"),
    ]:
        file.write_bytes(content)
        (run,), left_out = find_runs([f"{tmp_path}/runs"])  # the object itself is in the checkpoint
        assert run.mesh is None and left_out[0]["folder"] == str(file) and says in left_out[0]["why"]
    file.unlink()
    (run,), left_out = find_runs([f"{tmp_path}/runs"])
    assert run.mesh is None and left_out[0]["why"].startswith("absent")
    os.mkfifo(file)
    (run,), left_out = find_runs([f"{tmp_path}/runs"])
    assert run.mesh is None and left_out[0]["why"].startswith("damaged")


def test_a_run_that_came_out_empty_is_a_run(make_run, tmp_path):
    folder = make_run()
    (folder / "mesh" / "mesh.glb").unlink()
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"mesh": False}))
    (run,), _ = find_runs([str(folder)])
    assert run.mesh is None


def test_models_do_not_mix(make_run, tmp_path):
    make_run("a red robot")
    odd = make_run("a blue pig")
    rewrite(odd, models={"name": "sd21"})
    with pytest.raises(UserError, match="1 of models=sd21 and 1 of models=toybox"):
        same_models(find_runs([f"{tmp_path}/runs"])[0])
    make_run("a red robot", seed=1)
    runs, left_out = same_models(find_runs([f"{tmp_path}/runs"])[0])
    assert [run.models for run in runs] == ["toybox"] * 2
    assert [one["folder"] for one in left_out] == [str(odd)] and "models=sd21" in left_out[0]["why"]


def test_weights_are_told_apart_by_content(tmp_path):
    (tmp_path / "a").write_text("1")
    first = file_identity(tmp_path)
    os.utime(tmp_path / "a", (1, 1))
    assert file_identity(tmp_path) == first
    (tmp_path / "a").write_text("2")
    assert file_identity(tmp_path) != first
