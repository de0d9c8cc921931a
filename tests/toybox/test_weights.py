"""What ships: in stock formats, small, and good for something."""

import json
from typing import Any

import pytest
import torch

from jointdreamer.cameras import orbit_cameras
from jointdreamer.priors.coordinates import CoordinateDiffusion
from jointdreamer.toybox import networks
from jointdreamer.toybox.recipes.coordinates import toy_maps
from jointdreamer.toybox.recipes.shipped import FAMILY, WEIGHTS, save_part, save_tokenizer
from jointdreamer.toybox.retrieval import draw, draw_each, load_flow, load_pixel, sample, words_seen
from jointdreamer.toybox.world import parse_caption
from jointdreamer.weights.parts import load_tokenizer, part_keys

MEGABYTES = 80


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


@pytest.mark.parametrize("load", [load_flow, load_pixel])
def test_the_flow_and_the_pixel_model_draw_what_they_are_told(load):
    captions = ["a red robot", "a blue penguin", "a green bear", "an orange ghost"]
    rgb = draw_each(load("float32"), captions, steps=12, guidance_scale=5.0, seed=0)
    assert rgb.shape == (4, 3, 64, 64)
    seen = words_seen(rgb, captions)
    assert seen["color"] >= 0.75 and seen["kind"] >= 0.5


def test_stock_diffusers_samples_the_folder_without_being_told_anything():
    """All parts in one precision, whatever the files are stored in."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(FAMILY)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    rgb = pipeline("a red robot", **options).images
    assert rgb.shape == (1, 3, 64, 64) and rgb.isfinite().all() and rgb.std() > 0.05


def test_every_transformers_reads_the_shipped_text_parts():
    """Releases before 5.6 look for `text_model.` before the names, those before 5 for vocab.json and merges.txt."""
    encoders = [FAMILY / "text_encoder", WEIGHTS / "flow" / "text_encoder", WEIGHTS / "pixel" / "text_encoder"]
    for encoder in encoders:
        keys = set(part_keys(encoder)) - {"text_projection.weight"}
        assert keys and all(key.startswith("text_model.") for key in keys), encoder
    for folder in (*(encoder.parent / "tokenizer" for encoder in encoders), WEIGHTS / "clip"):
        assert {"tokenizer.json", "vocab.json", "merges.txt"} <= {path.name for path in folder.iterdir()}
    for part in (*encoders, WEIGHTS / "clip", WEIGHTS / "novel_view" / "image_encoder"):
        assert json.loads((part / "config.json").read_text())["dtype"] == "float32"


def test_what_training_saves_is_read_alike(tmp_path):
    from transformers import CLIPTextModel

    tokenizer = networks.build_tokenizer()
    encoder = networks.build_text_encoder(tokenizer).eval()
    save_part(encoder, tmp_path / "text_encoder")
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    assert all(key.startswith("text_model.") for key in part_keys(tmp_path / "text_encoder"))
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (tmp_path / "tokenizer").iterdir()}
    loaded = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    assert loaded.dtype == torch.float32
    for ours, theirs in zip(loaded.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
    words = "a red robot with a zebra, front view"
    for known in (load_tokenizer(tmp_path / "tokenizer"), load_tokenizer(FAMILY / "tokenizer")):
        assert known(words).input_ids == tokenizer(words).input_ids


def test_the_multi_view_model_is_the_stock_unet_with_a_camera():
    from jointdreamer.priors.multi_view_unet import load_multiview

    model = load_multiview(WEIGHTS / "multi_view")
    assert type(model.unet).__name__ == "UNet2DConditionModel"
    assert model.unet.config.class_embed_type == "projection"
    assert model.unet.config.projection_class_embeddings_input_dim == 16
    assert model.process.prediction_type == "sample"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_the_folder_is_a_stable_diffusion_folder(part):
    assert (FAMILY / part).is_dir() and (FAMILY / "model_index.json").exists()


def test_the_coordinate_model_draws_where_a_toy_is_from_each_camera():
    """Samples lie on the true maps, and the coordinates are those of their own camera, not of the one opposite."""
    text = "a green bear"
    options = {"x0_limit": 5.0, "scale": networks.COORDINATE_SCALE, "text": FAMILY, "dtype": "float32"}
    prior = CoordinateDiffusion.build(WEIGHTS / "coordinates", **options)
    cameras = orbit_cameras(4, networks.COORDINATE_SIZE, distance=2.61)
    got = draw(prior, text, cameras, steps=12, guidance_scale=4.0, generator=torch.Generator().manual_seed(0))
    toy = parse_caption(text)
    assert toy is not None
    (true,) = toy_maps([toy], cameras)
    inside, drawn = true[:, 3] > 0.5, got[:, 3] > 0.5
    assert (inside & drawn).sum() / (inside | drawn).sum() > 0.65
    both = inside & drawn & (true.roll(2, 0)[:, 3] > 0.5)

    def far(maps):
        return (maps[:, :3].movedim(1, -1)[both] - true[:, :3].movedim(1, -1)[both]).norm(dim=-1).mean()

    assert far(got) < 0.08 and far(true.roll(2, 0)) > 2 * far(got)
