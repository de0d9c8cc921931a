"""The noise process x_t = alpha_t x0 + sigma_t noise and its inverses (docs/conventions.md, Noise process).

alpha_t = sqrt(abar_t) and sigma_t = sqrt(1 - abar_t) broadcast against the latents. All functions are differentiable.
"""

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def scaled_linear_alphas_cumprod(n_steps: int = 1000, beta_0: float = 0.00085, beta_1: float = 0.012) -> Tensor:
    """abar (n_steps,) of Stable Diffusion and MVDream: betas are squares of a linear ramp between the roots."""
    betas = torch.linspace(beta_0**0.5, beta_1**0.5, n_steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def alpha_sigma(
    alphas_cumprod: Tensor,  # (1000,)
    timesteps: Tensor,  # (B,) integers
) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t, each (B, 1, 1, 1, 1): they broadcast against latents (B, V, C, h, w)."""
    abar = alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


def x0_from_noise(latents_noisy: Tensor, noise: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """The one-step estimate (x_t - sigma_t noise) / alpha_t (Tweedie)."""
    return (latents_noisy - sigma_t * noise) / alpha_t


def noise_from_x0(latents_noisy: Tensor, x0: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """The noise that x_t contains if its clean version is x0."""
    return (latents_noisy - alpha_t * x0) / sigma_t


def to_noise(prediction: Tensor, latents_noisy: Tensor, alpha_t: Tensor, sigma_t: Tensor, kind: str) -> Tensor:
    """What a network of this `prediction_type` predicts, as noise: epsilon, v_prediction or sample (x0)."""
    if kind == "epsilon":
        return prediction
    if kind == "v_prediction":
        return alpha_t * prediction + sigma_t * latents_noisy
    if kind == "sample":
        return noise_from_x0(latents_noisy, prediction, alpha_t, sigma_t)
    raise ValueError(f"unknown prediction_type {kind!r}: choose one of {', '.join(PREDICTION_TYPES)}")


def to_x0(prediction: Tensor, latents_noisy: Tensor, alpha_t: Tensor, sigma_t: Tensor, kind: str) -> Tensor:
    """What a network of this `prediction_type` predicts, as a clean sample."""
    if kind == "sample":  # exact: not through the noise and back
        return prediction
    if kind == "v_prediction":  # without a division, which would lose all where x_t is nearly noise
        return alpha_t * latents_noisy - sigma_t * prediction
    return x0_from_noise(latents_noisy, to_noise(prediction, latents_noisy, alpha_t, sigma_t, kind), alpha_t, sigma_t)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of x.

    Drawn in float32 on the generator's own device: the same seed gives the same noise in any precision, and a CPU
    generator the same noise on any device.
    """
    device = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=device).to(x)
