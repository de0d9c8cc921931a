"""Whether a run folder's config computes the same parameters as the one that is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdreamer.errors import UserError
from jointdreamer.reading import NOT_NOW, Unreadable
from jointdreamer.runs.records import read_config, steps_done

# Keys that change where a run lies, where it is computed and what is shown of it, not what it computes.
MAY_DIFFER = ("out_dir", "name", "device", "logger", "viewer", "every", "memory", "output", "hydra", "export")
MAY_DIFFER += ("objective", "prompt_file", "prompt_id")  # `prompt` is what they say


@dataclass(frozen=True)
class Comparison:
    """What of a run's config differs from the one that is asked for. What is `differing` stands in the way."""

    differing: tuple[str, ...] = ()  # what computes other parameters, each in words
    elsewhere: tuple[str, ...] = ()  # weights that are named otherwise, each in words: their content decides
    remarks: tuple[str, ...] = ()  # what to say when the run goes on
    other_outputs: bool = False
    equal: bool = True  # whether the two configs are the same, to the last key

    @property
    def complete(self) -> bool:
        """Whether a result that is there is what is asked for."""
        return not self.elsewhere and not self.other_outputs


# what is there, what is asked for, how many steps are done
Compare = Callable[[dict[str, Any], dict[str, Any], int], Comparison]


def check_same_config(path: Path, config: dict[str, Any], compare: Compare | None = None) -> Comparison:
    """Compare the run folder's config.yaml with `config`. Raises UserError where it computes something else."""
    try:
        existing = read_config(path)
    except Unreadable as error:
        if error.answer == NOT_NOW:
            raise
        raise UserError(
            f"{path}/config.yaml cannot be read ({error.why}): move the folder away to start again"
        ) from error
    try:
        comparison = (compare or compare_all)(existing, config, steps_done(path))
    except Unreadable:
        raise
    except UserError as error:
        raise UserError(f"the run folder {path}: {error}") from error
    if differing := comparison.differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"the run folder {path} belongs to another config: {'; '.join(differing[:5])}{more}. Give the same values "
            "to resume it, name=... for a folder of its own, or move that folder away"
        )
    return comparison


def compare_all(there: dict[str, Any], here: dict[str, Any], done: int) -> Comparison:
    """Two configs of which everything counts but the keys in MAY_DIFFER."""
    one, two = ({key: value for key, value in config.items() if key not in MAY_DIFFER} for config in (there, here))
    differing = differing_keys(one, two)
    outputs = bool(differing_keys(there.get("output"), here.get("output"), shared=True))
    return Comparison(tuple(differing.values()), other_outputs=outputs, equal=same(there, here))


def differing_keys(there: Any, here: Any, shared: bool = False) -> dict[str, str]:
    """Dotted keys whose values differ, and how, in words. shared: of those that both have."""
    one, two = flat(there), flat(here)
    absent = object()
    keys = [key for key in (one if shared else {**one, **two}) if not shared or key in two]
    found = [key for key in keys if not same(one.get(key, absent), two.get(key, absent))]
    return {key: f"{key} is {_shown(one, key)} there, {_shown(two, key)} here" for key in found}


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "absent"
    return text if len(text) <= 60 else text[:57] + "..."


def same(one: Any, two: Any) -> bool:
    """Whether two settings are equal; NaN is equal to itself, and a tuple to its list."""
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one == two or (one != one and two != two)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by dotted keys."""
    if isinstance(value, dict) and value:
        items = [flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items()]
        return {key: inner for item in items for key, inner in item.items()}
    return {prefix: value}
