"""The reference view: a given picture, at the camera that took it, as a term beside the priors.

Zero-1-to-3's, Magic123's and Wonder3D's reconstructions all have it (threestudio's `training_substep` of "ref"): in
every step the scene is also rendered from the picture's camera and compared with it.
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras
from jointdreamer.distillation.base import Term
from jointdreamer.reference import Reference
from jointdreamer.scenes.base import Render, Scene

RAYS = 2**14  # rendered at a time: the forecast of memory knows nothing of this view


class ReferenceView(Term):
    """`rgb`, the mean squared error of the colours, and `mask`, that of the opacities, at the reference camera.

    The picture is put before the plain background of the run's training renders. What is rendered is albedo: a picture
    has its light in its colours. `schedule.reference_resolution` says how large, by default as the other views.

    reference: the picture
    ground: the background's grey, from 0 to 1
    """

    loss_names = ("rgb", "mask")

    def __init__(self, reference: Reference, ground: float = 1.0):
        super().__init__()
        self.reference, self.ground = reference, ground

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
        losses = {
            "rgb": (seen.rgb[0, 0].float() - picture).square().mean(),
            "mask": (seen.opacity[0, 0].float() - rgba[3:]).square().mean(),
        }
        self.metrics = {"reference_psnr": -10 * losses["rgb"].detach().clamp_min(1e-10).log10()}
        return {name: losses[name] for name in wanted}
