"""nvdiffrast's conventions, by a stand-in on the CPU that keeps them: row 0 is the bottom, faces are int32."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.kernels import raster_nvdiffrast
from jointdreamer.scenes.mesh import raster as ours
from tests.scenes.mesh.test_raster import icosphere, perspective, soup


def unpacked(rast) -> ours.Raster:
    assert rast.dtype == torch.float32 and rast.shape[-1] == 4 and rast.is_contiguous()
    rast = rast.flip(1)
    return ours.Raster(rast[..., :2], rast[..., 2].detach(), rast[..., 3].detach().long())


def rasterize(context, pos, tri, resolution, grad_db=True):
    assert context.device == pos.device and tri.dtype == torch.int32 and pos.is_contiguous() and tri.is_contiguous()
    found = ours.rasterize(pos, tri.long(), resolution, "torch")
    rast = torch.cat([found.barycentric, found.depth[..., None], found.triangle[..., None].float()], dim=-1)
    return rast.flip(1), None


def interpolate(attr, rast, tri):
    assert attr.is_contiguous() and tri.dtype == torch.int32
    return ours.interpolate(attr, unpacked(rast), tri.long(), "torch").flip(1), None


def antialias(color, rast, pos, tri):
    assert color.is_contiguous() and tri.dtype == torch.int32
    opposite = ours.opposite_vertices(tri.long())
    return ours.antialias(color.flip(1), unpacked(rast), pos, tri.long(), opposite, "torch").flip(1)


@pytest.fixture
def stand_in(monkeypatch):
    module = ModuleType("nvdiffrast.torch")
    module.RasterizeCudaContext = lambda device: SimpleNamespace(device=device)  # pyright: ignore
    for function in (rasterize, interpolate, antialias):
        setattr(module, function.__name__, function)
    package = ModuleType("nvdiffrast")
    package.torch = module  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
    monkeypatch.setattr(ours, "backend_for", lambda backend, x: backend)  # as on CUDA
    raster_nvdiffrast.context.cache_clear()
    yield
    raster_nvdiffrast.context.cache_clear()


@pytest.mark.parametrize("shared", [True, False])
def test_its_images_and_gradients_are_ours(stand_in, shared):
    vertices, faces = icosphere(1)
    found = []
    for backend in ("torch", "nvdiffrast"):
        clip = perspective(vertices * torch.tensor([0.9, 0.7, 0.5]), 2).requires_grad_()
        attributes = torch.randn(
            *(() if shared else (2,)), len(vertices), 3, generator=torch.Generator().manual_seed(0)
        )
        attributes.requires_grad_()
        raster = ours.rasterize(clip, faces, (40, 48), backend)
        color = ours.interpolate(attributes, raster, faces, backend)
        image = ours.antialias(color, raster, clip, faces, ours.opposite_vertices(faces), backend)
        (image * torch.linspace(0, 1, 40)[:, None, None]).sum().backward()
        found.append([raster.triangle, raster.depth, raster.barycentric, image, clip.grad, attributes.grad])
    assert found[0][0].any()
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_for_no_faces_no_kernel_is_launched(stand_in, monkeypatch):
    for name in ("rasterize", "interpolate", "antialias"):
        monkeypatch.setattr(raster_nvdiffrast, name, None)
    clip, faces = torch.zeros(1, 3, 4, requires_grad=True), torch.zeros(0, 3, dtype=torch.int64)
    raster = ours.rasterize(clip, faces, (4, 4), "nvdiffrast")
    assert not ours.antialias(torch.zeros(1, 4, 4, 1), raster, clip, faces, faces, "nvdiffrast").any()


def test_not_installed_it_is_refused_and_auto_does_without(monkeypatch):
    monkeypatch.setattr(raster_nvdiffrast.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(ours, "enabled", lambda: True)
    on_cuda = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.float32)
    assert ours.backend_for("auto", on_cuda) == "torch"  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="nvdiffrast: it is not installed"):
        ours.backend_for("nvdiffrast", on_cuda)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(raster_nvdiffrast.importlib.util, "find_spec", lambda name: SimpleNamespace())
    assert ours.backend_for("auto", on_cuda) == "nvdiffrast"  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
@pytest.mark.skipif(not raster_nvdiffrast.is_installed(), reason="needs nvdiffrast")
def test_the_real_one_agrees():
    vertices, faces = icosphere(2)
    meshes = [(perspective(0.9 * vertices, 2), faces), (soup(12, torch.Generator().manual_seed(0))[0][None], None)]
    for clip, triangles in meshes:
        triangles = (torch.arange(36).view(12, 3) if triangles is None else triangles).cuda()
        clip = torch.cat([clip[..., :2], 0.5 * clip[..., 2:3] / 2, clip[..., 3:]], dim=-1)  # between near and far
        found = []
        for backend in ("torch", "nvdiffrast"):
            points = clip.cuda().requires_grad_()
            raster = ours.rasterize(points, triangles, (128, 128), backend)
            color = ours.interpolate(points[0, :, :3].detach(), raster, triangles, backend)
            image = ours.antialias(color, raster, points, triangles, ours.opposite_vertices(triangles), backend)
            (image * torch.linspace(0, 1, 128, device="cuda")[:, None, None]).sum().backward()
            found.append((raster.triangle, image.detach(), points.grad))
        (id_a, image_a, grad_a), (id_b, image_b, grad_b) = found
        assert (id_a != id_b).float().mean() < 2e-3  # a centre on an edge may fall to either side
        assert (image_a - image_b).abs().mean() < 2e-3
        assert (grad_a - grad_b).norm() < 0.1 * grad_a.norm()
