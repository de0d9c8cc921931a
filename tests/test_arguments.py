from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from jointdreamer.arguments import Pixels, Positive, Range, Share, check_arguments
from jointdreamer.errors import UserError


def reader(
    source: str | Path,
    n: int = 1,
    scale: float = 1.0,
    on: bool = True,
    span: tuple[float, float] = (0, 1),
    color: Sequence[float] | None = None,
    mode: Literal["a", "b"] = "a",
    thing: Any = None,
    share: Share = 0.5,
    size: Pixels | None = None,
    betas: tuple[Annotated[float, Range(0, below=1)], Annotated[Positive, Range(high=1)]] = (0.9, 0.99),
): ...


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3, "scale": 2, "on": False, "span": [1, 2.5], "color": None, "mode": "b", "thing": object()},
        {"color": [1, 0.5, 0]},
        {"source": Path(".")},
        {"share": 1, "size": 8, "betas": [0, 1]},
        {"n": 2**62, "scale": 1e300},
    ],
)
def test_what_fits_passes(options):
    check_arguments(reader, {"source": "x", **options}, "it")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n": 1.5}, "it.n=1.5: wanted a whole number"),
        ({"n": True}, "it.n=True: wanted a whole number"),
        ({"scale": "much"}, "it.scale='much': wanted a number"),
        ({"on": "yes"}, "it.on='yes': wanted true or false"),
        ({"span": [1]}, r"it.span=\[1\]: wanted \[a number, a number\]"),
        ({"span": "ab"}, "it.span='ab'"),
        ({"color": ["red"]}, "it.color=.*a list, each a number or null"),
        ({"mode": "c"}, "it.mode='c': wanted one of a, b"),
        ({"mode": []}, "it.mode=\\[\\]: wanted one of a, b"),
        ({"mode": True}, "it.mode=True: wanted one of a, b"),
        ({"scale": float("nan")}, "it.scale=nan: wanted a number"),
        ({"scale": float("-inf")}, "it.scale=-inf: wanted a number"),
        ({"n": 10**20}, "it.n=1000.*: wanted a whole number"),
        ({"color": [0.0, float("nan")]}, "it.color=.*wanted a list, each a number or null"),
        ({"share": 1.1}, "it.share=1.1: wanted a number from 0 to 1"),
        ({"share": float("nan")}, "it.share=nan: wanted a number from 0 to 1"),
        ({"size": -64}, "it.size=-64: wanted a whole number from 8 to 8192 or null"),
        ({"betas": [1, 0.5]}, r"wanted \[a number of at least 0 and below 1, a number above 0 of at most 1\]"),
        ({"betas": []}, r"it.betas=\[\]: wanted \[a number"),
        ({"source": None}, "it.source=None: wanted text or Path"),
        ({"nn": 1}, "unknown key 'it.nn': there are source, n, scale"),
    ],
)
def test_what_does_not_is_one_line(options, says):
    with pytest.raises(UserError, match=says) as error:
        check_arguments(reader, {"source": "x", **options}, "it")
    assert "\n" not in str(error.value)


def test_what_is_required_unless_the_caller_has_it():
    with pytest.raises(UserError, match="it.source is missing"):
        check_arguments(reader, {}, "it")
    check_arguments(reader, {}, "it", whole=False)
    with pytest.raises(UserError, match="group of settings"):
        check_arguments(reader, None, "it")


def test_a_class_is_its_constructor_and_open_ended_ones_take_anything():
    class Mine:
        def __init__(self, n: int = 1, **more): ...

    check_arguments(Mine, {"n": 2, "m": 3}, "mine")
    with pytest.raises(UserError, match="mine.n"):
        check_arguments(Mine, {"n": "two"}, "mine")


def test_annotations_that_cannot_be_read_are_not_checked():
    def odd(n: "NotThere" = 1): ...  # noqa: F821  # pyright: ignore

    check_arguments(odd, {"n": "x"}, "odd")
