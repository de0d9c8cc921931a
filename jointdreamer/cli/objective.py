"""`objective=janus|clip_score|loss`: one number of a finished run, for sweepers that optimise (Optuna, wandb).

loss        the mean of the last tenth of the rows of metrics.jsonl; smaller is better, and says little of an object
clip_score  of 20 views and the prompt, as evaluate.py has it; larger is better
janus       1 - R of the toybox's judge, and 1 more where it sees a Janus; smaller is better
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from jointdreamer.errors import UserError
from jointdreamer.evaluation.measure import Instruments, Measured, measure, measured
from jointdreamer.evaluation.networks import clip_files, toybox_clip
from jointdreamer.evaluation.runs import find_runs
from jointdreamer.metrics import clip_score

Objective = Literal["janus", "clip_score", "loss"]
VIEWS, PIXELS, TOYBOX_PIXELS = 20, 256, 64  # as conf/evaluate.yaml


def check_objective(cfg: Mapping[str, Any]) -> None:
    """Raise UserError, one line, for a word that is none, and for what cannot be measured of these models."""
    objective, models = cfg.get("objective"), cfg["models"]["name"]
    if objective is None:
        return
    if objective not in get_args(Objective):
        raise UserError(f"objective={objective!r}: wanted one of {', '.join(get_args(Objective))}, or leave it out")
    if objective == "janus" and models != "toybox":
        raise UserError(f"objective=janus: there is a judge for models=toybox, none for {models}; take clip_score")
    if objective == "clip_score":
        instruments_for(cfg)


def objective_of(cfg: Mapping[str, Any], folder: Path) -> float:
    """The number of the finished run in `folder`. Raises UserError for an object that cannot be looked at."""
    if cfg["objective"] == "loss":
        return last_loss(folder / "metrics.jsonl")
    runs, _ = find_runs([str(folder)])
    instruments = instruments_for(cfg)
    found: Measured = measured(runs[0], instruments) or measure(runs[0], instruments)
    if cfg["objective"] == "janus":
        return float(found.janus) + 1 - (found.resultant_length or 0.0)
    return clip_score(found.features, instruments.clip.texts([runs[0].prompt])[0])


def instruments_for(cfg: Mapping[str, Any]) -> Instruments:
    """What looks at the object. Raises UserError for models without a CLIP, or one that is not there."""
    toybox = cfg["models"]["name"] == "toybox"
    source = (cfg["models"].get("clip") or {}).get("source")
    if not toybox and not source:
        raise UserError("objective=clip_score: models.clip.source names no CLIP; say openai/clip-vit-base-patch32")
    files = toybox_clip() if toybox else clip_files(source)
    return Instruments(files, None, VIEWS, TOYBOX_PIXELS if toybox else PIXELS, cfg["device"], None)


def last_loss(file: Path) -> float:
    """The mean loss of the last tenth of the rows."""
    losses = [json.loads(line)["loss"] for line in file.read_text(encoding="utf-8").splitlines()]
    last = losses[-max(1, len(losses) // 10) :]
    if not last:
        raise UserError(f"objective=loss: {file} has no rows")
    return sum(last) / len(last)
