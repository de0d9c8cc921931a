"""The reference view: a given picture, at the camera that took it, as a term beside the priors.

Zero-1-to-3's, Magic123's and Wonder3D's reconstructions all have it (threestudio's `training_substep` of "ref"): in
every step the scene is also rendered from the picture's camera and compared with it.
"""

from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from jointdreamer.cameras import Cameras
from jointdreamer.distillation.base import Term
from jointdreamer.reference import Reference
from jointdreamer.scenes.base import Render, Scene

RAYS = 2**14  # rendered at a time: the forecast of memory knows nothing of this view


def cross_entropy(opacity: Tensor, mask: Tensor) -> Tensor:
    """-mean(m log o + (1 - m) log(1 - o)), o clamped to [1e-5, 1 - 1e-5]: both of one shape, in [0, 1]; a scalar."""
    return binary_cross_entropy(opacity.clamp(1e-5, 1 - 1e-5), mask)


class ReferenceView(Term):
    """`rgb`, the mean squared error of the colours, and `mask`, the loss of the opacities, at the reference camera.

    The picture is put before the plain background of the run's training renders. What is rendered is albedo: a picture
    has its light in its colours. `schedule.reference_resolution` says how large, by default as the other views.

    reference: the picture
    ground: the background's grey, from 0 to 1
    mask_loss: "mse", the mean squared error (threestudio's Zero-1-to-3), or "bce", the mean binary cross-entropy of the
        opacities, which are held 1e-5 from 0 and 1 (threestudio's Magic123)
    """

    loss_names = ("rgb", "mask")

    def __init__(self, reference: Reference, ground: float = 1.0, mask_loss: Literal["mse", "bce"] = "mse"):
        super().__init__()
        self.reference, self.ground, self.mask_loss = reference, ground, mask_loss

    def forward(
        self, scene: Scene, render: Render, cameras: Cameras, now: SimpleNamespace, generator: torch.Generator
    ) -> dict[str, Tensor]:
        wanted = [name for name in self.loss_names if getattr(now.loss, name, 0)]
        if not wanted:
            return {}
        size, device = getattr(now, "reference_resolution", None) or now.resolution, render.rgb.device
        chunk = RAYS if size * size > RAYS else None
        plain = SimpleNamespace(**{**vars(now), "shading": False, "distilled": "rgb", "loss": SimpleNamespace()})
        seen = scene.render(self.reference.cameras(size).to(device), plain, generator, chunk)
        rgba = self.reference.at(size).to(device)
        picture = rgba[:3] + self.ground * (1 - rgba[3:])
        opacity, mask = seen.opacity[0, 0].float(), rgba[3:]
        losses = {
            "rgb": (seen.rgb[0, 0].float() - picture).square().mean(),
            "mask": cross_entropy(opacity, mask) if self.mask_loss == "bce" else (opacity - mask).square().mean(),
        }
        self.metrics = {"reference_psnr": -10 * losses["rgb"].detach().clamp_min(1e-10).log10()}
        return {name: losses[name] for name in wanted}
