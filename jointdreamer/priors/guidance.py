"""The noise prediction eps_hat of Eq. 2 and 5: classifier-free guidance and its relatives."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from jointdreamer.diffusion import NoiseProcess, noise_from_x0


def guided(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance e(0) + s' (e(y) - e(0)) (Ho & Salimans 2022); the paper's s is s' - 1."""
    return uncond + guidance_scale * (cond - uncond)


def rescaled(x: Tensor, cond: Tensor, share: float, over: Literal["view", "rig"] = "view") -> Tensor:
    """`share` of x brought to the standard deviation of cond, the rest as it is (Lin et al. 2023, Eq. 15, 16).

    x, cond: (B, V, C, h, w); the standard deviations are unbiased, of each view or of a whole rig.
    """
    dims = (-3, -2, -1) if over == "view" else (-4, -3, -2, -1)
    factor = (cond.std(dims, keepdim=True) + 1e-8) / (x.std(dims, keepdim=True) + 1e-8)
    return share * factor * x + (1 - share) * x


@dataclass(frozen=True)
class Guidance:
    """How a prior's two predictions become one.

    scale: guidance scale s' of this prior, whatever the schedule says; None takes the schedule's
    cfg_rescale: share of `rescaled` on the noise prediction; 0 is off
    x0_rescale: the same on the implied x0
    x0_limit: clamp the implied x0 to +- this
    over: whether the spreads of x0_rescale are those of each view or of a rig
    """

    scale: float | None = None
    cfg_rescale: float = 0.0
    x0_rescale: float = 0.0
    x0_limit: float | None = None
    over: Literal["view", "rig"] = "view"

    def noise(
        self,
        process: NoiseProcess,
        x_t: Tensor,  # (B, V, C, h, w)
        t: Tensor,  # (B,)
        cond: Tensor,  # noise (B, V, C, h, w) given the text
        uncond: Tensor,  # given the empty or the negative prompt
        guidance_scale: float,
    ) -> Tensor:
        """The guided noise (B, V, C, h, w)."""
        noise = guided(cond, uncond, guidance_scale if self.scale is None else self.scale)
        if self.cfg_rescale:
            noise = rescaled(noise, cond, self.cfg_rescale)
        if self.x0_rescale or self.x0_limit is not None:
            noise = noise_from_x0(x_t, self.x0(process, x_t, t, noise, cond), *process.at(t))
        return noise

    def x0(self, process: NoiseProcess, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        """The x0 that a guided `noise` implies, rescaled and clamped."""
        x0 = process.x0(noise, x_t, t)
        if self.x0_rescale:
            x0 = rescaled(x0, process.x0(cond, x_t, t), self.x0_rescale, self.over)
        return x0 if self.x0_limit is None else x0.clamp(-self.x0_limit, self.x0_limit)
