"""What a score distillation subtracts from the noise prediction: eps in Eq. 2 and 5, other things in other methods."""

from abc import ABC, abstractmethod
from types import SimpleNamespace

from torch import Tensor, nn

from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import Noised


class Baseline(nn.Module, ABC):
    """What is subtracted from the noise prediction."""

    @abstractmethod
    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        """(B, V, C, h, w), without a graph."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that are trained beside the scene, by role."""
        return {}


class AddedNoise(Baseline):
    """The noise that was added: SDS (Poole et al. 2022, Eq. 3), and JSD (Eq. 5)."""

    def forward(self, noised: Noised, cameras: Cameras, now: SimpleNamespace) -> Tensor:
        return noised.noise
