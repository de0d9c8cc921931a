"""The prior over coordinate maps: both layouts of the camera, frames, sizes, and folders that are something else."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from jointdreamer.cameras import look_at, orbit_cameras
from jointdreamer.errors import UserError
from jointdreamer.priors.coordinates import CoordinateDiffusion, from_front, official_camera, to_front
from jointdreamer.priors.prompts import Prompts
from jointdreamer.reading import read_json


def write(folder, text_width=32, **changes):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **{
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 8,
            "cross_attention_dim": text_width, "attention_head_dim": 4, "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 16, **changes,
        }
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    return folder


@pytest.fixture(params=["projection", "simple_projection"])
def prior(request, tmp_path, tiny_sd_folder):
    text = tiny_sd_folder("epsilon")
    width = read_json(text / "text_encoder" / "config.json")["hidden_size"]
    numbers = {"projection": 16, "simple_projection": 12}[request.param]
    write(tmp_path, width, class_embed_type=request.param, projection_class_embeddings_input_dim=numbers)
    return CoordinateDiffusion.build(tmp_path, text=text, dtype="float32", guidance_scale=3.0)


def test_it_answers_for_each_view_and_camera(prior):
    cameras = orbit_cameras(3, 16)
    text = prior.embed(Prompts("a red robot"))
    x_t = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(1, 3, 4, 8, 8)
    cond, uncond = prior.predict(x_t, torch.tensor([500]), [text.at(cameras), text.nothing(cameras)], cameras)
    assert cond.shape == uncond.shape == (1, 3, 4, 8, 8) and cond.isfinite().all()
    assert not torch.allclose(uncond[0, 0], uncond[0, 1], atol=1e-6)  # only the camera tells them apart
    assert not torch.allclose(cond, uncond, atol=1e-6)


def test_maps_of_any_size_come_back_as_they_were(prior):
    maps = torch.rand(1, 2, 4, 8, 8, requires_grad=True)
    torch.testing.assert_close(prior.decode(prior.encode(maps, None)), maps)
    fine = maps.repeat_interleave(4, 3).repeat_interleave(4, 4)  # 32 x 32
    torch.testing.assert_close(prior.encode(fine, None), prior.encode(maps, None))
    assert prior.encode(torch.rand(1, 2, 4, 5, 5), None).shape == (1, 2, 4, 8, 8)
    assert prior.encode(maps, None).requires_grad and not prior.encode(maps, None, grad=False).requires_grad


def test_the_official_frame_has_its_front_at_minus_y():
    azimuth = torch.deg2rad(torch.tensor([0.0, 90.0]))
    c2w = look_at(torch.zeros(2), azimuth, torch.full((2,), 2.5))
    kept = c2w.clone()
    rows = official_camera(c2w).unflatten(-1, (3, 4))
    torch.testing.assert_close(rows[:, :, 3], torch.tensor([[0.0, -1.5, 0.0], [1.5, 0.0, 0.0]]), atol=1e-6, rtol=0)
    # as the official code has it: [[0, 1, 0], [-1, 0, 0], [0, 0, 1]] c2w
    turn = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(rows[:, :, :3], turn @ c2w[:, :3, :3])
    assert torch.equal(c2w, kept)


def test_coordinates_turn_with_the_frame():
    maps = torch.rand(2, 4, 3, 3)
    x, y, z, opacity = (2 * maps - 1).unbind(1)
    torch.testing.assert_close(2 * to_front(maps) - 1, torch.stack([y, -x, z, opacity], 1))
    torch.testing.assert_close(from_front(to_front(maps)), maps)


@pytest.mark.parametrize(
    "changes",
    [{"in_channels": 3, "out_channels": 3}, {"class_embed_type": None, "projection_class_embeddings_input_dim": None}],
)
def test_another_unet_is_named(tmp_path, changes):
    write(tmp_path, **changes)
    with pytest.raises(UserError, match="is no UNet over coordinate maps: wanted 4 channels"):
        CoordinateDiffusion.build(tmp_path, dtype="float32")


def test_that_the_authors_released_none_is_said():
    with pytest.raises(UserError, match=r"never released theirs: train one .* models\.coordinates\.source=FOLDER"):
        CoordinateDiffusion.build("coordinates")
