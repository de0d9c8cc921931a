"""A term of one's own: the object shall have one colour on average.

PYTHONPATH=examples/palette python train.py --config-dir examples/palette/conf distillation=palette prompt="a bear"
"""

from collections.abc import Sequence

import torch

from jointdreamer.distillation.base import Term


class Palette(Term):
    """|mean colour of the object - color|^2 over all views, color in [0, 1]."""

    def __init__(self, color: Sequence[float] = (0.0, 0.0, 1.0)):
        super().__init__()
        self.color = torch.tensor(list(color))

    def forward(self, scene, render, cameras, now, generator):
        mean = (render.rgb * render.opacity).sum((0, 1, 3, 4)) / render.opacity.sum().clamp(min=1e-3)
        return {"palette": (mean - self.color.to(mean)).square().sum()}
