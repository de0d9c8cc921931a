"""The fast way through a frozen UNet against diffusers' own in float32, and where it stands aside."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from jointdreamer.distillation.lora import CameraLoRA
from jointdreamer.kernels.fast_unet import FastUNet, knows, speed_up
from jointdreamer.priors.multi_view_unet import set_views
from jointdreamer.priors.wonder3d import build_unet
from tests.conftest import _unet

pytestmark = pytest.mark.skipif(not knows(_unet()), reason="this torch has no oneDNN")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request) -> torch.dtype:
    if not knows(_unet().to(request.param)):
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    return request.param


def error(ours: Tensor, exact: Tensor) -> float:
    return ((ours.float() - exact).norm() / exact.norm()).item()


def limit(plain: Tensor, exact: Tensor) -> float:
    """How far ours may be off: as diffusers in bfloat16, and a float32's last digits."""
    return 1.2 * error(plain, exact) + 1e-5


def both(unet: Any, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """The UNet in float32, and in `dtype` diffusers' way and ours; affine weights of norms are no longer 1 and 0."""
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if "norm" in name:
                p.add_(0.3 * torch.randn_like(p))
    unet.eval().requires_grad_(False)
    fast = copy.deepcopy(unet).to(dtype)
    assert speed_up(fast) and isinstance(fast.forward, FastUNet)
    return unet, copy.deepcopy(unet).to(dtype), fast


SHAPES = [
    {},
    {"use_linear_projection": False, "transformer_layers_per_block": 2, "norm_num_groups": 8},
    {"layers_per_block": 2, "attention_head_dim": 4, "flip_sin_to_cos": False, "freq_shift": 1},
    {"block_out_channels": (32, 32, 64), "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
     "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)},
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("words", [7, 32])
def test_it_is_at_least_as_exact_as_diffusers(changes, words, dtype):
    exact, plain, fast = both(_unet(**changes), dtype)
    x, t, text = torch.randn(3, 4, 8, 8), torch.tensor([5, 400, 990]), torch.randn(3, words, 16)
    wanted = exact(x, t, text).sample
    half = x.to(dtype), t, text.to(dtype)
    most = limit(plain(*half).sample, wanted)
    for _ in range(2):  # the second call finds the weights reordered
        assert error(fast(*half).sample, wanted) < most < 0.05
    assert torch.equal(fast(*half, return_dict=False)[0], fast(*half).sample)
    assert error(fast(x[:1].to(dtype), 5, half[2][:1]).sample, wanted[:1]) < 2 * most  # another batch, a plain time


@torch.no_grad()
def test_views_of_a_rig_see_each_other_and_cameras_count(dtype):
    made = _unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    for name, p in made.named_parameters():
        p.mul_(5 if "attn1.to_out" in name else 1)  # so that the other views count
    exact, plain, fast = both(made, dtype)
    x, t, text, cameras = torch.randn(4, 4, 8, 8), torch.full((4,), 300), torch.randn(4, 5, 16), torch.randn(4, 16)
    answers = {}
    for n_views in (1, 2, 4):
        for unet in (exact, plain, fast):
            set_views(unet, n_views)
        wanted = exact(x, t, text, class_labels=cameras).sample
        half = x.to(dtype), t, text.to(dtype), cameras.to(dtype)
        most = limit(plain(*half).sample, wanted)
        assert error(fast(*half).sample, wanted) < most < 0.05
        answers[n_views] = wanted
    assert error(answers[1], answers[4]) > 2 * most  # it would have been noticed


@torch.no_grad()
@pytest.mark.parametrize("changes", [*SHAPES, {"down_block_types": ("DownBlock2D",) * 2}])
@pytest.mark.parametrize(("n_views", "twice"), [(1, True), (2, True), (4, False)])
def test_halves_that_differ_in_their_text_alone_begin_as_one(changes, n_views, twice, dtype):
    """With all four rows in one rig nothing is shared: there the equal halves see each other."""
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
    exact, plain, fast = both(_unet(**changes, **camera), dtype)
    x, t = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor([5, 400, 5, 400])
    text, cameras = torch.randn(4, 7, 16), torch.randn(2, 16).repeat(2, 1)
    for unet in (exact, plain, fast):
        set_views(unet, n_views)
    half = x.to(dtype), t, text.to(dtype), cameras.to(dtype)
    wanted = exact(x, t, text, cameras).sample
    found = fast(*half).sample  # which also makes its parts
    assert error(found, wanted) < limit(plain(*half).sample, wanted) < 0.06
    for other in ((x, t.flip(0), text, cameras), (x, t, text, torch.randn(4, 16)), (x.flip(0), t, text, cameras)):
        assert (
            error(fast(*(o.to(dtype) if o.is_floating_point() else o for o in other)).sample, exact(*other).sample)
            < 0.06
        )

    conv_in, seen = fast.forward.conv_in, []
    fast.forward.conv_in = lambda images: conv_in(seen.append(len(images)) or images)
    fast(*half)
    fast(torch.randn(4, 4, 8, 8).to(dtype), *half[1:])
    assert seen == [2 if twice else 4, 4]


def test_with_a_graph_and_for_other_calls_it_stands_aside(dtype):
    _, plain, fast = both(_unet(), dtype)
    x, text = torch.randn(2, 4, 8, 8).to(dtype), torch.randn(2, 5, 16).to(dtype)
    assert torch.equal(fast(x, 3, text).sample, plain(x, 3, text).sample)  # gradients are on
    with torch.no_grad():
        wide = torch.randn(2, 4, 7, 8).to(dtype)  # the upper half has to crop
        assert torch.equal(fast(wide, 3, text).sample, plain(wide, 3, text).sample)
        mask = torch.tensor([[1, 1, 0, 0, 0]] * 2)
        masked = {"encoder_attention_mask": mask}
        assert torch.equal(fast(x, 3, text, **masked).sample, plain(x, 3, text, **masked).sample)

        class Silent:
            def __call__(self, attn, hidden_states, *args, **kwargs):
                return torch.zeros_like(hidden_states)

        before = fast(x, 3, text).sample
        for unet in (plain, fast):
            unet.set_attn_processor(Silent())
        assert torch.equal(fast(x, 3, text).sample, plain(x, 3, text).sample)
        assert not torch.equal(fast(x, 3, text).sample, before)


def test_other_networks_are_left_alone():
    for unet in (_unet().half(), _unet(only_cross_attention=True), _unet(resnet_time_scale_shift="scale_shift")):
        assert not speed_up(unet) and not isinstance(unet.forward, FastUNet)


def test_transformer_blocks_of_another_kind_are_left_alone():
    """Wonder3D's attention between domains is none that `FastUNet` knows."""
    made = build_unet({**dict(_unet().config), "class_embed_type": None})
    assert knows(_unet()) and not knows(made) and not speed_up(made)


@torch.no_grad()
def test_what_hooks_add_to_linear_layers_is_there(dtype):
    """A LoRA's: to every projection of an attention, and for each row another camera beside its time."""
    exact, plain, fast = both(_unet(), dtype)
    x, t, text, rows = torch.randn(2, 4, 8, 8), torch.tensor([5, 400]), torch.randn(2, 7, 16), torch.randn(2, 16)
    x[1], t[1], text[1] = x[0], t[0], text[0]  # of two rows that are equal one would stand for both
    answers = {}
    for unet in (exact, plain, fast):
        torch.manual_seed(0)
        lora = CameraLoRA(unet, 3)
        for p in lora.parameters():
            p.copy_(0.3 * torch.randn_like(p))
        given = x.to(unet.dtype), t, text.to(unet.dtype)
        off = unet(*given).sample
        with lora.on(rows):
            answers[unet] = unet(*given).sample
        assert error(answers[unet], off) > 0.05
        assert error(answers[unet][1], answers[unet][0]) > 0.01  # the camera counts
        assert torch.equal(unet(*given).sample, off)
    assert error(answers[fast], answers[exact]) < limit(answers[plain], answers[exact]) < 0.05
