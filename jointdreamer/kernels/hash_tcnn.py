"""The hash grid of tiny-cuda-nn (github.com/NVlabs/tiny-cuda-nn, `tinycudann`), where it is installed (CUDA).

What we rely on, read in its `bindings/torch/tinycudann/modules.py`: `Encoding(3, config, dtype=...)` is a module with
one flat parameter `params`, in float32 whatever the dtype; it pads the points to what its kernels want; its backward is
differentiable once more with respect to the points, the parameters and the gradient of the features, but only through
the gradient of the *points* (a second derivative through the gradient of the parameters is silently left out there;
nothing of ours asks for it). The order of the parameters (level by level, entry by entry, features adjacent, each level
rounded up to 8 entries) is what `encoding.py` follows; their number is compared.

We have not run it: the tests use a stand-in with this interface.
"""

import importlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jointdreamer.kernels.hash_grid import Grid

INSTALL = (
    'pip install "setuptools<81" wheel ninja, then pip install --no-build-isolation '
    '"git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch", which compiles it with nvcc'
)
# The library's modules by our grids: neither parameters of ours, nor part of a checkpoint or a copy
encodings: "WeakKeyDictionary[Grid, dict[torch.dtype, nn.Module]]" = WeakKeyDictionary()


def obstacle() -> str | None:
    """Why tiny-cuda-nn cannot run here, and what to do; None if it can."""
    try:
        importlib.import_module("tinycudann")
    except ModuleNotFoundError as error:
        return INSTALL if error.name == "tinycudann" else f"tiny-cuda-nn cannot be imported: {error}"
    except (ImportError, OSError) as error:  # OSError: installed, but there is no CUDA device
        return f"tiny-cuda-nn cannot be imported: {' '.join(str(error).split())}"
    return None if torch.cuda.is_available() else "tiny-cuda-nn is installed, but there is no CUDA device"


def config(grid: Grid) -> dict[str, Any]:
    """The grid in the library's words (its DOCUMENTATION.md, "Grid")."""
    return {
        "otype": "Grid",
        "type": "Hash",
        "n_levels": grid.n_levels,
        "n_features_per_level": grid.n_features,
        "log2_hashmap_size": grid.log2_table_size,
        "base_resolution": grid.base_resolution,
        "per_level_scale": grid.growth,
        "interpolation": "Linear",
    }


def features(grid: Grid, x: Tensor) -> Tensor:
    """Points (N, 3), N > 0 -> features (N, L * F), float32."""
    return functional_call(library_module(grid), {"params": grid.params}, (x,)).float()


def position_gradient(grid: Grid, x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of (grad . features) with respect to the points (N, 3), differentiable if gradients are enabled."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        points = x if x.requires_grad else x.detach().requires_grad_()
        [gradient] = torch.autograd.grad(features(grid, points), points, grad, create_graph=differentiable)
    return gradient


def library_module(grid: Grid) -> nn.Module:
    """The library's encoding of the shape and precision of a grid; made once, without parameters of its own.

    Raises RuntimeError if the library counts other parameters or features for it than we do.
    """
    made = encodings.setdefault(grid, {})
    dtype = grid.params.dtype
    if dtype not in made:
        module = importlib.import_module("tinycudann").Encoding(3, config(grid), dtype=dtype)
        theirs, ours = (module.params.numel(), module.n_output_dims), (grid.params.numel(), grid.out_features)
        if theirs != ours:
            raise RuntimeError(f"tiny-cuda-nn has (parameters, features) {theirs} for {config(grid)}, we have {ours}")
        module.params = nn.Parameter(module.params.detach().new_empty(0))  # frees them: ours are put in at every call
        made[dtype] = module
    return made[dtype]
