"""What the check of version ranges asks pip for; nothing is installed here."""

import sys

import pytest
from packaging.requirements import Requirement

from benchmarks.version_ranges import RANGED, combinations, declared, ends

needs_tomllib = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")


def test_both_ends_of_a_range():
    assert ends(Requirement("torch>=2.4,<2.14")) == {"oldest": "torch==2.4", "newest": "torch<2.14,>=2.4"}


@needs_tomllib
def test_every_combination_of_ends_is_tried_and_those_of_one_torch_follow_each_other():
    wanted = declared()
    assert set(RANGED) <= wanted.keys()
    ways = combinations(wanted)
    assert len({tuple(way.items()) for way in ways}) == 8
    assert [way["torch"] for way in ways] == ["oldest"] * 4 + ["newest"] * 4
    assert {name: "oldest" for name in RANGED} in ways and {name: "newest" for name in RANGED} in ways
