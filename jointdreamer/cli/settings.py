"""What the scripts read of a config themselves: the types of a dataclass say what each value may be.

`check` is the only reader of those types. A group that goes to a function or class as it is, Takes(Rig), may hold what
its signature says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from jointdreamer.arguments import Range, check_arguments
from jointdreamer.cli import main as cli
from jointdreamer.errors import UserError

Seed = Annotated[int, Range(0, 2**32 - 1)]
Count = Annotated[int, Range(low=1)]
Steps = Annotated[int, Range(low=0)]  # between two of something; 0 is never
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["no", "bf16"]
MAY_BE_EMPTY = ("negative_prompt", "prompt")  # of the texts: a prompt is missed where it is read


@dataclass(frozen=True)
class RunConfig:
    """What the config of every script that makes a run has."""

    seed: Seed
    name: str
    out_dir: str
    device: Device
    precision: Precision
    models: dict
    logger: dict


def check(cfg: dict[str, Any], settings: type) -> None:
    """Refuse, before anything is loaded, what the config may not say; texts become texts, a name of digits too.

    settings: a dataclass whose fields are keys of the config

    Raises UserError, one line.
    """
    named = {field.name: cfg[field.name] for field in fields(settings) if field.name in cfg}
    for field in fields(settings):
        if field.type is str:
            text = named.get(field.name)
            if text is None or (not str(text).strip() and field.name not in MAY_BE_EMPTY):
                raise UserError(f"{field.name} is empty: wanted a text")
            named[field.name] = cfg[field.name] = str(text)
    check_arguments(settings, named, "", whole=False)
    if cfg["device"] == "cuda" and not cli.cuda_is_available():
        raise UserError("device=cuda: torch sees no CUDA device; leave device out, or install a CUDA build of torch")


def device_of(cfg: Mapping[str, Any]) -> Literal["cpu", "cuda"]:
    """Where a script computes: with CUDA where torch sees a device, unless the config says `device=cpu`."""
    return "cuda" if cfg["device"] != "cpu" and cli.cuda_is_available() else "cpu"


def orbit(output: Mapping[str, Any]) -> dict[str, float]:
    """The evaluation camera of the group `output`, as `orbit_cameras` takes it."""
    return {key: output[key] for key in ("elevation_deg", "distance", "fovy_deg")}
