"""An energy of one's own, in the paper's sense: a number that says how well the views agree. Nothing else is needed."""

from torch import Tensor

from jointdreamer.energies.base import Energy, Views


class MirrorEnergy(Energy):
    """Likes objects whose views are left-right symmetric: C = -strength * sum (x0 - x0 mirrored)^2, per rig."""

    def __init__(self, strength: float = 1.0):
        super().__init__()
        self.strength = strength

    def forward(self, views: Views) -> Tensor:
        difference = views.x0 - views.x0.flip(-1)  # (B, V, C, h, w)
        return -self.strength * difference.square().sum((1, 2, 3, 4))
