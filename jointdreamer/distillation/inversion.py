"""Baselines that look for their noise with the prior: DDIM inversion (SDI, ISM), and a shifted noise level (ASD)."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated

import torch
from torch import Tensor

from jointdreamer.arguments import Range, Scale, Share
from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import Noised, NoiseProcess, add_noise, noise_from_x0, noise_like, x0_from_noise
from jointdreamer.distillation.baselines import AskingBaseline
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Conditions
from jointdreamer.priors.guidance import guided
from jointdreamer.ranks import per_rig, ranks_of

Predict = Callable[[Tensor, Tensor], Tensor]  # x_t (B, V, C, h, w) and t (B,) -> noise (B, V, C, h, w)


def invert(
    process: NoiseProcess,
    predict: Predict,
    latents: Tensor,  # (B, V, C, h, w) clean
    timesteps: Tensor,  # (K, B) ascending
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Clean latents along the probability-flow ODE, backwards (DDIM inversion, Song et al. 2021).

    Returns x at the last timestep and the noise that was predicted before the last step, both (B, V, C, h, w). Each
    step asks for the noise where it starts, the first one at timestep 0.
    eta: share of the DDIM standard deviation, that of x before a step given x after it and the clean latents, which is
        added afresh at each step
    """
    x, t = latents, torch.zeros_like(timesteps[0])
    alpha, sigma = torch.ones_like(process.at(t)[0]), torch.zeros_like(process.at(t)[1])
    noise = torch.zeros_like(latents)
    for after in timesteps:
        noise = predict(x, t)
        alpha_after, sigma_after = process.at(after)
        x = alpha_after * x0_from_noise(x, noise, alpha, sigma) + sigma_after * noise
        if eta:
            between = sigma_after.square() - (alpha_after / alpha * sigma).square()  # variance that the noising adds
            spread = sigma / sigma_after * between.clamp_min(0).sqrt()
            x = x + eta * spread * noise_like(x, generator)
        t, alpha, sigma = after, alpha_after, sigma_after
    return x, noise


def evenly(t: Tensor, n_steps: int) -> Tensor:
    """Timesteps (K, B) from near 0 up to t (B,), for `invert`."""
    return (torch.arange(1, n_steps + 1, device=t.device)[:, None] / n_steps * t).long()


def known(process: NoiseProcess, x_t: Tensor, latents: Tensor, t: Tensor) -> Noised:
    """x_t with the noise that leads to it from these clean latents: x_t = alpha_t z + sigma_t noise."""
    alpha_t, sigma_t = process.at(t)
    return Noised(x_t, noise_from_x0(x_t, latents, alpha_t, sigma_t), t, alpha_t, sigma_t, latents)


class InvertedNoise(AskingBaseline):
    """SDI (Lukoianov et al. 2024): the noise that DDIM inversion finds for the render, in place of a drawn one.

    With `weighting: x0` the gradient is z - x0_hat, and the prior's one-step x0 from the inverted x_t is the target.

    n_steps: of the inversion, evenly from clean to t
    guidance_scale: s' of the inversion, negative; the denoising scale s' and 1 - s' belong together
    eta: see `invert`
    """

    def __init__(
        self,
        prior: Prior,
        text: Conditions,
        n_steps: Annotated[int, Range(1, 1000)] = 10,
        guidance_scale: Scale = -6.5,
        eta: Share = 0.3,
    ):
        super().__init__(prior, text)
        self.n_steps, self.guidance_scale, self.eta = n_steps, guidance_scale, eta

    @torch.no_grad()
    def add_noise(
        self,
        process: NoiseProcess,
        latents: Tensor,
        t: Tensor,
        cameras: Cameras,
        now: SimpleNamespace,
        generator: torch.Generator,
    ) -> Noised:
        latents, t = latents.detach(), t.to(latents.device)
        conditions = [self.text.at(cameras), self.text.nothing(cameras, now.negative_prompt)]

        def predict(x: Tensor, at: Tensor) -> Tensor:
            cond, uncond = self.prior.predict(x, at, conditions, cameras)
            return guided(cond, uncond, self.guidance_scale)

        x_t, _ = invert(process, predict, latents, evenly(t, self.n_steps), self.eta, generator)
        return known(process, x_t, latents, t)

    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        return noised.noise


class IntervalNoise(AskingBaseline):
    """ISM (LucidDreamer, Liang et al. 2024): x_t by inversion without the text, and e(0) one interval before as B.

    interval: timesteps between s and t; stride: of the inversion up to s
    """

    def __init__(
        self,
        prior: Prior,
        text: Conditions,
        interval: Annotated[int, Range(1, 999)] = 80,
        stride: Annotated[int, Range(1, 999)] = 200,
    ):
        super().__init__(prior, text)
        self.interval, self.stride = interval, stride
        self.before = torch.zeros(0)  # e(0) at x_s, of the last step

    @torch.no_grad()
    def add_noise(
        self,
        process: NoiseProcess,
        latents: Tensor,
        t: Tensor,
        cameras: Cameras,
        now: SimpleNamespace,
        generator: torch.Generator,
    ) -> Noised:
        latents, t = latents.detach(), t.to(latents.device)
        nothing = [self.text.nothing(cameras, now.negative_prompt)]
        s = (t - self.interval).clamp_min(0)
        n_steps = max(1, -(-ranks_of(generator).highest(int(s.max())) // self.stride))  # of all rigs alike
        timesteps = torch.cat([evenly(s, n_steps), t[None]])
        x_t, self.before = invert(
            process, lambda x, at: self.prior.predict(x, at, nothing, cameras)[0], latents, timesteps
        )
        return known(process, x_t, latents, t)

    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        return self.before


class ShiftedNoise(AskingBaseline):
    """ASD (ScaleDreamer, Ma et al. 2024): e(y) at a later timestep of the same noise.

    shift: the most that t moves on, as a share of what it is above t_min
    """

    def __init__(self, prior: Prior, text: Conditions, shift: Share = 0.1):
        super().__init__(prior, text)
        self.shift = shift
        self.after = torch.zeros(0)  # the later timesteps (B,) of the last step

    def add_noise(
        self,
        process: NoiseProcess,
        latents: Tensor,
        t: Tensor,
        cameras: Cameras,
        now: SimpleNamespace,
        generator: torch.Generator,
    ) -> Noised:
        noised = add_noise(process, latents, t, generator)
        moved = per_rig(torch.rand, (len(t),), generator).to(noised.t.device)
        above = (noised.t - int(len(process) * now.t_min)).clamp_min(0)
        self.after = (noised.t + (self.shift * moved * above).long()).clamp_max(process.last)
        return noised

    @torch.no_grad()
    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        alpha_t, sigma_t = self.prior.process.at(self.after)
        x_t = alpha_t * noised.latents + sigma_t * noised.noise
        return self.prior.predict(x_t, self.after, [self.text.at(cameras)], cameras)[0]
