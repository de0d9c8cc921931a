"""The compiled march and compositing against their twins made of tensors."""

import numpy as np
import pytest
import torch

from jointdreamer.cameras import Rig, rays, sample_cameras
from jointdreamer.errors import UserError
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.samples import Composite, composite
from jointdreamer.scenes.nerf.volume import VolumeRenderer

COUNTS = torch.tensor([0, 3, 1, 0, 40, 2, 0])


def renderers(**options) -> tuple[VolumeRenderer, VolumeRenderer]:
    made = [VolumeRenderer(grid_resolution=16, n_samples=80, backend=name, **options) for name in ("torch", "numba")]
    occupied = torch.rand(16, 16, 16) < 0.2
    for renderer in made:
        renderer.occupied.copy_(occupied)
        renderer.occupancy.fill_(0.02)
    return made[0], made[1]


def some_rays(resolution: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    cameras = sample_cameras(Rig(n_rigs=2), resolution, torch.Generator().manual_seed(0))
    rays_o, rays_d = (x.reshape(-1, 3) for x in rays(cameras.c2w, cameras.fovy, resolution))
    return rays_o, rays_d, torch.rand(len(rays_o), generator=torch.Generator().manual_seed(1))


def test_the_march_finds_the_same_samples():
    tensors, compiled = renderers()
    (ray_a, t_a), (ray_b, t_b) = tensors.march(*some_rays()), compiled.march(*some_rays())
    a, b = (set(zip(ray.tolist(), (t / tensors.step_size).mul(1e3).round().tolist(), strict=True)) for ray, t in
            ((ray_a, t_a), (ray_b, t_b)))  # fmt: skip
    assert len(a) > 10_000
    assert len(a ^ b) <= 1e-4 * len(a)  # a sample on the border of a cell may round to either side
    assert (ray_b.diff() >= 0).all() and (t_b.diff()[ray_b.diff() == 0] > 0).all()


def test_no_ray_and_no_occupied_cell():
    _, compiled = renderers()
    rays_o, rays_d, offset = some_rays(4)
    assert [len(x) for x in compiled.march(rays_o[:0], rays_d[:0], offset[:0])] == [0, 0]
    compiled.occupied.fill_(False)
    assert [len(x) for x in compiled.march(rays_o, rays_d, offset)] == [0, 0]


def losses_and_gradients(composed, tau, values) -> list[torch.Tensor]:
    weights, sums, z_variance = composed
    g = torch.Generator().manual_seed(5)
    parts = [(x * torch.randn(x.shape, generator=g).to(x)).sum() for x in (weights, sums, z_variance)]
    loss = torch.stack(parts).sum()
    return [weights, sums, z_variance, *torch.autograd.grad(loss, (tau, values))]


@pytest.mark.parametrize("scale", [1e-6, 0.05, 1.0, 40.0])
def test_compositing_and_its_gradient_are_those_in_float64(scale):
    ray_indices = torch.repeat_interleave(COUNTS)
    tau, t, values = scale * torch.rand(len(ray_indices)), torch.rand(len(ray_indices)) + 1, torch.rand(46, 6)
    single, double = ((tau.to(kind).requires_grad_(), values.to(kind).requires_grad_()) for kind in
                      (torch.float32, torch.float64))  # fmt: skip
    ours = losses_and_gradients(Composite.apply(single[0], t, single[1], COUNTS), *single)
    twin = losses_and_gradients(composite(double[0], t.double(), double[1], ray_indices, COUNTS), *double)
    for mine, other in zip(ours, twin, strict=True):
        torch.testing.assert_close(
            mine.double(), other, rtol=2e-5, atol=2e-6 * float(other.detach().abs().max()) + 1e-12
        )


def test_compositing_takes_values_however_they_lie_in_memory():
    tau, columns = torch.rand(46).requires_grad_(), torch.rand(3, 46)
    by_row, by_column = columns.t().contiguous().requires_grad_(), columns.t().requires_grad_()
    ours, theirs = (losses_and_gradients(Composite.apply(tau, torch.arange(46.0), values, COUNTS), tau, values) for
                    values in (by_row, by_column))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_gradient_of_one_output_alone_is_enough():
    tau, values = torch.rand(46).requires_grad_(), torch.rand(46, 3)
    weights, sums, _ = Composite.apply(tau, torch.rand(46), values, COUNTS)
    (of_weights,) = torch.autograd.grad(weights.sum(), tau, retain_graph=True)
    (of_opacity,) = torch.autograd.grad(sums[:, 0].sum(), tau)
    torch.testing.assert_close(of_weights, of_opacity)


@pytest.mark.parametrize("prune", [True, False])
def test_both_backends_render_the_same_and_send_back_the_same(prune):
    field = HashGridField(
        {"n_levels": 4, "log2_table_size": 12, "base_resolution": 4, "growth": 1.5}, hidden=16, blob_scale=20.0
    )
    background = SphericalBackground(random_probability=0.0)
    cameras = sample_cameras(Rig(), 20, torch.Generator().manual_seed(3))
    found = []
    torch.manual_seed(0)
    for renderer in renderers(prune=prune):
        field.zero_grad()
        image = renderer(field, background, cameras, normals=True, generator=torch.Generator().manual_seed(1))
        loss = (image.rgb * torch.linspace(0, 1, 20)).sum() + image.depth.sum() + image.z_variance.sum()
        (loss + image.facing_away.sum() + image.normal.square().sum()).backward()
        grads = {
            name: parameter.grad.clone() for name, parameter in field.named_parameters() if parameter.grad is not None
        }
        found.append(
            {"rgb": image.rgb, "opacity": image.opacity, "depth": image.depth, "normal": image.normal, **grads}
        )
    torch_s, numba_s = found
    assert 0.05 < torch_s["opacity"].mean() < 0.95
    for name in torch_s:  # norms: a sample at a threshold may fall to either side
        assert (torch_s[name] - numba_s[name]).norm() < 2e-3 * torch_s[name].norm(), name


def test_results_do_not_depend_on_the_number_of_threads():
    _, compiled = renderers()
    field, background = HashGridField({"n_levels": 2, "log2_table_size": 10}), SphericalBackground()
    cameras = sample_cameras(Rig(), 16, torch.Generator().manual_seed(3))
    images = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        try:
            images.append(compiled(field, background, cameras).rgb)
        finally:
            torch.set_num_threads(1)
    assert np.array_equal(images[0].detach(), images[1].detach())


def test_an_unknown_backend_is_one_line():
    with pytest.raises(UserError, match="'cuda'.*auto, torch, numba"):
        VolumeRenderer(backend="cuda")
