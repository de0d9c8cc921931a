"""I2I energy (Eq. 7): the views agree when each is what a novel-view model sees from there, given one of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from jointdreamer.arguments import Pixels, Positive, Range, Scale
from jointdreamer.cameras import Cameras, Rig, look_at
from jointdreamer.diffusion import alpha_sigma, noise_like
from jointdreamer.energies.base import Energy, Views, fit_latents
from jointdreamer.errors import UserError
from jointdreamer.kernels.precision import network_dtype
from jointdreamer.priors.novel_view import load_novel_view
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.weights.find import find_weights, needed_files

FRONT = "front"  # the reference is the view nearest to it


class ImageToImageEnergy(Energy):
    """C = -1/2 sum over the other views of (x0_i - M(x_ref, pose_i))^2, with the novel views M(...) a constant.

    The reference is a view of the rig, another each step, or an image that `give_reference` was given. No term is its
    own, and no gradient reaches it. The 1/2, which Eq. 7 lacks, and the sum over ONE rig are as in multiview.py.

    The novel views are made at the step's own noise level: each render is encoded and noised to t, and the model, which
    sees the reference, estimates its clean latents in one step. Why not whole samples from pure noise: 50 passes of a
    UNet a step instead of one; and a sample invents another back of the object every time, so that the gradients of
    two steps cancel, while the estimate at t corrects the back that is there, by as much as t leaves open: all of it at
    the beginning, details at the end. It is also how Eq. 8's energy and the text-to-image prior look at the object, so
    that the three agree on what is settled. `steps` takes that many deterministic steps (DDIM) from t down instead:
    sharper, at the cost of as many passes. One is the default for its cost (measured: LAB.md).

    source: diffusers folder, the original checkpoint, a hub id, or a list of these
    file: the name of a checkpoint inside a folder
    kind: zero123, stable_zero123 or wonder3d; each has its rig (`models.novel_view.rig`)
    vae: folder or hub id whose vae/ encodes the images; by default the one that comes with `source`
    image_size: pixels that the autoencoder sees; by default the UNet's sample_size times the autoencoder's factor
    guidance_scale: the usual uncond + s (cond - uncond); the authors of both models use 3
    white: put renders before white, as the models know them. The background under a half-transparent pixel is not
        known: rgb opacity + 1 - opacity errs by opacity (1 - opacity) (background - 1) there, and nowhere else
    x0_limit: clamp the novel views' latents to +- this; off by default
    reference: which view is the reference: a random one of each rig, each step another (null); the one that looks most
        from the front ("front": azimuth nearest 0, where view-dependent prompts say so too); or the view of that number
    reference_image: "render", the view as it is (the paper's), or "estimate", what the text-to-image prior would make
        of it in one step. A render that shows no face yet says that no side has one; the estimate looks ahead
    dtype: "auto", "float32", "bfloat16" or "float16", see `network_dtype`
    compile: whether torch.compile takes the UNet, see `place_unet`

    Raises UserError, one line, if the weights are missing, damaged or do not fit.
    """

    def __init__(
        self,
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
    ):
        super().__init__()
        if steps < 1:
            raise UserError(f"energy.steps must be at least 1, got {steps}")
        if isinstance(reference, str) and reference != FRONT:
            raise UserError(f"energy.reference={reference}: wanted null (random), front, or the number of a view")
        if reference_image not in ("render", "estimate"):
            raise UserError(f"energy.reference_image={reference_image}: choose render or estimate")
        device = torch.device(device)
        dtype = network_dtype(dtype, device)
        download = device.type == "cuda"
        role = "wonder3d" if kind == "wonder3d" else "novel_view"
        needs = None if file else needed_files(role, vae)
        hint = "name a folder or file, models.novel_view.source=...; models=toybox needs no download"
        path = find_weights(source, role, file=file, needs=needs, hint=hint, download=download)
        self.folder = path  # or the checkpoint's file
        self.model = load_novel_view(kind, path, vae, image_size, x0_limit, dtype, download).to(device)
        self.model.vae = place(self.model.vae, device)
        self.model.unet = place_unet(self.model.unet, device, compile)
        if self.model.together and reference not in (None, 0):
            raise UserError(f"energy.reference={reference}: of a {kind} rig the first view, 0, is the reference")
        self.guidance_scale, self.steps, self.white = guidance_scale, steps, white
        self.reference = 0 if self.model.together else reference
        self.ahead = reference_image == "estimate"
        self.given: tuple[Tensor, float, float, float] | None = None

    # Where the forecast of memory looks for them, as in the other energies

    @property
    def unet(self) -> Any:
        return self.model.unet

    @property
    def vae(self) -> Any:
        return self.model.vae

    @property
    def image_size(self) -> int:
        return self.model.image_size

    def check_rig(self, rig: Rig) -> None:
        self.model.check_rig(rig)
        if isinstance(self.reference, int) and not 0 <= self.reference < rig.n_views:
            raise UserError(f"energy.reference={self.reference}: cameras.n_views={rig.n_views} views count from 0")

    def give_reference(self, image: Tensor, elevation: float, azimuth: float, distance: float) -> None:
        """From now on the reference is this image (3, R, R) in [0, 1], before the models' background.

        elevation, azimuth: of the camera that took it, radians; distance in world units. Then every view has a term.
        Raises UserError for a model whose reference must be a view of the rig.
        """
        if self.model.together:
            raise UserError("a model of fixed views cannot take a given image: its rigs turn; take Zero-1-to-3")
        self.given = (image, elevation, azimuth, distance)

    def forward(self, views: Views) -> Tensor:
        target, others = self.estimate(views)  # (B, K, C, h', w'), (B, K)
        target = fit_latents(target, views.x0, "novel-view model")
        rows = torch.arange(len(others), device=others.device)[:, None]
        return -0.5 * (views.x0[rows, others] - target).square().sum((1, 2, 3, 4))

    @torch.no_grad()
    def estimate(self, views: Views) -> tuple[Tensor, Tensor]:
        """The novel views' latents (B, K, C, h', w') and the numbers (B, K) of the rig's views they are compared with.

        Draws from `views.generator`: the reference, the autoencoder's posterior, the noise, then what the model draws.
        """
        rgb = views.rgb * views.opacity + 1 - views.opacity if self.white else views.rgb
        b, v = rgb.shape[:2]
        cameras = views.cameras.to(rgb.device)
        everyone = torch.arange(v, device=rgb.device).expand(b, v)
        if self.given is not None:
            image, *pose = self.given
            reference, images = _camera(cameras, *pose), image.to(rgb).expand(b, -1, -1, -1)
            asked, compared = everyone, slice(0, v)
        else:
            chosen = self._choose(cameras, views.generator).to(rgb.device)
            mine = torch.arange(b, device=rgb.device)[:, None], chosen
            x0 = views.x0_guided if self.ahead else None
            images = rgb[mine] if x0 is None else views.decode(x0[mine]).clamp(0, 1)  # (B, 1, 3, H, W)
            reference, images = cameras.select(chosen), images[:, 0]
            around = (chosen + everyone) % v  # from the reference on
            asked, compared = (around, slice(1, v)) if self.model.together else (around[:, 1:], slice(0, v - 1))
        rows = torch.arange(b, device=rgb.device)[:, None]
        latents = self.model.encode(rgb[rows, asked], views.generator)
        alpha_t, sigma_t = alpha_sigma(self.model.alphas_cumprod, views.timesteps)
        x_t = alpha_t * latents + sigma_t * noise_like(latents, views.generator)
        novel = self.model(
            images,
            reference,
            x_t,
            views.timesteps,
            cameras.select(asked),
            self.guidance_scale,
            self.steps,
            views.generator,
        )
        return novel[:, compared], asked[:, compared]

    def _choose(self, cameras: Cameras, generator: torch.Generator | None) -> Tensor:
        """The reference's number (B, 1) in each rig."""
        b, v = cameras.azimuth.shape
        if self.reference == FRONT:
            return cameras.front[:, None]
        if isinstance(self.reference, int):
            return torch.full((b, 1), self.reference)
        device = generator.device if generator is not None else None
        return torch.randint(v, (b, 1), generator=generator, device=device)


def _camera(like: Cameras, elevation: float, azimuth: float, distance: float) -> Cameras:
    """One camera for each rig, (B, 1), that stands there; the rest as the rig's first."""
    first = like.select(torch.zeros(like.n_rigs, 1, dtype=torch.long))
    e, a, d = (torch.full_like(first.elevation, x) for x in (elevation, azimuth, distance))
    return Cameras(look_at(e, a, d), first.fovy, e, a, d, first.light, first.resolution, first.orthographic)
