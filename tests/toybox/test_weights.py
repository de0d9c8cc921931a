"""What ships: in stock formats, small, and good for something."""

import pytest
import torch

from jointdreamer.toybox.recipes import FAMILY, WEIGHTS
from jointdreamer.toybox.retrieval import sample, words_seen

MEGABYTES = 60


def test_the_weights_are_within_their_budget_in_half_precision():
    from safetensors import safe_open

    files = list(WEIGHTS.rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) <= MEGABYTES * 10**6
    for file in files:
        with safe_open(file, "pt") as opened:
            kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, file
    assert not [f for f in WEIGHTS.rglob("*") if f.suffix in (".bin", ".pt", ".ckpt")]


def test_stock_diffusers_samples_the_shipped_folder():
    captions = ["a red robot", "a blue penguin", "a green bear", "an orange ghost"]
    torch.manual_seed(0)
    rgb = sample(captions, steps=12, guidance_scale=5.0, seed=0)
    assert rgb.shape == (4, 3, 64, 64)
    seen = words_seen(rgb, captions)
    assert seen["color"] >= 0.75 and seen["kind"] >= 0.5


def test_the_multi_view_model_is_the_stock_unet_with_a_camera():
    from jointdreamer.models.multiview_unet import load_multiview

    model = load_multiview(WEIGHTS / "multi_view")
    assert type(model.unet).__name__ == "UNet2DConditionModel"
    assert model.unet.config.class_embed_type == "projection"
    assert model.unet.config.projection_class_embeddings_input_dim == 16
    assert model.prediction_type == "sample"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_the_folder_is_a_stable_diffusion_folder(part):
    assert (FAMILY / part).is_dir() and (FAMILY / "model_index.json").exists()
