"""View words, and which camera hears which."""

import logging
import math
import os

import pytest
import torch

from jointdreamer.cameras import Cameras, look_at
from jointdreamer.errors import UserError
from jointdreamer.priors.prompts import (
    DIRECTIONS,
    TextEmbeddings,
    _cut,
    caption_views,
    encode_prompt,
    read_prompts,
    shortened,
    unknown_words,
    vocabulary,
)


class Encoder:
    """A text encoder whose embedding is its tokens: what was encoded can be read off."""

    device = "cpu"
    config = type("config", (), {"max_position_embeddings": 12})

    def __call__(self, ids):
        assert ids.shape[-1] == 12
        return type("out", (), {"last_hidden_state": ids[..., None].float().repeat(1, 1, 3)})


def cameras(azimuth_deg, elevation_deg=0.0):
    azimuth = torch.deg2rad(torch.tensor([azimuth_deg], dtype=torch.float32))
    elevation = torch.full_like(azimuth, math.radians(elevation_deg))
    b, v = azimuth.shape
    return Cameras(torch.eye(4).expand(b, v, 4, 4), azimuth, elevation, azimuth, azimuth, torch.zeros(b, v, 3), 8)


def embeddings(**changes):
    cond = torch.arange(4.0).view(4, 1, 1).expand(4, 2, 3)
    uncond = torch.tensor([10.0, 20.0]).view(2, 1, 1).expand(2, 2, 3)
    return TextEmbeddings(cond, uncond, **changes)


def heard(text, cams):
    return [DIRECTIONS[int(i)] for i in text.at(cams).embedding[0, :, 0, 0]]


@pytest.mark.parametrize("what", ["pipe", "folder", "loop", "bytes", "nothing", "empty"])
def test_a_file_of_prompts_that_is_none_is_one_line_and_nobody_waits(tmp_path, what):
    file = tmp_path / "prompts.txt"
    if what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what == "loop":
        file.symlink_to(file)
    elif what != "nothing":
        file.write_bytes(b"\xff\xfe\x00" if what == "bytes" else b" \n\n")
    with pytest.raises(UserError, match=f"the prompt file {file} (cannot be read|is empty).*wanted"):
        read_prompts(file)


def test_directions_by_azimuth():
    angles = [0, 29.9, -29.9, 30.1, 90, -90, 149.9, 150.1, -150.1, 180, -180, 361, 540]
    expected = ["front"] * 3 + ["side"] * 4 + ["back"] * 4 + ["front", "back"]
    assert heard(embeddings(), cameras(angles)) == expected


def test_overhead_wins():
    assert heard(embeddings(), cameras([0, 90, 180], elevation_deg=61)) == ["overhead"] * 3
    assert heard(embeddings(), cameras([0, 90, 180], elevation_deg=59)) == ["front", "side", "back"]


def test_thresholds_are_the_caller_s():
    text = embeddings(front=math.radians(45), back=math.radians(10))
    assert heard(text, cameras([44, 46, 165, 175])) == ["front", "side", "side", "back"]


def test_captions_say_where_a_camera_stands():
    angles = torch.tensor([[0.0, 100, 180, 40], [10.0, 0, 20, 70]]).deg2rad()
    c2w = look_at(angles[1], angles[0], torch.full((4,), 2.0))
    assert caption_views(list("abcd"), c2w) == ["a, front view", "b, side view", "c, back view", "d, overhead view"]


def test_every_view_has_its_row_and_nothing_is_the_empty_or_the_negative_prompt():
    text, cams = embeddings(), cameras([0, 90])
    assert text.at(cams).embedding.shape == text.nothing(cams).embedding.shape == (1, 2, 2, 3)
    assert (text.nothing(cams).embedding == 10).all()
    assert (text.nothing(cams, negative=True).embedding == 20).all()


def test_encode_appends_the_view_and_leaves_the_negative_prompt_alone(tokenizer):
    text = encode_prompt("a robot", "hat", tokenizer, Encoder())
    assert text.cond.shape == (4, 12, 3) and text.uncond.shape == (2, 12, 3)
    read = [tokenizer.decode(row[:, 0].long(), skip_special_tokens=True) for row in (*text.cond, *text.uncond)]
    assert [r.replace(" ,", ",") for r in read] == [f"a robot, {d} view" for d in DIRECTIONS] + ["", "hat"]


def test_without_view_dependence_all_directions_hear_the_same(tokenizer):
    text = encode_prompt("a robot", "", tokenizer, Encoder(), view_dependent=False)
    assert (text.cond == text.cond[:1]).all()


def test_thresholds_in_degrees_arrive(tokenizer):
    text = encode_prompt("a robot", "", tokenizer, Encoder(), front_deg=45, back_deg=20, overhead_deg=50)
    assert (text.front, text.back, text.overhead) == pytest.approx(tuple(map(math.radians, (45, 20, 50))))


def test_unknown_words_and_the_warning(caplog, tokenizer):
    assert unknown_words("a red robot, with hat!", tokenizer) == []
    assert unknown_words("a zebra, robot zebra muzzle", tokenizer) == ["zebra", "muzzle"]
    assert vocabulary(tokenizer) == sorted(
        ["a", "red", "robot", "with", "hat", "front", "side", "back", "overhead", "view"]
    )
    with caplog.at_level(logging.WARNING):
        encode_prompt("a zebra", "", tokenizer, Encoder(), view_dependent=False)
    assert len(caplog.records) == 1
    assert "'zebra'" in caplog.text and "robot" in caplog.text


def test_pieces_of_words_mean_nothing_to_a_small_vocabulary_and_all_to_a_large_one(tokenizer, monkeypatch):
    assert unknown_words("a rot with bat", tokenizer) == ["rot", "bat"]
    monkeypatch.setattr("jointdreamer.priors.prompts.WORD_LEVEL", 10)
    assert unknown_words("a rot with bat", tokenizer) == []
    assert unknown_words("a zoo", tokenizer) == ["zoo"]


def told(tokenizer, embedding):
    """What the parts (K 12, 3) of an embedding say, without starts, ends and padding."""
    return [tokenizer.decode(part, skip_special_tokens=True) for part in embedding[:, 0].long().view(-1, 12)]


def test_a_long_prompt_is_encoded_in_parts_and_nothing_is_lost(tokenizer):
    prompt = "a red robot with a red hat with a red hat with"  # 12 tokens; 10 fit between start and end
    text = encode_prompt(prompt, "hat", tokenizer, Encoder())
    assert text.cond.shape == (4, 24, 3) and text.uncond.shape == (2, 24, 3)
    for direction, embedding in zip(DIRECTIONS, text.cond, strict=True):
        parts = told(tokenizer, embedding)
        assert " ".join(parts).replace(" ,", ",") == f"{prompt}, {direction} view"
    assert [told(tokenizer, x) for x in text.uncond] == [["", ""], ["hat", ""]]
    starts = text.cond[:, ::12, 0]
    assert (starts == tokenizer.bos_token_id).all()
    # a long negative prompt alone makes the rest as long
    assert encode_prompt("a robot", prompt, tokenizer, Encoder()).cond.shape == (4, 24, 3)


def test_filled_embeddings_are_those_beside_a_longer_text(tokenizer):
    long = " ".join(["red"] * 25)
    text, beside = (encode_prompt("a red robot", other, tokenizer, Encoder()) for other in ("", long))
    filled = text.filled(beside.cond.shape[1])
    assert filled.cond.shape == (4, 36, 3) and torch.equal(filled.cond, beside.cond)
    assert torch.equal(filled.uncond[0], beside.uncond[0])
    assert filled.plain is not None and beside.plain is not None and filled.plain.shape == (36, 3)
    assert text.filled(5).cond is text.cond


@pytest.mark.parametrize("words", range(1, 25))
def test_the_view_is_read_together_whatever_the_length(tokenizer, words):
    text = encode_prompt(" ".join(["red"] * words), "", tokenizer, Encoder())
    for direction, embedding in zip(DIRECTIONS, text.cond, strict=True):
        parts = [part for part in told(tokenizer, embedding) if part]
        assert parts[-1].replace(" ,", ",").endswith(f", {direction} view")
        assert sum(part.split().count("red") for part in parts) == words


def test_view_words_that_an_encoder_has_no_room_for_are_cut_like_others(tokenizer):
    """Three tokens a part, and ", front view" takes three: the parts still have the encoder's length."""
    assert (
        shortened(["a red robot, back view"], tokenizer, 5).tolist()
        == shortened(["a red robot"], tokenizer, 5).tolist()
    )
    assert [len(part) for parts in _cut(["a red robot, back view"], tokenizer, 3, 9) for part in parts] == [3, 3]


def test_what_fits_is_encoded_as_the_tokenizer_itself_pads_it(tokenizer):
    for prompt in ("a red robot", "robot, hat"):
        cond = encode_prompt(prompt, "", tokenizer, Encoder()).cond
        expected = tokenizer([f"{prompt}, {d} view" for d in DIRECTIONS], padding="max_length", max_length=12)
        assert cond[..., 0].long().tolist() == expected.input_ids


def test_of_a_book_the_views_stay_and_what_is_cut_is_said(tokenizer, caplog):
    text = encode_prompt("red robot " * 99, "", tokenizer, Encoder())
    assert text.cond.shape == (4, 16 * 12, 3)
    assert "of 'red robot red" in caplog.text and "is cut off: 'r" in caplog.text and len(caplog.records) == 1
    for direction, embedding in zip(DIRECTIONS, text.cond, strict=True):
        assert told(tokenizer, embedding)[-1].replace(" ,", ",").endswith(f", {direction} view")


def test_stock_encoders_read_long_prompts(tiny_sd_folder, caplog):
    from jointdreamer.priors.latent import load_text_parts

    parts = load_text_parts(tiny_sd_folder(), torch.float32, "cpu")
    text = encode_prompt("a red robot with a red hat with a red hat with", "", *parts)
    front, back = (text.cond[DIRECTIONS.index(word)] for word in ("front", "back"))
    assert text.cond.shape == (4, 24, 16) and (front - back).abs().max() > 1e-3
    assert not caplog.records  # the tokenizer's own "indexing errors" for one


def test_empty_prompt_is_refused(tokenizer):
    with pytest.raises(UserError, match="prompt is empty"):
        encode_prompt("  ", "", tokenizer, Encoder())


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_prompt(tmp_path):
    from jointdreamer.priors.prompts import read_prompts

    (tmp_path / "prompts.txt").write_bytes("\ufeffa red robot\r\n\r\nein Bär\r\n".encode())
    assert read_prompts(tmp_path / "prompts.txt") == ["a red robot", "ein Bär"]
