"""Operations whose FLOPs and bytes one can count by hand."""

import pytest
import torch

from benchmarks.costs import Costs, main_dtype, roofline_seconds, total_bytes, total_flops


def test_a_matmul():
    a, b = torch.randn(5, 7), torch.randn(7, 11)
    with Costs() as costs:
        torch.mm(a, b)
    assert costs.operations == {("float32", 2 * 5 * 7 * 11, 4 * (5 * 7 + 7 * 11 + 5 * 11)): 1}


def test_a_linear_layer_in_bfloat16_is_a_matmul_and_its_transpose_moves_nothing():
    layer = torch.nn.Linear(16, 32, bias=False).bfloat16()
    with Costs() as costs, torch.no_grad():
        layer(torch.randn(8, 16, dtype=torch.bfloat16).requires_grad_())
        layer.weight.t().view(16, 32)[:4]
    assert total_flops(costs.operations) == 2 * 8 * 16 * 32
    assert main_dtype(costs.operations) == "bfloat16"
    products = [moved for (_, flops, moved), _ in costs.operations.items() if flops]
    assert products == [2 * (8 * 16 + 16 * 32 + 8 * 32)] and len(costs.operations) == 2  # and the random numbers


def test_a_convolution():
    conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    with Costs() as costs, torch.no_grad():
        conv(torch.randn(2, 3, 6, 6))
    assert total_flops(costs.operations) == 2 * (2 * 6 * 6) * (3 * 3 * 3) * 8


def test_inference_mode_and_reordered_weights_change_no_count():
    from jointdreamer.kernels.fast_unet import knows, speed_up
    from tests.conftest import _unet

    unet = _unet().bfloat16().requires_grad_(False)
    inputs = torch.randn(2, 4, 8, 8).bfloat16(), 3, torch.randn(2, 32, 16).bfloat16()
    counts = []
    for fast in (False, knows(unet)):
        if fast:
            speed_up(unet)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode(), Costs() as costs:
                unet(*inputs)
            counts.append(total_flops(costs.operations))
    assert counts[0] > 1e6 and len(set(counts)) == 1


def test_attention_counts_both_of_its_products():
    q, k = torch.randn(2, 4, 10, 16), torch.randn(2, 4, 20, 16)
    with Costs() as costs, torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert total_flops(costs.operations) == 2 * (2 * 2 * 4 * 10 * 20 * 16)


def test_the_roofline_is_the_slower_of_the_two_limits_of_each_operation():
    a = torch.randn(64, 64)
    with Costs() as costs:
        torch.mm(a, a)  # 2 * 64^3 FLOPs, 3 * 64^2 * 4 bytes, or fewer as it is one matrix
        torch.add(a, 1)
    flops, moved = total_flops(costs.operations), total_bytes(costs.operations)
    assert flops == 2 * 64**3 and moved == 2 * 2 * 64**2 * 4
    compute_bound = {"matmul": {"float32": 1.0}, "copy": 1e12}
    memory_bound = {"matmul": {"float32": 1e15}, "copy": 1.0}
    assert roofline_seconds(costs.operations, compute_bound) == pytest.approx(flops, rel=1e-3)
    assert roofline_seconds(costs.operations, memory_bound) == pytest.approx(moved, rel=1e-3)
