"""Joint score distillation, Eq. 2 to 5 of the paper.

    grad = w(t) [A - lambda sigma_t dC/dx_t - B]

A is the noise that the prior predicts under the text (priors/guidance.py), C the energy between the views (energies/),
B the noise that was drawn (baselines.py). Without an energy this is SDS. All latents are
(B, V, C, h, w); B rigs never influence each other.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from jointdreamer.arguments import Positive, Share
from jointdreamer.cameras import Cameras, Rig
from jointdreamer.diffusion import Noised, add_noise, draw_timesteps, noise_from_x0
from jointdreamer.distillation.base import Term
from jointdreamer.distillation.baselines import Baseline, DrawnNoise
from jointdreamer.energies.base import Energy, Views
from jointdreamer.energies.none import NoEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.prompts import TextEmbeddings, TextPair
from jointdreamer.scenes.base import Render, Scene

WEIGHTINGS = {  # w(t)
    "sds": lambda alpha_t, sigma_t: sigma_t**2,  # DreamFusion's, the official implementation's default
    "uniform": lambda alpha_t, sigma_t: torch.ones_like(sigma_t),
    "fantasia3d": lambda alpha_t, sigma_t: alpha_t * sigma_t**2,
    "x0": lambda alpha_t, sigma_t: sigma_t / alpha_t,  # makes Eq. 2 z - x0: MVDream's reconstruction loss
}


class JointScoreDistillation(Term):
    """Eq. 5: the views of a rig are distilled together.

    prior: whose text the views follow
    text: the prompt, embedded by the prior
    energy: how well the views agree, Eq. 3
    baseline: what is subtracted, the drawn noise by default
    name: of its loss in `schedule.loss`
    weighting: w(t), one of WEIGHTINGS
    mask, mask_floor, energy_x0: see `energy_gradient`
    energy_limit: see `bounded_weight`
    x0_limit: see `limit_x0`
    timesteps: another term whose timesteps this one takes instead of drawing its own
    chunk: images in the autoencoder at a time, all by default

    Raises UserError for an unknown weighting or mask.
    """

    def __init__(
        self,
        prior: Prior,
        text: TextEmbeddings,
        energy: Energy | None = None,
        baseline: Baseline | None = None,
        name: str = "jsd",
        weighting: Literal["sds", "uniform", "fantasia3d", "x0"] = "sds",
        mask: Literal["input", "gradient", "none"] = "input",
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
        if mask not in ("input", "gradient", "none"):
            raise UserError(f"unknown energy mask {mask!r}: choose input, gradient or none")
        self.prior, self.text, self.name = prior, text, name
        self.energy, self.baseline = energy or NoEnergy(), baseline or DrawnNoise()
        self.weighting = WEIGHTINGS[weighting]
        self.mask: Literal["input", "gradient", "none"] = mask
        self.mask_floor = mask_floor
        self.energy_x0, self.energy_limit, self.x0_limit = energy_x0, energy_limit, x0_limit
        self.borrowed = [timesteps]  # in a list: the other term is no part of this one
        self.chunk: int | None = chunk
        self.t = torch.zeros(0)  # the last step's timesteps
        self.latents: dict[str, Tensor] = {}  # what `pictures` decodes

    def forward(
        self, scene: Scene, render: Render, cameras: Cameras, now: SimpleNamespace, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if not getattr(now.loss, self.name, 0):
            return {}
        latents = self.prior.encode(render.rgb, generator, chunk=self.chunk)  # z (B, V, C, h, w)
        self.t = self.draw_timesteps(len(latents), now, generator)
        noised = add_noise(self.prior.process, latents, self.t, generator)  # x_t = alpha_t z + sigma_t eps
        joint = self.joint_noise(noised, render, cameras, now, generator)  # A - lambda sigma_t dC/dx_t
        subtracted = self.baseline(noised, cameras, now)  # B, for SDS and JSD the drawn noise eps
        grad = self.weighting(noised.alpha_t, noised.sigma_t) * (joint - subtracted)  # Eq. 5
        return {self.name: surrogate_loss(latents, grad)}

    def joint_noise(
        self,
        noised: Noised,
        render: Render | None,
        cameras: Cameras,
        now: SimpleNamespace,
        generator: torch.Generator | None,
    ) -> Tensor:
        """A - lambda sigma_t dC/dx_t (B, V, C, h, w): the noise that the prior and the energy predict together.

        render: what the energy sees beside x0; None decodes the prior's guided x0, where there is no scene
        """
        prior, x_t, t = self.prior, noised.x_t, noised.t
        words = [self.text.at(cameras), self.text.nothing(cameras, now.negative_prompt)]
        cond, uncond = prior.predict(x_t, t, words, cameras)
        target = prior.guidance.noise(prior.process, x_t, t, cond, uncond, now.guidance_scale)  # A
        seen = target if self.energy_x0 == "guided" else uncond  # by the energy
        energy_grad, coherence = energy_gradient(  # dC/dx_t, C
            self.energy, prior, noised, target, seen, render, cameras,
            TextPair(words[0].embedding, words[1].embedding), now.energy_weight, generator, self.mask, self.mask_floor,
        )  # fmt: skip
        energy_weight = bounded_weight(now.energy_weight, noised, self.energy_limit)  # lambda
        joint = limit_x0(target - energy_weight * noised.sigma_t * energy_grad, noised, self.x0_limit)

        self.metrics = {"coherence": coherence.mean()}
        self.latents = {}
        if energy_grad.any():
            self.latents = {
                "noised": x_t,
                "x0 of the prior": noised.x0(target),
                "x0 that the energy wants": noised.x0(seen) + noised.alpha_t * energy_grad,  # dC/dx0 = alpha_t dC/dx_t
                "x0 after the energy": noised.x0(joint),
            }
        return joint

    def draw_timesteps(self, n_rigs: int, now: SimpleNamespace, generator: torch.Generator) -> Tensor:
        """(B,) drawn from [t_min, t_max] of this step, or another term's."""
        if self.borrowed[0] is not None:
            return self.borrowed[0].t
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
        """Of the first rig: the noisy latents, the prior's guided x0, what the energy wanted, and the joint x0.

        What the energy wanted is the x0 that it saw plus dC/dx0: for Eq. 8 the multi-view model's own x0, where the
        mask is 1.
        """
        return {name: self.prior.decode(latents[:1])[0] for name, latents in self.latents.items()}


def energy_gradient(
    energy: Energy,
    prior: Prior,
    noised: Noised,
    guided: Tensor,  # (B, V, C, h, w) the prior's guided noise, A
    seen: Tensor,  # (B, V, C, h, w) the noise whose one-step x0 the energy sees
    render: Render | None,
    cameras: Cameras,
    text: TextPair,
    energy_weight: float,
    generator: torch.Generator | None,
    mask: Literal["input", "gradient", "none"] = "input",
    mask_floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """dC/dx_t (B, V, C, h, w) and the coherence C (B,), through the one-step x0 alone, never through a UNet.

    x0 = (x_t - sigma_t seen) / alpha_t, with `seen` held constant. In the official implementation it is the prediction
    without the text, for an energy that reads the text itself, as Eq. 8's does; one that looks at pictures alone has to
    see the guided one, with the second face that the text puts there.

    m is the rendered opacity, resized bilinearly to the latents and raised to at least `mask_floor`, so that new parts
    can still grow:
      "input"     x0 = (m x_t - sigma_t e) / alpha_t   the official implementation: the energy sees the object only
      "gradient"  x0 unmasked, dC/dx_t times m         the energy sees everything and moves the object only
      "none"      no mask

    Without a render the energy sees the decoded guided x0, and its latents.

    With energy_weight 0 or NoEnergy nothing is computed: zeros, no network is called, no random number is drawn.
    Raises UserError if an energy does not return (B,) or forgets x0.
    """
    b = len(noised.x_t)
    if energy_weight == 0 or isinstance(energy, NoEnergy):
        return torch.zeros_like(noised.x_t), noised.x_t.new_zeros(b)
    latents, x0_guided = noised.latents, noised.x0(guided.detach())
    if render is None:
        latents, rgb = x0_guided, prior.decode(x0_guided).clamp(0, 1)
        render = Render(rgb, torch.ones_like(rgb[:, :, :1]))
    opacity = render.opacity.detach()
    m = interpolate(opacity.flatten(0, 1), noised.x_t.shape[-2:], mode="bilinear", align_corners=False)
    m = m.unflatten(0, opacity.shape[:2]).clamp_min(mask_floor)
    with torch.enable_grad():
        x_t = noised.x_t.detach().requires_grad_(True)
        masked = m * x_t if mask == "input" else x_t
        views = Views(
            x0=(masked - noised.sigma_t * seen.detach()) / noised.alpha_t,
            rgb=render.rgb.detach(),
            opacity=opacity,
            cameras=cameras,
            timesteps=noised.t,
            text=text,
            decode=prior.decode,
            encode=partial(prior.encode, generator=generator, grad=False),
            x0_guided=x0_guided,
            latents=latents,
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


def bounded_weight(energy_weight: float, noised: Noised, limit: float | None) -> float | Tensor:
    """lambda such that the energy moves the implied x0 by at most `limit` dC/dx0; None leaves it as it is.

    Eq. 5 moves x0 by lambda sigma_t^2 / alpha_t^2 dC/dx0: 60 to 200 times lambda at large t, far beyond the optimum of
    any energy. The harmonic sum 1 / (1 / (lambda sigma_t^2 / alpha_t^2) + 1 / limit) keeps Eq. 5 where its step is
    small. With limit 1 it is the implicit (proximal) step for an energy of curvature 1 such as Eq. 8: no step passes
    the optimum.
    """
    if limit is None:
        return energy_weight
    step = energy_weight * (noised.sigma_t / noised.alpha_t).square()
    return energy_weight / (1 + step / limit)


def limit_x0(noise_pred: Tensor, noised: Noised, limit: float | None) -> Tensor:
    """The noise prediction whose implied x0 is clamped to +- limit; None leaves it untouched.

    sigma_t / alpha_t is 8 to 14 at large t, so the energy's term can push the implied x0 far beyond any image.
    """
    if limit is None:
        return noise_pred
    return noise_from_x0(noised.x_t, noised.x0(noise_pred).clamp(-limit, limit), noised.alpha_t, noised.sigma_t)


def surrogate_loss(latents: Tensor, grad: Tensor) -> Tensor:
    """A scalar whose gradient with respect to the latents is exactly grad / (B V), and whose value is |grad|^2 / 2BV.

    It is the official 1/2 |z - stopgrad(z - grad)|^2 / rows, written so that no digit is lost in z - (z - grad). A mean
    over the rendered views, like the regularizers it is added to. The energy's share is a mean over rigs of what each
    rig says alone: unlike in the official implementation, its weight does not depend on the size of the batch.
    """
    rows = latents.shape[0] * latents.shape[1]
    grad = grad.detach()
    return ((latents - latents.detach()) * grad + 0.5 * grad.square()).sum() / rows
