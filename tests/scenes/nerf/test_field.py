"""The hash-grid field: its equations in float64, its normals against finite differences, its parameter groups."""

from typing import Any

import numpy as np
import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.scenes.nerf.field import HashGridField

SMALL: dict[str, Any] = {
    "encoding": {"n_levels": 3, "log2_table_size": 8, "base_resolution": 4, "growth": 1.7},
    "hidden": 16,
}


def small_field(std=0.5, backend="auto", **options):
    torch.manual_seed(1)
    encoding = {**SMALL["encoding"], "backend": backend}
    field = HashGridField(**{**SMALL, "encoding": encoding, **options})
    torch.nn.init.normal_(field.encoding.params, std=std)
    return field


def test_density_and_albedo_follow_the_equations():
    field = small_field(radius=1.5, blob_scale=3.0, blob_std=0.8, backend="torch").double()
    x = torch.rand(50, 3, dtype=torch.float64) * 3 - 1.5
    out = field(x)

    weights = {name: p.detach().numpy() for name, p in field.named_parameters()}
    encoded = field.encoding((x + 1.5) / 3).detach().numpy()
    hidden = np.maximum(encoded @ weights["density_mlp.first"].T, 0)
    z = (hidden @ weights["density_mlp.last"].T)[:, 0]
    z = z + 3.0 * (1 - np.sqrt((x.numpy() ** 2).sum(-1)) / 0.8)
    np.testing.assert_allclose(out.sigma.detach().numpy(), np.log1p(np.exp(z)), rtol=1e-9)
    hidden = np.maximum(encoded @ weights["albedo_mlp.first"].T, 0)
    albedo = 1 / (1 + np.exp(-hidden @ weights["albedo_mlp.last"].T))
    np.testing.assert_allclose(out.albedo.detach().numpy(), albedo, rtol=1e-9)
    assert out.normal is None
    torch.testing.assert_close(field.density(x), out.sigma)


def test_new_field_is_magic3ds_blob():
    field = HashGridField(**SMALL)
    sigma = field.density(torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0, 1.0]]))
    expected = torch.nn.functional.softplus(torch.tensor([10.0, 0.0, -10.0]))
    torch.testing.assert_close(sigma, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("normal", ["analytic", "finite_difference"])
def test_normals_of_the_blob_point_outward(normal):
    field = HashGridField(**SMALL, normal=normal)
    x = torch.rand(200, 3) * 2 - 1
    torch.testing.assert_close(
        field(x, normals=True).normal, torch.nn.functional.normalize(x, dim=-1), atol=1e-2, rtol=0
    )


def test_analytic_normals_are_the_gradient_of_the_density():
    field = small_field(backend="torch").double()
    x = (torch.rand(100, 3, dtype=torch.float64) * 2 - 1).requires_grad_()
    gradient = torch.autograd.grad(field.density(x).sum(), x)[0]
    torch.testing.assert_close(field(x, normals=True).normal, -torch.nn.functional.normalize(gradient, dim=-1))


def test_the_two_kinds_of_normals_agree_where_the_field_is_smooth():
    x = torch.rand(500, 3, dtype=torch.float64) * 1.6 - 0.8
    analytic = small_field(0.05, backend="torch").double()(x, normals=True).normal
    difference = (
        small_field(0.05, backend="torch", normal="finite_difference", difference=1e-6).double()(x, normals=True).normal
    )
    cosine = (analytic * difference).sum(-1)
    assert (cosine > 1 - 1e-6).double().mean() > 0.98  # the others straddle a cell border or a kink of the ReLU


def test_a_loss_on_normals_reaches_the_geometry_only():
    """Its gradient against finite differences, and zero for the albedo."""
    field = small_field(backend="torch").double()
    x = torch.rand(20, 3, dtype=torch.float64) * 2 - 1
    target = torch.randn(20, 3, dtype=torch.float64)

    def loss():
        return (field(x, normals=True).normal * target).sum()

    loss().backward()
    for parameter in (field.encoding.params, field.density_mlp.first, field.density_mlp.last):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-6 * direction
            upper = loss()
            parameter -= 2e-6 * direction
            lower = loss()
            parameter += 1e-6 * direction
        assert parameter.grad is not None
        assert (parameter.grad * direction).sum().item() == pytest.approx((upper - lower).item() / 2e-6, rel=1e-4)
    assert all(parameter.grad is None for parameter in field.albedo_mlp.parameters())


def test_backends_agree_with_normals_and_gradients():
    pytest.importorskip("numba")
    x = torch.rand(300, 3) * 2 - 1
    target = torch.randn(300, 3)
    results = []
    for backend in ("numba", "torch"):
        field = small_field(backend=backend)
        out = field(x, normals=True)
        (out.sigma.sum() + (out.albedo * target).sum() + (out.normal * target).sum()).backward()
        results.append([out.sigma, out.albedo, out.normal, *(p.grad for p in field.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_normals_need_no_grad_mode_and_are_finite_at_the_centre():
    field = small_field()
    with torch.no_grad():
        normal = field(torch.zeros(1, 3), normals=True).normal
    assert normal.isfinite().all() and not normal.requires_grad
    field(torch.zeros(1, 3), normals=True).normal.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in field.parameters())


def test_parameter_groups_name_every_parameter_once():
    field = small_field()
    groups = field.parameter_groups()
    assert set(groups) == {"geometry:encoding", "geometry", "appearance"}
    named = [id(p) for group in groups.values() for p in group]
    assert sorted(named) == sorted(id(p) for p in field.parameters())
    assert all("bias" not in name for name, _ in field.named_parameters())


def test_no_points():
    out = small_field()(torch.empty(0, 3), normals=True)
    assert out.sigma.shape == (0,) and out.albedo.shape == (0, 3) and out.normal.shape == (0, 3)


def test_unknown_normals():
    with pytest.raises(UserError, match="'smooth': choose one of analytic, finite_difference"):
        HashGridField(**SMALL, normal="smooth")


@pytest.mark.kernels
def test_features_of_the_pruning_are_used_again(monkeypatch):
    field, x = small_field(), torch.rand(40, 3) * 2 - 1
    sigma, features = field.density_and_features(x)
    torch.testing.assert_close(sigma, field.density(x).detach())
    assert features is not None and not features.requires_grad

    results = []
    for rows in (None, features):
        if rows is not None:
            monkeypatch.setattr("jointdreamer.kernels.hash_numba.gather", None)
        field.zero_grad()  # sets the gradients to None: the ones in `results` stay
        out = field(x, features=rows)
        (out.sigma.sum() + (out.albedo * torch.linspace(0, 1, 3)).sum()).backward()
        results.append([out.sigma, out.albedo, *(p.grad for p in field.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert small_field(backend="torch").density_and_features(x)[1] is None
