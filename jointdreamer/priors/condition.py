"""What a prior is told of each view."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What a prior is told of each view. Only the prior that made it looks inside."""

    embedding: Tensor  # (B, V, L, D) what cross-attention reads
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # (B, V, ...) pooled text, time ids, an image's latents

    def zeros(self) -> "Condition":
        """The condition of nothing, for models that were trained to see zeros there."""
        nothing = {key: torch.zeros_like(value) for key, value in self.extra.items()}
        return Condition(torch.zeros_like(self.embedding), nothing)
