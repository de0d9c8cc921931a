"""Fig. 2c, four views sampled in 2D: python -m jointdreamer.sample2d prompt="a red robot" energy=mvs models=toybox

The views are drawn by the text-to-image model from one noise: each on its own, and joined by the energy as in Eq. 5. No
field is trained. Energies that look at renders are shown the decoded one-step estimates. The picture is
out_dir/fig2c/PROMPT/seed0/samples.png.
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras
from jointdreamer.cli import main as cli
from jointdreamer.diffusion import alpha_sigma, noise_like, x0_from_noise
from jointdreamer.distillation.joint import Noised, bounded_weight, energy_gradient, jsd_noise, limit_x0
from jointdreamer.energies.base import Energy
from jointdreamer.errors import printable
from jointdreamer.priors.base import Guidance
from jointdreamer.priors.prompts import Conditioning

STEPS = 50


@dataclass(frozen=True)
class Seen:
    """What stands in for a render: whole pictures."""

    rgb: Tensor  # (B, V, 3, R, R) in [0, 1]
    opacity: Tensor  # (B, V, 1, R, R)


@torch.no_grad()
def sample_views(
    guidance: Guidance,
    energy: Energy,
    x_t: Tensor,  # (B, V, C, h, w) the noise to begin with
    words: Conditioning,
    cameras: Cameras,
    guidance_scale: float,
    energy_weight: float,
    generator: torch.Generator | None,
    energy_limit: float | None = None,
    x0_limit: float | None = None,
    energy_x0: Literal["uncond", "guided"] = "uncond",
    steps: int = STEPS,
) -> Tensor:
    """Clean latents (B, V, C, h, w) by DDIM without noise on the way (Song et al. 2021, eta 0), joined by the energy.

    At each of `steps` noise levels the prediction is Eq. 5's: eps_hat - lambda sigma_t dC/dx_t. With `energy_weight` 0
    or NoEnergy the views are independent, and `generator` is not drawn from.
    """
    timesteps = torch.linspace(len(guidance.alphas_cumprod) - 1, 0, steps + 1).round().long().to(x_t.device)
    x0 = x_t
    for now, after in zip(timesteps, timesteps[1:], strict=False):
        t = now.expand(x_t.shape[0])
        alpha_t, sigma_t = alpha_sigma(guidance.alphas_cumprod, t)
        noised = Noised(x_t, x_t, t, alpha_t, sigma_t, torch.ones_like(sigma_t), x_t)
        pred = guidance.predict_noise(noised, words, guidance_scale)
        noise_pred = limit_x0(pred.noise, noised, x0_limit)
        if energy_weight:
            guess = x0_from_noise(x_t, noise_pred, alpha_t, sigma_t)
            rgb = guidance.decode(guess).clamp(0, 1)
            seen = Noised(x_t, x_t, t, alpha_t, sigma_t, noised.weight, guess)
            grad, _ = energy_gradient(
                energy, guidance, seen, pred, Seen(rgb, torch.ones_like(rgb[:, :, :1])), cameras, words,
                energy_weight, generator, mask="none", energy_x0=energy_x0,
            )  # fmt: skip
            noise_pred = jsd_noise(pred.noise, grad, sigma_t, bounded_weight(energy_weight, noised, energy_limit))
            noise_pred = limit_x0(noise_pred, noised, x0_limit)
        x0 = x0_from_noise(x_t, noise_pred, alpha_t, sigma_t)
        alpha_t, sigma_t = alpha_sigma(guidance.alphas_cumprod, after.expand(x_t.shape[0]))
        x_t = alpha_t * x0 + sigma_t * noise_pred
    return x0


def sample(cfg: dict[str, Any]) -> int:
    """Draw the figure that the resolved config asks for; returns the exit status."""
    from jointdreamer.cameras import Rig, orbit_cameras
    from jointdreamer.energies.registry import build_energy
    from jointdreamer.images import contact_sheet, write_png
    from jointdreamer.priors.latent import LatentDiffusion
    from jointdreamer.priors.prompts import encode_prompt
    from jointdreamer.runs.folder import run_path, seed_everything
    from jointdreamer.schedules import Plan

    cli.check(
        cfg, {"cameras": Rig, "energy": build_energy, "models.text_to_image": LatentDiffusion, "prompts": encode_prompt}
    )
    plan, rig, generator = Plan(cfg["schedule"]).check(), Rig(**cfg["cameras"]), seed_everything(cfg["seed"])
    now, device = plan.at(plan.steps - 1), cfg["device"]
    device = torch.device("cuda" if device == "auto" and cli.cuda_is_available() else device.replace("auto", "cpu"))
    path = run_path(cfg["out_dir"], "fig2c", cfg["prompt"], cfg["seed"]) / "samples.png"

    guidance = LatentDiffusion(**cfg["models"]["text_to_image"], device=device)
    energy = build_energy(**cfg["energy"], device=device)
    energy.check_rig(rig)
    text = encode_prompt(cfg["prompt"], cfg["negative_prompt"], *guidance.text_parts(), **cfg["prompts"])
    cameras = orbit_cameras(rig.n_views, guidance.image_size, **cli.eval_orbit(cfg["output"])).to(device)
    words = text.at(cameras, now.negative_prompt)
    size, channels = guidance.unet.config.sample_size, guidance.unet.config.in_channels
    noise = noise_like(torch.empty(1, rig.n_views, channels, size, size, device=device), generator)
    options = {name: cfg["distillation"][name] for name in ("energy_limit", "x0_limit", "energy_x0")}
    rows = {}
    for name, weight in (("each on its own", 0.0), (f"energy={cfg['energy']['name']}", now.energy_weight)):
        latents = sample_views(
            guidance, energy, noise, words, cameras, now.guidance_scale, weight, generator, **options
        )  # fmt: skip
        rows[name] = guidance.decode(latents)[0].clamp(0, 1)
    write_png(path, contact_sheet(rows, torch.rad2deg(cameras.azimuth[0]).tolist()))
    print(f"rows: {', '.join(rows)}\n{printable(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main("config", sample))
