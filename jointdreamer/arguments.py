"""What a class or a function takes, read off its signature: a wrong setting costs one line instead of a traceback.

```python
def build_optimizer(groups, eps: Annotated[float, Range(above=0)], weight_decay: Annotated[float, Range(0, 100)])
```
Numbers are finite wherever the signature says no more than that they are numbers.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import inf
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from jointdreamer.errors import UserError


@dataclass(frozen=True)
class Range:
    """The numbers that a parameter takes, `Annotated[float, Range(0, 1)]`: from low to high, above and below."""

    low: float = -inf
    high: float = inf
    above: float = -inf
    below: float = inf

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and self.above < number < self.below

    def __str__(self) -> str:
        if self.low > -inf and self.high < inf:
            return f"from {self.low:g} to {self.high:g}"
        if self.low > -inf and self.below == inf:
            return f"from {self.low:g} up"
        limits = {"of at least": self.low, "above": self.above, "of at most": self.high, "below": self.below}
        return " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if abs(limit) < inf)


@dataclass(frozen=True)
class Takes:
    """A group of settings that a function takes, `Annotated[dict, Takes(Rig)]`: its signature says what is in it."""

    function: Callable


Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(above=0)]
Scale = Annotated[float, Range(-1e6, 1e6)]  # of guidance, of an energy
Pixels = Annotated[int, Range(8, 8192)]  # a side of an image

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def check_arguments(function: Callable, options: Any, name: str, whole: bool = True) -> None:
    """Refuse what `function(**options)` would refuse, and values that are not of the annotated type.

    name: what the user calls the options, "cameras" for cameras.n_views; empty for the config itself
    whole: whether the options are all that the function gets; if not, the caller gives the missing ones itself

    Raises UserError, one line.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"{name}={options!r}: wanted a group of settings, or leave it out")
    before = f"{name}." if name else ""
    parameters = inspect.signature(function).parameters
    named = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [key for key, p in named.items() if p.default is p.empty]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if unknown := [key for key in options if key not in named and not open_ended]:
        known = [key for key in named if whole or key in options or key not in required]
        raise UserError(f"unknown key '{before}{unknown[0]}': there are {', '.join(known) or 'none'}")
    if whole and (missing := [key for key in required if key not in options]):
        raise UserError(f"{before}{missing[0]} is missing: say {before}{missing[0]}=...")
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    except Exception:  # a user's annotation may be anything
        return
    for key, value in options.items():
        if key not in hints:
            continue
        taker = _taker(hints[key])
        if taker is not None and not (value is None and NoneType in get_args(hints[key])):
            check_arguments(taker, value, f"{before}{key}", whole=False)
        elif not fits(value, hints[key]):
            raise UserError(f"{before}{key}={value!r}: wanted {_words(hints[key])}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; numbers are finite, and whole ones have at most 63 bits."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inside)
    if origin is Annotated:
        ranges = [one for one in inside[1:] if isinstance(one, Range)]
        return fits(value, inside[0]) and all(value in one for one in ranges)
    if origin is Literal:
        return isinstance(value, str | int | NoneType) and value in inside
    if origin in (tuple, list, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        if origin is tuple and Ellipsis not in inside:
            return len(value) == len(inside) and all(map(fits, value, inside))
        return all(fits(item, inside[0]) for item in value)
    if kind in (int, float):
        right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return right and (-(2**63) <= value < 2**63 if isinstance(value, int) else abs(value) < inf)
    return isinstance(value, kind) if isinstance(kind, type) and kind is not Any else True


def _taker(kind: Any) -> Callable | None:
    """The function of a `Takes` in an annotation."""
    if get_origin(kind) in (Union, UnionType):
        return next(filter(None, map(_taker, get_args(kind))), None)
    inside = get_args(kind) if get_origin(kind) is Annotated else ()
    return next((one.function for one in inside if isinstance(one, Takes)), None)


def _words(kind: Any) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, inside)))
    if origin is Annotated:
        return " ".join([_words(inside[0]), *(str(one) for one in inside[1:] if isinstance(one, Range))])
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}"
    if origin is tuple and Ellipsis not in inside:
        return f"[{', '.join(map(_words, inside))}]"
    if origin in (tuple, list, Sequence):
        return f"a list, each {_words(inside[0])}"
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def build_by_name(name: str, known: Mapping[str, str], base: type, family: str, options: Mapping[str, Any]) -> Any:
    """A member of a family (scenes, priors, energies, terms) from its short name, or from a user's "module:Class".

    known: short name -> "module:Class"; imported only when chosen. Where the class has a classmethod `build` that one
        makes it; instead of a class it may be a function that returns one of the family.
    base: what members derive from; family: what the config calls them, "energy"

    Raises UserError for a name, module, class or option that does not exist.
    """
    make = function_of(name, known, base, family)
    check_arguments(make, options, family)
    made = make(**options)
    if not isinstance(made, base):
        raise UserError(f"{family} {name!r} returned a {type(made).__name__}, wanted a {base.__name__}")
    return made


def parameters_of(name: str, known: Mapping[str, str], base: type, family: str) -> set[str]:
    """The options that `build_by_name` would take. Raises UserError as it does."""
    return set(inspect.signature(function_of(name, known, base, family)).parameters)


def function_of(name: str, known: Mapping[str, str], base: type, family: str) -> Callable[..., Any]:
    """What `build_by_name` would call. Raises UserError as it does."""
    member = member_of(name, known, base, family)
    return getattr(member, "build", member)


def member_of(name: str, known: Mapping[str, str], base: type, family: str) -> Any:
    """The class, or function, of a short name or a user's "module:Class". Raises UserError as `build_by_name` does."""
    module, _, attribute = known.get(name, name).partition(":")
    if not attribute:
        own = f"your_module:Your{base.__name__}"
        raise UserError(f"unknown {family} {name!r}: choose one of {', '.join(known)}, or '{own}'")
    try:
        found = getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and misses something of its own
        raise UserError(f"{family} {name!r}: no module {module!r}; is its folder on PYTHONPATH?") from error
    if not inspect.isfunction(found) and not (inspect.isclass(found) and issubclass(found, base)):
        raise UserError(
            f"{family} {name!r}: module {module!r} has no class {attribute!r} that derives from {base.__name__}"
        )
    if inspect.isclass(found) and inspect.isabstract(found):
        missing = ", ".join(sorted(vars(found)["__abstractmethods__"]))
        raise UserError(f"{family} {name!r}: {attribute} does not define {missing}")
    return found
