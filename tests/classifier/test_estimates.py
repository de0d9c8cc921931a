"""What M_CLS is trained on: one-step estimates of images under their texts."""

import torch

from jointdreamer.classifier.estimates import one_step_images
from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from tests.priors.known import PicturePrior


class Told(PicturePrior):
    """Predicts 0.5 x_t given a text and 0.3 x_t given none; its latents are the images."""

    def predict(self, x_t, t, conditions, cameras):
        self.t, self.conditions = t, [condition.embedding for condition in conditions]
        return [0.5 * x_t, 0.3 * x_t]


def test_one_step_images_are_estimates_at_one_t_of_what_each_is_called():
    prior, g = Told(), torch.Generator().manual_seed(1)
    rgb, words = (torch.randn(6, *shape, generator=g, dtype=torch.float64) for shape in ((3, 5, 5), (2, 8)))
    nothing = torch.zeros(1, 2, 8)
    found = one_step_images(prior, rgb, 0.3, 0.9, words, nothing, 4.0, torch.Generator().manual_seed(4))

    g = torch.Generator().manual_seed(4)
    t = torch.randint(300, 901, (1,), generator=g)  # all images share it
    abar = scaled_linear_alphas_cumprod().double()[t]
    x_t = abar.sqrt() * rgb + (1 - abar).sqrt() * torch.randn(1, 6, 3, 5, 5, generator=g)[0]
    noise = (0.3 + 4.0 * (0.5 - 0.3)) * x_t
    torch.testing.assert_close(found, (x_t - (1 - abar).sqrt() * noise) / abar.sqrt())
    text, none = prior.conditions
    assert torch.equal(prior.t, t) and torch.equal(text, words[None])
    assert none.shape == (1, 6, 2, 8) and not none.any()
