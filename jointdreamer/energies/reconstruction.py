"""Reconstruction energies (Eq. 7, I2I, and Eq. 8, MVS): the views agree when a model that sees them together, or one
of them, would have drawn the others as they are."""

from collections.abc import Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from jointdreamer.arguments import Pixels, Positive, Range, Scale
from jointdreamer.cameras import Cameras, Rig, look_at
from jointdreamer.diffusion import check_timesteps, noise_from_x0, noise_like
from jointdreamer.energies.base import Energy, Views
from jointdreamer.errors import UserError
from jointdreamer.priors.autoencoder import encode_mean
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.guidance import guided
from jointdreamer.priors.imagedream import ImageDream
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.multi_view import MultiViewDiffusion
from jointdreamer.priors.novel_view import NovelView
from jointdreamer.priors.prompts import Prompts, TextEmbeddings
from jointdreamer.priors.registry import novel_view_class
from jointdreamer.ranks import per_rig

FRONT = "front"  # the reference is the view nearest to azimuth 0


class ReconstructionEnergy(Energy):
    """C = -1/2 sum over views, channels and pixels of (x0 - x0_model)^2, with x0_model a constant.

    x0_model is the model's own estimate for the same renders: its own encoding and noise, at the step's timestep. The
    1/2, which Eq. 7 and 8 lack, gives dC/dx0 = x0_model - x0. A sum over ONE rig: the official implementation also
    divides by the views of the whole batch, so energy_weight 1.25 here is its 5 at the paper's batch of 4.

    A multi-view model (Eq. 8) is told the text and draws all views. A novel-view model (Eq. 7) is told one image, the
    reference: a view of the rig, or the one that `give_reference` was given. The reference has no term of its own, and
    no gradient reaches it. Its views are estimates at the step's noise level too: whole samples from pure noise would
    cost 50 passes a step, and invent another back of the object every time.

    Where the text-to-image prior's latents are of another kind than the model's, its x0 is decoded, and encoded by the
    model's autoencoder, one view of every rig at a time, and compared there; the gradient comes back through both.

    prior: MultiViewDiffusion or NovelView; a MultiViewDiffusion without autoencoder takes `views.latents` as they are
    own_text: whether the model reads the prompt through its own text encoder, not as the text-to-image prior does
    steps: estimates by that many deterministic steps (DDIM) from t down instead of one
    white: put renders before white, as the model knows them. The background under a half-transparent pixel is not
        known: rgb opacity + 1 - opacity errs by opacity (1 - opacity) (background - 1) there, and nowhere else
    reference: which view is the reference: a random one of each rig, each step another (null); the one nearest to
        azimuth 0 ("front"); or the view of that number
    reference_image: "render", the view as it is (the paper's), or "estimate", the text-to-image prior's guided x0 of
        it. A render that shows no face yet says that no side has one

    Raises UserError for options that do not fit the model.
    """

    def __init__(
        self,
        prior: LatentDiffusion,
        steps: int = 1,
        white: bool = False,
        reference: int | str | None = None,
        reference_image: str = "render",
        own_text: bool = False,
    ):
        super().__init__()
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        if isinstance(reference, str) and reference != FRONT:
            raise UserError(f"reference={reference}: wanted null (random), front, or the number of a view")
        if reference_image not in ("render", "estimate"):
            raise UserError(f"reference_image={reference_image}: choose render or estimate")
        self.together = isinstance(prior, NovelView) and prior.together
        if self.together and reference not in (None, 0):
            raise UserError(f"reference={reference}: of six fixed views the first view, 0, is the reference")
        self.prior, self.source = prior, prior.source
        self.steps, self.white = steps, white
        self.reference = 0 if self.together else reference
        self.reference_image = reference_image
        self.own_text = own_text
        self.text: TextEmbeddings | None = None
        self.prompts: Prompts | None = None
        self.given: tuple[Tensor, float, float, float] | None = None

    def check_rig(self, rig: Rig) -> None:
        if isinstance(self.prior, NovelView):
            self.prior.check_rig(rig)
        if isinstance(self.reference, int) and not 0 <= self.reference < rig.n_views:
            raise UserError(f"reference={self.reference}: cameras.n_views={rig.n_views} views count from 0")

    def check_timesteps(self, n: int) -> None:
        check_timesteps(n, len(self.prior.process), self.prior.what)

    def give_prompt(self, prompts: Prompts) -> None:
        self.prompts = prompts
        if self.own_text and not isinstance(self.prior, ImageDream):  # which is given its picture first
            self.text = self.prior.embed(prompts)

    def give_reference(self, image: Tensor, elevation: float, azimuth: float, distance: float) -> None:
        """From now on the reference is this image (3, R, R) in [0, 1], before the model's background.

        elevation, azimuth: of the camera that took it, radians; distance in world units. Then every view has a term.
        Raises UserError for a model that takes no image, or whose reference must be a view of the rig.
        """
        if isinstance(self.prior, ImageDream):
            self.prior.give_image(image)
            self.text = None if self.prompts is None else self.prior.embed(self.prompts)
            return
        if not isinstance(self.prior, NovelView):
            raise UserError("image=FILE, and the multi-view energy is told a text: take energy=i2i, imagedream or none")
        if self.together:
            raise UserError("a model of fixed views cannot take a given image: its rigs turn; take Zero-1-to-3")
        self.given = (image, elevation, azimuth, distance)

    def forward(self, views: Views) -> Tensor:
        target, compared = self.estimate(views)  # (B, K, C, h', w'), (B, K)
        x0 = views.x0[torch.arange(len(compared), device=compared.device)[:, None], compared]
        if None not in (spaces := (self.prior.latent_space, views.latent_space)) and spaces[0] != spaces[1]:
            x0 = self._translated(x0, views)
        return -0.5 * (x0 - fit_latents(target, x0, self.prior.what)).square().sum((1, 2, 3, 4))

    def _translated(self, x0: Tensor, views: Views) -> Tensor:
        """The text-to-image prior's x0 (B, K, C, h, w) as latents of this model (B, K, C', h', w'), differentiable.

        Backward decodes and encodes each view once more instead of keeping what all of them need.
        """

        def translate(view: Tensor) -> Tensor:  # (B, C, h, w)
            return encode_mean(self.prior.vae, views.decode(view[:, None]), self.prior.image_size)[:, 0]

        return torch.stack([checkpoint(translate, view, use_reentrant=False) for view in x0.unbind(1)], 1)

    @torch.no_grad()
    def estimate(self, views: Views) -> tuple[Tensor, Tensor]:
        """x0_model (B, K, C, h', w'), and the numbers (B, K) of the rig's views that it is compared with.

        Draws from `views.generator`: the reference, the autoencoder's posterior, the noise, then what the model draws.
        """
        rgb = views.rgb * views.opacity + 1 - views.opacity if self.white else views.rgb
        cameras = views.cameras.to(rgb.device)
        t = first_t = views.timesteps.clamp_max(self.prior.process.last)
        rows = torch.arange(len(rgb), device=rgb.device)[:, None]
        drawn = torch.arange(rgb.shape[1], device=rgb.device).expand(rgb.shape[:2])  # (B, V)
        first = 0  # of the views that are compared
        condition = nothing = None
        if isinstance(self.prior, NovelView):
            image, reference, drawn = self._reference(views, rgb, cameras, drawn)
            first = int(self.together)
            cameras = cameras.select(drawn)
            condition = self.prior.embed_image(image, reference, cameras)
            nothing = condition.zeros()
        else:
            condition, nothing = self._text(views, cameras)
        latents = self._encode(views, rgb[rows, drawn])
        alpha_t, sigma_t = self.prior.process.at(t)
        x_t = alpha_t * latents + sigma_t * noise_like(latents, views.generator)
        if isinstance(self.prior, NovelView):
            x_t = self.prior.start(condition, x_t, t, cameras, views.generator)
        x0 = self._x0(x_t, t, condition, nothing, cameras)
        for k in range(1, self.steps):
            noise = noise_from_x0(x_t, x0, *self.prior.process.at(t))
            t = first_t * (self.steps - k) // self.steps
            alpha_t, sigma_t = self.prior.process.at(t)
            x_t = alpha_t * x0 + sigma_t * noise
            x0 = self._x0(x_t, t, condition, nothing, cameras)
        return x0[:, -drawn.shape[1] :][:, first:], drawn[:, first:]

    def _x0(self, x_t: Tensor, t: Tensor, condition: Condition, nothing: Condition, cameras: Cameras) -> Tensor:
        scale = self.prior.guidance.scale or 1.0
        if scale == 1:
            (noise,) = (cond,) = self.prior.predict(x_t, t, [condition], cameras)
        else:
            cond, uncond = self.prior.predict(x_t, t, [condition, nothing], cameras)
            noise = guided(cond, uncond, scale)
        return self.prior.guidance.x0(self.prior.process, x_t, t, noise, cond)

    def _text(self, views: Views, cameras: Cameras) -> tuple[Condition, Condition]:
        """What a multi-view model is told of the views, and what guidance steers away from."""
        if self.text is not None:
            return self.text.at(cameras), self.text.nothing(cameras, views.negative_prompt)
        return Condition(views.text.cond), Condition(views.text.uncond)

    def _encode(self, views: Views, rgb: Tensor) -> Tensor:
        if self.prior.vae is not None:
            return self.prior.encode(rgb, views.generator, grad=False)
        size, channels = self.prior.unet.config.sample_size, self.prior.unet.config.in_channels
        if views.latents is None or views.latents.shape[2:] != (channels, size, size):
            came = "none" if views.latents is None else "x".join(map(str, views.latents.shape[2:]))
            raise UserError(
                f"models.multi_view.vae=shared: the multi-view model reads latents of {channels}x{size}x{size}, the "
                f"text-to-image model's are {came}: name a folder that has its own autoencoder, vae=FOLDER"
            )
        return views.latents

    def _reference(self, views: Views, rgb: Tensor, cameras: Cameras, drawn: Tensor) -> tuple[Tensor, Cameras, Tensor]:
        """The reference image (B, 3, R, R), its cameras (B, 1), and the numbers (B, K) of the views that are drawn."""
        b, v = rgb.shape[:2]
        if self.given is not None:
            image, *pose = self.given
            return image.to(rgb).expand(b, -1, -1, -1), _camera(cameras, *pose), drawn
        chosen = self._choose(cameras, views.generator).to(rgb.device)  # (B, 1)
        mine = torch.arange(b, device=rgb.device)[:, None], chosen
        x0 = views.x0_guided if self.reference_image == "estimate" else None
        image = rgb[mine] if x0 is None else views.decode(x0[mine]).clamp(0, 1)  # (B, 1, 3, H, W)
        around = (chosen + drawn) % v  # from the reference on
        return image[:, 0], cameras.select(chosen), around if self.together else around[:, 1:]

    def _choose(self, cameras: Cameras, generator: torch.Generator | None) -> Tensor:
        """The reference's number (B, 1) in each rig."""
        b, v = cameras.azimuth.shape
        if self.reference == FRONT:
            return cameras.front[:, None]
        if isinstance(self.reference, int):
            return torch.full((b, 1), self.reference)
        return per_rig(partial(torch.randint, v), (b, 1), generator)


def fit_latents(target: Tensor, x0: Tensor, model: str) -> Tensor:
    """What another model sees, (B, K, C, h', w'), at the size (h, w) of the text-to-image prior's x0 (B, V, C, h, w).

    Raises UserError, one line, if their latents have different numbers of channels; model: what the error calls it.
    """
    if target.shape[2] != x0.shape[2]:
        raise UserError(
            f"the {model}'s latents have {target.shape[2]} channels, the text-to-image model's {x0.shape[2]}: they "
            "must share one kind of autoencoder"
        )
    if target.shape[-2:] == x0.shape[-2:]:
        return target
    resized = interpolate(target.flatten(0, 1), x0.shape[-2:], mode="bilinear", align_corners=False)
    return resized.unflatten(0, target.shape[:2])


def _camera(like: Cameras, elevation: float, azimuth: float, distance: float) -> Cameras:
    """One camera for each rig, (B, 1), that stands there; the rest as the rig's first."""
    first = like.select(torch.zeros(like.n_rigs, 1, dtype=torch.long))
    e, a, d = (torch.full_like(first.elevation, x) for x in (elevation, azimuth, distance))
    return Cameras(look_at(e, a, d), first.fovy, e, a, d, first.light, first.resolution, first.orthographic)


@wraps(MultiViewDiffusion.build)
def mvs(*args: Any, **options: Any) -> ReconstructionEnergy:
    """Eq. 8's energy over MVDream or the toybox's model; the arguments of `MultiViewDiffusion.build`.

    With `text` it reads the prompt through that text encoder, not as the text-to-image prior does.
    """
    return ReconstructionEnergy(MultiViewDiffusion.build(*args, **options), own_text=options.get("text") is not None)


@wraps(ImageDream.build)
def imagedream(*args: Any, **options: Any) -> ReconstructionEnergy:
    """Eq. 8's energy over ImageDream, which is told a given image too; the arguments of `ImageDream.build`."""
    return ReconstructionEnergy(ImageDream.build(*args, **options), own_text=True)


def i2i(
    source: str | Path | Sequence[str],
    kind: str = "zero123",
    file: str | None = None,
    vae: str | Path | None = None,
    image_size: Pixels | None = None,
    guidance_scale: Scale = 3.0,
    steps: Annotated[int, Range(high=1000)] = 1,
    white: bool = True,
    x0_limit: Positive | None = None,
    reference: int | str | None = None,
    reference_image: str = "render",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> ReconstructionEnergy:
    """Eq. 7's energy over Zero-1-to-3, Wonder3D or the toybox's model.

    source: diffusers folder, the original checkpoint, a hub id, or a list of these
    file: the name of a checkpoint inside a folder
    kind: zero123, stable_zero123 or wonder3d; each has its rig (`models.novel_view.rig`)
    vae, image_size, x0_limit, guidance_scale: see `NovelView.load`
    steps, white, reference, reference_image: see `ReconstructionEnergy`
    dtype: "auto", "float32", "bfloat16" or "float16", see `network_dtype`
    compile: whether torch.compile takes the UNet, see `place_unet`

    Raises UserError, one line, if the weights are missing, damaged or do not fit.
    """
    model = novel_view_class(kind).build(
        source, file, vae, image_size, x0_limit, guidance_scale, dtype, device, compile
    )
    return ReconstructionEnergy(model, steps, white, reference, reference_image)
