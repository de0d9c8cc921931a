"""nerfacc as a marcher: its kernel's rules, written as a loop, give our samples; its scan gives our transmittances.

nerfacc runs on CUDA alone. On the CPU a stand-in with the same two functions is imported in its place.
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from jointdreamer.cameras import Rig, rays, sample_cameras
from jointdreamer.errors import UserError
from jointdreamer.kernels import volume_nerfacc as nerfacc_backend
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.samples import alpha_and_transmittance
from jointdreamer.scenes.nerf.volume import VolumeRenderer


def traverse_grids(rays_o, rays_d, binaries, aabbs, near_planes, step_size):
    """Of csrc/grid.cu (0.5.3), what reads these arguments: cell by cell, a sample where the middle of a step is in it.

    In float64, so that neither rounding nor the drift of `t_last += dt` blurs what is compared.
    """
    lower, upper = aabbs[0, :3].double().numpy(), aabbs[0, 3:].double().numpy()
    occupied, found = binaries[0].numpy(), []
    size = (upper - lower) / occupied.shape
    for ray, (o, d, t) in enumerate(zip(rays_o.double().numpy(), rays_d.double().numpy(), near_planes, strict=True)):
        one, other = (lower - o) / d, (upper - o) / d
        near, far = max(np.minimum(one, other).max(), float(t)), np.maximum(one, other).min()
        if near >= far:
            continue
        borders = np.concatenate(
            [(lower[k] + np.arange(occupied.shape[k] + 1) * size[k] - o[k]) / d[k] for k in range(3)]
        )
        borders = np.sort(np.append(borders[(borders > near) & (borders < far)], far))
        t = float(t)
        while t + step_size / 2 < near:
            t += step_size
        for border in borders:
            middle = o + (near + border) / 2 * d
            cell = tuple(np.clip(((middle - lower) / size).astype(int), 0, np.array(occupied.shape) - 1))
            while t + step_size / 2 < border:
                if occupied[cell]:
                    found.append((ray, t + step_size / 2))
                t += step_size
            near = border
    ray_indices = torch.tensor([ray for ray, _ in found], dtype=torch.long)
    samples = SimpleNamespace(ray_indices=ray_indices, vals=torch.tensor([t for _, t in found], dtype=torch.float32))
    return None, samples, None


def exclusive_sum(inputs, packed_info):
    """As its batched twin does it on the CPU: per ray, a running sum of what came before."""
    parts = [inputs[start : start + count] for start, count in packed_info.tolist()]
    return torch.cat([torch.cat([part.new_zeros(1), part[:-1]]).cumsum(0)[: len(part)] for part in parts])


@pytest.fixture
def stand_in(monkeypatch):
    module = ModuleType("nerfacc")
    vars(module).update(traverse_grids=traverse_grids, exclusive_sum=exclusive_sum)
    monkeypatch.setitem(sys.modules, "nerfacc", module)


def scene(resolution):
    cameras = sample_cameras(Rig(), resolution, torch.Generator().manual_seed(0))
    return cameras, [x.reshape(-1, 3) for x in rays(cameras.c2w, cameras.fovy, resolution)]


def test_the_march_finds_the_same_samples(stand_in):
    torch.manual_seed(0)
    renderer = VolumeRenderer(field_radius=1.5, grid_resolution=8, n_samples=100, backend="torch")
    renderer.occupied.copy_(torch.rand(8, 8, 8) < 0.2)
    _, (rays_o, rays_d) = scene(4)
    offset = torch.rand(len(rays_o))
    ours = renderer.march(rays_o, rays_d, offset)
    theirs = nerfacc_backend.march(renderer.occupied, 1.5, renderer.step_size, rays_o, rays_d, offset)
    assert len(ours[1]) > 200
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=0)


def test_the_scan_is_the_same_and_so_is_its_gradient(stand_in):
    counts = torch.tensor([0, 3, 1, 0, 40, 2, 0])
    ray_indices, tau = torch.repeat_interleave(counts), torch.rand(46, dtype=torch.float64).requires_grad_()
    found = []
    for scan in (alpha_and_transmittance, nerfacc_backend.alpha_and_transmittance):
        alpha, transmittance = scan(tau, ray_indices, counts)
        (gradient,) = torch.autograd.grad((alpha * transmittance * torch.arange(46)).sum(), tau)
        found.append((alpha, transmittance, gradient))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    nothing = torch.zeros(0)
    assert all(len(x) == 0 for x in nerfacc_backend.alpha_and_transmittance(nothing, nothing.long(), counts * 0))


def test_a_whole_render_is_the_same(stand_in, monkeypatch):
    cameras, _ = scene(3)
    torch.manual_seed(0)
    field = HashGridField({"n_levels": 2, "log2_table_size": 10, "backend": "torch"}, hidden=16, blob_scale=30.0)
    background, found = SphericalBackground(), []
    for backend in ("torch", "nerfacc"):
        if backend == "nerfacc":  # as on a GPU where it is installed
            monkeypatch.setattr(VolumeRenderer, "backend", "nerfacc")
        renderer, generator = VolumeRenderer(n_samples=64, backend="torch"), torch.Generator().manual_seed(0)
        renderer.update_occupancy(field, 0, generator)
        field.zero_grad()
        image = renderer(field, background, cameras, normals=True, generator=generator, chunk=20)
        (image.rgb.square().sum() + image.depth.sum()).backward()
        grads = [p.grad.clone() for p in field.parameters() if p.grad is not None]
        found.append([image.rgb, image.opacity, image.z_variance, image.facing_away, *grads])
    assert 0.1 < found[0][1].mean() < 0.9
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.timeout(400)  # its kernels are compiled first
def test_the_real_one_renders_what_we_render():
    pytest.importorskip("nerfacc")
    cameras, _ = scene(24)
    torch.manual_seed(0)
    field = HashGridField({"n_levels": 4, "log2_table_size": 12, "backend": "torch"}, hidden=16, blob_scale=30.0)
    field, background, found = field.cuda(), SphericalBackground().cuda(), []
    for backend in ("torch", "nerfacc"):
        renderer = VolumeRenderer(n_samples=64, backend=backend).cuda()
        renderer.update_occupancy(field, 0, torch.Generator().manual_seed(0))
        field.zero_grad()
        image = renderer(field, background, cameras, generator=torch.Generator().manual_seed(1))
        (image.rgb.square().sum() + image.depth.sum()).backward()
        grads = [p.grad.clone() for p in field.parameters() if p.grad is not None]
        found.append([image.rgb.detach(), image.opacity.detach(), *grads])
    assert 0.1 < found[0][1].mean() < 0.9
    for number, (ours, theirs) in enumerate(zip(*found, strict=True)):
        # a table's derivative jumps where a sample's last bits cross the border of a voxel; on an H200 it is 1.5e-3 off
        assert (theirs - ours).norm() < (1e-5 if number < 2 else 1e-2) * ours.norm()


def test_off_cuda_or_not_installed_it_is_refused(monkeypatch):
    monkeypatch.setattr(nerfacc_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed.*pip install.*leave it out"):
        VolumeRenderer(backend="nerfacc")
    monkeypatch.setattr(nerfacc_backend.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=__file__))
    renderer = VolumeRenderer(backend="nerfacc")
    with pytest.raises(UserError, match="renderer.backend=nerfacc runs on cuda, not on cpu"):
        renderer.march(torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1))


@pytest.mark.kernels
def test_auto_takes_it_on_cuda_alone_and_only_where_it_can_run(monkeypatch):
    renderer = VolumeRenderer()
    monkeypatch.setattr(nerfacc_backend, "can_run", lambda: True)
    assert renderer.backend == "numba"
    elsewhere = SimpleNamespace(device=torch.device("cuda"))  # where the grid would be
    monkeypatch.setitem(renderer._buffers, "occupancy", elsewhere)
    assert renderer.backend == "nerfacc"
    monkeypatch.setattr(nerfacc_backend, "can_run", lambda: False)
    assert renderer.backend == "torch"


@pytest.mark.parametrize(("compiled", "nvcc", "runs"), [(0, None, False), (1, None, True), (0, "/bin/nvcc", True)])
def test_it_can_run_with_its_kernels_or_a_compiler(monkeypatch, tmp_path, compiled, nvcc, runs):
    if compiled:
        (tmp_path / "csrc.abi3.so").touch()
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(nerfacc_backend.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(nerfacc_backend.shutil, "which", lambda name: nvcc)
    assert nerfacc_backend.can_run.__wrapped__() is runs


@pytest.mark.gpu
@pytest.mark.skipif(not nerfacc_backend.can_run(), reason="needs nerfacc and nvcc")
def test_nerfacc_itself_agrees():
    cameras, (rays_o, rays_d) = scene(64)
    torch.manual_seed(0)
    field = HashGridField({"n_levels": 4, "log2_table_size": 12}, blob_scale=30.0).cuda()
    background, found, marched = SphericalBackground().cuda(), [], []
    for backend in ("torch", "nerfacc"):
        renderer, generator = VolumeRenderer(n_samples=256, backend=backend).cuda(), torch.Generator().manual_seed(0)
        renderer.update_occupancy(field, 0, generator)
        marched.append(
            renderer.march(rays_o.cuda(), rays_d.cuda(), torch.rand(len(rays_o), generator=generator).cuda())
        )
        field.zero_grad()
        image = renderer(field, background, cameras, normals=True, generator=generator)
        (image.rgb.square().sum() + image.depth.sum()).backward()
        grads = [p.grad.clone() for p in field.parameters() if p.grad is not None]
        found.append([image.rgb, image.opacity, image.z_variance, image.facing_away, *grads])
    ours, theirs = (len(t) for _, t in marched)
    assert abs(ours - theirs) < 1e-3 * ours  # a middle on a border may fall to either side
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 2e-3 * one.norm()
