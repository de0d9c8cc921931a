"""What a good object looks like, whatever the prompt: Render -> scalar."""

from types import SimpleNamespace

from torch import Tensor

from jointdreamer.renderers.volume import Render


def orientation(render: Render) -> Tensor:
    """Ref-NeRF's penalty on surfaces that turn away from the camera that sees them.

    Sum over samples of stopgrad(w) max(0, n . d)^2, over the number of pixels with any opacity.
    Raises ValueError for a render without normals.
    """
    if render.facing_away is None:
        raise ValueError("the orientation loss needs normals: render with normals=True (see needs_normals)")
    n_pixels = (render.opacity > 0).sum().clamp(min=1)
    return render.facing_away.sum() / n_pixels


def sparsity(render: Render) -> Tensor:
    """Little of the image covered: mean sqrt(opacity^2 + 0.01), whose gradient fades at 0."""
    return (render.opacity.square() + 0.01).sqrt().mean()


def opaque(render: Render) -> Tensor:
    """Every pixel either covered or not: mean binary entropy of the opacity, clamped to [0.001, 0.999]."""
    p = render.opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def z_variance(render: Render) -> Tensor:
    """Thin surfaces: mean variance of the depth over pixels with opacity > 0.5; 0 if there are none."""
    covered = (render.opacity > 0.5).to(render.opacity.dtype)
    return (render.z_variance * covered).sum() / covered.sum().clamp(min=1)


REGULARIZERS = {"orient": orientation, "sparsity": sparsity, "opaque": opaque, "z_variance": z_variance}


def regularizers(render: Render, weights: SimpleNamespace) -> dict[str, Tensor]:
    """The regularizers whose weight, as in `now.loss`, is there and not zero; not multiplied by it."""
    return {name: f(render) for name, f in REGULARIZERS.items() if getattr(weights, name, 0) != 0}


def needs_normals(weights: SimpleNamespace) -> bool:
    """Whether `regularizers` with these weights wants a render with normals."""
    return getattr(weights, "orient", 0) != 0
