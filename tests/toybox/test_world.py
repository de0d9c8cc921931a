from pathlib import Path

import numpy as np
import pytest

from jointdreamer.toybox import world
from jointdreamer.toybox.world import (
    ACCESSORIES,
    COLORS,
    FIRST,
    KINDS,
    PATTERNS,
    SECOND,
    Toy,
    caption,
    direction_word,
    has_3d_data,
    is_held_out_combination,
    parse_caption,
    sample_toy,
    vocabulary,
)


def toys(n, seed=0, **sets):
    rng = np.random.default_rng(seed)
    return [sample_toy(rng, **sets) for _ in range(n)]


def test_the_world_is_as_large_as_it_says():
    sizes = [len(KINDS), len(COLORS), len(PATTERNS), len(ACCESSORIES) - 1]
    assert sizes == [15, 10, 5, 9]  # as README says


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
    assert 0.15 < len(known) / 500 < 0.5
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


def test_the_table_of_words_in_the_docs_is_the_code_s():
    text = (Path(__file__).parents[2] / "docs" / "toybox_words.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[2:5]] for line in text.splitlines() if line.startswith("| in ")]
    groups = (world.WORDS_WITHOUT_3D, world.WORDS_IN_FLAT_PICTURES_ONLY, world.WORDS_OF_TEXT_TO_IMAGE_ONLY)
    for group, row, inside in zip(groups, rows, (False, True, True), strict=True):
        for cell, words in zip(row, (SECOND.kinds, SECOND.accessories, SECOND.patterns), strict=True):
            meant = {word for word in words if (word in group) == inside} - {"plain", "none"}
            assert cell == ", ".join(sorted(meant))
