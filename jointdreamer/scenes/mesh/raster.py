"""Differentiable rasterisation of triangle meshes, as four pure functions: no cameras, no materials, no state.

    raster = rasterize(clip, faces, (H, W))                     which triangle each pixel sees, and where in it
    normal = interpolate(vertex_normals, raster, faces)         vertex attributes at the pixels
    image = antialias(color, raster, clip, faces, opposite)     pixels blended across silhouettes
    albedo = sample_texture(texture, uv)                        a bilinear lookup

after Laine et al., "Modular Primitives for High-Performance Differentiable Rendering" (2020). M images, N vertices, F
faces, K channels. Row 0 of an image is its top, clip y points up; pixel (row, column) is sampled at its centre

    fx = (2 column + 1) / W - 1,    fy = 1 - (2 row + 1) / H

**Coverage.** q_k = (x_k - fx w_k, y_k - fy w_k) for the corners k of a face; a_k = q_k+1 x q_k+2, A = a_0 + a_1 + a_2.
The pixel is covered if all a_k have A's sign (0 counts as either); b_k = a_k / A are perspective-correct, z / w is
sum z_k a_k / sum w_k a_k. The nearest face wins, of equally near ones that with the smallest number; both sides of a
face are seen. Not drawn: a face with a corner at w <= 1e-6 or not finite (nothing is clipped: cameras stay outside of
the object), and one without area.

**Gradients.** Inside of a face they flow through b_0 and b_1 to clip x, y and w. How the silhouette moves is seen by
`antialias` alone. Depth and triangle have none, nor has clip z.

Backends: "torch" is the reference, on every device, in float32 and float64; "numba" are compiled loops for float32 on
the CPU, with the same triangles bit for bit and sums in an order that does not depend on the number of threads;
"nvdiffrast" is NVIDIA's CUDA rasteriser where it is installed, with a clipped depth range and ties of its own; "auto"
takes numba on the CPU, nvdiffrast on CUDA, else torch. On a GPU sums over pixels are atomic additions, whose last bits
vary, unless the backend is "torch" and `torch.use_deterministic_algorithms` is on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from jointdreamer.errors import UserError
from jointdreamer.kernels import enabled
from jointdreamer.kernels.raster import Twin

BACKENDS = ("auto", "torch", "numba", "nvdiffrast")


@dataclass(frozen=True)
class Raster:
    """What each pixel of M images sees."""

    barycentric: Tensor  # (M, H, W, 2) perspective-correct b0, b1 (b2 = 1 - b0 - b1); gradients flow to clip x, y, w
    depth: Tensor  # (M, H, W) z / w of the nearest surface, no gradient; 0 where nothing is seen
    triangle: Tensor  # (M, H, W) int64, face index + 1; 0 where nothing is seen


def rasterize(
    clip: Tensor,  # (M, N, 4) clip coordinates
    faces: Tensor,  # (F, 3) int64
    resolution: tuple[int, int],  # H, W
    backend: str = "auto",
) -> Raster:
    """Find the nearest face of every pixel. Raises UserError for wrong shapes, faces, or a backend that cannot run."""
    check_mesh(faces, clip)
    if len(resolution) != 2 or min(resolution) < 1:
        raise UserError(f"a raster needs a height and a width from 1 pixel up, got {resolution}")
    backend = backend_for(backend, clip)
    if backend == "nvdiffrast" and len(faces):
        from jointdreamer.kernels import raster_nvdiffrast

        return Raster(*raster_nvdiffrast.rasterize(clip, faces, resolution))
    return Raster(*Rasterize.apply(clip.contiguous(), faces.contiguous(), resolution, twin(backend)))


def interpolate(
    attributes: Tensor,  # (N, K), or (M, N, K) with values of each image's own
    raster: Raster,
    faces: Tensor,  # (F, 3) int64
    backend: str = "auto",
) -> Tensor:
    """Vertex attributes at the pixels, sum b_k attribute_k: (M, H, W, K); 0 where nothing is seen.

    Gradients flow to the attributes and to the barycentric coordinates. Raises UserError as `rasterize` does.
    """
    batch = attributes if attributes.dim() == 3 else attributes[None]
    if batch.dim() != 3 or len(batch) not in (1, len(raster.triangle)):
        raise UserError(
            f"attributes are (N, K) or (M, N, K) with M = {len(raster.triangle)} images, got {tuple(attributes.shape)}"
        )
    if batch.dtype != raster.barycentric.dtype:
        raise UserError(f"attributes are {raster.barycentric.dtype} as the raster, got {batch.dtype}")
    check_mesh(faces, batch, raster)
    backend = backend_for(backend, attributes)
    if backend == "nvdiffrast" and len(faces):
        from jointdreamer.kernels import raster_nvdiffrast

        return raster_nvdiffrast.interpolate(batch, raster.barycentric, raster.depth, raster.triangle, faces)
    return Interpolate.apply(batch.contiguous(), raster.barycentric, raster.triangle, faces.contiguous(), twin(backend))


def opposite_vertices(faces: Tensor) -> Tensor:
    """What lies across each edge of each face (F, 3): the other face's third vertex, (F, 3) int64; -1 where none does.

    Edge k is that between corners k + 1 and k + 2. An edge of three faces or more has nothing across it either. It
    depends on the faces alone: once for all images of a step.
    """
    return across_edges(faces)[0]


def across_edges(faces: Tensor) -> tuple[Tensor, Tensor]:
    """`opposite_vertices`, and the faces that have them, (F, 3) int64; -1 where there is none."""
    check_mesh(faces)
    one, other = faces[:, [1, 2, 0]].flatten(), faces[:, [2, 0, 1]].flatten()
    n = int(faces.max()) + 1 if len(faces) else 0
    edge, order = (torch.minimum(one, other) * n + torch.maximum(one, other)).sort()
    same = functional.pad(edge[1:] == edge[:-1], (1, 1))  # whether each is the edge before it; False beyond the ends
    lone_pair = (same[1:-1] & ~same[:-2] & ~same[2:]).nonzero().squeeze(1)
    here, across = order[lone_pair], order[lone_pair + 1]
    corners = faces.flatten()  # corner k is opposite to edge k
    opposite, beyond = torch.full_like(corners, -1), torch.full_like(corners, -1)
    opposite[here], opposite[across] = corners[across], corners[here]
    beyond[here], beyond[across] = across // 3, here // 3
    return opposite.view(-1, 3), beyond.view(-1, 3)


def antialias(
    color: Tensor,  # (M, H, W, K)
    raster: Raster,
    clip: Tensor,  # (M, N, 4) that the raster is of
    faces: Tensor,  # (F, 3) int64
    opposite: Tensor,  # (F, 3) int64, `opposite_vertices(faces)`
    backend: str = "auto",
    beyond: Tensor | None = None,  # (F, 3) int64, with `opposite` from `across_edges(faces)`
) -> Tensor:
    """Blend neighbouring pixels where a silhouette passes between them: (M, H, W, K).

    Whatever is behind the surface belongs in the colour before: composite with the hard mask, then antialias,

        seen = (raster.triangle > 0)[..., None]
        image = antialias(torch.where(seen, rgb, background), raster, clip, faces, opposite)
        opacity = antialias(seen.float(), raster, clip, faces, opposite)

    and not `opacity * antialias(rgb, ...) + (1 - opacity) * background`, which lets the background through the edge
    twice.

    For every two neighbours, beside or below each other, that see different faces: of the face in front (of equally
    near ones, of the second pixel's) the edge that leaves it farthest towards the other pixel crosses the line between
    the two centres at a distance d from the face's own pixel. If it is a silhouette (nothing across it, or the face
    across it lies on the same side), more upright to the line than along it, and -1/16 < d < 17/16, then 1/2 - d, with
    d cut to [0, 1], is what the edge lacks of the border between the pixels (d < 1/2: the face's own pixel takes that
    share of the other's colour) or has beyond it (d > 1/2: the other pixel takes of the face's). A pixel may get
    several shares. The gradient of clip x, y and w is that of d, hence of the edge's two vertices alone.

    Only edges of faces that a pixel sees are looked at, as in nvdiffrast. Of a smooth surface whose faces are smaller
    than pixels hardly any face at the outline is seen: of a sphere with 1280 faces, as wide as half of the image, a
    quarter of the outline is blended at 512^2 pixels, and nothing at 64^2. With `beyond` an edge that is no silhouette
    is walked over, to the face across it and on towards the other pixel, until one is or that pixel's own face comes.
    nvdiffrast, where it is the backend, cannot do this. Raises UserError as `rasterize` does.
    """
    check_mesh(faces, clip, raster)
    if color.shape[:-1] != raster.triangle.shape:
        raise UserError(f"colours of this raster are {(*raster.triangle.shape, 'K')}, got {tuple(color.shape)}")
    if len(clip) != len(color) or clip.dtype != color.dtype:
        raise UserError(
            f"clip coordinates and colours are of the same images and dtype, got {len(clip)} {clip.dtype} and "
            f"{len(color)} {color.dtype}"
        )
    if opposite.shape != faces.shape or (opposite.is_cpu and len(faces) and int(opposite.max()) >= clip.shape[1]):
        raise UserError("these are no opposite vertices of these faces: take opposite_vertices(faces)")
    if beyond is not None and (
        beyond.shape != faces.shape or (beyond.is_cpu and len(faces) and int(beyond.max()) >= len(faces))
    ):
        raise UserError("these are no faces across the edges of these faces: take across_edges(faces)")
    backend = backend_for(backend, clip)
    if backend == "nvdiffrast" and len(faces):
        from jointdreamer.kernels import raster_nvdiffrast

        return raster_nvdiffrast.antialias(color, raster.barycentric, raster.depth, raster.triangle, clip, faces)
    return Antialias.apply(
        color.contiguous(),
        clip.contiguous(),
        raster.depth,
        raster.triangle,
        faces.contiguous(),
        opposite.contiguous(),
        faces[:0] if beyond is None else beyond.contiguous(),
        twin(backend),
    )


def sample_texture(
    texture: Tensor,  # (Ht, Wt, K), row 0 is v = 1 (top)
    uv: Tensor,  # (..., 2) in [0, 1]
) -> Tensor:
    """Texture values (..., K), bilinear between the centres of texels; beyond the outermost centres it is constant."""
    if texture.dim() != 3 or uv.shape[-1:] != (2,) or 0 in texture.shape:
        raise UserError(f"a texture is (Ht, Wt, K) and uv (..., 2), got {tuple(texture.shape)} and {tuple(uv.shape)}")
    if uv.numel() == 0:
        return texture.new_zeros(*uv.shape[:-1], texture.shape[-1])
    grid = (uv * 2 - 1) * uv.new_tensor([1, -1])
    found = functional.grid_sample(
        texture.movedim(-1, 0)[None], grid.reshape(1, 1, -1, 2), padding_mode="border", align_corners=False
    )
    return found[0, :, 0].t().reshape(*uv.shape[:-1], -1)


def backend_for(backend: str, x: Tensor) -> str:
    """The backend that runs for tensors like x. Raises UserError for one that is unknown or cannot."""
    if backend not in BACKENDS:
        raise UserError(f"unknown rasteriser backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    kind, single = x.device.type, x.dtype == torch.float32
    if backend == "auto":
        if not enabled() or not single:
            return "torch"
        if kind == "cuda":
            from jointdreamer.kernels import raster_nvdiffrast

            return "nvdiffrast" if raster_nvdiffrast.is_installed() else "torch"
        return "numba" if kind == "cpu" else "torch"
    wanted = {"numba": "cpu", "nvdiffrast": "cuda"}.get(backend, kind)
    if kind != wanted or (backend != "torch" and not single):
        dtype = str(x.dtype).removeprefix("torch.")
        raise UserError(f"rasteriser backend {backend} takes float32 on {wanted}, got {dtype} on {kind}: choose torch")
    if backend == "nvdiffrast":
        from jointdreamer.kernels import raster_nvdiffrast

        raster_nvdiffrast.require()
    return backend


def twin(backend: str) -> Twin:
    """The operations of "numba", or else those of "torch": nvdiffrast launches no kernel for no faces."""
    if backend == "numba":
        from jointdreamer.kernels import raster_numba

        return raster_numba
    from jointdreamer.scenes.mesh import raster_torch

    return raster_torch


def check_mesh(faces: Tensor, vertices: Tensor | None = None, raster: Raster | None = None) -> None:
    """UserError for faces that are no (F, 3) int64, or are not faces of these vertices (M, N, ...) and this raster.

    A compiled loop would read past the end. On a GPU, where looking would wait for the device, torch itself complains.
    """
    if faces.dim() != 2 or faces.shape[1] != 3 or faces.dtype != torch.int64:
        raise UserError(f"faces are (F, 3) int64, got {tuple(faces.shape)} {faces.dtype}")
    if vertices is not None and (vertices.dim() != 3 or not vertices.is_floating_point()):
        raise UserError(f"vertices are (M, N, channels) floats, got {tuple(vertices.shape)} {vertices.dtype}")
    if not faces.is_cpu:
        return
    n = vertices.shape[1] if vertices is not None else None
    if len(faces) and (int(faces.min()) < 0 or (n is not None and int(faces.max()) >= n)):
        raise UserError(f"faces name vertices {int(faces.min())} to {int(faces.max())}, and there are {n}")
    if raster is not None and raster.triangle.numel() and int(raster.triangle.max()) > len(faces):
        raise UserError(
            f"the raster sees face {int(raster.triangle.max()) - 1}, and there are {len(faces)}: wrong mesh"
        )


class Rasterize(torch.autograd.Function):
    """`rasterize`, differentiable once in clip."""

    @staticmethod
    def forward(ctx, clip: Tensor, faces: Tensor, resolution: tuple[int, int], operations: Twin):
        barycentric, depth, triangle = operations.rasterize(clip, faces, resolution)
        ctx.operations = operations
        ctx.mark_non_differentiable(depth, triangle)
        ctx.set_materialize_grads(False)  # of depth and triangle: zeros of the pictures' size
        ctx.save_for_backward(clip, faces, barycentric, triangle)
        return barycentric, depth, triangle

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor | None):
        if grads[0] is None:
            return None, None, None, None
        return ctx.operations.rasterize_backward(*ctx.saved_tensors, grads[0].contiguous()), None, None, None


class Interpolate(torch.autograd.Function):
    """`interpolate`, differentiable once in the attributes and the barycentric coordinates."""

    @staticmethod
    def forward(ctx, attributes: Tensor, barycentric: Tensor, triangle: Tensor, faces: Tensor, operations: Twin):
        ctx.operations = operations
        ctx.save_for_backward(attributes, barycentric, triangle, faces)
        return operations.interpolate(attributes, barycentric, triangle, faces)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        found = ctx.operations.interpolate_backward(*ctx.saved_tensors, grads[0].contiguous())
        return *found, None, None, None


class Antialias(torch.autograd.Function):
    """`antialias`, differentiable once in the colours and clip."""

    @staticmethod
    def forward(
        ctx,
        color: Tensor,
        clip: Tensor,
        depth: Tensor,
        triangle: Tensor,
        faces: Tensor,
        opposite: Tensor,
        beyond: Tensor,
        operations: Twin,
    ) -> Tensor:
        pair, edge, alpha = operations.find_crossings(clip, faces, opposite, beyond, triangle, depth)
        ctx.operations = operations
        ctx.save_for_backward(color, clip, pair, edge, alpha)
        return operations.antialias(color, pair, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        found = ctx.operations.antialias_backward(*ctx.saved_tensors, grads[0].contiguous())
        return *found, None, None, None, None, None, None
