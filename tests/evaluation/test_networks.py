import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.evaluation.networks import TOYBOX, Inception, clip_files, toybox_clip
from jointdreamer.toybox.networks import tokens
from jointdreamer.toybox.recipes.clip import held_out_fronts


def test_the_toybox_clip_answers_as_transformers_own_forward_does():
    from transformers import CLIPModel, CLIPTokenizer

    rgb, captions = held_out_fronts(3)
    clip = toybox_clip().load()
    model: Any = CLIPModel.from_pretrained(TOYBOX / "clip").float()
    tokenizer = CLIPTokenizer.from_pretrained(TOYBOX / "clip")
    with torch.no_grad():
        out = model(input_ids=tokens(tokenizer, captions), pixel_values=2 * rgb - 1)
    unit = torch.nn.functional.normalize
    for ours, theirs in ((clip.images(rgb), out.image_embeds), (clip.texts(captions), out.text_embeds)):
        assert unit(torch.from_numpy(ours), dim=-1).numpy() == pytest.approx(theirs.numpy(), abs=1e-5)


def test_pictures_of_any_size_are_looked_at():
    rgb, _ = held_out_fronts(2)
    large = torch.nn.functional.interpolate(rgb, size=192, mode="nearest")
    clip = toybox_clip().load()
    small, wide = (torch.from_numpy(clip.images(x)) for x in (rgb, large))
    cosine = torch.nn.functional.cosine_similarity(small, wide)
    assert (cosine > 0.98).all()


def test_clip_is_named_after_what_it_is(tmp_path):
    assert toybox_clip().name.startswith("toybox CLIP, ")
    (tmp_path / "config.json").write_text("{}")  # what transformers fills with ViT-B/32
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert clip_files(tmp_path).title == "CLIP ViT-B/32"
    (tmp_path / "config.json").write_text('{"vision_config": {"patch_size": 14, "hidden_size": 1024}}')
    assert clip_files(tmp_path).title == "a CLIP of width 1024 and patches of 14"
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds no CLIP"):
        clip_files(tmp_path)


def test_a_clip_without_its_weights_or_words_is_refused(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOYBOX / "clip" / name, tmp_path / name)
    with pytest.raises(UserError, match="cannot load CLIP"):
        clip_files(tmp_path).load()


class Means(torch.nn.Module):
    """Called as StyleGAN2-ADA's Inception is."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return images.float().mean([2, 3])


def test_inception_is_shown_bytes(tmp_path):
    scripted: Any = torch.jit.script(Means())
    scripted.save(str(tmp_path / "net.pt"))
    rgb = torch.rand(3, 3, 8, 8)
    expected = (rgb * 255).round().mean([2, 3])
    assert Inception(tmp_path / "net.pt").images(rgb) == pytest.approx(expected.numpy(), rel=1e-5)
    (tmp_path / "net.pt").write_bytes(b"no network")
    with pytest.raises(UserError, match="no TorchScript network"):
        Inception(tmp_path / "net.pt")


def test_of_a_text_that_is_too_long_the_ending_stays_and_what_is_cut_is_said(caplog):
    clip = toybox_clip().load()
    longest = clip.model.config.text_config.max_position_embeddings
    text = "a red robot and " * 9
    front, back = clip.texts([f"{text}, front view", f"{text}, back view"])
    assert np.abs(front - back).max() > 1e-3
    assert f"at most {longest - 2} tokens" in caplog.text and "cut off: 'and a red robot" in caplog.text
    caplog.clear()
    clip.texts(["a red robot, front view"])
    assert not caplog.records
