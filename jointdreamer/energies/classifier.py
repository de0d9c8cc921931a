"""CLS energy (Eq. 6): the views agree when a classifier takes neighbouring ones for views of one object."""

from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.checkpoint import checkpoint

from jointdreamer.arguments import Pixels, Range, Scale
from jointdreamer.cameras import camera_numbers
from jointdreamer.classifier.model import Features, climb, load_classifier
from jointdreamer.energies.base import Energy, Views
from jointdreamer.errors import UserError
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.parts import load_part

GRADIENT_SCALE = 1024.0  # a logit's gradient, spread over 512 x 512 pixels, would drown in a decoder of half precision


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient comes back multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * ctx.factor, None


class ClassifierEnergy(Energy):
    """C = scale times the sum over pairs of views of a rig of M_CLS(view i, view j, relative pose), unbounded logits.

    The pairs are neighbours (v, v + 1), the last one's neighbour being the first, or all, or the given view with each.

    The views are decoded one-step estimates, so the gradient reaches x_t through the decoder and the classifier. (Eq. 6
    sums over all i != j and the text speaks of neighbours; the official implementation has no such energy.)

    source: folder of a classifier that train_classifier.py made
    image_size: pixels that it must have been trained on; None takes any
    decoder: folder or hub id of a small decoder (diffusers' AutoencoderTiny) in place of the prior's own
    scale: a factor of the energy: logits are of another size than Eq. 8's squared distances
    pairs: "neighbours" sums over (v, v + 1), as the paper's text has it; "all" over all i != j, as Eq. 6 is printed;
        "given" over the anchor with every other view
    anchor: "front" takes the view that looks most from the front (azimuth nearest 0, where view-dependent prompts say
        so too) as given: the text-to-image prior's guided estimate of it, without a gradient; the others follow it.
        null treats all alike: then four equal views of a rig get equal gradients, and a face on each of them stays
    ascent: 0, or steps along the derivative that are taken at once, in images, where a classifier's training has
        taught it (`training.step_weight`). A derivative says little of how far it holds, and the decoder's
        transpose blurs it; so the images of the views climb the sum of log sigmoid(logit), which no longer pulls where
        a pair is coherent, and C = -scale/2 |x0 - x0 of where they arrive|^2, as in Eq. 7 and 8, with no gradient
        through the decoder
    ascent_step: images in [0, 1] move by so many times the derivative
    low_memory: recompute each view's decoder and backbone on the way back: memory of one view instead of V

    Raises UserError, one line, for weights that are missing, damaged or trained for something else.
    """

    def __init__(
        self,
        source: str | Path,
        image_size: Pixels | None = None,
        decoder: str | Path | None = None,
        scale: Scale = 1.0,
        pairs: str = "neighbours",
        anchor: str | None = None,
        ascent: Annotated[int, Range(high=1000)] = 0,
        ascent_step: Annotated[float, Range(high=1e6)] = 6.0,
        low_memory: bool = True,
        device: str | torch.device = "cpu",
    ):
        super().__init__()
        if anchor not in (None, "front"):
            raise UserError(f"anchor={anchor}: choose front or null")
        if pairs not in ("neighbours", "all", "given"):
            raise UserError(f"pairs={pairs}: choose neighbours, all or given")
        if pairs == "given" and anchor is None:
            raise UserError("pairs=given: no view is given without anchor=front")
        if not isinstance(ascent, int) or ascent < 0 or ascent_step <= 0:
            raise UserError(f"ascent={ascent}, ascent_step={ascent_step}: wanted steps from 0 up, and above 0")
        device = torch.device(device)
        classifier, self.source = load_classifier(source, image_size)
        self.classifier = classifier.to(device)
        self.decoder = None
        if decoder is not None:
            from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

            hint = "leave models.classifier.decoder out for the prior's own"
            folder = find_weights(decoder, "small_decoder", hint=hint, download=device.type == "cuda")
            dtype = torch.float16 if device.type == "cuda" else torch.float32
            self.decoder = load_part(AutoencoderTiny, folder, "", dtype).to(device)
        self.scale = scale
        self.anchored = anchor is not None
        self.pairs = pairs
        self.ascent, self.ascent_step = ascent, ascent_step
        self.low_memory = low_memory

    def forward(self, views: Views) -> Tensor:
        n_views = views.x0.shape[1]
        if n_views < 2:
            raise UserError("energy=cls compares views: it needs cameras.n_views of at least 2, got 1")

        def see(x0: Tensor) -> Features:  # (B, C, h, w) latents of one view of every rig
            images = self.images(ScaleGradient.apply(x0, 1 / GRADIENT_SCALE), views)
            return self.classifier.encode(ScaleGradient.apply(images, GRADIENT_SCALE))

        is_anchor = one_hot(views.cameras.front.to(views.x0.device), n_views).bool() & self.anchored
        is_anchor = is_anchor[:, :, None, None, None]  # (B, V, 1, 1, 1)
        anchor = views.x0 if views.x0_guided is None else views.x0_guided
        x0 = torch.where(is_anchor, anchor.detach(), views.x0)
        if self.ascent:
            target = self._ascended(x0, is_anchor, views)
            return -0.5 * self.scale * ((views.x0 - target) * ~is_anchor).square().sum((1, 2, 3, 4))
        features = [checkpoint(see, x, use_reentrant=False) if self.low_memory else see(x) for x in x0.unbind(1)]
        whole = Features(*(torch.stack(parts, 1).flatten(0, 1) for parts in zip(*features, strict=True)))
        return self.scale * self._logits(whole, views).sum(1)

    @torch.no_grad()
    def _ascended(self, x0: Tensor, is_anchor: Tensor, views: Views) -> Tensor:
        """Latents (B, V, C, h, w) after `ascent` steps of gradient ascent on the images of x0; the anchors stay."""
        if views.encode is None:
            raise UserError("ascent: these views come without an encoder (Views.encode)")
        images = torch.stack([self.images(one, views) for one in x0.unbind(1)], 1)

        def logits(images: Tensor) -> Tensor:
            return self._logits(self.classifier.encode(images.flatten(0, 1)), views)

        return views.encode(climb(images, logits, self.ascent, self.ascent_step, ~is_anchor))

    def _logits(self, seen: Features, views: Views) -> Tensor:
        """(B, P) of the pairs of each rig; seen: of B * V images, rig by rig."""
        c2w = views.cameras.c2w.to(views.x0.device)  # (B, V, 4, 4)
        b, v = c2w.shape[:2]
        everyone, front = torch.arange(v), views.cameras.front.cpu()
        if self.pairs == "given":
            first = front[:, None].expand(b, v - 1)
            second = (first + everyone[1:]) % v
        elif self.pairs == "all":
            first, second = (x.expand(b, -1) for x in (~torch.eye(v, dtype=torch.bool)).nonzero().T)
        else:
            first, second = everyone.expand(b, v), everyone.roll(-1).expand(b, v)
        start = v * torch.arange(b)[:, None]
        one, other = ((start + x).flatten().to(c2w.device) for x in (first, second))
        poses = c2w.flatten(0, 1)
        logits = self.classifier.compare(seen.take(one), seen.take(other), camera_numbers(poses[one], poses[other]))
        return logits.view(b, -1)

    def images(self, x0: Tensor, views: Views) -> Tensor:
        """Latents (B, C, h, w) of one view -> images (B, 3, H, W), about [0, 1]."""
        if self.decoder is None:
            return views.decode(x0[:, None])[:, 0]
        if x0.shape[1] != (wanted := self.decoder.config.latent_channels):
            raise UserError(
                f"models.classifier.decoder reads latents of {wanted} channels, the text-to-image model's have "
                f"{x0.shape[1]}: leave it out for the prior's own decoder, models.classifier.decoder=null"
            )
        # it takes latents as the UNet has them, and gives -1 to 1
        return self.decoder.decode(x0.to(self.decoder.dtype)).sample.float() / 2 + 0.5
