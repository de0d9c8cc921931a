"""The breakdown of a step, with tiny random models."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import architectures, measured_run, step
from benchmarks.measured_run import constants, networks, share, stages, summary
from jointdreamer.schedules import Plan

RATES = {"matmul": {"float32": 1e11}, "copy": 1e10}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """bench("energy=none", "--repeats", "1") -> the JSON of benchmarks.step."""

    def run(*words):
        out = tmp_path / "step.json"
        command = ["benchmarks/step.py", "--quick", "--device", "cpu", "--threads", "1", "--out", str(out), *words]
        monkeypatch.setattr(sys, "argv", command)
        assert step.main() == 0
        return json.loads(out.read_text())

    return run


def check(found):
    assert sum(v["percent"] for v in found["sections"].values()) == pytest.approx(100)
    assert all(v["ms"] >= 0 for v in found["sections"].values())
    shares = found["share_of_networks"]
    assert 0 < shares["UNets"] < shares["UNets and autoencoders"] < 1
    parts = {name: n for name, n in found["networks"].items() if name != "all"}
    assert found["networks"]["all"]["gflop"] == pytest.approx(sum(n["gflop"] for n in parts.values()))
    for name, n in parts.items():  # a network's time is its section's, however many calls made it
        assert n["ms"] == pytest.approx(found["sections"][name]["ms"])
        assert n["gflop_per_s"] == pytest.approx(n["gflop"] / n["ms"] * 1e3)


def test_a_step_of_train_py(bench, tiny_run, capsys):
    """--whole: the run that train.py makes of these words, all steps of it."""
    words = tiny_run("schedule.steps=4", "schedule.resolution=[[0,8],[2,12]]")
    found = bench("--whole", "--warmup", "1", "energy=mvs", *words)
    [run] = found["runs"]
    assert [s["resolution"] for s in run["stages"]] == [8, 12]
    assert run["resolutions"].keys() == {"12", "8"} and run["energy"] == "mvs"
    late = run["resolutions"]["12"]
    assert late["steps_measured"] == 2
    check(late)
    names = set(late["sections"])
    assert {"render", "encode / VAE", "text-to-image / UNet", "energy / UNet"} <= names
    assert {"energy / VAE", "backward", "backward / VAE", "optimizer", "everything else"} <= names
    nets = late["networks"]
    # the gradient of a frozen network's input takes what forward took; the energy's autoencoder is the same one
    assert nets["backward / VAE"]["gflop"] == nets["encode / VAE"]["gflop"]
    assert nets["energy / VAE"]["gflop"] == pytest.approx(nets["encode / VAE"]["gflop"])
    assert 0 < run["startup_seconds"] < run["startup_and_first_step_seconds"]
    assert found["schedules"][0]["steps"] == 4 and found["schedules"][0]["complete"]
    assert "text-to-image / UNet" in capsys.readouterr().out


OCTAHEDRON = """v 1 0 0
v -1 0 0
v 0 1 0
v 0 -1 0
v 0 0 1
v 0 0 -1
f 1 3 5
f 3 2 5
f 2 4 5
f 4 1 5
f 3 1 6
f 2 3 6
f 4 2 6
f 1 4 6
"""


def test_a_step_of_a_mesh_has_the_rasteriser_s_share(bench, tmp_path):
    (tmp_path / "mesh.obj").write_text(OCTAHEDRON)
    words = ["models=toybox", "energy=none", "scene=dmtet", "scene.resolution=8", f"init_from={tmp_path / 'mesh.obj'}"]
    [run] = bench("--repeats", "1", *words)["runs"]
    [stage] = run["resolutions"].values()
    drawn = {"render / rasteriser", "backward / rasteriser"}
    assert drawn <= set(stage["sections"])
    share = sum(stage["sections"][name]["percent"] for name in drawn) / 100
    assert stage["share_of_rasteriser"] == pytest.approx(share) and 0 < share < 1
    verdicts = [one for one in step.judge([run]) if "rasteriser" in one["claim"]]
    assert [one["holds"] for one in verdicts] == [share <= 0.25]


def test_paper_size_goes_through_the_same_classes(bench):
    found = bench(
        "--paper-size", "--repeats", "1", "energy=none", "field.encoding.n_levels=2", "field.encoding.log2_table_size=8"
    )
    [run] = found["runs"]
    assert run["models"] == "sd21" and run["steps"] == 6000
    [stage] = run["resolutions"].values()
    check(stage)
    assert not any("energy" in name and "UNet" in name for name in stage["sections"])
    expected = 6000 / 60 * stage["seconds_per_step"]["mean"]
    assert found["schedules"][0]["minutes"] == pytest.approx(expected)


def test_the_paper_sizes_are_those_of_the_models():
    """Parameters as published: UNet 866M, MVDream's the same and a camera network, VAE 84M, text encoder 340M."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**architectures.UNET)
        vae = AutoencoderKL(**architectures.VAE)
        text = CLIPTextModel(CLIPTextConfig(**architectures.TEXT))
    count = [sum(p.numel() for p in model.parameters()) for model in (unet, vae, text)]
    assert count == [865_910_724, 83_653_863, 340_387_840]


def test_stages_and_their_constants():
    plan = Plan({"steps": 10, "resolution": [[0, 8], [6, 16]], "lr": {"a": [[0, 1.0], [10, 11.0, "linear"]]}})
    assert stages(plan) == [
        {"first": 0, "end": 6, "resolution": 8, "middle": 3},
        {"first": 6, "end": 10, "resolution": 16, "middle": 8},
    ]
    assert constants(plan.at(8)) == {"resolution": 16, "lr": {"a": 9.0}}
    assert constants(SimpleNamespace(a=SimpleNamespace(b=1), guidance_scale=31)) == {
        "a": {"b": 1},
        "guidance_scale": 30,
    }


def test_shares_and_rates_of_a_step_made_up():
    operations = {("float32", 10**9, 10**6): 2}  # 2 GFLOP, 2 MB
    own = {("render",): 0.02, ("encode", "UNet"): 0.04, ("backward", "VAE"): 0.01}
    lap = {"seconds": 0.1, "plain": False, "own": own, "costs": {("encode", "UNet"): operations}}
    sections = lap["own"]
    assert share({**sections, ("everything else",): 0.03}, ("UNet", "VAE")) == pytest.approx(0.5)
    found = networks([lap], sections, RATES)["encode / UNet"]
    assert found["gflop"] == 2 and found["gflop_per_s"] == pytest.approx(50)
    assert found["share_of_matmul_rate"] == pytest.approx(0.5) == found["share_of_roofline"]
    whole = summary([lap, {**lap, "plain": True, "seconds": 0.2}], RATES)
    assert whole["seconds_per_step"]["mean"] == 0.2
    assert whole["share_of_peak"] == pytest.approx(2e9 / 0.2 / 1e11)  # of the steps that nobody waited for
    assert whole["sections"]["everything else"] == pytest.approx({"ms": 30, "percent": 30})


def test_the_schedule_is_the_sum_of_its_stages():
    every = [{"first": 0, "end": 30, "resolution": 8}, {"first": 30, "end": 60, "resolution": 16}]

    def run(stage, resolution, seconds):
        found = {str(resolution): {"seconds_per_step": {"mean": seconds}}}
        return {"energy": "none", "stage": stage, "stages": every, "steps": 60, "resolutions": found}

    total = step.whole_schedule("none", [run(0, 8, 2.0), run(1, 16, 4.0)])
    assert total == {"energy": "none", "steps": 60, "minutes": 3.0, "complete": True}
    assert not step.whole_schedule("none", [run(0, 8, 2.0)])["complete"]


def test_a_stage_that_fails_does_not_hide_the_others(bench, monkeypatch, capsys):
    """For want of memory, say."""
    every = [{"first": 0, "end": 30, "resolution": 8}, {"first": 30, "end": 60, "resolution": 16}]

    def run(command, **_):
        job = json.loads(Path(command[-1]).read_text())
        Path(job["out"]).write_text(json.dumps({"stages": every, "steps": 60}))
        return SimpleNamespace(returncode=1, stderr="Traceback\ntorch.OutOfMemoryError: 80 GB")

    monkeypatch.setattr(step, "subprocess", SimpleNamespace(run=run, DEVNULL=None, PIPE=None))
    found = bench("energy=none")
    assert found["runs"][0]["failed"] == "torch.OutOfMemoryError: 80 GB"
    assert found["verdicts"] == [{"claim": "energy=none stage 0 runs: torch.OutOfMemoryError: 80 GB", "holds": False}]
    assert not found["schedules"][0]["complete"]


def test_nothing_stays_wrapped(tmp_path):
    """The stopwatch is out of the package when its stack is closed."""
    from contextlib import ExitStack

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    before = AutoencoderKL.encode, torch.autograd.backward, torch.autograd.grad
    with ExitStack() as stack:
        run = measured_run.Run({"clock": "wall"})
        run.instrument(stack, "cpu")
        assert AutoencoderKL.encode is not before[0]
        x = torch.tensor(math.pi, requires_grad=True)
        x.square().backward()
        torch.autograd.grad(x.square(), x)
        assert run.watch.lap()[1].keys() == {("backward",)}
    assert (AutoencoderKL.encode, torch.autograd.backward, torch.autograd.grad) == before
