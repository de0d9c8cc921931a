"""Read the noise process of a diffusion model from a diffusers folder's scheduler_config.json."""

import inspect
from pathlib import Path
from typing import Any

from jointdreamer.diffusion import PREDICTION_TYPES, NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.reading import Unreadable, is_number, is_whole, read_json
from jointdreamer.weights.checkpoint import first_line

MAX_TIMESTEPS = 100_000
SMALLEST_ABAR = 2.0**-24
COSINE = "squaredcos_cap_v2"
SCHEDULE = ("num", "beta", "trained", "rescale")  # num_train_timesteps, beta_*, trained_betas, rescale_betas_zero_snr


def load_noise_process(folder: Path) -> NoiseProcess:
    """The noise process and prediction type of a folder's scheduler/scheduler_config.json.

    With zero terminal SNR (rescale_betas_zero_snr) the last alphas_cumprod is 0, by which a clean estimate is divided:
    it becomes 2^-24, as diffusers' Euler sampler has it. A cosine schedule ends below that, but not in 0, and stays.

    Raises UserError if there is none, or none that we know.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    config = _schedule_config(path)
    kind = config["prediction_type"] if "prediction_type" in config else _default_prediction(folder, path)
    if kind not in PREDICTION_TYPES:
        raise UserError(f"{path}: prediction_type {_short(kind)} is not one of {', '.join(PREDICTION_TYPES[:3])}")
    # Only what the noise process is made of: a sampler's own settings would draw a warning each.
    known = inspect.signature(DDPMScheduler.__init__).parameters
    try:
        scheduler = DDPMScheduler(**{k: v for k, v in config.items() if k in known and k.split("_")[0] in SCHEDULE})
    except Exception as error:  # whatever odd betas provoke in torch and numpy
        raise UserError(f"cannot read {path}: {first_line(error)}; it must be a diffusers scheduler config") from error
    abar = scheduler.alphas_cumprod.float()
    falls = (abar[1:] <= abar[:-1]).all()
    if abar.ndim != 1 or len(abar) < 2 or not abar.isfinite().all() or not falls or not 1 > abar[0] > abar[-1] >= 0:
        raise UserError(f"{path}: its betas make no noise schedule: wanted numbers between 0 and 1, at least two")
    if abar[-1] < SMALLEST_ABAR and not (config.get("beta_schedule") == COSINE and abar[-1] > 0):
        if kind == "epsilon":
            raise UserError(
                f"{path}: a schedule that ends in pure noise (zero terminal SNR, rescale_betas_zero_snr) with "
                "prediction_type 'epsilon' has no clean estimate there: wanted 'v_prediction' or 'sample', or "
                "rescale_betas_zero_snr false"
            )
        abar = abar.clamp_min(SMALLEST_ABAR)
    return NoiseProcess.variance_preserving(abar, kind)


def load_rectified_flow(folder: Path) -> NoiseProcess:
    """The rectified flow of a folder's scheduler/scheduler_config.json: its timesteps and their shift.

    Raises UserError if there is none, or one whose shift depends on the size of the picture.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = _config(path)
    name = str(config.get("_class_name", "its schedule"))
    if "FlowMatch" not in name:
        raise UserError(f"{path}: {name} is no rectified flow: wanted a FlowMatchEulerDiscreteScheduler's config")
    if config.get("use_dynamic_shifting"):
        raise UserError(f"{path}: use_dynamic_shifting: wanted one shift for all sizes, as Stable Diffusion 3 has it")
    if not is_number(config.get("shift", 1.0), 1e-3, 1e3):
        raise UserError(f"{path}: shift={_short(config['shift'])}: wanted a number from 0.001 to 1000")
    return NoiseProcess.rectified_flow(_timesteps(config, path), float(config.get("shift", 1.0)))


def _default_prediction(folder: Path, path: Path) -> str:
    """What a UNet predicts whose scheduler does not say it: noise.

    Raises UserError for the 768-pixel Stable Diffusion 2, which does not.
    """
    try:
        unet = read_json(folder / "unet" / "config.json")
    except Unreadable:  # the reader of the UNet will say it
        return "epsilon"
    if isinstance(unet, dict) and (unet.get("sample_size"), unet.get("cross_attention_dim")) == (96, 1024):
        raise UserError(
            f"{path} does not say what the UNet predicts, and that of the 768-pixel Stable Diffusion 2 predicts "
            '"v_prediction", others "epsilon": add "prediction_type"'
        )
    return "epsilon"


def _short(value: Any) -> str:
    """A value of somebody's file, for an error."""
    return repr(value)[:60]


def _schedule_config(path: Path) -> dict[str, Any]:
    """A scheduler's config whose noise schedule has numbers where they belong. Raises UserError, one line."""
    config = _config(path)
    name = str(config.get("_class_name", "its schedule"))
    if "FlowMatch" in name or not ("beta_schedule" in config or config.get("trained_betas")):
        raise UserError(
            f"{path}: {name} has no betas: wanted the noise schedule of a diffusion model (beta_start, beta_end, "
            "beta_schedule); a flow-matching model is models=sd35 (Stable Diffusion 3.5)"
        )
    _timesteps(config, path)
    for key in ("beta_start", "beta_end"):
        beta = config.get(key, 0.0)
        if not is_number(beta, 0, 1):
            raise UserError(f"{path}: {key}={_short(beta)}: wanted a number from 0 to 1")
    zero_snr = config.get("rescale_betas_zero_snr")
    if not isinstance(zero_snr, bool | None):
        raise UserError(f"{path}: rescale_betas_zero_snr={_short(zero_snr)}: wanted true or false")
    return config


def _config(path: Path) -> dict[str, Any]:
    """What a scheduler's file holds. Raises UserError, one line, for a file that is none."""
    try:
        config = read_json(path)
    except Unreadable as error:
        raise UserError(f"cannot read {path}: {error.why}; it must be a diffusers scheduler config") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: wanted a diffusers scheduler config, got {type(config).__name__}")
    return config


def _timesteps(config: dict[str, Any], path: Path) -> int:
    """How many there are. Raises UserError, one line, for another number than a process can have."""
    steps = config.get("num_train_timesteps", 1000)
    if not is_whole(steps, 2, MAX_TIMESTEPS):
        raise UserError(f"{path}: num_train_timesteps={_short(steps)}: wanted a whole number from 2 to {MAX_TIMESTEPS}")
    return steps
