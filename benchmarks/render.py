"""Marching, the field and compositing, forward and backward, on an empty, a half full and a full box.

    python -m benchmarks.render
    python -m benchmarks.render --field paper --resolutions 64 --samples 512 --renderer prune=false

Four views of a box of thin, even fog: every sample in an occupied cell counts, none is hidden. `full` is therefore the
worst case; in training the occupancy grid and pruning leave a small part of it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from benchmarks.command import options, positives, run, table
from benchmarks.timing import milliseconds, race
from jointdreamer.arguments import check_arguments
from jointdreamer.errors import UserError

FIELDS: dict[str, dict[str, Any]] = {
    "toybox": {"encoding": {"n_levels": 6, "log2_table_size": 14, "base_resolution": 8, "growth": 1.41}, "hidden": 32},
    "paper": {},  # the defaults
}
SAMPLES = {"toybox": 96, "paper": 512}
BOXES = ("empty", "half", "full")
FOG = {"blob_scale": 0.0}  # sigma = softplus(about 0) = 0.7 everywhere


def main() -> int:
    parser = options("render", __doc__, repeats=7)
    parser.add_argument("--resolutions", type=positives, help="pixels a side, e.g. 32,64 (those of the schedules)")
    parser.add_argument("--samples", type=positives, help="samples along the diagonal, e.g. 96 (the config's)")
    parser.add_argument("--views", type=positives, default=[4], help="views at a time (4)")
    parser.add_argument("--field", choices=tuple(FIELDS), help="whose sizes (toybox on a CPU, paper on a GPU)")
    parser.add_argument("--renderer", nargs="*", default=[], metavar="KEY=VALUE", help="options of VolumeRenderer")
    return run("render", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    args.field = args.field or ("paper" if args.device == "cuda" else "toybox")
    args.resolutions = args.resolutions or ([8] if args.quick else [64, 256] if args.field == "paper" else [32, 64])
    args.samples = args.samples or [16 if args.quick else SAMPLES[args.field]]
    chosen = parse(args.renderer)
    rows = []
    for resolution in args.resolutions:
        for n_samples in args.samples:
            for n_views in args.views:
                for row in measure_boxes(args, resolution, n_samples, n_views, chosen):
                    rows.append(row)
    header = ["box", "pixels", "views", "samples", "march ms", "forward ms", "backward ms", "Mrays/s", "Msamples/s"]
    keys = ("march", "forward", "backward")
    print("\nmedians; forward has the march in it; rays and samples a second: of forward + backward\n" + table(header, [
        [row["box"], f"{row['resolution']}^2", row["views"], row["samples"],
         *((row[key]["median_ms"] for key in keys) if row["forward"] else ("out of", "memory", "")),
         row["rays_per_s"] and row["rays_per_s"] / 1e6, row["samples_per_s"] and row["samples_per_s"] / 1e6]
        for row in rows
    ]))  # fmt: skip
    return {"rows": rows}


def parse(words: Sequence[str]) -> dict[str, Any]:
    """["prune=false"] -> {"prune": False}, options of VolumeRenderer; a UserError for anything else."""
    from jointdreamer.scenes.nerf.volume import VolumeRenderer

    chosen = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--renderer {word}: wanted KEY=VALUE, e.g. prune=false")
        chosen[key] = yaml.safe_load(value)
    check_arguments(VolumeRenderer, chosen, "renderer")
    return chosen


class Scene:
    """A field, a renderer whose occupancy is given, and cameras around it.

    filled: the share of the box that is occupied, a slab from one side, or `scattered` cells drawn at random.
    radius: of the box, with cells of the same size and samples at the same distance as in a box of radius 1; what lies
        outside the box of radius 1 is empty.
    """

    def __init__(
        self,
        resolution: int,
        n_views: int,
        n_samples: int,
        filled: float = 1.0,
        field: Mapping[str, Any] = FIELDS["toybox"],
        renderer: Mapping[str, Any] | None = None,
        device: str = "cpu",
        cells: int = 32,
        radius: int = 1,
        scattered: bool = False,
    ):
        import torch

        from jointdreamer.cameras import orbit_cameras
        from jointdreamer.scenes.background import SphericalBackground
        from jointdreamer.scenes.nerf.field import HashGridField
        from jointdreamer.scenes.nerf.volume import VolumeRenderer

        torch.manual_seed(0)
        sizes = {"n_samples": n_samples * radius, "grid_resolution": cells * radius, "field_radius": float(radius)}
        self.field = HashGridField(**{**FOG, **field, "radius": float(radius)}).to(device)
        self.background = SphericalBackground(random_probability=0.0).to(device)
        self.renderer = VolumeRenderer(**{**sizes, **(renderer or {})}).to(device)
        occupied = torch.zeros_like(self.renderer.occupied)
        inner = slice((radius - 1) * cells // 2, (radius + 1) * cells // 2)  # the box of radius 1
        if scattered:
            chance = torch.rand((cells,) * 3, generator=torch.Generator().manual_seed(0)).to(device)
            occupied[inner, inner, inner] = chance < filled
        else:
            occupied[inner, inner, inner][: round(filled * cells)] = True
        self.renderer.occupied.copy_(occupied)
        self.cameras = orbit_cameras(n_views, resolution, distance=2.5).to(device)
        self.generator = torch.Generator().manual_seed(0)
        self.parameters = [*self.field.parameters(), *self.background.parameters()]
        self.n_rays = n_views * resolution**2
        self.n_samples = 0

    def forward(self) -> Any:
        """The image's sum, with its graph."""
        render = self.renderer(self.field, self.background, self.cameras, generator=self.generator)
        self.n_samples = render.n_samples
        return (render.rgb * render.rgb).sum() + render.opacity.sum()

    def backward(self, loss: Any) -> None:
        import torch

        torch.autograd.grad(loss, self.parameters, allow_unused=True)

    def step(self) -> None:
        """Forward and backward."""
        self.backward(self.forward())

    def march(self) -> Any:
        import torch

        from jointdreamer.cameras import rays

        c = self.cameras
        rays_o, rays_d = (r.reshape(-1, 3) for r in rays(c.c2w, c.fovy, c.resolution))
        offset = torch.zeros(len(rays_o), device=rays_o.device)
        return lambda: self.renderer.march(rays_o, rays_d, offset)


def measure_boxes(
    args: argparse.Namespace, resolution: int, n_samples: int, n_views: int, renderer: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row for each box; the boxes take turns."""
    import torch

    shares = dict(zip(BOXES, (0.0, 0.5, 1.0), strict=True))
    rows, scenes = [], {}
    for box, filled in shares.items():
        scenes[box] = Scene(
            resolution,
            n_views,
            n_samples,
            filled,
            FIELDS[args.field],
            renderer,
            args.device,
            cells=8 if args.quick else 32,
        )
    try:
        march = race({box: scene.march for box, scene in scenes.items()}, args.repeats, args.device, args.clock)
        forward = race({box: lambda s=s: s.forward for box, s in scenes.items()}, args.repeats, args.device, args.clock)

        def graph(scene: Scene) -> Any:
            loss = scene.forward()
            return lambda: scene.backward(loss)

        ready = {box: lambda s=s: graph(s) for box, s in scenes.items()}
        backward = race(ready, args.repeats, args.device, args.clock)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        march = forward = backward = None
    for box, scene in scenes.items():
        row = {"box": box, "resolution": resolution, "views": n_views, "samples": n_samples, "rays": scene.n_rays}
        row |= {"field": args.field, "samples_marched": scene.n_samples, "rays_per_s": None, "samples_per_s": None}
        row |= {"march": None, "forward": None, "backward": None}
        if march and forward and backward:
            row |= {key: milliseconds(s[box]) for key, s in
                    (("march", march), ("forward", forward), ("backward", backward))}  # fmt: skip
            seconds = (row["forward"]["median_ms"] + row["backward"]["median_ms"]) / 1e3
            row |= {"rays_per_s": scene.n_rays / seconds, "samples_per_s": scene.n_samples / seconds}
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
