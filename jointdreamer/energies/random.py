"""The paper's ablation: an energy that knows nothing about the object."""

from torch import Tensor

from jointdreamer.arguments import Scale
from jointdreamer.diffusion import noise_like
from jointdreamer.energies.base import Energy, Views


class RandomEnergy(Energy):
    """C = scale <x0, r> with r standard normal, drawn afresh at every call.

    The paper does not say what its random energy is. This one makes dC/dx0 white noise of standard deviation `scale`:
    a correction of a useful energy's form and size with no information in it, so that what is left of a result is
    what any perturbation would have given.
    """

    def __init__(self, scale: Scale = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, views: Views) -> Tensor:
        direction = noise_like(views.x0, views.generator)
        return self.scale * (views.x0 * direction).sum((1, 2, 3, 4))
