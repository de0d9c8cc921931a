from pathlib import Path

import numpy as np
import pytest

from jointdreamer.toybox import data, raycast, world
from jointdreamer.toybox.judge import judging_cameras, true_views
from jointdreamer.toybox.world import (
    ACCESSORIES,
    COLORS,
    FIRST,
    KINDS,
    SECOND,
    Toy,
    caption,
    direction_word,
    has_3d_data,
    is_held_out_combination,
    parse_caption,
    sample_toy,
    solids,
    vocabulary,
)  # fmt: skip


def toys(n, seed=0, **sets):
    rng = np.random.default_rng(seed)
    return [sample_toy(rng, **sets) for _ in range(n)]


def test_the_world_is_as_large_as_it_says():
    assert len(KINDS) >= 8 and len(COLORS) == 10 and len(ACCESSORIES) - 1 == 6


def test_the_same_seed_gives_the_same_toys():
    assert toys(20, seed=3) == toys(20, seed=3) != toys(20, seed=4)


def test_the_held_out_sets_never_meet_the_training_sets():
    trained, new = toys(300), toys(300, shape="held_out", combination="held_out")
    assert not any(is_held_out_combination(t) for t in trained)
    assert all(is_held_out_combination(t) for t in new)
    assert max(t.shape_seed for t in trained) < world.HELD_OUT_SHAPES <= min(t.shape_seed for t in new)


def test_about_a_tenth_of_the_combinations_is_held_out():
    every = [Toy(k, c, accessory=a) for k in KINDS for c in COLORS for a in ACCESSORIES]
    assert 0.07 < np.mean([is_held_out_combination(t) for t in every]) < 0.13


def test_the_rigs_lack_words_that_the_flat_pictures_have():
    known = [t for t in toys(500) if has_3d_data(t)]
    assert 0.3 < len(known) / 500 < 0.7
    assert not set().union(*(t.words for t in known)) & world.WORDS_WITHOUT_3D
    assert set().union(*(t.words for t in toys(500))) >= world.WORDS_WITHOUT_3D & set(vocabulary())


def test_a_later_edition_knows_every_word_of_the_first_and_means_the_same_by_it():
    for sort in ("kinds", "accessories", "patterns"):
        assert set(getattr(FIRST, sort)) <= set(getattr(SECOND, sort))
    for toy in toys(20):
        assert parse_caption(caption(toy), SECOND) == parse_caption(caption(toy))


def test_rarer_words_are_drawn_as_often_as_said():
    drawn = toys(3000, seed=1, words=SECOND)
    for sort, name in (("kinds", "kind"), ("accessories", "accessory"), ("patterns", "pattern")):
        shares = getattr(SECOND, sort)
        for word, weight in shares.items():
            found = np.mean([getattr(t, name) == word for t in drawn])
            assert abs(found - weight / sum(shares.values())) < 0.1, word  # patterns need a dark body
    known = [t for t in drawn if has_3d_data(t)]
    assert 0.15 < len(known) / len(drawn) < 0.35
    assert set().union(*(t.words for t in drawn)) >= world.WORDS_WITHOUT_3D


@pytest.mark.parametrize("toy", [*toys(40, seed=5), *toys(40, seed=6, words=SECOND)], ids=caption)
def test_a_caption_names_its_toy_with_known_words(toy):
    named = parse_caption(caption(toy), SECOND)
    assert named is not None and named.words == toy.words | named.words  # an unworn accessory's colour is free
    said = caption(toy, np.random.default_rng(toy.shape_seed)).replace(",", " ").split()
    assert set(said) <= set(vocabulary(SECOND))


@pytest.mark.parametrize("text", ["a corgi", "a red", "a red robot with a hat", "a bear and a cat"])
def test_what_is_no_plain_caption_is_not_read_as_one(text):
    assert parse_caption(text) is None


def test_direction_words():
    degrees = {0: "front", 29: "front", 31: "side", 90: "side", 149: "side", 151: "back", 180: "back", -170: "back"}
    assert {d: direction_word(np.radians(d), 0.2) for d in degrees} == degrees
    assert direction_word(0, np.radians(70)) == "overhead"


@pytest.mark.parametrize("kind", SECOND.kinds)
def test_a_face_is_on_one_side_only(kind):
    """Eyes are where there is both black (pupils) and white: tails may have one of them, never both."""
    cameras = judging_cameras()
    c2w, fovy = cameras.c2w[0].double().numpy(), cameras.fovy[0].double().numpy()
    rgba, _, _ = raycast.render(raycast.pack(solids(Toy(kind, "red"))), c2w, fovy)
    inside = rgba[..., 3] == 1  # edges mix with what is behind
    black = (inside & (rgba[..., :3].max(-1) < 0.06)).sum((1, 2))
    white = (inside & (rgba[..., :3].min(-1) > 0.6)).sum((1, 2))
    eyes = np.minimum(black, white)
    assert eyes[0] >= 4
    assert eyes[8] <= 1


@pytest.mark.parametrize("kind", SECOND.kinds)
def test_every_toy_fits_the_picture_and_the_box(kind):
    for toy in [t for t in toys(600, seed=8, words=SECOND) if t.kind == kind][:8]:
        assert all(np.abs(s.center).max() < 1 for s in solids(toy))
        views = true_views(toy)
        border = np.concatenate([views[:, :, 0].flatten(), views[:, :, -1].flatten()])
        assert np.mean(np.abs(border - 0.85) < 0.01) > 0.85


def test_flat_pictures_are_biased_to_the_front_and_reproducible():
    pictures, again = data.flat_pictures(200, seed=1), data.flat_pictures(200, seed=1)
    np.testing.assert_array_equal(pictures.rgba, again.rgba)
    front = np.abs((pictures.azimuth + np.pi) % (2 * np.pi) - np.pi) < np.radians(45)
    assert 0.7 < front.mean() < 0.95


def test_few_captions_name_the_direction_and_some_wrongly():
    rng = np.random.default_rng(0)
    said = [data.flat_caption(Toy("bear", "red"), 0.0, 0.2, rng) for _ in range(2000)]
    named = [text for text in said if "view" in text]
    assert 0.35 < len(named) / 2000 < 0.45
    assert 0.15 < np.mean(["front" not in text for text in named]) < 0.25  # two thirds of three in ten


def test_rigs_are_ninety_degrees_apart_and_carry_their_cameras():
    pictures = data.rigs(5, seed=2)
    assert pictures.camera.shape == (5, 4, 16)
    np.testing.assert_allclose(np.diff(pictures.azimuth, axis=1), np.pi / 2, atol=1e-5)
    assert all(has_3d_data(t) for t in pictures.toys)


def test_the_table_of_words_in_the_docs_is_the_code_s():
    text = (Path(__file__).parents[2] / "docs" / "toybox_words.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[2:5]] for line in text.splitlines() if line.startswith("| in ")]
    groups = (world.WORDS_WITHOUT_3D, world.WORDS_IN_FLAT_PICTURES_ONLY, world.WORDS_OF_TEXT_TO_IMAGE_ONLY)
    for group, row, inside in zip(groups, rows, (False, True, True), strict=True):
        for cell, words in zip(row, (SECOND.kinds, SECOND.accessories, SECOND.patterns), strict=True):
            meant = {word for word in words if (word in group) == inside} - {"plain", "none"}
            assert cell == ", ".join(sorted(meant))
