"""The compiled rasteriser against its twin in torch, and against itself on other numbers of threads."""

import pytest
import torch
from torch import Tensor

from jointdreamer.kernels import raster_numba
from jointdreamer.scenes.mesh import raster_torch
from jointdreamer.scenes.mesh.raster import across_edges, antialias, interpolate, opposite_vertices, rasterize
from tests.scenes.mesh.test_raster import WORLDS, icosphere, perspective, soup

pytestmark = pytest.mark.kernels


def bumpy(n_views: int) -> tuple[Tensor, Tensor]:
    """A sphere with creases and faces that fold over each other: silhouettes inside of the outline too."""
    vertices, faces = icosphere(3)
    noise = torch.rand(len(vertices), 1, generator=torch.Generator().manual_seed(0))
    return perspective(vertices * (0.5 + 0.5 * noise), n_views), faces


def random_meshes(n_images: int) -> tuple[Tensor, Tensor]:
    """Faces through each other whose corners are shared at random: edges of one, two and many faces."""
    g = torch.Generator().manual_seed(1)
    clip = torch.stack([soup(30, g)[0] for _ in range(n_images)])
    return clip, torch.randint(90, (14, 3), generator=g)


def step(clip: Tensor, faces: Tensor, resolution: tuple[int, int], backend: str, shared: bool = True) -> dict:
    """All that the operations give and send back."""
    g = torch.Generator().manual_seed(2)
    clip = clip.clone().requires_grad_()
    attributes = torch.randn(*(() if shared else (len(clip),)), clip.shape[1], 5, generator=g).requires_grad_()
    raster = rasterize(clip, faces, resolution, backend)
    color = interpolate(attributes, raster, faces, backend)
    image = antialias(color, raster, clip, faces, opposite_vertices(faces), backend)
    color.retain_grad()
    raster.barycentric.retain_grad()
    (image * torch.randn(image.shape, generator=g)).sum().backward()
    return {
        "triangle": raster.triangle,
        "depth": raster.depth,
        "barycentric": raster.barycentric.detach(),
        "color": color.detach(),
        "image": image.detach(),
        "gradient of color": color.grad,
        "gradient of barycentric": raster.barycentric.grad,
        "gradient of attributes": attributes.grad,
        "gradient of clip": clip.grad,
    }


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mesh", [bumpy, random_meshes])
@pytest.mark.parametrize("n_images", [1, 3, 11])
def test_both_twins_give_and_send_back_the_same(mesh, n_images, shared):
    clip, faces = mesh(n_images)
    torch_s, numba_s = (step(clip, faces, (37, 50), backend, shared) for backend in ("torch", "numba"))
    assert 0.1 < (torch_s["triangle"] > 0).float().mean() < 0.99
    assert (torch_s["image"] != torch_s["color"]).sum() > 50
    for name in ("triangle", "depth", "barycentric"):
        assert torch.equal(torch_s[name], numba_s[name]), name
    for name, one in torch_s.items():
        assert one.shape == numba_s[name].shape and one.abs().max() > 0
        torch.testing.assert_close(numba_s[name], one, rtol=1e-4, atol=1e-5 * float(one.abs().max()), msg=name)


@pytest.mark.parametrize("walk", [False, True])
def test_both_twins_find_the_same_crossings(walk):
    for clip, faces in (bumpy(3), random_meshes(3)):
        raster, (opposite, beyond) = rasterize(clip, faces, (41, 60)), across_edges(faces)
        beyond = beyond if walk else faces[:0]
        found = [
            twin.find_crossings(clip, faces, opposite, beyond, raster.triangle, raster.depth)
            for twin in (raster_torch, raster_numba)
        ]
        assert len(found[0][0]) > 100 and (found[0][0].diff() > 0).all()
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


def test_both_twins_agree_at_the_limits():
    for world in WORLDS:
        clip, faces = world()
        found = [step(clip[None], faces, (9, 8), backend) for backend in ("torch", "numba")]
        for name, one in found[0].items():
            torch.testing.assert_close(
                found[1][name],
                one,
                rtol=1e-4,
                atol=1e-5 * (1 + float(one.abs().sum())),
                msg=f"{world.__name__}: {name}",
            )


@pytest.mark.parametrize("n_images", [1, 3])
def test_results_do_not_depend_on_the_number_of_threads(n_images):
    clip, faces = bumpy(n_images)
    results = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        try:
            results.append(step(clip, faces, (64, 64), "numba"))
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(one, other[name]) for name, one in results[0].items())


def test_inputs_need_not_be_contiguous():
    clip, faces = bumpy(2)
    plain = step(clip, faces, (20, 20), "numba")
    strided = torch.zeros(4, *clip.shape[:2]).movedim(0, -1).copy_(clip)
    columns = faces.t().contiguous().t()
    assert not strided.is_contiguous() and not columns.is_contiguous()
    found = step(strided, columns, (20, 20), "numba")
    assert all(torch.equal(one, found[name]) for name, one in plain.items())


def test_what_is_compiled_ahead_is_what_a_step_calls():
    for kernel, types in raster_numba.signatures():
        kernel.compile(types)
    compiled = {kernel: list(kernel.signatures) for kernel, _ in raster_numba.signatures()}
    step(*bumpy(2), (16, 16), "numba")
    assert {kernel: list(kernel.signatures) for kernel, _ in raster_numba.signatures()} == compiled
    assert all(len(signatures) == 1 for signatures in compiled.values())
