"""A multi-view diffusion model (MVDream) as a prior: it draws the views of a rig together, told where each stands.

It is the model of Eq. 8's energy, and by itself the prior of MVDream's distillation, a baseline of the paper.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jointdreamer.arguments import Pixels, Positive, Scale, Share
from jointdreamer.cameras import Cameras, mvdream_camera
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.priors.latent import LatentDiffusion, load_text_parts
from jointdreamer.priors.multi_view_unet import SHARED, find_multiview, set_views
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.roles import ROLES

TEXT_ENCODER = ROLES["text_encoder"]


class MultiViewDiffusion(LatentDiffusion):
    """A text-to-image model whose self-attention sees all views of a rig, and whose class labels are the cameras.

    vae: its autoencoder; None where it works on another model's latents, which then encodes for it
    """

    what = "multi-view model"

    @classmethod
    def build(
        cls,
        source: str | Path | Sequence[str],
        file: str | None = None,
        vae: str | Path | None = None,
        image_size: Pixels | None = None,
        guidance_scale: Scale = 50.0,
        rescale: Share = 0.5,
        x0_limit: Positive | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        compile: bool = False,
        text: str | Path | Sequence[str] | None = None,
    ) -> "MultiViewDiffusion":
        """MVDream, or the toybox's model.

        source, file, vae: see `find_multiview`
        image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
        guidance_scale: s' of e(0) + s' (e(y) - e(0)), constant: the schedule's is the text-to-image model's
        rescale: share of the guided x0 that is brought to the spread of the text's, over a whole rig; MVDream uses 0.5
        x0_limit: clamp x0 to +- this; off by default
        dtype, compile: as of the other priors
        text: diffusers folder or hub id, or a list, with the tokenizer and text encoder (Stable Diffusion 2.1's are
            MVDream's), and the autoencoder where `vae` is "shared"; needed only where this is the prior of a run

        Raises UserError, one line, if the weights are missing, damaged or do not fit.
        """
        folder, autoencoder = None, vae
        if text is not None:
            role = "text_to_image" if vae == SHARED else "text encoder of the multi-view model"
            needs = None if vae == SHARED else TEXT_ENCODER.needs
            folder = find_weights(text, role, needs=needs, download=torch.device(device).type == "cuda")
            autoencoder = folder if vae == SHARED else vae
        model, path = find_multiview(source, file, autoencoder, dtype, device, compile)
        text_parts = partial(load_text_parts, folder or path, model.unet.dtype, torch.device(device))
        guidance = Guidance(scale=guidance_scale, x0_rescale=rescale, x0_limit=x0_limit, over="rig")
        prior = cls(model.unet, model.vae, model.process, text_parts, image_size, guidance)
        prior.source = path
        return prior

    @staticmethod
    def check_unet(unet, where="the UNet") -> None:
        """Nothing: `load_multiview` has looked."""

    def labels(self, conditions: Sequence[Condition], cameras: Cameras | None) -> dict[str, Any]:
        if cameras is None:
            raise UserError("a multi-view prior must be told where the views stand")
        set_views(self.unet, cameras.n_views)
        camera = mvdream_camera(cameras.c2w.to(self.unet.device).repeat(len(conditions), 1, 1, 1))
        return {"class_labels": camera.flatten(0, 1).to(self.unet.dtype)}
