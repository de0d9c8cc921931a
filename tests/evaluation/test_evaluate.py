"""`python evaluate.py` as a user meets it, on objects that nobody trained. It stands for evaluate.py."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import evaluate
from jointdreamer.cli import main as cli

ROOT = Path(__file__).parents[2]
QUICK = ("views=3", "report=false", "device=cpu")
TOYS = ("a red robot", "a blue pig with a green hat")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """command("runs=...", ...) -> exit status, stdout, stderr of evaluate.py in tmp_path."""

    def run(*words: str) -> tuple[int, str, str]:
        given = {word.partition("=")[0] for word in words}
        more = [word for word in QUICK if word.partition("=")[0] not in given]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *words, *more])
        status = cli.main("evaluate", evaluate.evaluate)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def refused(command) -> Callable[..., None]:
    """refused(words, "text", ...): one line with these texts, exit status 2."""

    def check(words: list[str], *says: str) -> None:
        status, out, err = command(*words)
        assert status == 2 and out == "", err
        line = err.splitlines()[-1]
        assert err.count("error: ") == 1 and line.startswith("error: "), err
        assert [text for text in says if text not in line] == [], err

    return check


def result(tmp_path: Path, out_dir: str = "evaluation") -> dict[str, Any]:
    return json.loads((tmp_path / out_dir / "evaluation.json").read_text())


def rewrite(folder: Path, **changes: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))


def test_an_evaluation_and_a_second_one_that_computes_nothing(command, make_run, tmp_path, monkeypatch):
    for prompt in TOYS:
        for method in ("none", "mvs"):
            make_run(prompt, method=method, energy={"name": method})
    unfinished = make_run("a red cat")
    (unfinished / "result.json").unlink()
    status, out, err = command("runs=runs/*/*/seed*")
    assert status == 0, err
    assert f"left out: {unfinished.relative_to(tmp_path)}: unfinished" in err

    found = result(tmp_path)
    assert (found["version"], found["group_by"]) == (1, ["method"])
    assert found["captions"] == {"kind": "runs", "count": 2, "file": None}
    assert found["extractors"]["comparable"] is False and "not comparable" in found["extractors"]["note"]
    assert found["reference"] == "24 true renders of 2 captions"  # of 4 shapes from 3 sides each
    assert [group["keys"] for group in found["groups"]] == [{"method": "mvs"}, {"method": "none"}]
    for group in found["groups"]:
        assert (group["runs"], group["prompts"], group["seeds"]) == (2, 2, 1)
        assert group["fid"] > 0 and group["fid_images"] == 6
        assert 0 <= group["janus"]["low"] <= group["janus"]["mean"] <= group["janus"]["high"] <= 100
        assert group["clip_score"]["n"] == 2 and group["minutes"]["mean"] == 1 and group["r_at_5"] is None
    for row in found["runs"]:
        assert (tmp_path / "evaluation" / row["sheet"]).is_file() and (tmp_path / "evaluation" / row["mesh"]).is_file()
        assert row["turntable"] is None and isinstance(row["janus"], bool) and 0 <= row["r_precision"] <= 100
    table = (tmp_path / "evaluation" / "table.md").read_text()
    assert table in out and "toybox CLIP" in table and "| mvs | 2 |" in table
    with (tmp_path / "evaluation" / "runs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in found["runs"]]
    assert float(rows[0]["clip_score"]) == found["runs"][0]["clip_score"]

    def refuse(*args, **kwargs):
        raise AssertionError("computed anew")

    for name in ("measure.load", "measure.views", "networks.Clip.__init__"):
        monkeypatch.setattr(f"jointdreamer.evaluation.{name}", refuse)
    status, _, err = command("runs=runs", "group_by=[energy,schedule.energy_weight]")
    assert status == 0, err
    again = result(tmp_path)
    assert again["runs"] == found["runs"] and again["id"] == found["id"]
    assert again["groups"][0]["keys"] == {"energy": "mvs", "schedule.energy_weight": "20"}
    assert again["groups"][0]["fid"] == found["groups"][0]["fid"]


def test_a_second_call_loads_none_of_the_networks_libraries(command, make_run, tmp_path):
    make_run()
    assert command("runs=runs")[0] == 0
    code = (
        "import sys, evaluate; from jointdreamer.cli import main as cli; "
        "status = cli.main('evaluate', evaluate.evaluate); "
        "heavy = {'transformers', 'diffusers', 'trimesh', 'skimage', 'accelerate', 'huggingface_hub'}; "
        "sys.exit(status or ' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["runs=runs", *QUICK]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_several_globs_and_a_place_for_what_is_kept(command, make_run, tmp_path):
    mvs, none = make_run(method="mvs"), make_run(method="none")
    status, _, err = command("runs=runs/mvs/*/*", "runs=runs/none/*/*", "cache_dir=kept", "out_dir=mine/x")
    assert status == 0 and "only one caption" in err
    found = result(tmp_path, "mine/x")
    assert len(found["runs"]) == 2 and found["runs"][0]["r_precision"] is None
    assert found["groups"][0]["clip_score"]["low"] is None  # one run has no spread
    assert not (mvs / "evaluation").exists() and not (none / "evaluation").exists()
    assert (tmp_path / "mine" / "x" / found["runs"][0]["folder"]).resolve() == mvs
    assert "runs=runs/none/*/*" in found["command"]


# Models that are not the toybox's


@pytest.fixture
def clip_folder(tmp_path, tokenizer) -> Path:
    """A CLIP with random weights that sees 8 pixels."""
    from transformers import CLIPConfig, CLIPModel

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config: Any = CLIPConfig(
        text_config=size | text, vision_config=size | {"image_size": 8, "patch_size": 4}, projection_dim=6
    )
    folder = tmp_path / "clip"
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Means(torch.nn.Module):
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        return images.float().mean([2, 3])


def test_runs_of_real_models_are_scored_by_clip_and_by_whatever_fid_is_given(command, make_run, clip_folder, tmp_path):
    for prompt in ("a robot with a hat", "red hat"):
        make_run(prompt, models={"name": "sd21", "clip": {"source": str(clip_folder)}})
    (tmp_path / "pictures").mkdir()
    for k in range(3):
        Image.new("RGB", (9, 9), (80 * k, 0, 255)).save(tmp_path / "pictures" / f"{k}.png")
    (tmp_path / "captions.txt").write_text("a robot with a hat\nred hat\na side view\n")
    words = ["runs=runs", "captions=captions.txt", "resolution=16", "reference=pictures"]
    status, _, err = command(*words)
    assert status == 0, err
    by_clip = result(tmp_path)
    assert by_clip["captions"] == {"kind": "file", "count": 3, "file": "captions.txt"}
    assert by_clip["reference"] == "3 pictures of pictures"
    extractors = by_clip["extractors"]
    assert extractors["clip"].startswith("a CLIP of width 16 and patches of 4, ")
    assert extractors["fid"].startswith("image embeddings of") and "automatic estimate" in extractors["janus"]
    assert extractors["comparable"] is False and "not of Inception's" in extractors["note"]
    assert all(row["resultant_length"] is None and isinstance(row["janus"], bool) for row in by_clip["runs"])

    scripted: Any = torch.jit.script(Means())
    scripted.save(str(tmp_path / "net.pt"))
    status, _, err = command(*words, "fid=net.pt")
    assert status == 0, err
    other = result(tmp_path)
    assert other["extractors"]["fid"].startswith("Inception net.pt, ")
    assert other["groups"][0]["fid"] != by_clip["groups"][0]["fid"] and other["runs"][0]["clip_score"] == pytest.approx(
        by_clip["runs"][0]["clip_score"]
    )


def test_runs_of_real_models_have_no_fid_without_a_reference(command, make_run, clip_folder, tmp_path):
    make_run("red hat", models={"name": "sd21"})
    assert command("runs=runs", f"clip={clip_folder}", "resolution=16")[0] == 0
    found = result(tmp_path)
    assert found["reference"] is None and found["groups"][0]["fid"] is None


# The report


def test_the_report_is_written_by_its_module(command, make_run, tmp_path, monkeypatch):
    def write_report(evaluation, folder):
        folder.mkdir()
        (folder / "id").write_text(evaluation["id"])

    make_run()
    monkeypatch.setattr("jointdreamer.evaluation.report.write_report", write_report)
    assert command("runs=runs", "report=true")[0] == 0
    assert (tmp_path / "evaluation" / "report" / "id").read_text() == result(tmp_path)["id"]


def test_a_study_is_added_up_by_the_report_s_module(command, refused, tmp_path, monkeypatch):
    added_up = {"aggregate_study": lambda files, evaluation: {"files": list(files), "id": evaluation["id"]}}
    for name, fake in (added_up | {"study_table": lambda together: "| " + together["id"]}).items():
        monkeypatch.setattr(f"jointdreamer.evaluation.report.{name}", fake)
    for name in ("a.json", "b [1].json"):
        (tmp_path / name).write_text("{}")
    refused(["study=nothing*"], "study=nothing* matches nothing")
    refused(["study=*.json"], "evaluation.json: absent", "out_dir=")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "evaluation.json").write_text('{"id": "abc"}')
    status, out, _ = command("study=b*.json", "study=a.json")
    assert status == 0 and out.startswith("| abc\n")
    assert json.loads((tmp_path / "evaluation" / "study.json").read_text())["files"] == ["a.json", "b [1].json"]
    assert (tmp_path / "evaluation" / "study.md").read_text() == "| abc"


# Bad input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], ["no runs"]),
        (["runs="], ["no runs"]),
        (["runs=nowhere/*"], ["matches nothing", "nowhere/*"]),
        (["runs=notes"], ["none of the 1 paths", "no config.yaml"]),
        (["runs=runs", "views=0"], ["views=0", "from 1"]),
        (["runs=runs", "views=many"], ["views='many'"]),
        (["runs=runs", "resolution=7.5"], ["resolution=7.5", "16 to 2048"]),
        (["runs=runs", "confidence=2"], ["confidence=2"]),
        (["runs=runs", "group_by=[schedule.stepz]"], ["'schedule.stepz'", "dotted keys"]),
        (["runs=runs", "group_by=null"], ["group_by=None"]),
        (["runs=runs", "report=maybe"], ["report='maybe'"]),
        (["runs=runs", "device=tpu"], ["device='tpu'"]),
        (["runs=runs", "captions=nowhere.txt"], ["nowhere.txt"]),
        (["runs=runs", "captions=captions.txt"], ["lacks 'a red robot'"]),
        (["runs=runs", "reference=nowhere"], ["reference=nowhere", "no such folder"]),
        (["runs=runs", "reference=notes"], ["two or more pictures", "1 in it"]),
        (["runs=runs", "fid=nowhere.pt"], ["fid=nowhere.pt"]),
        (["runs=runs", "clip=org/repo"], ["toybox's own CLIP"]),
        (["runs=runs", "rnus=x"], ["unknown key 'rnus'", "captions"]),
        (["runs=runs", "--report"], ["unknown option --report"]),
    ],
)
def test_words_that_cannot_be(refused, make_run, tmp_path, words, says):
    make_run("a red robot")
    (tmp_path / "captions.txt").write_text("a blue pig\na red cat\n")
    (tmp_path / "notes").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "notes" / "one.png")
    refused(words, *says)


def test_runs_of_two_kinds_of_models(refused, make_run):
    make_run("a red robot")
    make_run("a blue pig", models={"name": "sd21"})
    refused(["runs=runs"], "1 of models=sd21 and 1 of models=toybox", "narrower")


def test_groups_of_different_prompts(command, make_run, tmp_path):
    make_run("a red robot", method="mvs")
    make_run("a blue pig", method="none")
    status, out, err = command("runs=runs")
    assert status == 0 and "The groups share no prompt" in out
    assert len(result(tmp_path)["groups"]) == 2
    other, third = make_run("a red robot", method="none"), make_run("a green bear", method="mirror")
    status, out, err = command("runs=runs")
    assert status == 0 and f"left out: {third.relative_to(tmp_path)}: method=mirror shares no prompt" in err
    assert "method=mvs has no run of its prompt 'a blue pig'" in err and "that all groups share; 2 runs" in out
    found = result(tmp_path)
    assert [(group["keys"]["method"], group["runs"], group["prompts"]) for group in found["groups"]] == [
        ("mvs", 1, 1),
        ("none", 1, 1),
    ]
    assert len(found["left_out"]) == 2 and found["captions"]["count"] == 1
    (tmp_path / "captions.txt").write_text("a blue pig\na red robot\n")
    assert command("runs=runs", "captions=captions.txt")[0] == 0
    assert [group["runs"] for group in result(tmp_path)["groups"]] == [1, 2]
    # what a bad run had alone with another group is compared no more
    bad = other / "checkpoints" / "step_000002.pt"
    bad.write_bytes(spoilt(bad))
    shutil.rmtree(other / "evaluation")
    status, out, err = command("runs=runs")
    assert status == 0 and "step_000002.pt: damaged" in err and "The groups share no prompt" in out
    assert len(result(tmp_path)["groups"]) == 3


def spoilt(checkpoint: Path) -> bytes:
    """Its bytes with one changed in the middle of a tensor: only the checksum tells."""
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    content[largest.header_offset + 200] ^= 0xFF
    return bytes(content)


def test_damaged_files_of_a_run(command, refused, make_run, tmp_path):
    folder = make_run()
    mesh = folder / "mesh" / "mesh.glb"
    mesh.write_bytes(mesh.read_bytes()[:100])
    status, _, err = command("runs=runs")
    assert status == 0 and "mesh.glb: damaged" in err
    found = result(tmp_path)
    assert found["runs"][0]["mesh"] is None and found["left_out"][0]["folder"].endswith("mesh.glb")
    checkpoint = folder / "checkpoints" / "step_000002.pt"
    whole = checkpoint.read_bytes()
    for content in (whole[:-100], spoilt(checkpoint)):
        shutil.rmtree(folder / "evaluation", ignore_errors=True)  # what was measured is not measured again
        checkpoint.write_bytes(content)
        refused(["runs=runs"], "step_000002.pt: damaged")


def test_one_bad_run_leaves_the_others(command, make_run, tmp_path):
    good = make_run("a red robot")
    bad = [make_run("a red robot", seed=seed) for seed in range(1, 6)]
    checkpoints = [folder / "checkpoints" / "step_000002.pt" for folder in bad]
    checkpoints[0].write_bytes(spoilt(checkpoints[0]))
    rewrite(bad[1], field={"hidden": 3})
    rewrite(bad[2], output={"elevation_deg": None, "distance": 2, "fovy_deg": 40})
    (bad[3] / "result.json").write_text("[" * 3000)
    (bad[4] / "config.yaml").write_text("a: &a [1]\nb: *a\n")
    status, _, err = command("runs=runs", "report=true")
    assert status == 0, err
    found = result(tmp_path)
    assert [row["folder"] for row in found["runs"]] == [f"../{good.relative_to(tmp_path)}"]
    assert sorted(one["folder"] for one in found["left_out"]) == [str(folder.relative_to(tmp_path)) for folder in bad]
    assert err.count("left out: ") == 5 and (tmp_path / "evaluation" / "report" / "index.html").is_file()


NASTY = "a <b>|\n\x1b[31m=1+1 ![x](http://y) \x9b2J\u202e"


def test_names_that_are_codes_and_formulas_stay_text(command, make_run, tmp_path):
    make_run("a red robot")
    odd = make_run("a blue pig")
    rewrite(odd, prompt=NASTY, name=f"={NASTY}")
    (tmp_path / "runs" / "notes\x1b[31m\n").mkdir()
    status, out, err = command("runs=runs/*/*/*", "runs=runs/notes*", "out_dir=eval\x1b[31m", "report=true")
    assert status == 0, err
    where = tmp_path / "eval\x1b[31m"
    texts = [out, err.replace("\r", "\n")]  # the bar's
    texts += [(where / name).read_text() for name in ("table.md", "runs.csv", "evaluation.json", "report/data.js")]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n")), text
    assert "&lt;b&gt;" in texts[2] and "<" not in texts[2] + texts[5] and "!\\[x](http" in texts[2]
    with (where / "runs.csv").open(newline="") as stream:
        methods = [row["method"] for row in csv.DictReader(stream)]
    assert "mvs" in methods and any(method.startswith("'=a <b>|\n\\x1b[31m") for method in methods)


def test_a_study_of_other_runs_does_not_stay_beside_an_evaluation(command, make_run, tmp_path):
    make_run("a red robot")
    folder = tmp_path / "evaluation"
    folder.mkdir()
    stale = {
        '{"evaluation": "0123abcd"}': "study-0123abcd",
        "[]": "study-other",
        '{"evaluation": "../x"}': "study-other",
    }
    for content, name in stale.items():
        (folder / "study.json").write_text(content)
        (folder / "study.md").write_text("| old |")
        status, _, err = command("runs=runs")
        assert status == 0 and f"it is {name}.json now" in err
        assert not (folder / "study.json").exists() and not (folder / "study.md").exists()
        assert (folder / f"{name}.json").read_text() == content and (folder / f"{name}.md").is_file()
    (folder / "study.json").write_text(json.dumps({"evaluation": result(tmp_path)["id"]}))
    status, _, err = command("runs=runs")
    assert status == 0 and (folder / "study.json").is_file() and "study" not in err


def test_a_place_that_cannot_be_written_is_said_before_anything_is_measured(refused, make_run, tmp_path):
    make_run()
    (tmp_path / "file").write_text("")
    refused(["runs=runs", "out_dir=file"], "out_dir=file", "choose another place")
    refused(["runs=runs", "out_dir=file/below"], "out_dir=file/below")


@pytest.mark.parametrize("name", ["evaluation.json", "runs.csv", "table.md", "report/data.js", "report/media"])
def test_something_in_the_way_of_the_results_is_one_line(command, make_run, tmp_path, name):
    make_run()
    if name == "report/media":
        (tmp_path / "evaluation" / "report").mkdir(parents=True)
        (tmp_path / "evaluation" / name).write_text("")
    else:
        (tmp_path / "evaluation" / name).mkdir(parents=True)
    status, _, err = command("runs=runs", "report=true")
    assert status == 2 and "error: cannot write in out_dir=evaluation (" in err and "Traceback" not in err


def test_a_real_run_without_a_clip_to_be_had(refused, make_run):
    make_run("a corgi", models={"name": "sd21"})
    refused(["runs=runs"], "names no CLIP", "clip=openai/clip-vit-base-patch32")
    refused(["runs=runs", "clip=nowhere/at-all"], "not found", "nowhere/at-all")
