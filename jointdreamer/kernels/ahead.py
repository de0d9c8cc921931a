"""All compiled kernels of a training step on the CPU."""

from threading import Thread

import torch

from jointdreamer.kernels import enabled
from jointdreamer.precision import network_dtype


def compile_ahead(device: torch.device, n_features: int, mesh: bool = False) -> Thread | None:
    """Start compiling what a step without normals needs, beside the loading of networks; None where none would run.

    The first start on a machine does not wait for it then; later ones read the kernels from the disk.

    n_features: an entry's in the hash tables
    mesh: whether triangles are rasterised, in place of samples along rays
    """
    if device.type != "cpu" or not enabled():
        return None
    from jointdreamer.kernels import hash_numba, mlp_numba
    from jointdreamer.kernels import norm_numba as norm_kernels
    from jointdreamer.kernels.compiled import compile_in_background

    if mesh:
        from jointdreamer.kernels import raster_numba as kernels
    else:
        from jointdreamer.kernels import volume_numba as kernels

    networks = norm_kernels.signatures(network_dtype("auto", device))
    return compile_in_background(
        [*hash_numba.signatures(n_features), *mlp_numba.signatures(), *kernels.signatures(), *networks]
    )
