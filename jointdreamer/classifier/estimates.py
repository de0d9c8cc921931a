"""Images as an energy sees renders: one-step estimates of a text-to-image prior. M_CLS is trained on them."""

import torch
from torch import Tensor

from jointdreamer.diffusion import add_noise, draw_timesteps
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Condition


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
