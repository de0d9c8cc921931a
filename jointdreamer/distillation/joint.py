"""Score distillation, Eq. 2 to 5: noise the latents, ask the priors, form the gradient, hand it to autograd.

    noised = add_noise(guidance, latents, now.t_min, now.t_max, generator)
    pred = guidance.predict_noise(noised, text, now.guidance_scale)
    energy_grad, coherence = energy_gradient(energy, guidance, noised, pred, render, cameras, text, weight, generator)
    grad = jsd_gradient(pred.noise, noised.noise, energy_grad, noised.sigma_t, noised.weight, weight)
    loss = surrogate_loss(latents, grad)

All latents are (B, V, C, h, w); B rigs never influence each other. Random numbers come from the generator alone.
"""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import alpha_sigma, noise_from_x0, noise_like, x0_from_noise
from jointdreamer.energies.base import Energy, Views
from jointdreamer.energies.none import NoEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Guidance, NoisePrediction
from jointdreamer.priors.prompts import Conditioning

WEIGHTINGS = {
    "sds": lambda alpha_t, sigma_t: sigma_t**2,  # DreamFusion's, the release's default
    "uniform": lambda alpha_t, sigma_t: torch.ones_like(sigma_t),
    "fantasia3d": lambda alpha_t, sigma_t: alpha_t * sigma_t**2,
    "x0": lambda alpha_t, sigma_t: sigma_t / alpha_t,  # makes Eq. 2 z - x0: MVDream's reconstruction loss
}


class Rendered(Protocol):
    """The part of renderers.volume.Render that an energy sees."""

    @property
    def rgb(self) -> Tensor: ...  # (B, V, 3, R, R)

    @property
    def opacity(self) -> Tensor: ...  # (B, V, 1, R, R)


@dataclass(frozen=True)
class Noised:
    """Latents at one noise level per rig: x_t = alpha_t z + sigma_t noise. Without a graph."""

    latents_noisy: Tensor  # (B, V, C, h, w)
    noise: Tensor  # (B, V, C, h, w)
    timesteps: Tensor  # (B,) shared by the rig's views
    alpha_t: Tensor  # (B, 1, 1, 1, 1)
    sigma_t: Tensor  # (B, 1, 1, 1, 1)
    weight: Tensor  # (B, 1, 1, 1, 1), w(t)
    latents: Tensor  # (B, V, C, h, w) z


def add_noise(
    guidance: Guidance,
    latents: Tensor,  # (B, V, C, h, w)
    t_min: float,
    t_max: float,
    generator: torch.Generator | None,
    weighting: str = "sds",
) -> Noised:
    """Noise the latents at a timestep drawn uniformly from [int(1000 t_min), int(1000 t_max)], both inclusive.

    The views of a rig share a timestep, since an energy compares them; rigs draw their own (the release draws one for
    its whole batch, which is the same for its single rig). The timesteps are drawn first, then the noise.

    Raises UserError for a range that is empty or leaves [0, 1], and for an unknown weighting.
    """
    if not 0 <= t_min <= t_max <= 1:
        raise UserError(f"schedule.t_min and t_max must satisfy 0 <= t_min <= t_max <= 1, got {t_min:g} and {t_max:g}")
    if weighting not in WEIGHTINGS:
        raise UserError(f"unknown weighting {weighting!r}: choose one of {', '.join(WEIGHTINGS)}")
    n = len(guidance.alphas_cumprod)
    lowest, highest = (min(int(n * t), n - 1) for t in (t_min, t_max))
    device = generator.device if generator is not None else latents.device
    timesteps = torch.randint(lowest, highest + 1, latents.shape[:1], generator=generator, device=device)
    return noise_at(guidance, latents, timesteps, generator, weighting)


def noise_at(
    guidance: Guidance,
    latents: Tensor,  # (B, V, C, h, w)
    timesteps: Tensor,  # (B,)
    generator: torch.Generator | None,
    weighting: str = "sds",
) -> Noised:
    """`add_noise` at timesteps that were drawn already."""
    latents, timesteps = latents.detach(), timesteps.to(latents.device)
    alpha_t, sigma_t = alpha_sigma(guidance.alphas_cumprod, timesteps)
    noise = noise_like(latents, generator)
    latents_noisy = alpha_t * latents + sigma_t * noise
    return Noised(latents_noisy, noise, timesteps, alpha_t, sigma_t, WEIGHTINGS[weighting](alpha_t, sigma_t), latents)


@torch.no_grad()
def one_step_images(
    guidance: Guidance,
    rgb: Tensor,  # (N, 3, R, R) in [0, 1]
    t_min: float,
    t_max: float,
    words: Tensor,  # (N, L, D) of each image, or (1, L, D) of all
    nothing: Tensor,  # (1, L, D) the empty prompt's embedding
    guidance_scale: float,
    generator: torch.Generator | None,
) -> Tensor:
    """The images (N, 3, H, W) as an energy sees renders: noised, all to one t, and estimated in one step.

    About [0, 1], not clamped, as `guidance.decode` gives them.
    """
    noised = add_noise(guidance, guidance.encode(rgb[None], generator, grad=False), t_min, t_max, generator)
    text = Conditioning(*(x.expand(len(rgb), -1, -1)[None] for x in (words, nothing)))
    noise = guidance.predict_noise(noised, text, guidance_scale).noise
    return guidance.decode(x0_from_noise(noised.latents_noisy, noise, noised.alpha_t, noised.sigma_t))[0]


def energy_gradient(
    energy: Energy,
    guidance: Guidance,
    noised: Noised,
    pred: NoisePrediction,
    render: Rendered,
    cameras: Cameras,
    text: Conditioning,
    energy_weight: float,
    generator: torch.Generator | None,
    mask: Literal["input", "gradient", "none"] = "input",
    mask_floor: float = 0.0,
    energy_x0: Literal["uncond", "guided"] = "uncond",
) -> tuple[Tensor, Tensor]:
    """dC/dx_t (B, V, C, h, w) and the coherence C (B,), through the one-step x0 alone, never through a UNet.

    x0 = (x_t - sigma_t e) / alpha_t with the prediction e of `energy_x0` (`NoisePrediction.for_energy`) held constant.
    m is the rendered opacity, resized bilinearly to the latents and raised to at least `mask_floor`, so that new parts
    can still grow:
      "input"     x0 = (m x_t - sigma_t e) / alpha_t   the release: the energy sees, and moves, the object only
      "gradient"  x0 unmasked, dC/dx_t times m         the energy sees everything and moves the object only
      "none"      no mask

    With energy_weight 0 or NoEnergy nothing is computed: zeros, no network is called, no random number is drawn.
    Raises UserError if an energy does not return (B,) or forgets x0, and for an unknown mask.
    """
    b = noised.latents_noisy.shape[0]
    if energy_weight == 0 or isinstance(energy, NoEnergy):
        return torch.zeros_like(noised.latents_noisy), noised.latents_noisy.new_zeros(b)
    if mask not in ("input", "gradient", "none"):
        raise UserError(f"unknown energy mask {mask!r}: choose input, gradient or none")

    opacity = render.opacity.detach()
    m = interpolate(opacity.flatten(0, 1), noised.latents_noisy.shape[-2:], mode="bilinear", align_corners=False)
    m = m.unflatten(0, opacity.shape[:2]).clamp_min(mask_floor)
    with torch.enable_grad():
        x_t = noised.latents_noisy.detach().requires_grad_(True)
        seen = m * x_t if mask == "input" else x_t
        views = Views(
            x0=x0_from_noise(seen, pred.for_energy(energy_x0).detach(), noised.alpha_t, noised.sigma_t),
            rgb=render.rgb.detach(),
            opacity=opacity,
            cameras=cameras,
            timesteps=noised.timesteps,
            text=text,
            decode=guidance.decode,
            encode=partial(guidance.encode, generator=generator, grad=False),
            x0_guided=x0_from_noise(noised.latents_noisy, pred.noise.detach(), noised.alpha_t, noised.sigma_t),
            latents=noised.latents,
            generator=generator,
        )
        coherence = energy(views)
        name = type(energy).__name__
        if not isinstance(coherence, Tensor) or coherence.shape != (b,):
            what = tuple(coherence.shape) if isinstance(coherence, Tensor) else type(coherence).__name__
            raise UserError(f"energy {name} must return one number per rig, a tensor of shape ({b},), got {what}")
        grad = torch.autograd.grad(coherence.sum(), x_t, allow_unused=True)[0] if coherence.requires_grad else None
        if grad is None:
            raise UserError(f"energy {name} does not depend on views.x0, so it has no gradient: was x0 detached?")
    return (m * grad if mask == "gradient" else grad), coherence.detach()


def sds_gradient(noise_pred: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """Eq. 2: w(t) (eps_hat - eps)."""
    return weight * (noise_pred - noise)


def bounded_weight(energy_weight: float, noised: Noised, limit: float | None) -> float | Tensor:
    """The energy's weight such that it moves the implied x0 by at most `limit` dC/dx0; None leaves it as it is.

    Eq. 5 moves x0 by lambda sigma_t^2 / alpha_t^2 dC/dx0: 60 to 200 times lambda at large t, far beyond the optimum of
    any energy. The harmonic sum 1 / (1 / (lambda sigma_t^2 / alpha_t^2) + 1 / limit) keeps Eq. 5 where its step is
    small. With limit 1 it is the implicit (proximal) step for an energy of curvature 1 such as Eq. 8: no step passes
    the optimum.
    """
    if limit is None:
        return energy_weight
    step = energy_weight * (noised.sigma_t / noised.alpha_t).square()
    return energy_weight / (1 + step / limit)


def jsd_noise(noise_pred: Tensor, energy_grad: Tensor, sigma_t: Tensor, energy_weight: float | Tensor) -> Tensor:
    """The noise prediction of the joint model: eps_hat - lambda sigma_t dC/dx_t.

    The paper's Eq. 5 and 9 print no sigma_t; its Appendix B implies one (score = -eps / sigma_t), and the release has
    it. Classifier guidance reads the same.
    """
    return noise_pred - energy_weight * sigma_t * energy_grad


def jsd_gradient(
    noise_pred: Tensor, noise: Tensor, energy_grad: Tensor, sigma_t: Tensor, weight: Tensor, energy_weight: float
) -> Tensor:
    """Eq. 5: w(t) (eps_hat - lambda sigma_t dC/dx_t - eps). Without an energy this is SDS, bit for bit."""
    return sds_gradient(jsd_noise(noise_pred, energy_grad, sigma_t, energy_weight), noise, weight)


def limit_x0(noise_pred: Tensor, noised: Noised, limit: float | None) -> Tensor:
    """The noise prediction whose implied x0 is clamped to +- limit; None leaves it untouched.

    sigma_t / alpha_t is 8 to 14 at large t, so the energy's term can push the implied x0 far beyond any image. Used as
        noise_pred = limit_x0(jsd_noise(pred.noise, energy_grad, noised.sigma_t, weight), noised, limit)
        grad = sds_gradient(noise_pred, noised.noise, noised.weight)
    """
    if limit is None:
        return noise_pred
    x0 = x0_from_noise(noised.latents_noisy, noise_pred, noised.alpha_t, noised.sigma_t)
    return noise_from_x0(noised.latents_noisy, x0.clamp(-limit, limit), noised.alpha_t, noised.sigma_t)


def surrogate_loss(latents: Tensor, grad: Tensor) -> Tensor:
    """A scalar whose gradient with respect to the latents is exactly grad / (B V), and whose value is |grad|^2 / 2BV.

    It is the release's 1/2 |z - stopgrad(z - grad)|^2 / rows, written so that no digit is lost in z - (z - grad). A
    mean over the rendered views, like the regularizers it is added to. The energy's share is a mean over rigs of what
    each rig says alone: unlike in the release, its weight does not depend on the size of the batch.
    """
    rows = latents.shape[0] * latents.shape[1]
    grad = grad.detach()
    return ((latents - latents.detach()) * grad + 0.5 * grad.square()).sum() / rows


def mvdream_loss(
    prior: Guidance | None,
    rgb: Tensor,  # (B, V, 3, R, R)
    noised: Noised,
    text: Conditioning,
    weights: SimpleNamespace,
    generator: torch.Generator | None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """{"mvdream": 1/2 |z - x0|^2 / B V}, what Fig. 10 adds to SDS, not multiplied by its weight.

    z are the renders in the latents of `prior`, the multi-view model, and x0, a constant, is what it sees in them at
    the timesteps of `noised`, under noise of its own. Where there is no prior, or `weights.mvdream` (as in `now.loss`)
    is 0 or not there: {}, nothing is computed, no random number is drawn.
    """
    if prior is None or getattr(weights, "mvdream", 0) == 0:
        return {}
    latents = prior.encode(rgb, generator, chunk=chunk)
    seen = noise_at(prior, latents, noised.timesteps, generator, "x0")
    pred = prior.predict_noise(seen, text, 0.0)
    return {"mvdream": surrogate_loss(latents, sds_gradient(pred.noise, seen.noise, seen.weight))}
