"""Joint score distillation, Section 4.1 of the paper.

The V views x^1 .. x^V of a scene that cameras c see are to follow

    p(x^1, ..., x^V | c, y) ~ exp(C(x, c)) prod_i p(x^i | y)                                                  (Eq. 3)

with an energy C that is the larger, the better the views agree. The KL divergence of the rendered views from it (Eq. 4)
has, at each noise level, the score of the prior plus dC/dx_t; as noise that is -sigma_t times the score:

    grad = E_{t, eps} sum_i w(t) [ eps_hat(x_t^i; y, t) - sigma_t dC/dx_t^i - eps^i ] dz^i/dtheta              (Eq. 5)

Without an energy this is SDS (Eq. 2). eps_hat is `noise_pred`, guided by the text (priors/guidance.py); what is
subtracted is a `Baseline`, here the noise eps that was added. Not in the paper, and off unless asked for: a bound of
the energy's weight (`damped_weight`), a clamp of x0 (`clamp_x0`), and one of the gradient's elements
(`schedule.grad_clip`; Hong et al. 2023). The views count as their mean (`surrogate_loss`).

A rig is the V cameras of one joint prediction: one t for its views, eps for each view. Latents are (B, V, C, h, w);
B rigs never influence each other.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from jointdreamer.arguments import Positive, Share
from jointdreamer.cameras import Cameras, Rig
from jointdreamer.diffusion import Noised, check_timesteps, draw_timesteps, noise_from_x0
from jointdreamer.distillation.base import Term
from jointdreamer.distillation.baselines import AddedNoise, Baseline
from jointdreamer.distillation.targets import ClassifierFree, Target
from jointdreamer.energies.base import Energy, Views
from jointdreamer.energies.none import NoEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Condition, Conditions
from jointdreamer.priors.prompts import TextPair
from jointdreamer.scenes.base import Render, Scene

Mask = Literal["input", "gradient", "none"]

WEIGHTINGS = {  # w(t)
    "sds": lambda alpha_t, sigma_t: sigma_t**2,  # DreamFusion's, the official implementation's default
    "uniform": lambda alpha_t, sigma_t: torch.ones_like(sigma_t),
    "fantasia3d": lambda alpha_t, sigma_t: alpha_t * sigma_t**2,
    "x0": lambda alpha_t, sigma_t: sigma_t / alpha_t,  # makes Eq. 2 z - x0: MVDream's reconstruction loss
    "velocity": lambda alpha_t, sigma_t: 1 / alpha_t,  # of a rectified flow, v_hat - (noise - z): RFDS
}


class JointScoreDistillation(Term):
    """Eq. 5: the views of a rig are distilled together.

    prior: whose text the views follow
    text: the prompt, embedded by the prior, or what a novel-view model is told of a given image
    energy: how well the views agree, Eq. 3
    baseline: what is subtracted, the added noise by default
    target: what the prior wants, its guided prediction by default
    name: of its loss in `schedule.loss`
    weighting: w(t), one of WEIGHTINGS
    mask: how the rendered opacity m enters the energy
        "input"     x0 = (m x_t - sigma_t eps_hat) / alpha_t   the official implementation
        "gradient"  x0 unmasked, dC/dx_t times m               the energy sees everything and moves the object only
        "none"      no mask
    mask_floor: m is at least this, so that new parts can grow
    energy_x0: whose one-step x0 the energy sees. "uncond", the official implementation's: the prediction for the empty
        or the negative prompt, for an energy that reads the text itself. "guided": the prediction that is distilled,
        for one that looks at pictures alone and has to see the Janus face that the text puts there
    energy_limit: see `damped_weight`
    x0_limit: see `clamp_x0`; of the noise prediction with the energy in it, while a prior's own is that of guidance
    timesteps: another term whose timesteps this one takes instead of drawing its own
    chunk: images in the autoencoder at a time, all by default

    Raises UserError for an unknown weighting or mask, and models that are asked together with other timesteps.
    """

    def __init__(
        self,
        prior: Prior,
        text: Conditions,
        energy: Energy | None = None,
        baseline: Baseline | None = None,
        target: Target | None = None,
        name: str = "jsd",
        weighting: Literal["sds", "uniform", "fantasia3d", "x0", "velocity"] = "sds",
        mask: Mask = "input",
        mask_floor: Share = 0.0,
        energy_x0: Literal["uncond", "guided"] = "uncond",
        energy_limit: Positive | None = None,
        x0_limit: Positive | None = None,
        timesteps: "JointScoreDistillation | None" = None,
        chunk: int | None = None,
    ):
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise UserError(f"unknown weighting {weighting!r}: choose one of {', '.join(WEIGHTINGS)}")
        if mask not in get_args(Mask):
            raise UserError(f"unknown energy mask {mask!r}: choose input, gradient or none")
        if timesteps is not None:
            check_timesteps(len(timesteps.prior.process), len(prior.process), f"prior of {name}")
        if energy is not None:
            energy.check_timesteps(len(prior.process))
        self.prior, self.text, self.name = prior, text, name
        self.energy, self.baseline = energy or NoEnergy(), baseline or AddedNoise()
        self.target = target or ClassifierFree()
        self.weighting = WEIGHTINGS[weighting]
        self.mask: Mask = mask
        self.mask_floor = mask_floor
        self.energy_x0, self.energy_limit, self.x0_limit = energy_x0, energy_limit, x0_limit
        self.partner = [timesteps]  # in a list: the other term is no part of this one
        self.chunk: int | None = chunk
        self.t = torch.zeros(0)  # the last step's timesteps
        self.latents: dict[str, Tensor] = {}  # what `pictures` decodes

    def forward(
        self, scene: Scene, render: Render, cameras: Cameras, now: SimpleNamespace, generator: torch.Generator
    ) -> dict[str, Tensor]:
        self.metrics, self.latents = {}, {}
        if not getattr(now.loss, self.name, 0):
            return {}
        latents = self.prior.encode(render.rgb, generator, chunk=self.chunk)  # z (B, V, C, h, w)
        self.t = self.draw_timesteps(len(latents), now, generator)  # (B,)
        noised = self.baseline.add_noise(  # x_t = alpha_t z + sigma_t eps
            self.prior.process, latents, self.t, cameras, now, generator
        )
        noise_pred = self.joint_noise_pred(noised, render, cameras, now, generator)  # eps_hat - sigma_t dC/dx_t
        noise = self.baseline(noised, cameras, now)  # eps
        grad = self.weighting(noised.alpha_t, noised.sigma_t) * (noise_pred - noise)  # Eq. 5, less dz/dtheta
        if (limit := getattr(now, "grad_clip", None)) is not None:
            grad = grad.clamp(-limit, limit)
        return {self.name: surrogate_loss(latents, grad), **self.baseline.losses(noised, cameras, generator)}

    def joint_noise_pred(
        self,
        noised: Noised,
        render: Render | None,
        cameras: Cameras,
        now: SimpleNamespace,
        generator: torch.Generator | None,
    ) -> Tensor:
        """eps_hat - lambda sigma_t dC/dx_t (B, V, C, h, w): the noise that prior and energy predict together.

        render: what the energy sees beside x0; None, where there is no scene, decodes the prior's guided x0
        """
        prior, x_t, t = self.prior, noised.x_t, noised.t
        conditions = self.target.conditions(self.text, cameras, now)
        predictions = checked(prior, x_t, prior.predict(x_t, t, conditions, cameras), len(conditions))
        noise_pred = self.target(prior, noised, predictions, cameras, now)  # eps_hat
        if now.energy_weight == 0 or isinstance(self.energy, NoEnergy):
            self.metrics = {"coherence": x_t.new_zeros(())}
            return clamp_x0(noise_pred, noised, self.x0_limit)

        seen = noise_pred if self.energy_x0 == "guided" else predictions[1]  # by the energy, as x0
        views = views_of(prior, noised, noise_pred, render, cameras, conditions[:2], generator, now.negative_prompt)
        energy_grad, coherence = energy_gradient(self.energy, views, noised, seen, self.mask, self.mask_floor)
        energy_weight = damped_weight(now.energy_weight, noised, self.energy_limit)  # lambda
        joint = clamp_x0(noise_pred - energy_weight * noised.sigma_t * energy_grad, noised, self.x0_limit)

        self.metrics = {"coherence": coherence.mean()}
        self.latents = {
            "noised": x_t,
            "x0 of the prior": noised.x0(noise_pred),
            "x0 that the energy wants": noised.x0(seen) + noised.alpha_t * energy_grad,  # dC/dx0 = alpha_t dC/dx_t
            "x0 after the energy": noised.x0(joint),
        }
        return joint

    def draw_timesteps(self, n_rigs: int, now: SimpleNamespace, generator: torch.Generator) -> Tensor:
        """(B,) drawn from [t_min, t_max] of this step; or those of another term that has a weight in it."""
        if (partner := self.partner[0]) is not None and getattr(now.loss, partner.name, 0):
            return partner.t.clamp_max(self.prior.process.last)
        return draw_timesteps(self.prior.process, n_rigs, now.t_min, now.t_max, generator)

    def check(self, rig: Rig) -> None:
        self.energy.check_rig(rig)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return self.baseline.parameter_groups()

    def describe(self) -> dict[str, str]:
        weight = next(self.prior.parameters(), None)
        return {} if weight is None else {"networks": str(weight.dtype).removeprefix("torch.")}

    def sources(self) -> list[Path]:
        return [source for source in (self.prior.source, self.energy.source) if source is not None]

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """Of the first rig: the noised latents, the prior's guided x0, what the energy wants, and the joint x0.

        What the energy wants is the one-step x0 plus dC/dx0: for a reconstruction energy its model's own x0, where the
        mask is 1.
        """
        return {name: self.prior.decode(latents[:1])[0] for name, latents in self.latents.items()}


def energy_gradient(
    energy: Energy,
    views: Views,  # what the energy sees beside x0
    noised: Noised,
    noise_pred: Tensor,  # (B, V, C, h, w) whose one-step x0 the energy sees
    mask: Mask = "input",
    mask_floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """dC/dx_t (B, V, C, h, w) through the one-step x0 = (x_t - sigma_t noise_pred) / alpha_t, and C (B,).

    noise_pred is held constant: no gradient passes through the prior's network. mask, mask_floor: see
    `JointScoreDistillation`. Outside the object "input" shows the energy noise instead of the background.

    Raises UserError if an energy does not return (B,) or does not depend on x0.
    """
    m = resized_opacity(views.opacity, noised.x_t.shape[-2:]).clamp_min(mask_floor)
    with torch.enable_grad():
        x_t = noised.x_t.detach().requires_grad_(True)
        masked = m * x_t if mask == "input" else x_t
        x0 = (masked - noised.sigma_t * noise_pred.detach()) / noised.alpha_t
        coherence = energy(replace(views, x0=x0))  # C
        check_coherence(coherence, energy, len(x_t))
        grad = torch.autograd.grad(coherence.sum(), x_t, allow_unused=True)[0] if coherence.requires_grad else None
    if grad is None:
        name = type(energy).__name__
        raise UserError(f"energy {name} does not depend on views.x0, so it has no gradient: was x0 detached?")
    return (m * grad if mask == "gradient" else grad), coherence.detach()


def views_of(
    prior: Prior,
    noised: Noised,
    noise_pred: Tensor,  # (B, V, C, h, w) guided
    render: Render | None,
    cameras: Cameras,
    conditions: Sequence[Condition],  # the prompt, and what guidance steers away from
    generator: torch.Generator | None,
    negative_prompt: bool = False,  # whether the second condition is the negative prompt
) -> Views:
    """What an energy sees of a rig's views; x0, which alone has a gradient, is put in by `energy_gradient`.

    Without a render it sees the decoded guided x0, and its latents.
    """
    x0 = noised.x0(noise_pred.detach())
    latents = noised.latents
    if render is None:
        latents, rgb = x0, prior.decode(x0).clamp(0, 1)
        render = Render(rgb, torch.ones_like(rgb[:, :, :1]))
    return Views(
        x0=x0,
        rgb=render.rgb.detach(),
        opacity=render.opacity.detach(),
        cameras=cameras,
        timesteps=noised.t,
        text=TextPair(*(condition.embedding for condition in conditions)),
        decode=prior.decode,
        encode=partial(prior.encode, generator=generator, grad=False),
        x0_guided=x0,
        latents=latents,
        generator=generator,
        latent_space=prior.latent_space,
        negative_prompt=negative_prompt,
    )


def resized_opacity(opacity: Tensor, size: Sequence[int]) -> Tensor:
    """(B, V, 1, R, R) -> (B, V, 1, h, w), bilinear."""
    small = interpolate(opacity.flatten(0, 1), tuple(size), mode="bilinear", align_corners=False)
    return small.unflatten(0, opacity.shape[:2])


def checked(prior: Prior, x_t: Tensor, predictions: Sequence[Tensor], n: int) -> Sequence[Tensor]:
    """The n predictions. Raises UserError, one line, for a prior that returns others than noise of x_t's shape."""
    shapes = [tuple(one.shape) for one in predictions]
    if shapes != [tuple(x_t.shape)] * n:
        raise UserError(
            f"prior {type(prior).__name__}: predict must return the noise for each of {n} conditions, "
            f"{tuple(x_t.shape)}, got {shapes}"
        )
    return predictions


def check_coherence(coherence: Tensor, energy: Energy, n_rigs: int) -> None:
    """Raise UserError, one line, for an energy that does not return one number per rig."""
    if not isinstance(coherence, Tensor) or coherence.shape != (n_rigs,):
        what = tuple(coherence.shape) if isinstance(coherence, Tensor) else type(coherence).__name__
        name = type(energy).__name__
        raise UserError(f"energy {name} must return one number per rig, a tensor of shape ({n_rigs},), got {what}")


def damped_weight(energy_weight: float, noised: Noised, limit: float | None) -> float | Tensor:
    """lambda such that the energy moves the implied x0 by at most `limit` dC/dx0; None leaves it as it is.

    Eq. 5 moves x0 by lambda sigma_t^2 / alpha_t^2 dC/dx0: 60 to 200 times lambda at large t, far beyond the optimum of
    any energy. The harmonic sum 1 / (1 / (lambda sigma_t^2 / alpha_t^2) + 1 / limit) keeps Eq. 5 where its step is
    small. With limit 1 it is the implicit (proximal) step for an energy of curvature 1, 1/2 |x0 - target|^2: from the
    x0 that the energy sees, no step passes the optimum.
    """
    if limit is None:
        return energy_weight
    step = energy_weight * (noised.sigma_t / noised.alpha_t).square()
    return energy_weight / (1 + step / limit)


def clamp_x0(noise_pred: Tensor, noised: Noised, limit: float | None) -> Tensor:
    """The noise prediction whose implied x0 is clamped to +- limit (static thresholding); None leaves it untouched.

    sigma_t / alpha_t is 8 to 14 at large t, so the energy's term can push the implied x0 far beyond any image.
    """
    if limit is None:
        return noise_pred
    return noise_from_x0(noised.x_t, noised.x0(noise_pred).clamp(-limit, limit), noised.alpha_t, noised.sigma_t)


def surrogate_loss(latents: Tensor, grad: Tensor) -> Tensor:
    """A scalar whose gradient with respect to the latents is exactly grad / (B V), and whose value is |grad|^2 / 2BV.

    It is the official 1/2 |z - stopgrad(z - grad)|^2 / (B V), written so that no digit is lost in z - (z - grad). Eq.
    5's sum over the views is a mean here, as the regularizers are that it is added to.
    """
    n_images = latents.shape[0] * latents.shape[1]
    grad = grad.detach()
    return ((latents - latents.detach()) * grad + 0.5 * grad.square()).sum() / n_images
