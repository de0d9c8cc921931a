"""What priors whose network is diffusers' and is told a text have in common, over latents or pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import Guidance
from jointdreamer.weights.folders import refuse_distilled


class NetworkPrior(Prior):
    """A frozen text-to-image network; views are independent to it.

    unet: UNet2DConditionModel, or a transformer, that takes what is noised and a text
    process: noise process and prediction type
    guidance: how its predictions with and without the text become one

    Raises UserError for a network that needs other inputs, or is distilled for one guidance.
    """

    what = "text-to-image model"

    def __init__(self, unet: Any, process: NoiseProcess, image_size: int, guidance: Guidance):
        super().__init__()
        refuse_distilled(dict(unet.config), f"the {self.what}")
        self.check_unet(unet)
        self.unet, self.process = unet, process
        self.image_size, self.guidance = image_size, guidance

    @staticmethod
    def check_unet(unet: Any, where: Any = "the UNet") -> None:
        """Raise UserError for a network that this prior cannot ask."""

    @property
    def text_width(self) -> int:
        """D of the text embeddings (L, D) that the network reads."""
        return self.unet.config.cross_attention_dim

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of what is noised."""
        return self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, conditions: Sequence[Condition], cameras: Cameras | None) -> list[Tensor]:
        """Raises UserError if the text embeddings are of another width than the network's."""
        k, (b, v) = len(conditions), x_t.shape[:2]
        if (width := conditions[0].embedding.shape[-1]) != self.text_width:
            raise UserError(
                f"the {self.what} reads text embeddings of width {self.text_width}, the text "
                f"encoder gives {width}: take both from the same family"
            )
        with torch.inference_mode():
            prediction = self.network(x_t, t, conditions, cameras)
        # a copy: autograd, an energy's for one, refuses what inference mode has made
        prediction = prediction.to(torch.float32, copy=True).unflatten(0, (k, b, v))
        return [self.process.noise(one, x_t, t) for one in prediction]

    def network(
        self,
        x_t: Tensor,  # (B, V, C, h, w)
        t: Tensor,  # (B,)
        conditions: Sequence[Condition],
        cameras: Cameras | None,
    ) -> Tensor:
        """What the network itself answers under K conditions: rows (K B V, C, h, w), in its precision."""
        k, v = len(conditions), x_t.shape[1]
        return self.unet(
            self.beside(torch.cat([x_t] * k).flatten(0, 1), conditions).to(self.unet.dtype),
            t.repeat_interleave(v).repeat(k),
            encoder_hidden_states=self.text(conditions),
            return_dict=False,
            **self.labels(conditions, cameras),
        )[0]

    def text(self, conditions: Sequence[Condition]) -> Tensor:
        """The text embeddings of the network's rows (K B V, L, D), in its precision."""
        return torch.cat([condition.embedding for condition in conditions]).flatten(0, 1).to(self.unet.dtype)

    def pooled(self, conditions: Sequence[Condition]) -> Tensor:
        """The pooled text of the network's rows (K B V, P), in its precision."""
        return torch.cat([condition.extra["pooled"] for condition in conditions]).flatten(0, 1).to(self.unet.dtype)

    def beside(self, rows: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """The network's input rows (K B V, C, h, w), with what a model wants beside the noisy latents."""
        return rows

    def labels(self, conditions: Sequence[Condition], cameras: Cameras | None) -> dict[str, Any]:
        """What else the network is given, for K conditions of every view."""
        return {}
