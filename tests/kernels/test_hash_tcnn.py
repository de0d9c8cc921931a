"""The tiny-cuda-nn backend against a stand-in with the library's interface; the library itself needs a GPU to build."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from jointdreamer.errors import UserError
from jointdreamer.kernels import hash_tcnn
from jointdreamer.scenes.nerf import encoding
from jointdreamer.scenes.nerf.encoding import HashEncoding

SMALL = {"n_levels": 3, "n_features": 2, "log2_table_size": 7, "base_resolution": 4, "growth": 1.7}


class Encoding(nn.Module):
    """tinycudann.Encoding as its source has it: config in, flat `params`, features in `dtype`, points padded to 256."""

    made = 0

    def __init__(self, n_input_dims, encoding_config, seed=1337, dtype=None):
        super().__init__()
        assert n_input_dims == 3 and encoding_config["otype"] == "Grid" and encoding_config["type"] == "Hash"
        assert encoding_config["interpolation"] == "Linear"
        Encoding.made += 1
        self.dtype = dtype
        self.grid = [
            HashEncoding(
                n_levels=encoding_config["n_levels"],
                n_features=encoding_config["n_features_per_level"],
                log2_table_size=encoding_config["log2_hashmap_size"],
                base_resolution=encoding_config["base_resolution"],
                growth=encoding_config["per_level_scale"],
                backend="torch",
            )
        ]  # in a list: no parameters of this module
        self.params = nn.Parameter(self.grid[0].params.detach().clone())
        self.n_output_dims = self.grid[0].out_features

    def forward(self, x):
        padded = nn.functional.pad(x, [0, 0, 0, -len(x) % 256])
        out = torch.func.functional_call(self.grid[0], {"params": self.params.to(self.dtype)}, (padded,))
        return out[: len(x)].to(self.dtype)


@pytest.fixture
def library(monkeypatch):
    module = ModuleType("tinycudann")
    module.Encoding = Encoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    Encoding.made = 0


def twins(dtype=torch.float32, **options):
    torch.manual_seed(2)
    grid = HashEncoding(**{**SMALL, **options}, backend="torch")
    nn.init.normal_(grid.params)
    return grid.to(dtype), torch.rand(300, 3), torch.randn(300, grid.out_features), torch.randn(300, 3)


def test_features_and_derivatives_of_both_orders(library):
    grid, x, grad, direction = twins()
    results = []
    for features, position in (
        (lambda x: hash_tcnn.features(grid, x), lambda x, g: hash_tcnn.position_gradient(grid, x, g)),
        (grid, grid.position_gradient),
    ):
        points, g = x.clone().requires_grad_(), grad.clone().requires_grad_()
        out = features(points)
        first = torch.autograd.grad(out, (points, grid.params), grad)
        normal = position(points, g)
        second = torch.autograd.grad((normal * direction).sum(), (points, grid.params, g))
        results.append([out, *first, normal, *second])
    for ours, theirs in zip(*results, strict=True):  # float32 sums in another order, of numbers up to some thousands
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


def test_normals_of_fixed_points_still_train_the_tables(library):
    grid, x, grad, direction = twins()
    (hash_tcnn.position_gradient(grid, x, grad) * direction).sum().backward()
    trained = grid.params.grad
    grid.params.grad = None
    (grid.position_gradient(x, grad) * direction).sum().backward()
    torch.testing.assert_close(trained, grid.params.grad, atol=2e-3, rtol=1e-4)
    with torch.no_grad():
        without = hash_tcnn.position_gradient(grid, x, grad)
    assert not without.requires_grad
    torch.testing.assert_close(without, grid.position_gradient(x, grad).detach(), atol=2e-3, rtol=1e-4)


def test_the_parameters_are_ours_alone(library):
    """A checkpoint holds one vector, whichever backend wrote it; the library's own memory is given back."""
    grid, x, grad, _ = twins()
    before = hash_tcnn.features(grid, x)
    hash_tcnn.features(grid, x)
    assert Encoding.made == 1
    assert set(grid.state_dict()) == {"params"} == {name for name, _ in grid.named_parameters()}
    assert sum(p.numel() for p in hash_tcnn.library_module(grid).parameters()) == 0
    other = HashEncoding(**SMALL, backend="torch")
    other.load_state_dict(grid.state_dict())
    torch.testing.assert_close(other(x), before)
    with torch.no_grad():
        grid.params.mul_(2)  # what an optimiser does
    torch.testing.assert_close(hash_tcnn.features(grid, x), 2 * before)


def test_half_tables(library):
    grid, x, grad, _ = twins(torch.float16)
    features = hash_tcnn.features(grid, x)
    features.backward(grad)
    assert features.dtype == torch.float32 and grid.params.grad is not None
    assert grid.params.grad.dtype == torch.float16
    torch.testing.assert_close(features, grid(x), atol=1e-2, rtol=1e-2)


def test_another_layout_is_noticed(library, monkeypatch):
    grid, x, *_ = twins()
    monkeypatch.setattr(hash_tcnn, "config", lambda g, _f=hash_tcnn.config: {**_f(g), "log2_hashmap_size": 6})
    with pytest.raises(RuntimeError, match="tiny-cuda-nn has"):
        hash_tcnn.features(grid, x)


def test_the_encoding_hands_over(library, monkeypatch):
    """Selected, with the check of the device left out, it is the library that answers."""
    grid, x, grad, _ = twins()
    monkeypatch.setattr(HashEncoding, "_check", lambda self, x: "tcnn")
    calls = []
    for name in ("features", "position_gradient"):
        monkeypatch.setattr(hash_tcnn, name, lambda grid, x, *_, _name=name: calls.append(_name) or x)
    assert grid(x) is x and grid.position_gradient(x, grad) is x
    assert calls == ["features", "position_gradient"]
    assert grid(x[:0]).shape == (0, grid.out_features) and len(calls) == 2  # it takes no empty batch
    assert grid.position_gradient(x[:0], grad[:0]).shape == (0, 3) and len(calls) == 2


def test_points_on_the_cpu(library, monkeypatch):
    monkeypatch.setattr(encoding, "available_backends", lambda: encoding.BACKENDS)
    with pytest.raises(UserError, match="'tcnn' wants float32 points and float32 or float16 parameters on cuda, got"):
        HashEncoding(**SMALL, backend="tcnn")(torch.rand(4, 3))


class Failing:
    """An import of tinycudann that fails."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "tinycudann":
            raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'tinycudann'", name="tinycudann"), "setuptools<81"),
        (
            ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources"),
            "imported: No module named 'pkg",
        ),
        (ImportError("undefined symbol"), "cannot be imported: undefined symbol"),
        (OSError("Unknown compute capability.\nEnsure"), "cannot be imported: Unknown compute capability. Ensure"),
    ],
)
def test_what_keeps_it_from_running(monkeypatch, error, said):
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Failing(error), *sys.meta_path])
    assert said in str(hash_tcnn.obstacle())


def test_installed_without_a_device(library, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in str(hash_tcnn.obstacle())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hash_tcnn.obstacle() is None
