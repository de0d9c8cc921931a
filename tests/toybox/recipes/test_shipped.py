"""What a recipe starts from: the package's weights, or those of a model that was trained here."""

from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from jointdreamer.errors import UserError
from jointdreamer.toybox import networks
from jointdreamer.toybox.networks import EDITIONS, SHIPPED_EDITION
from jointdreamer.toybox.recipes.multi_view import MultiView
from jointdreamer.toybox.recipes.pictures import edition_number, make_data
from jointdreamer.toybox.recipes.shipped import SHIPPED, averaged_weights, shipped_weights, trained_family
from jointdreamer.toybox.train import main
from jointdreamer.toybox.world import WORDS_OF_TEXT_TO_IMAGE_ONLY


def build(model: str, network: str) -> torch.nn.Module:
    tokenizer = networks.build_tokenizer()
    return {
        ("vae", "vae"): networks.build_vae,
        ("text-to-image", "unet"): networks.build_unet,
        ("text-to-image", "text"): lambda: networks.build_text_encoder(tokenizer),
        ("multi-view", "unet"): lambda: networks.build_unet(multiview=True),
        ("coordinates", "unet"): networks.build_coordinate_unet,
        ("flow", "unet"): networks.build_transformer,
        ("flow", "text"): lambda: networks.build_pooled_text_encoder(tokenizer),
        ("pixel", "unet"): networks.build_pixel_unet,
        ("novel-view", "unet"): lambda: networks.build_unet(in_channels=2 * networks.LATENT_CHANNELS),
        ("novel-view", "tower"): networks.build_vision_tower,
        ("novel-view", "projection"): lambda: torch.nn.Linear(networks.TEXT_WIDTH + 4, networks.TEXT_WIDTH),
        ("clip", "clip"): lambda: networks.build_clip(tokenizer),
        ("judge", "judge"): networks.JudgeNet,
    }[model, network]()


@pytest.mark.parametrize(("model", "network"), SHIPPED)
def test_the_packages_weights_fit_the_network_that_is_trained(model, network):
    net = build(model, network)
    net.load_state_dict(shipped_weights(model, network))  # strictly: every name, every shape
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_what_was_trained_here_comes_before_the_packages_weights(tmp_path):
    make_data(tmp_path, 1, 1, edition=SHIPPED_EDITION)
    shipped = averaged_weights(tmp_path, "novel-view", "projection")
    mine = {key: torch.full_like(value, 0.5) for key, value in shipped.items()}
    (tmp_path / "novel-view").mkdir()
    torch.save({"average": {"projection": mine}}, tmp_path / "novel-view" / "checkpoint.pt")
    found = averaged_weights(tmp_path, "novel-view", "projection")
    assert found.keys() == shipped.keys() and all((value == 0.5).all() for value in found.values())


OTHER = next(number for number in EDITIONS if number != SHIPPED_EDITION)


@pytest.fixture(scope="module")
def other_edition(tmp_path_factory):
    """A training folder of an edition that the package does not ship: pictures and an untrained autoencoder."""
    folder = tmp_path_factory.mktemp("training")
    make_data(folder, 24, 6, edition=OTHER)
    networks.build_vae(EDITIONS[OTHER]).save_pretrained(folder / "vae" / "model")
    return folder


def test_a_folder_keeps_to_its_edition(other_edition, capsys):
    assert edition_number(other_edition) == OTHER
    said = ["data", "--folder", str(other_edition), "--edition", str(SHIPPED_EDITION), "--pictures", "1"]
    assert main(said) == 2
    assert f"edition {OTHER}, asked for {SHIPPED_EDITION}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["multi-view"], ["novel-view"], ["clip", "--install"], ["judge", "--from-shipped"]])
def test_weights_of_another_number_of_channels_are_refused_by_name(other_edition, words, capsys):
    assert main([*words, "--folder", str(other_edition), "--steps", "1"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "channels" in err and "python -m jointdreamer.toybox.train" in err


def test_models_of_an_edition_are_trained_on_its_latents_and_words(other_edition):
    """One step of text-to-image; multi-view starts from it and never sees the words that are text-to-image's own."""
    channels = EDITIONS[OTHER].latent_channels
    assert (
        main(["text-to-image", "--folder", str(other_edition), "--steps", "1", "--batch", "4", "--threads", "1"]) == 0
    )
    family = trained_family(other_edition)
    assert family == other_edition / "text-to-image" / "model"
    pipeline: Any = StableDiffusionPipeline.from_pretrained(family)  # stock, without any argument
    drawn = pipeline("a red alien with a blue drum", num_inference_steps=2, output_type="np")
    assert drawn.images.shape == (1, 64, 64, 3)
    recipe = MultiView(other_edition, 4)
    assert recipe.flat_latents.shape == (24, 1, channels, 16, 16)
    assert recipe.networks["unet"].config.in_channels == channels
    seen = [recipe.flat.toys[row].words for row in recipe.flat_rows]
    assert seen and not any(words & WORDS_OF_TEXT_TO_IMAGE_ONLY for words in seen)


def test_a_model_that_the_package_does_not_have_is_one_line():
    with pytest.raises(UserError, match="the package has no weights of nonsense: train it from scratch"):
        shipped_weights("nonsense", "unet")
