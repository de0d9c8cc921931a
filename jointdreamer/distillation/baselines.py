"""What a score distillation subtracts from the noise prediction: eps in Eq. 2 and 5, other things in other methods."""

from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import Noised, NoiseProcess, add_noise
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Conditions


class Baseline(nn.Module, ABC):
    """What is subtracted from the noise prediction, and which noise there is to begin with."""

    loss_names: tuple[str, ...] = ()  # that `losses` returns

    def add_noise(
        self,
        process: NoiseProcess,
        latents: Tensor,  # (B, V, C, h, w)
        t: Tensor,  # (B,)
        cameras: Cameras,
        now: SimpleNamespace,
        generator: torch.Generator,
    ) -> Noised:
        """The latents at the noise levels of this step, without a graph: noise is drawn, unless a baseline finds it."""
        return add_noise(process, latents, t, generator)

    @abstractmethod
    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        """(B, V, C, h, w), without a graph."""

    def losses(self, noised: Noised, cameras: Cameras, generator: torch.Generator) -> dict[str, Tensor]:
        """What trains its own parameters on the renders' latents, by name in `schedule.loss`; all draws are the
        generator's."""
        return {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that are trained beside the scene, by role."""
        return {}


class AskingBaseline(Baseline):
    """A baseline that asks the term's prior, too.

    text: the prompt, embedded by the prior
    """

    def __init__(self, prior: Prior, text: Conditions):
        super().__init__()
        self.text, self._prior = text, [prior]  # in a list: it is the term's

    @property
    def prior(self) -> Any:
        return self._prior[0]


class Zero(Baseline):
    """Nothing: CSD and NFSD, whose targets have no noise left in them."""

    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        return torch.zeros_like(noised.x_t)


class AddedNoise(Baseline):
    """The noise that was added: SDS (Poole et al. 2022, Eq. 3), and JSD (Eq. 5)."""

    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        return noised.noise
