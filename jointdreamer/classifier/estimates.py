"""Images as an energy sees renders: one-step estimates of a text-to-image prior. M_CLS is trained on them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.classifier.batches import Batch, as_estimates, as_guided_estimates
from jointdreamer.classifier.pairs import Group
from jointdreamer.diffusion import add_noise, draw_timesteps
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.prompts import caption_views, embed_texts


@torch.no_grad()
def one_step_images(
    prior: Prior,
    rgb: Tensor,  # (N, 3, R, R) in [0, 1]
    t_min: float,
    t_max: float,
    words: Tensor,  # (N, L, D) of each image, or (1, L, D) of all
    nothing: Tensor,  # (1, L, D) the empty prompt's embedding
    guidance_scale: float,
    generator: torch.Generator | None,
) -> Tensor:
    """The images (N, 3, H, W) noised, all to one t, and estimated in one step under their texts.

    guidance_scale: s' of e(0) + s' (e(y) - e(0))
    About [0, 1], not clamped, as `prior.decode` gives them.
    """
    latents = prior.encode(rgb[None], generator, grad=False)
    noised = add_noise(prior.process, latents, draw_timesteps(prior.process, 1, t_min, t_max, generator), generator)
    conditions = [Condition(x.expand(len(rgb), -1, -1)[None]) for x in (words, nothing)]
    cond, uncond = prior.predict(noised.x_t, noised.t, conditions, None)
    noise = prior.guidance.noise(prior.process, noised.x_t, noised.t, cond, uncond, guidance_scale)
    return prior.decode(noised.x0(noise))[0]


class Estimator:
    """Replaces images of some batches by one-step estimates of a prior.

    The energy asks the classifier about the prior's one-step estimates, blurred and full of guesses at a large t, so
    it learns from those of noised renders: all images of a group at one t, as the views of a rig are. Guided ones,
    which know the object's caption and from where it is seen, show what the prior believes more than what was there (a
    face on every side), so nobody is asked whether they are coherent: they are only shown to be corrected.

    captions: of the objects, by name
    share: of the batches that are estimates without text
    guided: of the batches whose corrections are guided estimates
    guidance_scale: s of e(y) + s (e(y) - e(0))
    """

    def __init__(
        self,
        prior: Any,  # with `text_parts`
        captions: Mapping[str, str],
        share: float,
        guided: float,
        guidance_scale: float,
        t: tuple[float, float],  # fractions of the timesteps
        device: torch.device,
    ):
        self.prior, self.captions, self.device = prior, captions, device
        self.share, self.guided, self.guidance_scale, self.t = share, guided, guidance_scale, t
        self.text_parts = prior.text_parts()
        self.empty = embed_texts([""], *self.text_parts)

    def __call__(self, batch: Batch, group: Group, rng: np.random.Generator) -> Batch:
        """The batch of a group, or what the prior makes of it."""
        if rng.random() < self.guided:
            texts = caption_views([self.captions[group.ids[n]] for n in group.object], torch.from_numpy(group.c2w))
            words, nothing = embed_texts([*texts, ""], *self.text_parts).split([len(texts), 1])
            words = words.repeat(2, 1, 1)  # of the images, and of what is shown instead of them
            return as_guided_estimates(batch, lambda rgb: self._see(rgb, words, nothing, self.guidance_scale, rng))
        return as_estimates(batch, self._look, rng)

    def _look(self, rgb: Tensor, rng: np.random.Generator) -> Tensor:
        return rgb if rng.random() >= self.share else self._see(rgb, self.empty, self.empty, 0.0, rng)

    def _see(self, rgb: Tensor, words: Tensor, nothing: Tensor, scale: float, rng: np.random.Generator) -> Tensor:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        seen = one_step_images(self.prior, rgb.to(self.device), *self.t, words, nothing, 1 + scale, generator)
        return seen.clamp(0, 1)
