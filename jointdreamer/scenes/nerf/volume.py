"""Volume rendering: an occupancy grid says where to look, a march finds the samples, a sum makes the image.

Samples are packed: those of all rays in one vector, ray by ray and near to far, with `ray_indices` beside them. Along a
ray they are `step_size` apart, and each stands for an interval around it:

    alpha_i = 1 - exp(-sigma_i step_size),   T_i = prod_{j<i} (1 - alpha_j),   weights_i = T_i alpha_i
    opacity = sum w,   depth = sum w t,   rgb = sum w c + (1 - opacity) background

There are three backends with the same rules: `torch`, on every device; `numba`, compiled loops over the rays for
float32 on the CPU, differentiable once, ten times faster there; and `nerfacc`, whose kernels march and scan on CUDA.
They differ in the last bits.

Rays can be rendered in chunks, and then backward computes a chunk again instead of keeping what its samples need: the
memory of a step is that of one chunk, whatever the resolution. What stays of all samples is where they are, 4 bytes.

On a GPU the host waits for the device three times a chunk, to learn how many candidates, samples in occupied cells and
visible samples there are: memory for them cannot be taken before. Nothing else here waits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from jointdreamer.arguments import Range, Share
from jointdreamer.cameras import Cameras, rays
from jointdreamer.errors import UserError
from jointdreamer.kernels import enabled
from jointdreamer.ranks import per_rig
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.base import Render
from jointdreamer.scenes.nerf.base import Field
from jointdreamer.scenes.nerf.encoding import recomputed
from jointdreamer.scenes.nerf.samples import (
    Composite,
    alpha_and_transmittance,
    composite,
    count_per_ray,
    intersect_box,
    packed,
    points,
    sum_per_ray,
)
from jointdreamer.scenes.shading import Shading, shade

# Bounds the memory of one march, and of one occupancy update.
MAX_CANDIDATES = 2**23
MAX_CELLS = 2**18

BACKENDS = ("auto", "torch", "numba", "nerfacc")


class VolumeRenderer(nn.Module):
    """Renders the box [-field_radius, field_radius]^3.

    grid_resolution: cells of the occupancy grid along each axis. Until the first update every cell counts as occupied.
    n_samples: samples along the diagonal of the box; step_size = 2 sqrt(3) field_radius / n_samples.
    alpha_threshold: samples with less alpha than this, or than the mean occupancy if that is less, are dropped.
    transmittance_threshold: so are those that less than this much light reaches.
    prune: whether to look for such samples at all. It takes a density pass without gradient over all samples: on a CPU
        a tenth of a step lost while the object is a soft blob, a quarter won once it is solid and dark inside.
    backend: "torch", "numba" (CPU only), "nerfacc" (CUDA only; it marches and finds the transmittances), or "auto":
        numba on the CPU; on CUDA nerfacc where it is installed and can compile its kernels; else torch.

    Raises UserError for sizes that make no sense and a backend that is unknown, not installed, or (when it is asked to
    render) without its device.

    The buffers `occupancy` (decaying maximum of sigma * step_size seen in each cell) and `occupied` are all its state.
    """

    occupancy: Tensor  # (G, G, G), indexed x, y, z
    occupied: Tensor  # (G, G, G) bool

    def __init__(
        self,
        field_radius: float = 1.0,
        grid_resolution: Annotated[int, Range(high=512)] = 32,
        n_samples: Annotated[int, Range(high=65536)] = 512,
        alpha_threshold: Share = 0.01,
        transmittance_threshold: Share = 1e-4,
        prune: bool = True,
        update_every: Annotated[int, Range(low=1)] = 16,
        warmup_steps: Annotated[int, Range(low=0)] = 256,
        decay: Share = 0.95,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise UserError(f"unknown renderer backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        if min(field_radius, grid_resolution, n_samples) <= 0:
            raise UserError(
                "a renderer needs field_radius, grid_resolution and n_samples above 0, got "
                f"{field_radius}, {grid_resolution} and {n_samples}"
            )
        if backend == "nerfacc":
            from jointdreamer.kernels import volume_nerfacc

            volume_nerfacc.require()
        self.field_radius = field_radius
        self.grid_resolution = grid_resolution
        self.step_size = 2 * math.sqrt(3) * field_radius / n_samples
        self.n_samples = n_samples
        self.alpha_threshold = alpha_threshold
        self.transmittance_threshold = transmittance_threshold
        self.prune = prune
        self.update_every = update_every
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.requested_backend = backend
        shape = (grid_resolution,) * 3
        self.register_buffer("occupancy", torch.zeros(shape))
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))

    def forward(
        self,
        field: Field,
        background: SphericalBackground,
        cameras: Cameras,
        *,
        shading: Shading = Shading(),  # noqa: B008  (frozen)
        normals: bool = False,
        generator: torch.Generator | None = None,
        chunk: int | None = None,
    ) -> Render:
        """Render all views.

        normals: whether to find normals; a shading that needs them finds them in any case.
        generator: draws, in this order, the offset of the samples of each ray (up to one step) and the background.
            None is evaluation: no offset, the background's evaluation colour.
        chunk: rays whose samples are in memory at a time, all by default. Fewer cost a second forward pass in backward
            and change nothing but the last bits.
        """
        cameras = cameras.to(self.occupancy.device)
        lines = rays(cameras.c2w, cameras.fovy, cameras.resolution, cameras.orthographic)
        rays_o, rays_d = (x.reshape(-1, 3) for x in lines)
        light = cameras.light[:, :, None, None].expand(-1, -1, *[cameras.resolution] * 2, -1).reshape(-1, 3)
        if generator is None:
            offset = torch.zeros(len(rays_o), device=rays_o.device)
        else:
            offset = per_rig(torch.rand, (len(rays_o),), generator).to(rays_o.device)
        background_rgb = background.draw(generator)

        normals = normals or shading.needs_normals
        chunk = min(chunk or len(rays_o), len(rays_o))
        composite = self._composite if chunk == len(rays_o) else partial(recomputed, self._composite)
        parts = []
        for o, d, shift, light_position in zip(*(x.split(chunk) for x in (rays_o, rays_d, offset, light)), strict=True):
            counts, t, features = self._samples(field, o, d, shift)
            if chunk < len(rays_o):
                features = None  # kept for all chunks, it would be their memory
            parts.append(composite(field, background_rgb, shading, normals, o, d, light_position, counts, t, features))

        def image(name: str) -> Tensor:
            pixels = torch.cat([part[name] for part in parts])
            shape = (cameras.n_rigs, cameras.n_views, cameras.resolution, cameras.resolution, -1)
            return pixels.view(shape).movedim(-1, 2).contiguous()

        return Render(
            rgb=image("rgb"),
            opacity=image("opacity"),
            depth=image("depth"),
            z_variance=image("z_variance"),
            normal=image("normal") if normals else None,
            facing_away=image("facing_away") if normals else None,
            n_samples=sum(part["n_samples"] for part in parts),
        )

    @torch.no_grad()
    def _samples(
        self, field: Field, rays_o: Tensor, rays_d: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where rays (R, 3) are sampled: how often each (R,), the distances t (N,), and the field's features there."""
        ray_indices, t = self.march(rays_o, rays_d, offset)
        counts, features = count_per_ray(ray_indices, len(rays_o)), None
        if self.prune:
            sigma, features = field.density_and_features(self._points(rays_o, rays_d, ray_indices, t))
            keep = self._visible(sigma * self.step_size, ray_indices, counts)
            counts, t = count_per_ray(ray_indices.index_select(0, keep), len(rays_o)), t.index_select(0, keep)
            features = None if features is None else features.index_select(0, keep)
        return counts, t, features

    def _composite(
        self,
        field: Field,
        background_rgb: Callable[[Tensor], Tensor],  # the background's colours (R, 3) in directions (R, 3)
        shading: Shading,
        normals: bool,
        rays_o: Tensor,  # (R, 3)
        rays_d: Tensor,  # (R, 3)
        light: Tensor,  # (R, 3)
        counts: Tensor,  # (R,) samples of each ray
        t: Tensor,  # (N,) their distances
        features: Tensor | None,  # (N, ...) of the field there, if it has any to use again
    ) -> dict[str, Any]:
        """Pixels (R, C) by the names they have in `Render`."""
        ray_indices = torch.repeat_interleave(counts, output_size=len(t))  # told the size, it waits for no device
        x = self._points(rays_o, rays_d, ray_indices, t)
        out = field(x, normals=normals) if features is None else field(x, normals=normals, features=features)
        rgb = shade(out.albedo, out.normal, x, light[ray_indices] if shading.needs_normals else light, shading)

        values = rgb if out.normal is None else torch.cat([rgb, out.normal], dim=-1)
        tau = out.sigma * self.step_size
        if self.backend == "numba":
            weights, sums, z_variance = Composite.apply(tau, t, values, counts)
        else:
            weights, sums, z_variance = composite(tau, t, values, ray_indices, counts, self._scan)
        opacity, depth = sums[:, :1].clamp(max=1), sums[:, 1:2]  # the sum may round above 1
        parts = {
            "rgb": (sums[:, 2:5] + background_rgb(rays_d) * (1 - opacity)).clamp(0, 1),
            "opacity": opacity,
            "depth": depth,
            "z_variance": z_variance[:, None],
            "n_samples": len(t),
        }
        if out.normal is not None:
            away = (out.normal * rays_d[ray_indices]).sum(-1).clamp(min=0).square()
            facing_away = sum_per_ray((weights.detach() * away)[:, None], counts)
            parts |= {"normal": sums[:, 5:8], "facing_away": facing_away}
        return parts

    @property
    def backend(self) -> str:
        """The backend that runs where the renderer is now. Raises UserError for one that cannot run there."""
        kind = self.occupancy.device.type
        if self.requested_backend == "auto":
            return self._fastest(kind)
        wanted = {"numba": "cpu", "nerfacc": "cuda"}.get(self.requested_backend, kind)
        if kind != wanted:
            raise UserError(f"renderer.backend={self.requested_backend} runs on {wanted}, not on {kind}: leave it out")
        return self.requested_backend

    @staticmethod
    def _fastest(kind: str) -> str:
        """The backend that "auto" means on this kind of device."""
        if not enabled() or kind not in ("cpu", "cuda"):
            return "torch"
        if kind == "cpu":
            return "numba"
        from jointdreamer.kernels import volume_nerfacc

        return "nerfacc" if volume_nerfacc.can_run() else "torch"

    @torch.no_grad()
    def march(self, rays_o: Tensor, rays_d: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Samples in occupied cells: the packed `ray_indices` (N,) and distances `t` (N,) of (R, 3) rays.

        The samples of a ray lie at t = (k + offset + 1/2) step_size for whole k >= 0.
        """
        if self.backend == "nerfacc":
            from jointdreamer.kernels import volume_nerfacc

            return volume_nerfacc.march(self.occupied, self.field_radius, self.step_size, rays_o, rays_d, offset)
        size = max(1, MAX_CANDIDATES // (self.n_samples + 1))  # no ray has more than n_samples + 1 in the box
        parts = zip(*(x.split(size) for x in (rays_o, rays_d, offset)), strict=True)
        found = [self._march(*part) for part in parts]
        ray_indices = torch.cat([ray + size * i for i, (ray, _) in enumerate(found)])
        return ray_indices, torch.cat([t for _, t in found])

    def _march(self, rays_o: Tensor, rays_d: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self._occupied_box()
        t_near, t_far = intersect_box(rays_o, rays_d, lower, upper)
        shift = offset + 0.5
        first = (t_near / self.step_size - shift).ceil()
        counts = ((t_far / self.step_size - shift).floor() - first + 1).clamp(min=0).long()

        ends = counts.cumsum(0)
        to_cells = self.grid_resolution / (2 * self.field_radius)
        cells_o, cells_d = (rays_o + self.field_radius) * to_cells, rays_d * to_cells
        if self.backend == "numba":
            from jointdreamer.kernels import volume_numba as kernels

            t, found = rays_o.new_empty(int(counts.sum())), torch.empty_like(ends)
            start = (first + shift).double()
            kernels.run(
                kernels.occupied_samples,
                len(ends),
                cells_o,
                cells_d,
                start,
                ends,
                self.step_size,
                self.occupied,
                found,
                t,
            )
            return packed(found, ends, t)
        ray_indices = torch.repeat_interleave(counts)
        starts = (first + shift).double() - (ends - counts)  # fp64: fp32 cannot count all candidates together
        t = (starts[ray_indices] + torch.arange(len(ray_indices), device=starts.device)) * self.step_size
        t = t.to(rays_o.dtype)

        cells = points(cells_o, cells_d, ray_indices, t)
        inside = self.occupied.view(-1)[self._flat(cells.long())].nonzero().squeeze(-1)
        return ray_indices[inside], t[inside]

    def _occupied_box(self) -> tuple[Tensor, Tensor]:
        """Corners (3,) of the smallest box around the occupied cells; empty (lower > upper) if there are none."""
        lower, upper = [], []
        for others in ((1, 2), (0, 2), (0, 1)):
            along = self.occupied.any(others[1]).any(others[0])
            cell = torch.arange(self.grid_resolution, device=along.device)
            lower.append(torch.where(along, cell, self.grid_resolution).min())
            upper.append(torch.where(along, cell + 1, 0).max())
        size = 2 * self.field_radius / self.grid_resolution
        return torch.stack(lower) * size - self.field_radius, torch.stack(upper) * size - self.field_radius

    @torch.no_grad()
    def bounds(self) -> Tensor:
        """Corners (2, 3) of the box around the cells that are denser than the occupied ones on average; whole if none.

        threestudio's "auto" threshold, the mean of the densities that are there, on the occupancy grid.
        """
        whole = self.occupancy.new_tensor([[-self.field_radius] * 3, [self.field_radius] * 3])
        there = self.occupancy[self.occupied & (self.occupancy > 0)]
        if len(there) == 0:
            return whole
        cells = (self.occupancy >= there.mean()).nonzero()
        size = 2 * self.field_radius / self.grid_resolution
        return torch.stack([cells.amin(0) * size, (cells.amax(0) + 1) * size]) - self.field_radius

    def _flat(self, cells: Tensor) -> Tensor:
        """Cells (N, 3) -> their flat index (N,); a point on the border belongs to the last cell inside."""
        x, y, z = cells.clamp(0, self.grid_resolution - 1).unbind(-1)
        return (x * self.grid_resolution + y) * self.grid_resolution + z

    def _visible(self, tau: Tensor, ray_indices: Tensor, counts: Tensor) -> Tensor:
        """Which samples add to the image, in ascending order (K,); tau (N,) optical depths, counts (R,) of each ray."""
        threshold = self.occupancy.mean().clamp(max=self.alpha_threshold)
        if self.backend == "numba":  # alpha and transmittance are monotonous in these: no exponential is needed
            from jointdreamer.kernels import volume_numba as kernels

            least_tau = -math.log1p(-min(float(threshold), 1 - 1e-7))
            most_depth = -math.log(max(self.transmittance_threshold, 1e-300))
            keep = torch.zeros(len(tau), dtype=torch.bool)
            kernels.run(kernels.visible, len(counts), tau, counts.cumsum(0), least_tau, most_depth, keep)
        else:
            alpha, transmittance = self._scan(tau, ray_indices, counts)
            keep = (alpha >= threshold) & (transmittance >= self.transmittance_threshold)
        return keep.nonzero().squeeze(-1)

    def _points(self, rays_o: Tensor, rays_d: Tensor, ray_indices: Tensor, t: Tensor) -> Tensor:
        if self.backend != "numba":
            return points(rays_o, rays_d, ray_indices, t)
        from jointdreamer.kernels import volume_numba as kernels

        x = t.new_empty(len(t), 3)
        kernels.run(kernels.points, len(t), rays_o, rays_d, ray_indices, t, x)
        return x

    def _scan(self, tau: Tensor, ray_indices: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        find = alpha_and_transmittance
        if self.backend == "nerfacc":
            from jointdreamer.kernels import volume_nerfacc

            find = volume_nerfacc.alpha_and_transmittance
        return find(tau, ray_indices, counts)

    @torch.no_grad()
    def update_occupancy(self, field: Field, step: int, generator: torch.Generator) -> None:
        """Look again where there is something: every `update_every` steps, at a random point of each cell looked at.

        All cells during the first `warmup_steps`; later a quarter of them at random, and as many of the occupied ones.
        """
        if step % self.update_every != 0:
            return
        device, n_cells = self.occupancy.device, self.occupancy.numel()
        if step < self.warmup_steps:
            cells = torch.arange(n_cells)
        else:
            quarter = max(1, n_cells // 4)
            cells = torch.randint(n_cells, (quarter,), generator=generator, device=generator.device).cpu()
            occupied = self.occupied.view(-1).nonzero().squeeze(-1).cpu()
            if len(occupied) > quarter:
                chosen = torch.randint(len(occupied), (quarter,), generator=generator, device=generator.device).cpu()
                occupied = occupied[chosen]
            cells = torch.cat([cells, occupied])
        corner = torch.stack(torch.unravel_index(cells, self.occupancy.shape), dim=-1).to(device)
        inside = torch.rand(len(cells), 3, generator=generator, device=generator.device).to(device)
        x = (corner + inside) * (2 * self.field_radius / self.grid_resolution) - self.field_radius
        seen = torch.cat([field.density(part) for part in x.split(MAX_CELLS)]) * self.step_size

        cells = cells.to(device)
        old = self.occupancy.view(-1)
        new = old.index_copy(0, cells, self.decay * old[cells])  # a cell drawn twice decays once
        self.occupancy.copy_(new.scatter_reduce(0, cells, seen.to(old.dtype), "amax").view_as(self.occupancy))
        # Magnitudes of the release: a mean far below 0.01 would otherwise call every trace of density occupied.
        self.occupied.copy_(self.occupancy > self.occupancy.mean().clamp(max=0.01))
