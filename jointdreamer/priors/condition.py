"""What a prior is told of each view."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras


@dataclass(frozen=True)
class Condition:
    """What a prior is told of each view. Only the prior that made it looks inside."""

    embedding: Tensor  # (B, V, L, D) what cross-attention reads
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # (B, V, ...) pooled text, time ids, an image's latents

    def zeros(self) -> "Condition":
        """The condition of nothing, for models that were trained to see zeros there."""
        nothing = {key: torch.zeros_like(value) for key, value in self.extra.items()}
        return Condition(torch.zeros_like(self.embedding), nothing)


class Conditions(ABC):
    """What a prior is told of a whole run, a prompt or a given image, as each camera (B, V) sees it."""

    @abstractmethod
    def at(self, cameras: Cameras) -> Condition:
        """What is wanted of each view."""

    @abstractmethod
    def nothing(self, cameras: Cameras, negative: bool = False) -> Condition:
        """What guidance steers away from: nothing, or the negative prompt where there is one."""

    @abstractmethod
    def without_view(self, cameras: Cameras) -> Condition:
        """As `at`, without what words say of the view."""
