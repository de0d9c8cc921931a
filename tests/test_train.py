"""The whole of train.py on the CPU, with tiny random models: what a run leaves behind, and that nothing can break it.

The runs are children of tests/launcher.py, which imports everything once for all of them.
"""

import json
import os
import random
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from jointdreamer.runs.folder import CONTRACT

PROMPT = "a red robot, with a hat"
STEPS, EVERY = 12, 3  # of a run, and between its checkpoints
FADING = 9  # the step at which the geometry's rates fall
PATIENCE = 300  # seconds


@pytest.fixture(scope="module")
def words(tiny_sd_folder, tiny_mv_folder) -> Callable[..., list[str]]:
    """words("energy=none") -> the command line of a small run with all that a run has."""
    sd, mv = tiny_sd_folder("sample"), tiny_mv_folder("sample")

    def command(*more: str) -> list[str]:
        return [
            f"prompt={PROMPT}",
            "experiment=smoke",
            "device=cpu",
            f"models.text_to_image.source={sd}",
            "models.text_to_image.image_size=16",
            f"models.multi_view.source={mv}",
            f"models.multi_view.vae={sd}",
            "models.multi_view.image_size=16",
            "field.encoding.n_levels=4",
            "field.encoding.log2_table_size=10",
            "renderer.n_samples=48",
            "renderer.grid_resolution=16",
            f"schedule.steps={STEPS}",
            "schedule.resolution=[[0,12],[8,16]]",
            f"schedule.lr.geometry=[[0,0.01],[{FADING},1.0e-6]]",
            f"every.checkpoint={EVERY}",
            "output.views=4",
            "output.resolution=16",
            "output.mesh_resolution=24",
            *more,
        ]

    return command


@pytest.fixture(scope="module")
def whole(launcher, words, tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert launcher.run(folder, words()) == 0, (folder / "stderr").read_text()
    return run_folder(folder)


def run_folder(folder: Path) -> Path:
    """The one run below `folder`."""
    (config,) = folder.glob("runs/**/config.yaml")
    return config.parent


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"step_{step:06d}.pt", weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places where two checkpoints are not the same, bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if torch.equal(a, b) and a.dtype == b.dtype else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [where]
        return [found for key in a for found in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{where}.{i}")]
    return [] if a == b else [where]


def assert_same_run(run: Path, whole: Path) -> None:
    """Same parameters, optimiser, random generators and metrics, at the end and at the checkpoint before."""
    for step in (STEPS - EVERY, STEPS):
        here, there = checkpoint(run, step), checkpoint(whole, step)
        assert differences(here["parts"], there["parts"]) == []
        assert differences(here["random"], there["random"]) == []
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for picture in (*whole.glob("views/*.png"), *whole.glob("energy/*.png"), whole / "mesh" / "mesh.glb"):
        assert (run / picture.relative_to(whole)).read_bytes() == picture.read_bytes(), picture.name
    assert not list(run.rglob(".tmp-*"))


def rows(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("runs/**/metrics.jsonl"))


def when_rows(folder: Path, n: int, number: int) -> None:
    """Send a signal to the run below `folder` once its metrics have `n` rows."""
    deadline = time.monotonic() + PATIENCE
    while rows(folder) < n or not is_alive(folder):  # rows and lock may be those of a run that was killed
        assert time.monotonic() < deadline, (folder / "stderr").read_text()
        time.sleep(0.002)
    os.kill(int((run_folder(folder) / ".lock").read_text()), number)


def is_alive(folder: Path) -> bool:
    """Whether the process that holds the run below `folder` is there."""
    try:
        os.kill(int((run_folder(folder) / ".lock").read_text()), 0)
    except (ProcessLookupError, ValueError):
        return False
    return True


def lines(file: Path) -> list[str]:
    return file.read_text().strip().splitlines()


# What a run leaves behind


def test_every_file_of_the_contract_is_there(whole):
    wanted = ["config.yaml", "metrics.jsonl", "train.log", "environment.json", "command.txt", "result.json"]
    wanted += ["turntable/rgb.mp4", "turntable/normal.mp4", "turntable/transforms.json"]
    wanted += ["mesh/mesh.glb", "contact_sheet.png"]
    wanted += [f"views/step_{step:06d}.png" for step in (6, STEPS)]
    wanted += [f"energy/step_{step:06d}.png" for step in (6, STEPS)]
    wanted += [f"checkpoints/step_{step:06d}.pt" for step in (STEPS - EVERY, STEPS)]
    assert [name for name in wanted if not (whole / name).is_file() or not (whole / name).stat().st_size] == []


def test_the_result_says_what_was_made_and_at_what_cost(whole):
    result = json.loads((whole / "result.json").read_text())
    assert set(CONTRACT) <= set(result)
    expected = {"prompt": PROMPT, "seed": 0, "energy": "mvs", "models": "toybox", "steps": STEPS, "device": "cpu"}
    assert {key: result[key] for key in expected} == expected
    assert 0 < result["seconds_per_step"] * STEPS / 60 <= result["minutes"] and 0.1 < result["peak_memory_gb"] < 8


def test_the_metrics_have_a_row_a_step_and_the_energy_joins_in(whole):
    found = [json.loads(line) for line in lines(whole / "metrics.jsonl")]
    assert [row["step"] for row in found] == list(range(STEPS))
    assert [row["coherence"] != 0 for row in found] == [row["now/energy_weight"] > 0 for row in found]
    assert {row["now/resolution"] for row in found} == {12, 16}


def test_the_command_is_kept_as_it_was_typed(whole, words):
    python, script, *typed = shlex.split((whole / "command.txt").read_text())
    assert (python, Path(script).name, typed) == ("python", "train.py", words())


def test_the_run_ends_by_printing_its_folder_and_says_which_models(whole):
    folder = whole.parents[3]
    assert lines(folder / "stdout") == [str(whole.relative_to(folder))]
    assert "models=toybox (no CUDA device here" in (whole / "train.log").read_text()


def test_a_finished_run_says_so_and_nothing_is_touched(launcher, words, whole):
    def stamps() -> dict[Path, int]:
        return {f: f.stat().st_mtime_ns for f in whole.rglob("*") if f.is_file() and f.name != ".lock"}

    before = stamps()
    folder = whole.parents[3]
    assert launcher.run(folder, words()) == 0
    assert "is complete" in (folder / "stdout").read_text()
    assert stamps() == before


# Kills and resumes


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(launcher, words, whole, tmp_path, seed):
    rng = random.Random(seed)
    for step in sorted(rng.sample(range(1, STEPS - 2), 3)):  # early enough to meet it alive
        launcher.start(tmp_path, words())
        when_rows(tmp_path, step, 0)  # signal 0 only looks whether it lives
        time.sleep(rng.uniform(0, 0.1))  # anywhere in the step that follows
        os.kill(int((run_folder(tmp_path) / ".lock").read_text()), signal.SIGKILL)
        assert launcher.finish() == -signal.SIGKILL
    assert launcher.run(tmp_path, words()) == 0
    assert_same_run(run_folder(tmp_path), whole)


def test_killed_after_the_last_step_it_makes_what_is_missing(launcher, words, whole, tmp_path):
    shutil.copytree(whole.parents[2], tmp_path / "runs")
    run = run_folder(tmp_path)
    for name in ("result.json", "contact_sheet.png", "mesh/mesh.glb", "turntable/normal.mp4"):
        (run / name).unlink()
    assert launcher.run(tmp_path, words()) == 0
    assert_same_run(run, whole)
    for name in ("contact_sheet.png", "turntable/rgb.mp4", "turntable/normal.mp4"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert json.loads((run / "result.json").read_text())["steps"] == STEPS


def test_a_run_goes_on_with_more_steps_and_ends_as_one_that_was_asked_for_them_at_once(
    launcher, words, whole, tmp_path
):
    """Then other outputs of it, without a step; then the same weights under another name; then fewer steps."""
    assert launcher.run(tmp_path, words(f"schedule.steps={STEPS // 2}")) == 0, (tmp_path / "stderr").read_text()
    assert launcher.run(tmp_path, words()) == 0, (tmp_path / "stderr").read_text()
    run = run_folder(tmp_path)
    assert_same_run(run, whole)
    assert yaml.safe_load((run / "config.yaml").read_text())["schedule"]["steps"] == STEPS

    result, parts = (run / "result.json").read_text(), (run / "checkpoints" / f"step_{STEPS:06d}.pt").read_bytes()
    small = ["output.mesh_resolution=16", "output.views=2", "output.fps=10"]
    assert launcher.run(tmp_path, words(*small)) == 0, (tmp_path / "stderr").read_text()
    assert (run / "mesh/mesh.glb").read_bytes() != (whole / "mesh/mesh.glb").read_bytes()
    assert (run / "checkpoints" / f"step_{STEPS:06d}.pt").read_bytes() == parts
    assert (
        json.loads((run / "result.json").read_text())["steps"] == STEPS and (run / "result.json").read_text() != result
    )

    source = yaml.safe_load((run / "config.yaml").read_text())["models"]["text_to_image"]["source"]
    shutil.copytree(source, tmp_path / "copy")
    elsewhere = words(*small, f"models.text_to_image.source={tmp_path / 'copy'}")
    assert launcher.run(tmp_path, elsewhere) == 0, (tmp_path / "stderr").read_text()
    other = next((tmp_path / "copy" / "unet").glob("*.safetensors"))
    other.write_bytes(other.read_bytes()[:-1] + b"x")
    elsewhere[-1] = f"models.text_to_image.source={shutil.move(tmp_path / 'copy', tmp_path / 'moved')}"
    assert launcher.run(tmp_path, elsewhere) == 2
    assert "was made with other weights" in (tmp_path / "stderr").read_text()

    assert launcher.run(tmp_path, words(*small, "schedule.steps=5")) == 2
    assert "12 steps are done, and schedule.steps=5 asks for fewer" in (tmp_path / "stderr").read_text()
    assert (run / "result.json").exists()


DIES_WHILE_SAVING = """
import os, signal
import torch
from jointdreamer.energies.reconstruction import ReconstructionEnergy
from jointdreamer.priors.multi_view import MultiViewDiffusion

save = torch.save

def half(checkpoint, stream):
    if checkpoint["step"] == int(os.environ.get("DIES_WHILE_SAVING", -1)):
        save(checkpoint, stream)
        stream.truncate(stream.tell() // 2)
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoint, stream)

torch.save = half

class Mine(ReconstructionEnergy):
    def __init__(self, source, vae):
        super().__init__(MultiViewDiffusion.build(source, vae=vae, image_size=16))
        self.taste = torch.nn.Linear(4, 1)  # random weights of its own

    def forward(self, views):
        return super().forward(views) + self.taste(views.x0.movedim(2, -1)).sum((1, 2, 3, 4))
"""


def test_killed_in_the_middle_of_a_checkpoint_it_ends_as_if_nothing_had_been(launcher, words, tmp_path):
    """With an energy of a user's own, found on PYTHONPATH, that draws its weights from the run's seed."""
    (tmp_path / "dying.py").write_text(DIES_WHILE_SAVING)
    models = "models.multi_view."
    given = [word.removeprefix(models) for word in words() if word.startswith((f"{models}source", f"{models}vae"))]
    mine = words("energy.name=dying:Mine", *(f"+energy.{word}" for word in given))
    path = {"PYTHONPATH": str(tmp_path)}
    assert launcher.run(tmp_path / "killed", mine, DIES_WHILE_SAVING="6", **path) == -signal.SIGKILL
    run = run_folder(tmp_path / "killed")
    assert [file.name for file in run.glob("checkpoints/step_*")] == ["step_000003.pt"]
    assert list(run.glob("checkpoints/.tmp-*"))
    assert launcher.run(tmp_path / "killed", mine, **path) == 0

    assert launcher.run(tmp_path / "whole", mine, **path) == 0
    assert_same_run(run, run_folder(tmp_path / "whole"))


def test_sigterm_saves_and_says_how_to_go_on(launcher, words, whole, tmp_path):
    launcher.start(tmp_path, words())
    when_rows(tmp_path, 4, signal.SIGTERM)
    assert launcher.finish() == 128 + signal.SIGTERM
    run = run_folder(tmp_path)
    done = rows(tmp_path)
    assert 4 <= done < STEPS and (run / "checkpoints" / f"step_{done:06d}.pt").exists()
    assert not (run / "result.json").exists()
    said = (tmp_path / "stderr").read_text()
    assert f"after {done} of {STEPS} steps, saved; the same command goes on" in said and "Traceback" not in said

    assert launcher.run(tmp_path, words()) == 0
    assert_same_run(run, whole)


def test_geometry_fades_after_a_resume(launcher, words, tmp_path):
    """The released code's resume brings the old rates back, and then nothing fades."""
    launcher.start(tmp_path, words())
    when_rows(tmp_path, FADING - 2, signal.SIGKILL)
    launcher.finish()
    assert launcher.run(tmp_path, words()) == 0
    run = run_folder(tmp_path)
    before, after = (checkpoint(run, step)["parts"] for step in (FADING, STEPS))
    for parts, rate in ((before, 1e-2), (after, 1e-6)):  # what a checkpoint's last step was done with
        rates = {group["name"]: group["lr"] for group in parts["optimizer"]["param_groups"]}
        assert rates["geometry:encoding"] == 2 * rates["geometry"] == 2 * rate and rates["appearance"] > 1e-3
    for name, value in before["scene"].items():
        if name.startswith("field."):
            moved = (after["scene"][name] - value).abs().max()
            assert moved < 1e-5 if name.startswith(("field.encoding", "field.density")) else moved > 1e-4, name


# The end of a run, and a folder that goes away

LINGERS = """
import os, shutil, time
from pathlib import Path
from jointdreamer.runs import pictures as outputs
from jointdreamer.energies.random import RandomEnergy

def linger(*_):
    Path(os.environ["BEGAN"]).touch()
    time.sleep(60)

class Mine(RandomEnergy):
    calls = 0

    def __init__(self, **options):
        super().__init__(**options)
        if "BEGAN" in os.environ:
            outputs.save_mesh = linger

    def forward(self, views):
        self.calls += 1
        if self.calls == 2 and "GOES" in os.environ:
            shutil.rmtree(next(Path("runs").glob("*/*/seed0")))
        return super().forward(views)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_outputs_are_made_stops_and_the_same_command_makes_them(launcher, words, tmp_path, number):
    (tmp_path / "lingers.py").write_text(LINGERS)
    mine, path, began = (
        words("energy=random", "energy.name=lingers:Mine"),
        {"PYTHONPATH": str(tmp_path)},
        tmp_path / "b",
    )
    launcher.start(tmp_path, mine, **path, BEGAN=str(began))
    deadline = time.monotonic() + PATIENCE
    while not began.exists():
        assert time.monotonic() < deadline, (tmp_path / "stderr").read_text()
        time.sleep(0.01)
    run = run_folder(tmp_path)
    os.kill(int((run / ".lock").read_text()), number)
    assert launcher.finish() == 128 + number
    said = (tmp_path / "stderr").read_text()
    assert "the same command makes the rest" in said and "Traceback" not in said
    assert not (run / "result.json").exists() and not list(run.rglob(".tmp-*"))

    before = (run / "metrics.jsonl").read_bytes()
    assert launcher.run(tmp_path, mine, **path) == 0
    assert (run / "result.json").exists() and (run / "metrics.jsonl").read_bytes() == before


def test_a_run_folder_that_is_deleted_ends_the_run_with_one_line(launcher, words, tmp_path):
    (tmp_path / "lingers.py").write_text(LINGERS)
    mine = words("energy=random", "energy.name=lingers:Mine")
    assert launcher.run(tmp_path, mine, PYTHONPATH=str(tmp_path), GOES="1") == 2
    said = (tmp_path / "stderr").read_text()
    assert said.splitlines()[-1].startswith("error: the run folder runs/") and "was deleted or moved" in said
    assert "Traceback" not in said and not list(tmp_path.glob("runs/*/*/seed0"))


def test_without_an_encoder_the_rest_is_made_and_later_the_videos(launcher, words, whole, tmp_path):
    """In a folder with a colon, which an encoder could take for the end of a protocol."""
    mine = words("name=mvs:cfg30")
    assert launcher.run(tmp_path, mine, IMAGEIO_FFMPEG_EXE="/nowhere/ffmpeg") == 2
    run, said = run_folder(tmp_path), lines(tmp_path / "stderr")
    assert said[-1].startswith("error: no turntable (no ffmpeg") and sum("error:" in line for line in said) == 1
    assert sum("no turntable at the end, as it is now" in line for line in said) == 1  # before the first step
    assert not list(run.glob("turntable/*")) and (run / "mesh" / "mesh.glb").exists()
    result = json.loads((run / "result.json").read_text())
    assert list(result["missing"]) == ["turntable"] and result["mesh"] and result["steps"] == STEPS

    assert launcher.run(tmp_path, mine) == 0
    assert_same_run(run, whole)
    assert json.loads((run / "result.json").read_text())["missing"] == {}
    assert (run / "turntable" / "rgb.mp4").read_bytes() == (whole / "turntable" / "rgb.mp4").read_bytes()


def test_the_threads_and_cuts_that_a_run_began_with_stay_its_own(launcher, words, whole, tmp_path):
    shutil.copytree(whole.parents[2], tmp_path / "runs")
    run = run_folder(tmp_path)
    began = {"threads": 1, "rays_per_chunk": None, "images_per_chunk": None}
    assert json.loads((run / "numerics.json").read_text()) == began
    for name in ("result.json", f"checkpoints/step_{STEPS:06d}.pt"):
        (run / name).unlink()
    (run / "numerics.json").write_text(json.dumps({"threads": 3, "rays_per_chunk": 100, "images_per_chunk": 1}))
    assert launcher.run(tmp_path, words()) == 0
    assert json.loads((run / "environment.json").read_text())["threads"] == 3
    assert "100 rays at a time and 1 images at a time" in (run / "train.log").read_text()


# What is computed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # of the frozen networks
def test_without_an_energy_it_is_score_distillation_to_the_bit(launcher, words, tmp_path, dtype):
    """Beside a loop written from Eq. 2: w(t) (eps_hat - eps), w(t) = 1 - abar_t, through the encoder to the scene."""
    from jointdreamer.cameras import Rig, sample_cameras
    from jointdreamer.priors.prompts import encode_prompt
    from jointdreamer.priors.registry import build_prior
    from jointdreamer.runs.checkpoint import seed_everything
    from jointdreamer.scenes.background import SphericalBackground
    from jointdreamer.scenes.nerf.field import HashGridField
    from jointdreamer.scenes.nerf.volume import VolumeRenderer

    rates = {"geometry": 0.005, "appearance": 0.02, "background": 0.001}
    plain = words(
        "energy=none",
        f"models.dtype={dtype}",
        "schedule.steps=3",
        "schedule.resolution=12",
        "schedule.guidance_scale=7",
        "schedule.t_min=0.1",
        "schedule.t_max=0.9",
        "schedule.loss.sparsity=0",
        "schedule.loss.opaque=0",
        "schedule.loss.smooth=0",
        "distillation.x0_limit=null",
        *(f"schedule.lr.{name}={rate}" for name, rate in rates.items()),
    )
    assert launcher.run(tmp_path, plain) == 0, (tmp_path / "stderr").read_text()
    run = run_folder(tmp_path)
    cfg = yaml.safe_load((run / "config.yaml").read_text())

    g = seed_everything(cfg["seed"])
    field, background = HashGridField(**cfg["field"]), SphericalBackground(**cfg["background"])
    renderer = VolumeRenderer(field_radius=field.radius, **cfg["renderer"])
    prior: Any = build_prior("text_to_image", cfg["models"], "cpu")
    text = encode_prompt(PROMPT, "", *prior.text_parts())
    groups = {**field.parameter_groups(), **background.parameter_groups()}
    optimizer = torch.optim.AdamW(
        [{"params": ps, "lr": rates[name] if name in rates else 2 * rates["geometry"]} for name, ps in groups.items()],
        betas=(0.9, 0.99), eps=1e-15, weight_decay=0.01, fused=True,
    )  # fmt: skip
    for step in range(3):
        cameras = sample_cameras(Rig(**cfg["cameras"]), 12, g)
        renderer.update_occupancy(field, step, g)
        z = prior.encode(renderer(field, background, cameras, generator=g).rgb, g)
        t = torch.randint(100, 900 + 1, (1,), generator=g)
        alpha, sigma = prior.process.alpha[t], prior.process.sigma[t]
        eps = torch.randn(z.shape, generator=g)
        x_t = alpha * z.detach() + sigma * eps
        cond, uncond = prior.predict(x_t, t, [text.at(cameras), text.nothing(cameras)], cameras)
        eps_hat = prior.guidance.noise(prior.process, x_t, t, cond, uncond, 1 + 7)
        optimizer.zero_grad()
        z.backward(sigma**2 * (eps_hat - eps) / 4)  # a mean over the four views
        optimizer.step()

    made = checkpoint(run, 3)["parts"]
    for name, part in {"field": field, "renderer": renderer}.items():
        state = {f"{name}.{key}": value for key, value in part.state_dict().items()}
        assert differences({key: made["scene"][key] for key in state}, state) == []
    assert not list(run.glob("energy/*")) and json.loads((run / "result.json").read_text())["energy"] == "none"


IS_NAN_FROM_ITS_FIFTH_CALL = """
from jointdreamer.energies.random import RandomEnergy

class Mine(RandomEnergy):
    calls = 0

    def forward(self, views):
        self.calls += 1
        return super().forward(views) * (float("nan") if self.calls >= 5 else 1)
"""


def test_nan_in_the_loss_stops_the_run(launcher, words, tmp_path):
    (tmp_path / "wrong.py").write_text(IS_NAN_FROM_ITS_FIFTH_CALL)
    mine = words("energy=random", "energy.name=wrong:Mine")
    assert launcher.run(tmp_path / "run", mine, PYTHONPATH=str(tmp_path)) == 2
    # no energy before step 2
    says = "error: step 6: the loss is nan (from jsd), so the run stopped; the checkpoint of step 6 is kept."
    assert_stopped_with_one_line(tmp_path / "run", says, steps=6)


def test_an_object_that_blows_up_is_never_saved(launcher, words, tmp_path):
    """An empty picture's loss is finite: only the parameters are not."""
    assert launcher.run(tmp_path, words("schedule.lr.geometry=[[0,0.01],[4,1.0e38]]")) == 2
    says = "error: step 6: scene.field.encoding.params holds NaN or infinity, so no checkpoint was written"
    assert_stopped_with_one_line(tmp_path, says, steps=3)


def assert_stopped_with_one_line(folder: Path, says: str, steps: int) -> None:
    said = (folder / "stderr").read_text()
    assert said.strip().splitlines()[-1].startswith(says) and said.count("error:") == 1 and "Traceback" not in said
    run = run_folder(folder)
    assert checkpoint(run, steps)["step"] == max(int(file.stem[-6:]) for file in run.glob("checkpoints/*")) == steps
    kept = checkpoint(run, steps)["parts"]["scene"]
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())
    assert not (run / "result.json").exists()
