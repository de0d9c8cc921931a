"""What a recipe starts from: the package's weights, or those of a model that was trained here."""

import pytest
import torch

from jointdreamer.toybox import networks
from jointdreamer.toybox.recipes import SHIPPED, averaged_weights, shipped_weights


def build(model: str, network: str) -> torch.nn.Module:
    tokenizer = networks.build_tokenizer()
    return {
        ("vae", "vae"): networks.build_vae,
        ("text-to-image", "unet"): networks.build_unet,
        ("text-to-image", "text"): lambda: networks.build_text_encoder(tokenizer),
        ("multi-view", "unet"): lambda: networks.build_unet(multiview=True),
        ("novel-view", "unet"): lambda: networks.build_unet(in_channels=8),
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
    shipped = averaged_weights(tmp_path, "novel-view", "projection")
    mine = {key: torch.full_like(value, 0.5) for key, value in shipped.items()}
    (tmp_path / "novel-view").mkdir()
    torch.save({"average": {"projection": mine}}, tmp_path / "novel-view" / "checkpoint.pt")
    found = averaged_weights(tmp_path, "novel-view", "projection")
    assert found.keys() == shipped.keys() and all((value == 0.5).all() for value in found.values())
