"""A prior of one's own: a rectified flow in pixel space, known in closed form: all pictures are one colour.

PYTHONPATH=examples/pixel_flow python train.py --config-dir examples/pixel_flow/conf distillation=pixel_flow prompt=red
"""

import torch
from torch.nn.functional import interpolate

from jointdreamer.diffusion import NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.prompts import TextEmbeddings

COLORS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class PixelFlow(Prior):
    """x_t = (1 - sigma) x0 + sigma noise, and the velocity noise - x0 with x0 one plain colour."""

    def __init__(self, image_size: int = 32):
        super().__init__()
        self.process = NoiseProcess.rectified_flow()
        self.image_size = image_size

    def embed(self, prompts):
        found = next((color for word, color in COLORS.items() if word in prompts.prompt), None)
        if found is None:
            raise UserError(f"the prompt {prompts.prompt!r} names no colour: wanted one of {', '.join(COLORS)}")
        return TextEmbeddings(torch.tensor(found).expand(4, 1, 3), torch.full((2, 1, 3), 0.5))

    def encode(self, rgb, generator, grad=True, chunk=None):
        images = interpolate(rgb.flatten(0, 1), (self.image_size,) * 2, mode="bilinear", align_corners=False)
        latents = 2 * images.unflatten(0, rgb.shape[:2]) - 1
        return latents if grad else latents.detach()

    def decode(self, latents):
        return latents / 2 + 0.5

    @torch.no_grad()
    def predict(self, x_t, t, conditions, cameras):
        _, sigma_t = self.process.at(t)
        found = []
        for condition in conditions:
            x0 = (2 * condition.embedding[:, :, 0, :, None, None] - 1).to(x_t)  # (B, V, 3, 1, 1)
            found.append(self.process.noise((x_t - x0) / sigma_t, x_t, t))  # velocity = (x_t - x0) / sigma
        return found
