"""What the prior wants, A in w(t) [A - lambda sigma_t dC/dx_t - B]: how its predictions become one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from jointdreamer.arguments import Range
from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import Noised, noise_from_x0
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Condition, Conditions
from jointdreamer.priors.prompts import DIRECTIONS, Prompts, TextEmbeddings, directions


class Target(nn.Module, ABC):
    """What the prior wants."""

    def conditions(self, text: Conditions, cameras: Cameras, now: SimpleNamespace) -> list[Condition]:
        """What the prior is asked under. The first two are the energies' too: the text, and what guidance leaves."""
        return [text.at(cameras), text.nothing(cameras, now.negative_prompt)]

    @abstractmethod
    def forward(
        self,
        prior: Prior,
        noised: Noised,
        predictions: Sequence[Tensor],  # noise (B, V, C, h, w) under each of the conditions
        cameras: Cameras,
        now: SimpleNamespace,
    ) -> Tensor:
        """(B, V, C, h, w), without a graph."""


class ClassifierFree(Target):
    """Classifier-free guidance, with what the prior's own `Guidance` rescales and clamps: SDS, VSD, JSD."""

    def forward(
        self, prior: Prior, noised: Noised, predictions: Sequence[Tensor], cameras: Cameras, now: SimpleNamespace
    ) -> Tensor:
        cond, uncond = predictions
        return prior.guidance.noise(prior.process, noised.x_t, noised.t, cond, uncond, now.guidance_scale)


class ProbabilityFlow(ClassifierFree):
    """The x0 at the end of K guided DDIM steps down from x_t, as noise: probability-flow distillation.

    For SDI's inverted noise; its authors take the steps by DPM-Solver++. With n_steps=1 it is classifier-free guidance,
    to the bit.

    n_steps: K, evenly from t down to clean
    """

    def __init__(self, n_steps: Annotated[int, Range(1, 100)] = 4):
        super().__init__()
        self.n_steps = n_steps
        self.asked: list[Condition] = []  # of the last call

    def conditions(self, text: Conditions, cameras: Cameras, now: SimpleNamespace) -> list[Condition]:
        self.asked = super().conditions(text, cameras, now)
        return self.asked

    def forward(
        self, prior: Prior, noised: Noised, predictions: Sequence[Tensor], cameras: Cameras, now: SimpleNamespace
    ) -> Tensor:
        noise = super().forward(prior, noised, predictions, cameras, now)
        here = noised
        for k in reversed(range(1, self.n_steps)):
            t = noised.t * k // self.n_steps
            alpha_t, sigma_t = prior.process.at(t)
            x_t = alpha_t * here.x0(noise) + sigma_t * noise
            here = replace(here, x_t=x_t, t=t, alpha_t=alpha_t, sigma_t=sigma_t)
            noise = super().forward(prior, here, prior.predict(x_t, t, self.asked, cameras), cameras, now)
        if here is noised:
            return noise
        return noise_from_x0(noised.x_t, here.x0(noise), noised.alpha_t, noised.sigma_t)


class Bridge(ClassifierFree):
    """SDS-Bridge (McAllister et al. 2024): SDS, and from some step on from the text of a poor picture to a good one's.

    Where `schedule.bridge` is true A is eps + s' (e(good) - e(poor)), of which the added noise eps is subtracted.

    good, poor: what is added to the prompt
    """

    GOOD = ", detailed high resolution, high quality, sharp"
    POOR = ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"

    def __init__(self, prior: Prior, prompts: Prompts, good: str = GOOD, poor: str = POOR):
        super().__init__()
        texts = [prior.embed(replace(prompts, prompt=prompts.prompt + more)) for more in (good, poor)]
        longest = max(text.cond.shape[1] for text in texts)
        self.good, self.poor = (text.filled(longest) for text in texts)

    def conditions(self, text: Conditions, cameras: Cameras, now: SimpleNamespace) -> list[Condition]:
        if not hasattr(now, "bridge"):
            raise UserError('schedule.bridge is missing: when the second stage is, [[0, false], ["80%", true]]')
        if now.bridge:
            return [self.good.at(cameras), self.poor.at(cameras)]
        return super().conditions(text, cameras, now)

    def forward(
        self, prior: Prior, noised: Noised, predictions: Sequence[Tensor], cameras: Cameras, now: SimpleNamespace
    ) -> Tensor:
        if not now.bridge:
            return super().forward(prior, noised, predictions, cameras, now)
        good, poor = predictions
        return noised.noise + now.guidance_scale * (good - poor)


class OfThree(Target):
    """A target of the predictions with the text, with none and with the negative prompt."""

    def conditions(self, text: Conditions, cameras: Cameras, now: SimpleNamespace) -> list[Condition]:
        return [text.at(cameras), text.nothing(cameras), text.nothing(cameras, negative=True)]


class Coefficients(OfThree):
    """c1 e(y) + c2 e(negative) + c3 e(0): CSD (Yu et al. 2024) with c1 + c2 + c3 = 0 and nothing subtracted.

    The coefficients are the schedule's: `schedule.csd.text`, `negative`, `empty`.
    """

    def forward(
        self, prior: Prior, noised: Noised, predictions: Sequence[Tensor], cameras: Cameras, now: SimpleNamespace
    ) -> Tensor:
        if missing := [key for key in ("text", "empty", "negative") if not hasattr(getattr(now, "csd", None), key)]:
            raise UserError(f"schedule.csd.{missing[0]} is missing: the coefficient of a prediction")
        cond, empty, negative = predictions
        return now.csd.text * cond + now.csd.empty * empty + now.csd.negative * negative


class NoiseFree(OfThree):
    """NFSD (Katzir et al. 2024): s' (e(y) - e(0)) + delta_D, and nothing subtracted.

    delta_D is e(0) below t = 200 of 1000, where it is hardly noise, and e(0) - e(negative) above.
    """

    THRESHOLD = 0.2  # of the timesteps

    def forward(
        self, prior: Prior, noised: Noised, predictions: Sequence[Tensor], cameras: Cameras, now: SimpleNamespace
    ) -> Tensor:
        cond, empty, negative = predictions
        high = (noised.t >= self.THRESHOLD * len(prior.process)).view(-1, 1, 1, 1, 1)
        delta = torch.where(high, empty - negative, empty)
        return now.guidance_scale * (cond - empty) + delta


class PerpNeg(Target):
    """Perp-Neg (Armandpour et al. 2023): the prompt between two directions, and away from those of other sides.

    The text's embedding is interpolated between front and side, or side and back, by the azimuth; of the predictions
    for the wrong directions only what is perpendicular to the right one's is taken away.

    weights: "threestudio": fitted curves; "authors": the authors' own, with w = -2
    """

    def __init__(self, weights: Literal["threestudio", "authors"] = "threestudio"):
        super().__init__()
        if weights not in WEIGHTS:
            raise UserError(f"weights={weights!r} of perp_neg: choose one of {', '.join(WEIGHTS)}")
        self.weights = WEIGHTS[weights]
        self.above = torch.zeros(0, dtype=torch.bool)  # which of the last cameras look from overhead, (B, V)

    def conditions(self, text: Conditions, cameras: Cameras, now: SimpleNamespace) -> list[Condition]:
        if not isinstance(text, TextEmbeddings):
            raise UserError("the target perp_neg steers between the words of views: its prior must read a text")
        which = directions(cameras.azimuth, cameras.elevation, text.front, text.back, text.overhead)
        self.above = which == DIRECTIONS.index("overhead")
        embeddings = self.right_and_wrong(text.cond, cameras)
        extras: list[dict[str, Tensor]] = [{}, {}, {}]
        if text.pooled is not None:
            extras = [{"pooled": pooled} for pooled in self.right_and_wrong(text.pooled, cameras)]
        positive, *wrong = map(Condition, embeddings, extras)
        return [positive, text.nothing(cameras, now.negative_prompt), *wrong]

    def right_and_wrong(self, rows: Tensor, cameras: Cameras) -> list[Tensor]:
        """For each camera, of rows by direction (4, ...): between two of them, and the two that are wrong there."""
        front, side, back = (rows[DIRECTIONS.index(name)] for name in ("front", "side", "back"))
        wide = (..., *[None] * front.ndim)  # (B, V) -> (B, V, 1, 1)
        share, ahead = (part.to(front)[wide] for part in halves(cameras.azimuth))
        near, far = torch.where(ahead > 0, front, side), torch.where(ahead > 0, side, back)
        positive = share * near + (1 - share) * far
        above = self.above.to(front.device)[wide]
        positive = torch.where(above, rows[DIRECTIONS.index("overhead")], positive)
        return [positive, near.expand_as(positive), torch.where(ahead > 0, side, front).expand_as(positive)]

    def forward(
        self, prior: Prior, noised: Noised, predictions: Sequence[Tensor], cameras: Cameras, now: SimpleNamespace
    ) -> Tensor:
        cond, uncond, *wrong = predictions
        right = cond - uncond
        share, ahead = halves(cameras.azimuth)
        towards = right
        for number, other in enumerate(wrong):
            weight = torch.where(self.above, 0.0, self.weights(share, ahead, number)).to(right)[..., None, None, None]
            towards = towards + weight * perpendicular(other - uncond, right)
        return uncond + now.guidance_scale * towards


def halves(azimuth: Tensor) -> tuple[Tensor, Tensor]:
    """Of azimuths (B, V), radians: r, and 1 for the front half, 0 for the back one.

    r falls from 1 at the front to 0 at the side, and again from 1 there to 0 at the back.
    """
    turned = ((azimuth + math.pi) % math.tau - math.pi).abs() / (math.pi / 2)  # 0 at the front, 2 at the back
    ahead = (turned < 1).to(azimuth)
    return torch.where(turned < 1, 1 - turned, 2 - turned), ahead


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The component of x perpendicular to y, of each view's (B, V, C, h, w)."""
    dims = (-3, -2, -1)
    along = (x * y).sum(dims, keepdim=True) / y.square().sum(dims, keepdim=True).clamp_min(1e-6)
    return x - along * y


def _threestudio(share: Tensor, ahead: Tensor, number: int) -> Tensor:
    """-(a exp(-b r) + c): towards front and side in the front half, side and front in the back half."""
    if number == 0:
        return torch.where(ahead > 0, -_curve(share, 4, -2.426), -_curve(share, 1, -0.606))
    return torch.where(ahead > 0, -_curve(1 - share, 4, -2.426), -_curve(share, 1, 0.967))


def _curve(share: Tensor, a: float, c: float, b: float = 0.5) -> Tensor:
    return a * torch.exp(-b * share) + c


def _authors(share: Tensor, ahead: Tensor, number: int, w: float = -2.0) -> Tensor:
    """The authors' weights; those of small effect are cut off."""
    if number == 0:
        front = torch.where(share > 0.8, 0.0, w * torch.exp(-2 * share))
        side = torch.where(share > 0.8, 0.0, w / 2 * torch.exp(-10 * share))
        return torch.where(ahead > 0, front, side)
    side = torch.where(share < 0.2, 0.0, w * torch.exp(-10 * (1 - share)))
    return torch.where(ahead > 0, side, torch.full_like(share, w))


WEIGHTS = {"threestudio": _threestudio, "authors": _authors}
