"""Noise processes x_t = alpha_t x0 + sigma_t noise and their inverses (docs/conventions.md, Noise process).

alpha_t and sigma_t broadcast against latents (B, V, C, h, w). All functions are differentiable.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from jointdreamer.errors import UserError
from jointdreamer.ranks import per_rig

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "velocity")


class NoiseProcess(nn.Module):
    """A noise process at the timesteps 0 .. n - 1, and what a network's prediction says about noise and x0.

    alpha, sigma: (n,), float32
    prediction_type: epsilon, v_prediction (alpha_t noise - sigma_t x0), sample (x0), or velocity (noise - x0)

    Raises UserError for an unknown prediction_type, or a velocity without alpha_t + sigma_t = 1.
    """

    alpha: Tensor
    sigma: Tensor

    def __init__(self, alpha: Tensor, sigma: Tensor, prediction_type: str = "epsilon"):
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(f"prediction_type {prediction_type!r}: choose one of {', '.join(PREDICTION_TYPES)}")
        if prediction_type == "velocity" and not torch.allclose(alpha + sigma, torch.ones_like(alpha)):
            raise UserError("prediction_type velocity belongs to a rectified flow, where alpha_t + sigma_t = 1")
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)
        self.prediction_type = prediction_type

    @classmethod
    def variance_preserving(cls, alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> "NoiseProcess":
        """alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t); alphas_cumprod: (n,) float32."""
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), prediction_type)

    @classmethod
    def rectified_flow(cls, n_steps: int = 1000, shift: float = 1.0) -> "NoiseProcess":
        """sigma_t from 1/n to 1, shifted as in SD 3 (Esser et al. 2024, Eq. 23): s sigma / (1 + (s - 1) sigma)."""
        sigma = torch.arange(1, n_steps + 1, dtype=torch.float64) / n_steps
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        return cls((1 - sigma).float(), sigma.float(), "velocity")

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def last(self) -> int:
        """The largest timestep at which x_t still holds some of x0: alpha_t > 0."""
        return int(self.alpha.nonzero()[-1])

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, each (B, 1, 1, 1, 1), at integer timesteps (B,)."""
        shape = (-1, 1, 1, 1, 1)
        return self.alpha.to(t.device)[t].view(shape), self.sigma.to(t.device)[t].view(shape)

    def noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """A network's prediction as noise."""
        alpha_t, sigma_t = self.at(t)
        if self.prediction_type == "epsilon":
            return prediction
        if self.prediction_type == "v_prediction":
            return alpha_t * prediction + sigma_t * x_t
        if self.prediction_type == "velocity":
            return x_t + alpha_t * prediction
        return noise_from_x0(x_t, prediction, alpha_t, sigma_t)

    def target(self, noise: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """What a network should predict where `noise` was added to x0: the inverse of `noise`."""
        alpha_t, sigma_t = self.at(t)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return alpha_t * noise - sigma_t * x0
        return noise - x0 if self.prediction_type == "velocity" else x0

    def x0(self, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The one-step estimate of x0 (Tweedie)."""
        return x0_from_noise(x_t, noise, *self.at(t))


def scaled_linear_alphas_cumprod(n_steps: int = 1000, beta_0: float = 0.00085, beta_1: float = 0.012) -> Tensor:
    """abar (n_steps,) of Stable Diffusion and MVDream: betas are squares of a linear ramp between the roots."""
    betas = torch.linspace(beta_0**0.5, beta_1**0.5, n_steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def x0_from_noise(x_t: Tensor, noise: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """The one-step estimate (x_t - sigma_t noise) / alpha_t (Tweedie)."""
    return (x_t - sigma_t * noise) / alpha_t


def noise_from_x0(x_t: Tensor, x0: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """The noise in x_t if its clean version is x0."""
    return (x_t - alpha_t * x0) / sigma_t


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of x.

    Drawn in float32 on the generator's own device: the same seed gives the same noise in any precision, and a CPU
    generator the same noise on any device. Its first dimension counts rigs, or what each has as many of (`per_rig`).
    """
    if generator is None:
        return torch.randn(x.shape, device=x.device).to(x)
    return per_rig(torch.randn, x.shape, generator).to(x)


@dataclass(frozen=True)
class Noised:
    """Latents at one noise level per rig: x_t = alpha_t z + sigma_t noise. Without a graph."""

    x_t: Tensor  # (B, V, C, h, w)
    noise: Tensor  # (B, V, C, h, w)
    t: Tensor  # (B,) shared by the rig's views
    alpha_t: Tensor  # (B, 1, 1, 1, 1)
    sigma_t: Tensor  # (B, 1, 1, 1, 1)
    latents: Tensor  # (B, V, C, h, w) z

    def x0(self, noise: Tensor) -> Tensor:
        """The clean latents that a noise prediction implies."""
        return x0_from_noise(self.x_t, noise, self.alpha_t, self.sigma_t)


def draw_timesteps(
    process: NoiseProcess, n_rigs: int, t_min: float, t_max: float, generator: torch.Generator | None
) -> Tensor:
    """Timesteps (B,), uniform from [int(n t_min), int(n t_max)], both inclusive, of a process with n.

    The views of a rig share a timestep, since an energy compares them; rigs draw their own (the official implementation
    draws one for its whole batch, which is the same for its single rig). No timestep without any signal is drawn.

    Raises UserError for a range that is empty or leaves [0, 1].
    """
    if not 0 <= t_min <= t_max <= 1:
        raise UserError(f"schedule.t_min and t_max must satisfy 0 <= t_min <= t_max <= 1, got {t_min:g} and {t_max:g}")
    lowest, highest = (min(int(len(process) * t), process.last) for t in (t_min, t_max))
    return per_rig(partial(torch.randint, lowest, highest + 1), (n_rigs,), generator)


def check_timesteps(n: int, others: int, what: str) -> None:
    """Raise UserError, one line, for a model of another number of timesteps than n, by which it is to be asked."""
    if others != n:
        raise UserError(f"the {what} has {others} timesteps, and the prior that draws them {n}: wanted as many")


def add_noise(
    process: NoiseProcess,
    latents: Tensor,  # (B, V, C, h, w)
    t: Tensor,  # (B,)
    generator: torch.Generator | None,
) -> Noised:
    """x_t at these timesteps, with noise from the generator."""
    latents, t = latents.detach(), t.to(latents.device)
    alpha_t, sigma_t = process.at(t)
    noise = noise_like(latents, generator)
    return Noised(alpha_t * latents + sigma_t * noise, noise, t, alpha_t, sigma_t, latents)
