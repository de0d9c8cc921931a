"""Noise schedules that others wrote, and files that are none."""

import json

import pytest
import torch

from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.weights.noise_process import load_noise_process

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 100}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def schedule(folder, **config):
    write(folder / "scheduler" / "scheduler_config.json", json.dumps({**BETAS, **config}))
    return folder


def test_noise_schedule_is_read_from_the_folder(tiny_sd_folder, tmp_path):
    process = load_noise_process(tiny_sd_folder("v_prediction"))
    assert process.prediction_type == "v_prediction"
    abar = scaled_linear_alphas_cumprod()
    torch.testing.assert_close((process.alpha, process.sigma), (abar.sqrt(), (1 - abar).sqrt()))
    # Stable Diffusion 2.1-base: a PNDM config without a prediction type, with settings of its own
    config = '{"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 10, '
    write(tmp_path / "scheduler" / "scheduler_config.json", config + '"skip_prk_steps": true}')
    process = load_noise_process(tmp_path)
    assert process.prediction_type == "epsilon"
    expected = (1 - torch.linspace(0.001, 0.02, 10, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(process.alpha.double().square(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(process.sigma.double().square(), 1 - expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_gives_finite_estimates_at_every_timestep(tmp_path, kind):
    process = load_noise_process(schedule(tmp_path, rescale_betas_zero_snr=True, prediction_type=kind))
    abar = process.alpha.square()
    assert process.prediction_type == kind and 0 < abar[-1] < 1e-7 and (abar[1:] <= abar[:-1]).all()
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(100, 1, 4, 2, 2, generator=g) for _ in range(2))
    t = torch.arange(100)
    alpha_t, sigma_t = process.at(t)
    x_t = alpha_t * x0 + sigma_t * noise
    prediction = x0 if kind == "sample" else alpha_t * noise - sigma_t * x0
    as_noise = process.noise(prediction, x_t, t)
    torch.testing.assert_close(as_noise, noise, rtol=0, atol=1e-3)
    torch.testing.assert_close(process.x0(as_noise, x_t, t), x0, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"rescale_betas_zero_snr": "yes"}, "wanted true or false"),
        ({"trained_betas": [0.1, 1.0]}, "zero terminal SNR"),
        ({"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"trained_betas": [0.1, -0.5]}, "make no noise schedule"),
        ({"trained_betas": [0.1, float("nan")]}, "make no noise schedule"),
        ({"trained_betas": [[0.1], [0.2]]}, "make no noise schedule|cannot read"),
        ({"trained_betas": [0.1]}, "make no noise schedule"),
        ({"trained_betas": "0.1, 0.2"}, "cannot read"),
        ({"beta_end": 0.0, "beta_start": 0.0}, "make no noise schedule"),
        ({"beta_start": None}, "beta_start=None"),
        ({"beta_start": "0.1"}, "beta_start='0.1'"),
        ({"beta_end": float("inf")}, "beta_end=inf"),
        ({"beta_end": 10**400}, "63 bits"),
        ({"beta_end": [[0.1]]}, "beta_end="),
        ({"beta_schedule": "wavy"}, "cannot read"),
        ({"beta_schedule": ["linear"]}, "cannot read"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"num_train_timesteps": 1}, "num_train_timesteps=1"),
        ({"num_train_timesteps": 10**10}, "num_train_timesteps=10000000000"),
        ({"num_train_timesteps": -5}, "num_train_timesteps=-5"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps='1000'"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps=1000.0"),
        ({"num_train_timesteps": True}, "num_train_timesteps=True"),
        ({"num_train_timesteps": None}, "num_train_timesteps=None"),
        ({"prediction_type": "flow_prediction"}, "'flow_prediction' is not one of"),
        ({"prediction_type": None}, "None is not one of"),
        ({"prediction_type": ["epsilon"]}, "is not one of"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_one_line(tmp_path, config, says):
    with pytest.raises(UserError, match=says) as error:
        load_noise_process(schedule(tmp_path, **config))
    assert "scheduler_config.json" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '"x"', "{}", "[" * 5000, '{"beta_schedule": ', "\x00"])
def test_a_file_that_is_no_schedule_is_one_line(tmp_path, text):
    write(tmp_path / "scheduler" / "scheduler_config.json", text)
    with pytest.raises(UserError, match="scheduler_config.json") as error:
        load_noise_process(tmp_path)
    assert "\n" not in str(error.value)


def test_the_768_pixel_model_has_to_say_what_it_predicts(tmp_path):
    write(tmp_path / "unet" / "config.json", '{"sample_size": 96, "cross_attention_dim": 1024}')
    with pytest.raises(UserError, match="v_prediction"):
        load_noise_process(schedule(tmp_path))
    assert load_noise_process(schedule(tmp_path, prediction_type="epsilon")).prediction_type == "epsilon"
    assert load_noise_process(schedule(tmp_path, prediction_type="v_prediction")).prediction_type == "v_prediction"
