"""What is compiled ahead is what a step calls."""

from types import SimpleNamespace

import pytest
import torch

from jointdreamer.cameras import Rig, sample_cameras
from jointdreamer.kernels import ahead as kernels
from jointdreamer.kernels import hash_numba, mlp_numba, raster_numba
from jointdreamer.kernels import norm_numba as norm_kernels
from jointdreamer.kernels import volume_numba as renderer_kernels
from jointdreamer.kernels.channels_last import GroupNorm
from jointdreamer.kernels.fast_unet import FastUNet, speed_up
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.mesh.scene import DMTet
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import VolumeRenderer
from tests.conftest import _unet


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_compiles_nothing_more(monkeypatch, dtype):
    monkeypatch.setattr(kernels, "network_dtype", lambda name, device: dtype)
    thread = kernels.compile_ahead(torch.device("cpu"), 2)
    assert thread is not None
    thread.join()
    networks = norm_kernels.signatures(dtype)
    modules = hash_numba.signatures(2), mlp_numba.signatures(), renderer_kernels.signatures(), networks
    signatures = [signature for module in modules for signature in module]
    compiled = {kernel: list(kernel.signatures) for kernel, _ in signatures}
    assert all(compiled.values())

    generator = torch.Generator().manual_seed(0)
    field, renderer = HashGridField({"n_levels": 2, "log2_table_size": 8}), VolumeRenderer(n_samples=32)
    renderer.update_occupancy(field, 0, generator)
    render = renderer(field, SphericalBackground(), sample_cameras(Rig(), 8, generator), generator=generator)
    render.rgb.sum().backward()
    unet = _unet().to(dtype).requires_grad_(False)
    if speed_up(unet):
        with torch.no_grad():
            assert isinstance(unet.forward, FastUNet)
            unet(torch.randn(1, 4, 8, 8).to(dtype), 3, torch.randn(1, 5, 16).to(dtype))
    x = torch.randn(2, 8, 3, 3).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    GroupNorm.apply(x, torch.nn.GroupNorm(2, 8).to(dtype).requires_grad_(False), True).sum().backward()
    assert {kernel: list(kernel.signatures) for kernel, _ in signatures} == compiled


def test_nothing_is_compiled_for_a_gpu():
    assert kernels.compile_ahead(torch.device("cuda"), 2) is None


@pytest.mark.kernels
def test_a_step_of_a_mesh_compiles_nothing_more():
    thread = kernels.compile_ahead(torch.device("cpu"), 2, mesh=True)
    assert thread is not None
    thread.join()
    signatures = [*hash_numba.signatures(2), *mlp_numba.signatures(), *raster_numba.signatures()]
    compiled = {kernel: list(kernel.signatures) for kernel, _ in signatures}
    assert all(compiled.values())
    scene = DMTet(HashGridField({"n_levels": 2, "log2_table_size": 8}), SphericalBackground(), resolution=16)
    generator = torch.Generator().manual_seed(0)
    cameras, now = sample_cameras(Rig(), 8, generator), SimpleNamespace(shading=False, loss=SimpleNamespace())
    scene.render(cameras, now, generator).rgb.sum().backward()
    assert {kernel: list(kernel.signatures) for kernel, _ in signatures} == compiled
