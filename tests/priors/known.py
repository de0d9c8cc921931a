"""A prior over pictures as they are, for tests that know what it predicts."""

from jointdreamer.diffusion import NoiseProcess, scaled_linear_alphas_cumprod
from jointdreamer.priors.base import Prior


class PicturePrior(Prior):
    """Latents are the pictures; Stable Diffusion's noise process, float64. What it predicts is its child's."""

    def __init__(self):
        super().__init__()
        self.process = NoiseProcess.variance_preserving(scaled_linear_alphas_cumprod().double())

    def embed(self, prompts):
        raise AssertionError("embedded already")

    def encode(self, rgb, generator, grad=True, chunk=None):
        return rgb

    def decode(self, latents):
        return latents
