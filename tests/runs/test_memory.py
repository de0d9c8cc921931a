"""The forecast of memory: what it counts against what is counted, and the pure function that cuts and refuses."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.energies.none import NoEnergy
from jointdreamer.errors import UserError
from jointdreamer.images import contact_sheet
from jointdreamer.priors.autoencoder import encode_images
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.runs import memory
from jointdreamer.runs.memory import (
    Cost,
    Demand,
    FusedAttention,
    Live,
    decoder_cost,
    encoder_cost,
    export_bytes,
    fit,
    sample_cost,
    step_bytes,
    unet_peak,
)
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.export import extract_mesh
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from jointdreamer.schedules import Plan

GB = 1e9


# ------------------------------------------------------------------------------------------------------------ counting


def test_live_counts_what_is_alive():
    with Live() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # the same memory
        c = a + 1
        assert (live.now, live.peak) == (8000, 8000)
        del a, c
        assert live.now == 4000
        del b
    assert (live.now, live.peak) == (0, 8000)


def test_attention_is_counted_without_the_matrix_of_all_pairs():
    q = torch.empty(1, 2, 4096, 8, device="meta", requires_grad=True)
    with FusedAttention(), Live() as live:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert live.peak < 10 * q.numel() * 4


@pytest.fixture(scope="module")
def guidance(tiny_sd_folder):
    return LatentDiffusion(tiny_sd_folder(), dtype=torch.float32)


def test_a_twin_without_weights_needs_what_the_network_needs(guidance):
    images = torch.rand(1, 1, 3, 16, 16, requires_grad=True)
    with Live() as live:
        latents = encode_images(guidance.vae, images, 16, torch.Generator().manual_seed(0))
        kept = live.now
        latents.sum().backward()
    foreseen = encoder_cost(guidance.vae, 16)
    assert foreseen.kept == pytest.approx(kept, rel=0.05)
    assert foreseen.peak == pytest.approx(live.peak, rel=0.05)

    latents = torch.rand(1, 1, 4, 8, 8, requires_grad=True)
    with Live() as live:
        guidance.decode(latents).sum().backward()
    assert decoder_cost(guidance.vae, 8).peak == pytest.approx(live.peak, rel=0.05)

    with torch.no_grad(), Live() as live:
        guidance.unet(torch.rand(6, 4, 8, 8), torch.zeros(6), encoder_hidden_states=torch.rand(6, 77, 16))
    assert unet_peak(guidance.unet, 6, 8) == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize(("rays", "encoding"), [("numba", "numba"), ("torch", "numba"), ("torch", "torch")])
@pytest.mark.parametrize("normals", [False, True])
@pytest.mark.parametrize("n_levels", [6, 12])
def test_bytes_per_sample_are_those_that_are_counted(rays, encoding, normals, n_levels):
    """By the difference of two renders, so that neither pixels nor tables count. The forecast lies above, by little."""

    def count(n_samples):
        torch.manual_seed(0)
        field = HashGridField({"n_levels": n_levels, "log2_table_size": 8, "backend": encoding}, hidden=16)
        renderer, generator = VolumeRenderer(n_samples=n_samples, backend=rays), torch.Generator().manual_seed(0)
        for step in (0, 16):
            renderer.update_occupancy(field, step, generator)
        cameras = sample_cameras(Rig(), 10, generator)
        with Live() as live:
            image = renderer(field, SphericalBackground(1.0), cameras, normals=normals, generator=generator)
            kept = live.now
            loss = image.rgb.square().sum() + image.z_variance.sum()
            (loss + image.facing_away.sum() if image.facing_away is not None else loss).backward()
        return image.n_samples, kept, live.peak

    (n, kept, peak), (more, more_kept, more_peak) = count(256), count(768)
    assert more - n > 3000
    foreseen = sample_cost(2 * n_levels, normals, encoding, rays)
    assert (more_kept - kept) / (more - n) == pytest.approx(foreseen.kept, rel=0.01)
    assert 0.75 < (more_peak - peak) / (more - n) / foreseen.peak < 1.05


def test_samples_of_a_ray_stay_below_what_is_assumed():
    """At the start, where the blob is widest."""
    field, renderer = HashGridField({"n_levels": 2, "log2_table_size": 8}), VolumeRenderer(n_samples=256)
    generator = torch.Generator().manual_seed(0)
    renderer.update_occupancy(field, 0, generator)
    for _ in range(5):
        cameras = sample_cameras(Rig(), 16, generator)
        with torch.no_grad():
            image = renderer(field, SphericalBackground(), cameras, generator=generator)
        assert image.n_samples / image.opacity.numel() / 256 < 0.7 * memory.SHARE


# ---------------------------------------------------------------------------------------------------------- predicting

# Stable Diffusion 2.1 and MVDream in float16 on a GPU, counted as above; the paper's field and four views
PAPER = Demand(
    held=4.0 * GB,
    trained=0.15 * GB,
    n_views=4,
    n_samples=512,
    sample=sample_cost(32, normals=True, encoding="triton", rays="torch", hidden=64),
    image=Cost(1.59 * GB, 1.60 * GB),
    networks=1.15 * GB,
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
    demand = Demand(
        held=10, trained=3, n_views=2, n_samples=10, sample=Cost(2, 5), image=Cost(100, 130), networks=7, fixed=1
    )
    rays = 2 * 4 * 4
    pixels, samples = rays * memory.RAY_BYTES, rays * 10 * memory.SHARE
    assert step_bytes(demand, 4) == pytest.approx(
        14 + pixels + max(rays * 10 * memory.CANDIDATES * 90, samples * 2 + 260)
    )
    demand = replace(demand, image=Cost(1e6, 1.1e6), networks=5e6)
    assert step_bytes(demand, 4) == pytest.approx(14 + pixels + samples * 2 + 2e6 + 5e6)
    assert step_bytes(demand, 4, images_per_chunk=1) == pytest.approx(14 + pixels + samples * 2 + 5e6)


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


# ----------------------------------------------------------------------------------------------- the outputs at the end


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
    views = [np.zeros((256, 256, 3), np.uint8) for _ in range(16)]
    rows = {name: [view.copy() for view in views] for name in ("rgb", "normal", "opacity")}
    held = 48 * 256**2 * 3
    assert 0.4 < (held + traced(lambda: contact_sheet(rows, [0.0] * 16))) / export_bytes(256, 8) < 1


def test_outputs_that_cannot_fit_are_refused_with_what_to_lower(guidance):
    found = memory.plan_memory(*parts(guidance), output=(16, 16))
    assert f"{found.export_gb:.1f} GB for the outputs at the end" in found.line
    with pytest.raises(UserError, match=r"outputs at the end need about .*output.mesh_resolution \(now 4000\)"):
        memory.plan_memory(*parts(guidance), output=(16, 4000))
    with pytest.raises(UserError, match=r"outputs at the end .*there are .*output.resolution \(now 1024\)"):
        memory.plan_memory(
            *parts(guidance), output=(1024, 16), budget_gb=memory.held_bytes(torch.device("cpu")) / GB + 0.5
        )


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


# ---------------------------------------------------------------------------------------------------------- the whole


def parts(guidance):
    plan = Plan(
        {
            "steps": 9,
            "resolution": [[0, 8], [3, 16], [6, 8]],
            "shading": False,
            "loss": {"jsd": 1, "orient": [[0, 0], [2, 1]]},
        }
    )
    field, renderer = HashGridField({"n_levels": 2, "log2_table_size": 8}), VolumeRenderer(n_samples=16)
    return plan, Rig(), renderer, field, guidance, NoEnergy(), torch.device("cpu")


def test_a_plan_names_every_stage_and_moves_no_generator(guidance):
    given = parts(guidance)
    state = torch.get_rng_state()
    found = memory.plan_memory(*given)
    assert torch.equal(torch.get_rng_state(), state)
    assert [size for size, _ in found.stages] == [8, 16, 8]
    assert (found.rays_per_chunk, found.images_per_chunk) == (None, None)
    held = memory.held_bytes(torch.device("cpu")) / GB
    assert all(held < need < held + 1 for _, need in found.stages)
    assert memory.plan_memory(*parts(guidance), budget_gb=held + 0.5).limit_gb == pytest.approx(held + 0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rays_per_chunk": 0}, "memory.rays_per_chunk=0"),
        ({"images_per_chunk": -1}, "memory.images_per_chunk=-1"),
        ({"budget_gb": 0}, "memory.budget_gb=0"),
        ({"budget_gb": 0.01}, "there are 0.0 GB"),
    ],
)
def test_impossible_settings(guidance, options, says):
    with pytest.raises(UserError, match=says):
        memory.plan_memory(*parts(guidance), **options)


def test_an_address_space_that_is_limited_is_a_limit(monkeypatch):
    left = memory.address_space_left()
    assert left > 0
    limits = {"RLIMIT_AS": 10**12}
    monkeypatch.setattr("resource.getrlimit", lambda which: (limits["RLIMIT_AS"], -1))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    assert memory.address_space_left() == pytest.approx(10**12 - 4096 * pages, rel=0.01)
    limits["RLIMIT_AS"] = 4096
    assert memory.free_bytes(torch.device("cpu")) == 0


def test_free_memory_is_what_the_kernel_or_a_container_leaves(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2000 kB\n"}
    monkeypatch.setattr(memory, "_read", lambda path: files.get(str(path), ""))
    cpu = torch.device("cpu")
    assert memory.free_bytes(cpu) == 2000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    files["/sys/fs/cgroup/memory.current"] = "900000\n"
    assert memory.free_bytes(cpu) == 2000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "1000000\n"
    files["/sys/fs/cgroup/memory.stat"] = "anon 5\ninactive_file 300000\n"
    assert memory.free_bytes(cpu) == 400000
