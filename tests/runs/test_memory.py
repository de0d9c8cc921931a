"""The forecast of memory: what it counts against what is counted, and the pure function that cuts and refuses."""

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jointdreamer.cameras import Rig
from jointdreamer.distillation.base import Term
from jointdreamer.errors import UserError
from jointdreamer.formats.surface import png
from jointdreamer.images import contact_sheet
from jointdreamer.machine import held_bytes
from jointdreamer.runs import memory
from jointdreamer.runs.memory import Demand, export_bytes, fit, step_bytes
from jointdreamer.runs.trial import TRIED, Cost, Line, Trial
from jointdreamer.scenes.base import Render
from jointdreamer.scenes.export import extract_mesh
from jointdreamer.scenes.mesh.texture import add_texture
from jointdreamer.scenes.nerf.scene import NeRF
from tests.runs.small_step import Images, nerf, plan

GB = 1e9
CPU = torch.device("cpu")


def test_a_render_in_chunks_is_foreseen_as_well():
    scene, rig, size, chunk = nerf(256), Rig(), 96, 2**12
    trial = Trial(plan(), rig, scene, [], CPU)
    rays = tuple(rig.n_views * side**2 for side in TRIED)
    lines = [
        Line.through((rays[0], rays[1]), (trial.render(TRIED[0], cut), trial.render(TRIED[1], cut)))
        for cut in (None, rays[0] // 4)
    ]
    counted = trial.render(size, chunk)
    demand = demand_of(lines[0], lines[1])
    assert 1 < step_bytes(demand, size, chunk) / counted.peak < memory.MARGIN * memory.CHUNK_MARGIN * 1.33


def test_a_scene_and_a_term_of_any_kind_are_counted():
    """One that is no NeRF, has no gradient to chunk, and a term without a gradient: the contract, not a class."""

    class Flat(NeRF):
        def __init__(self):
            nn.Module.__init__(self)
            self.colour = nn.Parameter(torch.zeros(3))

        def render(self, cameras, now=None, generator=None, chunk=None, normals=True):
            b, v = cameras.azimuth.shape
            rgb = self.colour.sigmoid()[:, None, None].expand(b, v, 3, cameras.resolution, cameras.resolution)
            return Render(rgb=rgb * 1.0, opacity=torch.ones_like(rgb[:, :, :1]))

        def before_step(self, step, generator): ...
        def parameter_groups(self):
            return {"appearance": [self.colour]}

    class Constant(Term):
        def forward(self, scene, render, cameras, now, generator):
            return {"images": torch.zeros(())}

    found = memory.plan_memory(plan(), Rig(), Flat(), [Constant()], CPU)
    assert (found.rays_per_chunk, found.images_per_chunk) == (None, None) and len(found.stages) == 3


# Predicting


def demand_of(render: Line, chunked: Line, teach: Any = lambda images: 0.0, **changes: Any) -> Demand:
    return replace(Demand(held=0, moments=0, n_views=4, render=render, chunked=lambda: chunked, teach=teach), **changes)


# As Stable Diffusion 2.1 and MVDream in float16 on a GPU were counted, with the paper's field and four views: 1.6 GB an
# image in the encoder, 1.2 GB in the UNets, 17 and 50 kB a ray
PAPER = demand_of(
    Line(Cost(0, 0), Cost(17e3, 50e3)),
    Line(Cost(0, 0), Cost(500, 50e3)),
    lambda images: (1.6 * (images or 4) + (0.0 if images else 1.2)) * GB,
    held=4.0 * GB,
    moments=0.1 * GB,
    fixed=0.9 * GB,
    factor=1.1,
)
STAGES = [(0, 64), (3000, 256), (5000, 512)]


def test_memory_grows_with_pixels_in_one_pass_and_hardly_in_chunks():
    small, large = (step_bytes(PAPER, size) - PAPER.held for size in (256, 512))
    assert large > 3.7 * small > 3.7 * 20 * GB
    small, large = (step_bytes(PAPER, size, 2**12, 1) - PAPER.held for size in (128, 512))
    assert large < 2.2 * small


def test_more_is_never_needed_for_smaller_chunks():
    chunks = [2**k for k in range(8, 20)]
    needs = [step_bytes(PAPER, 512, chunk, 1) for chunk in chunks]
    assert needs == sorted(needs)
    assert step_bytes(PAPER, 512, 2**12, 1) < step_bytes(PAPER, 512, 2**12, 2) < step_bytes(PAPER, 512, 2**12)
    assert step_bytes(PAPER, 512, 4 * 512**2) == step_bytes(PAPER, 512)  # one chunk is no chunk


def test_the_moments_by_hand():
    render, chunked = Line(Cost(1, 10), Cost(2, 5)), Line(Cost(3, 20), Cost(1, 5))
    rays, margin = 2 * 4 * 4, memory.MARGIN
    demand = demand_of(render, chunked, held=10, moments=3, n_views=2, fixed=1)
    assert step_bytes(demand, 4) == pytest.approx(14 + 10 + margin * rays * 5)
    demand = replace(demand, teach=lambda images: 1e4 * (images or 2))
    assert step_bytes(demand, 4) == pytest.approx(14 + 1 + margin * rays * 2 + 2e4)
    assert step_bytes(demand, 4, images_per_chunk=1) == pytest.approx(14 + 1 + margin * rays * 2 + 1e4)
    assert step_bytes(demand, 4, 8, 1) == pytest.approx(14 + 3 + margin * rays + 1e4)
    at_a_time = 10 + margin * memory.CHUNK_MARGIN * 8 * 5
    assert step_bytes(replace(demand, teach=lambda _: 0.0), 4, 8) == pytest.approx(14 + 3 + margin * rays + at_a_time)


def test_what_is_not_needed_is_not_measured():
    def fail(*_: Any) -> Any:
        raise AssertionError("measured")

    demand = replace(PAPER, chunked=fail, teach=lambda images: GB if images is None else fail())
    assert fit(demand, [(0, 64)], 1e15).line.endswith("nothing cut")


def test_the_whole_schedule_of_the_paper_fits_into_eight_gigabytes():
    cut = fit(PAPER, STAGES, 8 * GB)
    assert cut.images_per_chunk == 1 and cut.rays_per_chunk is not None
    assert all(need <= 8 for _, need in cut.stages)
    assert [size for size, _ in cut.stages] == [64, 256, 512]
    assert "8.0 GB" in cut.line and f"{cut.rays_per_chunk} rays at a time and 1 images" in cut.line
    wide = fit(PAPER, STAGES, 16 * GB)
    assert wide.images_per_chunk is None and wide.rays_per_chunk and wide.rays_per_chunk >= cut.rays_per_chunk


def test_nothing_is_cut_without_need():
    assert fit(PAPER, STAGES, 1e15).line.endswith("nothing cut")
    cut = fit(PAPER, STAGES, 1e15, rays_per_chunk=777, images_per_chunk=2)
    assert (cut.rays_per_chunk, cut.images_per_chunk) == (777, 2)


def test_what_cannot_fit_is_refused_with_advice():
    with pytest.raises(UserError, match=r"step 5000 at 512 pixels needs about .* and there are 6.0 GB .*energy=none"):
        fit(PAPER, STAGES, 6 * GB)
    with pytest.raises(UserError, match="rays_per_chunk=null"):  # as asked, not as it could be
        fit(PAPER, STAGES, 16 * GB, rays_per_chunk=None)


# The outputs at the end


class Ball:
    """A field without parameters: a ball."""

    radius = 1.0

    def parameters(self):
        return iter(())

    def density(self, x):
        return 50 * torch.sigmoid(20 * (0.6 - x.norm(dim=-1)))

    def __call__(self, x, normals):
        return SimpleNamespace(sigma=self.density(x), albedo=x.abs().clamp(0, 1))


def traced(work) -> int:
    """The most bytes of numpy and Python that `work` has at a time."""
    work()  # imports, caches
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_mesh_and_a_contact_sheet_need_what_is_foreseen():
    ball: Any = Ball()
    assert 0.3 < traced(lambda: extract_mesh(ball, 128)) / export_bytes(8, 128) < 1
    surface = extract_mesh(ball, 32)
    assert 0.3 < traced(lambda: png(add_texture(surface, 2048).pixels)) / export_bytes(8, 32, 2048) < 1
    views = [np.zeros((256, 256, 3), np.uint8) for _ in range(16)]
    rows = {name: [view.copy() for view in views] for name in ("rgb", "normal", "opacity")}
    held = 48 * 256**2 * 3
    assert 0.4 < (held + traced(lambda: contact_sheet(rows, [0.0] * 16))) / export_bytes(256, 8) < 1


def test_outputs_that_cannot_fit_are_refused_with_what_to_lower():
    found = memory.plan_memory(*parts(), output=(16, 16, 16))
    assert f"{found.export_gb:.1f} GB for the outputs at the end" in found.line
    with pytest.raises(UserError, match=r"outputs at the end need about .*output.mesh_resolution \(now 4000\)"):
        memory.plan_memory(*parts(), output=(16, 4000, 16))
    with pytest.raises(UserError, match=r"outputs at the end .*there are .*output.resolution \(now 1024\)"):
        memory.plan_memory(*parts(), output=(1024, 16, 16), budget_gb=held_bytes(torch.device("cpu")) / GB + 0.5)


def test_the_cuts_that_a_run_began_with_are_used_where_they_fit(caplog):
    def plan(rays_per_chunk: Any = "auto", images_per_chunk: Any = "auto", budget_gb: Any = None):
        if rays_per_chunk == 999:
            raise UserError("does not fit")
        return memory.Memory(rays_per_chunk, images_per_chunk, (), 1.0)

    def cuts(pinned, **options):
        found = memory.plan_as_before(pinned, options, plan)
        return found.rays_per_chunk, found.images_per_chunk

    assert cuts({}, rays_per_chunk="auto") == ("auto", "auto")
    assert cuts({"rays_per_chunk": None, "images_per_chunk": 1}) == (None, 1)
    assert cuts({"rays_per_chunk": 512, "images_per_chunk": 1}, rays_per_chunk=64, images_per_chunk="auto") == (64, 1)
    assert not caplog.text
    assert cuts({"rays_per_chunk": 999}) == ("auto", "auto")
    assert "its last bits may differ: does not fit" in caplog.text


# The whole


def parts():
    return plan(), Rig(), nerf(16, n_levels=2), [Images()], CPU


def test_a_plan_names_every_stage_and_moves_no_generator():
    given = parts()
    state = torch.get_rng_state()
    found = memory.plan_memory(*given)
    assert torch.equal(torch.get_rng_state(), state)
    assert [size for size, _ in found.stages] == [8, 16, 8]
    assert (found.rays_per_chunk, found.images_per_chunk) == (None, None)
    held = held_bytes(CPU) / GB
    assert all(held < need < held + 1 for _, need in found.stages)
    assert memory.plan_memory(*parts(), budget_gb=held + 0.5).limit_gb == pytest.approx(held + 0.5)


def test_images_are_all_at_once_on_a_cpu_only_where_that_is_known_to_fit(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 3e7)
    monkeypatch.setattr(memory, "CPU_GB", 0.0)
    given = parts()
    found = memory.plan_memory(*given)
    assert found.images_per_chunk == 1 and given[3][0].asked == 0
    assert memory.plan_memory(*parts(), images_per_chunk=2).images_per_chunk == 2


def test_a_trial_that_runs_out_of_memory_is_cut():
    class Large(Images):
        def forward(self, scene, render, cameras, now, generator):
            if self.chunk is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(scene, render, cameras, now, generator)

    plan, rig, scene, _, device = parts()
    assert memory.plan_memory(plan, rig, scene, [Large()], device).images_per_chunk == 1


def test_a_fault_in_a_trial_is_no_want_of_memory():
    class Broken(Images):
        def forward(self, scene, render, cameras, now, generator):
            raise KeyError("ours")

    plan, rig, scene, _, device = parts()
    with pytest.raises(KeyError):
        memory.plan_memory(plan, rig, scene, [Broken()], device)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rays_per_chunk": 0}, "memory.rays_per_chunk=0"),
        ({"images_per_chunk": -1}, "memory.images_per_chunk=-1"),
        ({"budget_gb": 0}, "memory.budget_gb=0"),
        ({"budget_gb": 0.01}, "there are 0.0 GB"),
    ],
)
def test_impossible_settings(options, says):
    with pytest.raises(UserError, match=says):
        memory.plan_memory(*parts(), **options)
