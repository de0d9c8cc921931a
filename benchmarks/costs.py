"""What a network asks of the machine, counted: floating point operations and bytes moved, operation by operation."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten


def _cpu_attention(*args: Any, **_: Any) -> int:
    query, key, value = args[:3]
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _reordered_linear(*args: Any, out_val: Tensor, **_: Any) -> int:
    return 2 * args[0].numel() * out_val.shape[-1]


def _reordered_convolution(*args: Any, out_val: Tensor, **_: Any) -> int:
    weight = next(t for t in args[1:] if isinstance(t, Tensor) and t.is_mkldnn)  # after what is added, if anything is
    return 2 * out_val.numel() * weight.shape[1:].numel()


# torch's own formulas, and the operations of ours that it has none for
FLOPS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.mkldnn._linear_pointwise: _reordered_linear,
    torch.ops.mkldnn._convolution_pointwise: _reordered_convolution,
}

Operations = Counter[tuple[str, int, int]]  # (dtype, FLOPs, bytes) of an operation -> how often


class Costs(TorchDispatchMode):
    """Counts the operations of what runs inside it: matmuls, convolutions and attention by their FLOPs (a
    multiply-add is two), all of them by the bytes of the tensors they read and write. A view moves nothing.

    with Costs() as costs:
        unet(...)
    costs.operations
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Operations = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._overloadpacket not in FLOPS:
            with self:  # in inference mode operations come here before they are taken apart, a linear layer for one
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not written or _is_view(func):
            return out
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        formula = FLOPS.get(func._overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
        moved = sum(_bytes(t) for t in {id(t): t for t in (*read, *written)}.values())
        dtype = str(next((t.dtype for t in read if t.is_floating_point()), written[0].dtype)).removeprefix("torch.")
        self.operations[dtype, flops, moved] += 1
        return out


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _bytes(tensor: Tensor) -> int:
    """An expanded tensor is read once."""
    if tensor.is_mkldnn:  # oneDNN's own layout has no storage that one could ask
        return tensor.numel() * tensor.element_size()
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def total_flops(operations: Operations) -> int:
    return sum(flops * n for (_, flops, _), n in operations.items())


def total_bytes(operations: Operations) -> int:
    return sum(moved * n for (_, _, moved), n in operations.items())


def main_dtype(operations: Operations) -> str:
    """The dtype that most FLOPs are done in."""
    by_dtype: Counter[str] = Counter()
    for (dtype, flops, _), n in operations.items():
        by_dtype[dtype] += flops * n
    return by_dtype.most_common(1)[0][0] if by_dtype else "float32"


def roofline_seconds(operations: Operations, rates: Mapping[str, Any]) -> float:
    """The least time by the roofline model: each operation takes max(FLOPs / matmul rate, bytes / copy rate).

    rates: as `machine.rates` gives them. Every operation is taken to read its inputs from memory, so a machine whose
    caches hold them (or a compiler that fuses operations) can be faster than this.
    """
    matmul, copy = rates["matmul"], rates["copy"]
    peak = {dtype: matmul.get(dtype, matmul["float32"]) for dtype, _, _ in operations}
    return sum(n * max(flops / peak[dtype], moved / copy) for (dtype, flops, moved), n in operations.items())
