"""Deterministic sampling by a prior, as diffusers' pipelines do it."""

import torch

from jointdreamer.priors.guidance import guided


def ddim(prior, conditions, x, timesteps, guidance_scale, last=None):
    """x (B, V, C, h, w) after a step from each timestep to the next; last: (alpha, sigma) after the last one."""
    for number, t in enumerate(timesteps):
        t = torch.tensor([t])
        cond, uncond = prior.predict(x, t, conditions, None)
        noise = guided(cond, uncond, guidance_scale)
        x0 = prior.process.x0(noise, x, t)
        if number + 1 < len(timesteps):
            alpha, sigma = prior.process.at(torch.tensor([timesteps[number + 1]]))
        else:
            alpha, sigma = last if last is not None else (1.0, 0.0)
        x = alpha * x0 + sigma * noise
    return x
