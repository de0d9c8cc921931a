"""Fig. 2c, four views sampled in 2D: python -m jointdreamer.sample2d prompt="a red robot" energy=mvs models=toybox

The views are drawn by the text-to-image model from one noise: each on its own, and joined by the energy as in Eq. 5. No
field is trained. Energies that look at renders are shown the decoded one-step estimates. The picture is
out_dir/fig2c/PROMPT/seed0/samples.png.
"""

import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras
from jointdreamer.cli import main as cli
from jointdreamer.diffusion import Noised, noise_like
from jointdreamer.distillation.joint import JointScoreDistillation
from jointdreamer.errors import printable

STEPS = 50


@torch.no_grad()
def sample_views(
    term: JointScoreDistillation,
    x_t: Tensor,  # (B, V, C, h, w) the noise to begin with
    cameras: Cameras,
    now: SimpleNamespace,
    generator: torch.Generator | None,
    steps: int = STEPS,
) -> Tensor:
    """Clean latents (B, V, C, h, w) by DDIM without noise on the way (Song et al. 2021, eta 0), joined by the energy.

    At each of `steps` noise levels the prediction is eps_hat - lambda sigma_t dC/dx_t. With `now.energy_weight` 0
    or NoEnergy the views are independent, and `generator` is not drawn from.
    """
    process = term.prior.process
    timesteps = torch.linspace(process.last, 0, steps + 1).round().long().to(x_t.device)
    x0 = x_t
    for t, after in zip(timesteps, timesteps[1:], strict=False):
        t = t.expand(len(x_t))
        noised = Noised(x_t, x_t, t, *process.at(t), x_t)
        noise = term.joint_noise_pred(noised, None, cameras, now, generator)
        x0 = noised.x0(noise)
        alpha_t, sigma_t = process.at(after.expand(len(x_t)))
        x_t = alpha_t * x0 + sigma_t * noise
    return x0


def sample(cfg: dict[str, Any]) -> int:
    """Draw the figure that the resolved config asks for; returns the exit status."""
    from jointdreamer.cameras import Rig, orbit_cameras
    from jointdreamer.cli.settings import orbit
    from jointdreamer.cli.training import check_training
    from jointdreamer.energies.registry import build_energy
    from jointdreamer.images import contact_sheet, write_png
    from jointdreamer.kernels.waiting import spinning_while_alone
    from jointdreamer.priors.prompts import Prompts
    from jointdreamer.priors.registry import build_prior
    from jointdreamer.runs.checkpoint import seed_everything
    from jointdreamer.runs.folder import run_path
    from jointdreamer.schedules import Plan

    check_training(cfg)
    plan, rig, generator = Plan(cfg["schedule"]).check(), Rig(**cfg["cameras"]), seed_everything(cfg["seed"])
    now, device = plan.at(plan.steps - 1), cfg["device"]
    device = torch.device("cuda" if device == "auto" and cli.cuda_is_available() else device.replace("auto", "cpu"))
    path = run_path(cfg["out_dir"], "fig2c", cfg["prompt"], cfg["seed"]) / "samples.png"

    prior: Any = build_prior("text_to_image", cfg["models"], device)
    energy = build_energy(**cfg["energy"], models=cfg["models"], device=device)
    energy.check_rig(rig)
    prompts = Prompts(cfg["prompt"], cfg["negative_prompt"], **cfg["prompts"])
    energy.give_prompt(prompts)
    text = prior.embed(prompts)
    options = {name: cfg["distillation"][name] for name in ("energy_limit", "x0_limit", "energy_x0")}
    term = JointScoreDistillation(prior, text, energy, mask="none", **options)
    cameras = orbit_cameras(rig.n_views, prior.image_size, **orbit(cfg["output"])).to(device)
    noise = noise_like(torch.empty(1, rig.n_views, *prior.latent_shape, device=device), generator)
    rows = {}
    with spinning_while_alone():
        for name, weight in (("each on its own", 0.0), (f"energy={cfg['energy']['name']}", now.energy_weight)):
            now.energy_weight = weight
            rows[name] = prior.decode(sample_views(term, noise, cameras, now, generator))[0].clamp(0, 1)
    write_png(path, contact_sheet(rows, torch.rad2deg(cameras.azimuth[0]).tolist()))
    print(f"rows: {', '.join(rows)}\n{printable(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main("config", sample))
