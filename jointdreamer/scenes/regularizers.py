"""What a good object looks like, whatever the prompt: a scalar of a render, or of the surface that it shows."""

from types import SimpleNamespace

import torch
from torch import Tensor

from jointdreamer.cameras import Cameras, rays
from jointdreamer.ranks import ALONE, Ranks, ranks_of, shared
from jointdreamer.scenes.base import Render
from jointdreamer.scenes.nerf.base import Field


def orientation(render: Render, ranks: Ranks = ALONE) -> Tensor:
    """Ref-NeRF's penalty on surfaces that turn away from the camera that sees them.

    Sum over samples of stopgrad(w) max(0, n . d)^2, over the number of pixels with any opacity.
    Raises ValueError for a render without normals.
    """
    if render.facing_away is None:
        raise ValueError("the orientation loss needs normals: render with normals=True (see needs_normals)")
    return render.facing_away.sum() / _covered(render.opacity > 0, ranks)


def sparsity(render: Render, ranks: Ranks = ALONE) -> Tensor:
    """Little of the image covered: mean sqrt(opacity^2 + 0.01), whose gradient fades at 0."""
    return (render.opacity.square() + 0.01).sqrt().mean()


def opaque(render: Render, ranks: Ranks = ALONE) -> Tensor:
    """Every pixel either covered or not: mean binary entropy of the opacity, clamped to [0.001, 0.999]."""
    p = render.opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def z_variance(render: Render, ranks: Ranks = ALONE) -> Tensor:
    """Thin surfaces: mean variance of the depth over pixels with opacity > 0.5; 0 if there are none."""
    if render.z_variance is None:
        raise ValueError("the z_variance loss needs a render that has it")
    covered = render.opacity > 0.5
    return (render.z_variance * covered).sum() / _covered(covered, ranks)


def smoothness_2d(render: Render, ranks: Ranks = ALONE) -> Tensor:
    """threestudio's `normal_smooth`: mean squared difference of the normals of neighbouring pixels, of both axes.

    Normals are those of the render, sum w n: 0 beside the object.
    Raises ValueError for a render without normals.
    """
    if render.normal is None:
        raise ValueError("the smoothness of a normal map needs normals: render with normals=True (see needs_normals)")
    across, down = (render.normal.diff(dim=axis).square().mean() for axis in (-1, -2))
    return across + down


def _covered(pixels: Tensor, ranks: Ranks) -> Tensor:
    """How many pixels count, in the mean over the ranks: the mean of their quotients is then that of all rigs."""
    n_pixels = pixels.sum()
    if ranks.count == 1:
        return n_pixels.clamp(min=1)
    return ranks.mean(n_pixels.float()).clamp(min=1 / ranks.count)


def smoothness(
    render: Render,
    field: Field,
    cameras: Cameras,
    generator: torch.Generator | None,
    n_points: int = 1024,
    distance: float = 0.02,
) -> Tensor:
    """UNISURF's: mean |n(x) - n(x + e)|^2 over points x of the surface, e a normal draw of `distance` along each axis.

    The points are where random pixels with opacity > 0.5 see the surface in the mean; 0 if there are none. A few
    thousand points are a small part of a render's, so this costs little where normals of all samples would double it.
    All ranks draw the same points of all pictures, and each takes those of its own.
    """
    if render.depth is None:
        raise ValueError("the smoothness of a surface needs a render with depths")
    opacity, depth = render.opacity.detach().flatten(), render.depth.detach().flatten()
    covered, ranks = torch.nonzero(opacity > 0.5).flatten(), ranks_of(generator)
    counts = ranks.each(len(covered))
    if not sum(counts):
        return 0 * render.opacity.sum()
    device = generator.device if generator is not None else opacity.device
    drawn = torch.randint(sum(counts), (n_points,), generator=shared(generator), device=device)
    shift = torch.randn((n_points, 3), generator=shared(generator), device=device)
    if ranks.count > 1:
        drawn = drawn - sum(counts[: ranks.index])
        own = (drawn >= 0) & (drawn < len(covered))
        drawn, shift = drawn[own], shift[own]
        if not len(drawn):
            return 0 * render.opacity.sum()
    rays_o, rays_d = (
        x.reshape(-1, 3) for x in rays(cameras.c2w, cameras.fovy, cameras.resolution, cameras.orthographic)
    )
    chosen = covered[drawn.to(covered.device)]
    x = rays_o[chosen] + (depth[chosen] / opacity[chosen])[:, None] * rays_d[chosen]
    beside = x + distance * shift.to(x)
    normal = field(torch.cat([x, beside]), normals=True).normal
    assert normal is not None
    share = ranks.count * len(x) / n_points  # of the points, where 1 is all that one process has
    return share * (normal[: len(x)] - normal[len(x) :]).square().sum(1).mean()


OF_THE_RENDER = {
    "orient": orientation,
    "sparsity": sparsity,
    "opaque": opaque,
    "z_variance": z_variance,
    "smooth_2d": smoothness_2d,
}
REGULARIZERS = (*OF_THE_RENDER, "smooth")
OPTIONAL = ("smooth",)  # what a schedule may weigh although the scene does not have it, without effect


def regularizers(
    render: Render,
    weights: SimpleNamespace,
    field: Field | None = None,
    cameras: Cameras | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The regularizers whose weight, as in `now.loss`, is there and not zero; not multiplied by it.

    "smooth" asks the field that was rendered, from these cameras, and is left out where there is none (OPTIONAL); the
    others need the render alone.
    """
    ranks = ranks_of(generator)
    losses = {name: f(render, ranks) for name, f in OF_THE_RENDER.items() if getattr(weights, name, 0) != 0}
    if getattr(weights, "smooth", 0) != 0 and field is not None and cameras is not None:
        losses["smooth"] = smoothness(render, field, cameras, generator)
    return losses


def needs_normals(weights: SimpleNamespace) -> bool:
    """Whether `regularizers` with these weights wants a render with normals."""
    return getattr(weights, "orient", 0) != 0 or getattr(weights, "smooth_2d", 0) != 0
