import json
import math
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jointdreamer.errors import UserError
from jointdreamer.evaluation import measure
from jointdreamer.evaluation.measure import Instruments
from jointdreamer.evaluation.networks import toybox_clip
from jointdreamer.evaluation.runs import find_runs
from jointdreamer.toybox.judge import load_judge, true_views, verdict
from jointdreamer.toybox.world import parse_caption

CAPTION = "a red robot with a blue hat"


def instruments(**changes) -> Instruments:
    return replace(Instruments(toybox_clip(), None, 4, 64, "cpu", None), **changes)


def one_run(folder: Path) -> Any:
    (run,), _ = find_runs([str(folder)])
    return run


def measure_all(runs: Any, looking: Instruments) -> Any:
    return measure.measure_all(runs, looking)


def measured(run: Any, looking: Instruments, **options: Any) -> Any:
    return measure.measured(run, looking, **options)


@pytest.fixture
def no_network(monkeypatch):
    """From here on whoever loads or renders anything fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("computed anew")

    for name in ("load", "views"):
        monkeypatch.setattr(measure, name, refuse)
    monkeypatch.setattr("jointdreamer.evaluation.networks.Clip.__init__", refuse)


def test_what_was_measured_is_there_the_second_time(make_run, request, capsys):
    run = one_run(make_run())
    first = measure_all([run], instruments())
    assert "measuring" in capsys.readouterr().err
    assert first[0].features.shape == (4, 128) and first[0].fid_features is first[0].features
    assert first[0].sheet.is_file() and first[0].sheet.parent == run.folder / "evaluation"
    request.getfixturevalue("no_network")
    second = measure_all([run], instruments())
    np.testing.assert_array_equal(second[0].features, first[0].features)
    assert replace(second[0], features=0, fid_features=0) == replace(first[0], features=0, fid_features=0)  # type: ignore
    assert capsys.readouterr().err == ""


def test_another_question_is_another_answer(make_run):
    folder = make_run()
    run = one_run(folder)
    measure_all([run], instruments())
    assert measured(run, instruments()) is not None
    for changes in ({"n_views": 5}, {"resolution": 32}):
        assert measured(run, instruments(**changes)) is None
    other = replace(run, config={**run.config, "output": {**run.config["output"], "distance": 3.0}})
    assert measured(other, instruments()) is None
    assert measured(replace(run, digest="another"), instruments()) is None
    moved = {**run.config, "out_dir": "elsewhere", "name": "other"}  # not what is seen
    assert measured(replace(run, config=moved), instruments()) is not None


def test_a_kept_file_that_is_damaged_is_made_again(make_run):
    run = one_run(make_run())
    (before,) = measure_all([run], instruments())
    file, sheet = instruments().run_files(run)
    for content in (b"", file.read_bytes()[:300], b"no zip"):
        file.write_bytes(content)
        assert measured(run, instruments()) is None
    np.savez(file, features=np.zeros(3))  # of another shape of program
    assert measured(run, instruments()) is None
    (again,) = measure_all([run], instruments())
    np.testing.assert_array_equal(again.features, before.features)
    sheet.unlink()
    assert measured(run, instruments()) is None


def test_one_place_for_all(make_run, tmp_path):
    run = one_run(make_run())
    (found,) = measure_all([run], instruments(cache=tmp_path / "kept"))
    assert found.sheet.parent == tmp_path / "kept" and not (run.folder / "evaluation").exists()


def test_a_run_folder_that_cannot_be_written(make_run):
    run = one_run(make_run())
    (run.folder / "evaluation").write_text("in the way")
    with pytest.raises(UserError, match="cache_dir"):
        measure.measure(run, instruments())


def test_the_views_are_the_checkpoint_s_object(make_run):
    """The same object has the same features wherever it lies, another one has others."""
    first, copy = make_run("a red robot"), make_run("a red robot", seed=1)
    shutil.copy(first / "checkpoints" / "step_000002.pt", copy / "checkpoints" / "step_000002.pt")
    other = make_run("a red robot", seed=2)
    a, b, c = (measure_all([one_run(folder)], instruments())[0].features for folder in (first, copy, other))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


class Truth:
    """Renders the true toy, whatever it is given."""

    def __init__(self, rgb):
        self.rgb = rgb

    def parameters(self):
        yield self.rgb

    def render(self, *args, **kwargs):
        return SimpleNamespace(rgb=self.rgb[None])


def test_the_toybox_is_judged_as_the_judge_judges():
    truth = true_views(parse_caption(CAPTION))  # type: ignore
    run: Any = SimpleNamespace(prompt=CAPTION)
    scene: Any = Truth(truth)
    found = measure._judged(run, measure.judging_views(scene), instruments())
    expected = verdict(load_judge(), truth, parse_caption(CAPTION))
    assert (found["janus"], found["attributes"]) == (expected.janus, expected.attributes) == (False, 1.0)
    assert found["resultant_length"] == pytest.approx(expected.resultant_length) and found["resultant_length"] > 0.95
    assert 0.5 < found["janus_confidence"] <= 1
    all_round = measure._judged(run, truth[:1].expand_as(truth), instruments())
    assert all_round["janus"] and all_round["resultant_length"] < 0.01 and found["front"] and not all_round["front"]


@pytest.mark.parametrize(
    ("words", "janus"),  # what CLIP makes of each of eight views: front, side or back
    [("fssbbssf", False), ("fsbbsfsb", True), ("ssssssss", False), ("ffffffff", True)],
)
def test_directions_by_clip_are_counted_as_faces(words, janus):
    embedding = {word: np.eye(3)[k] for k, word in enumerate("fsb")}
    asked = []

    def texts(prompts):
        asked.extend(prompts)
        return np.eye(3)

    looking: Any = SimpleNamespace(clip=SimpleNamespace(texts=texts))
    run: Any = SimpleNamespace(prompt="a corgi")
    found = measure._directions(run, np.array([embedding[word] for word in words]), looking)
    assert asked == ["a corgi, front view", "a corgi, side view", "a corgi, back view"]
    assert found["janus"] == janus and found["janus_confidence"] == pytest.approx(1)
    assert found["front"] == ("f" in words)


def test_a_damaged_checkpoint_is_named_and_left_where_it_is(make_run):
    run = one_run(make_run())
    content = bytearray(run.checkpoint.read_bytes())
    with zipfile.ZipFile(run.checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    content[largest.header_offset + 200] ^= 0xFF  # in the middle of a tensor, so only its checksum tells
    run.checkpoint.write_bytes(content)
    (why,) = measure_all([run], instruments())
    assert isinstance(why, UserError) and "step_000002.pt: damaged (wrong checksum" in str(why)
    assert run.checkpoint.is_file()


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "Permission denied")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(make_run, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("jointdreamer.runs.checkpoint.read_checkpoint_file", fail)
    with pytest.raises(UserError, match="cannot be read now"):
        measure.load(one_run(make_run()), "cpu")


def test_a_scene_larger_than_its_checkpoint_costs_no_memory(make_run):
    run = one_run(make_run())
    renderer = {**run.config["renderer"], "grid_resolution": 20_000}  # 40 TB
    with pytest.raises(UserError, match="another version.*grid_resolution=20000"):
        measure.load(replace(run, config={**run.config, "renderer": renderer}), "cpu")


ODD_NUMBERS = (None, [], {}, "x", math.nan, math.inf, 0, -1, 10**9, 1e300)


@pytest.mark.parametrize("key", ["field.hidden", "field.radius", "field.blob_std", "field.encoding"])
def test_a_setting_that_cannot_be_is_the_run_s_own_fault(make_run, key):
    run = one_run(make_run())
    for value in ODD_NUMBERS:
        group, name = key.split(".")
        config = {**run.config, group: {**run.config[group], name: value}}
        (found,) = measure_all([replace(run, config=config)], instruments(n_views=1))
        if isinstance(found, UserError):
            assert str(run.folder) in str(found)
        else:
            assert np.isfinite(found.features).all()


def test_kept_numbers_of_another_form_are_made_again(make_run):
    run = one_run(make_run())
    (before,) = measure_all([run], instruments())
    file, _ = instruments().run_files(run)
    with np.load(file) as stored:
        arrays = dict(stored)
    wide = np.ones((4, 129), np.float32)
    for name, values in {
        "features": (
            wide,
            wide[:3, :128],
            wide[0, :128],
            wide[:, :128] * np.nan,
            wide[:, :128] * 1e30,
            np.ones((4, 128), int),
        ),
        "janus": (np.ones(2, bool), np.array(7), np.array(np.nan), np.zeros((1, 1))),
        "janus_confidence": (np.array(2.0), np.array([0.5])),
        "resultant_length": (np.array(np.inf), np.array(-3.0)),
    }.items():
        for value in values:
            np.savez(file, **{**arrays, name: value})
            assert measured(run, instruments()) is None, (name, value)
    np.savez(file, **{name: value for name, value in arrays.items() if name != "front"})  # of an earlier version
    assert measured(run, instruments()).front == before.front
    assert measured(run, instruments(), fid_width=5) is None and measured(run, instruments(), fid_width=128) is not None


def test_kept_captions_of_another_form_are_made_again(tmp_path):
    right = measure.caption_features(["a red robot"], instruments(), tmp_path)
    (file,) = tmp_path.iterdir()
    for odd in (np.zeros(3), np.zeros((2, 128)), np.zeros((1, 5)), np.full((1, 128), np.inf), np.zeros((1, 128), bool)):
        np.savez(file, features=odd)
        np.testing.assert_array_equal(measure.caption_features(["a red robot"], instruments(), tmp_path), right)


def test_a_run_of_another_version_is_named(make_run):
    run = one_run(make_run())
    for changed in ({"field": {**run.config["field"], "magic": 1}}, {"field": {**run.config["field"], "hidden": 16}}):
        with pytest.raises(UserError, match="another version"):
            measure.load(replace(run, config={**run.config, **changed}), "cpu")


def test_captions_are_embedded_once(tmp_path, request):
    captions = ["a red robot", "a blue pig"]
    first = measure.caption_features(captions, instruments(), tmp_path)
    request.getfixturevalue("no_network")
    np.testing.assert_array_equal(measure.caption_features(captions, instruments(), tmp_path), first)
    with pytest.raises(AssertionError, match="computed anew"):
        measure.caption_features(captions[::-1], instruments(), tmp_path)


def test_names_say_which_networks_looked(tmp_path):
    names = instruments().names
    assert (
        names["clip"].startswith("toybox CLIP") and "toybox CLIP" in names["fid"] and "toybox judge" in names["janus"]
    )
    (tmp_path / "net.pt").write_bytes(b"x")
    mixed = instruments(fid_file=tmp_path / "net.pt")
    assert mixed.names["fid"].startswith("Inception net.pt, ") and mixed.key("a") != instruments().key("a")
    assert json.dumps(names)


def test_the_directions_of_a_long_prompt_are_told_apart():
    """Whatever the pictures show: three times one text would call every run Janus."""
    clip = toybox_clip().load()
    prompt = "a small photo of a toy of a spotted red bear wearing an orange flag and a photo of the one small toy"
    features = np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32)
    found = measure._directions(SimpleNamespace(prompt=prompt), features, SimpleNamespace(clip=clip))  # type: ignore
    assert found["janus_confidence"] > 0.34
