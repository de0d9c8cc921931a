"""From measured runs to `evaluation.json`: each run's scores, groups with their intervals, FID of each group."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jointdreamer.errors import UserError
from jointdreamer.evaluation.measure import Measured
from jointdreamer.evaluation.runs import LeftOut, Run
from jointdreamer.evaluation.statistics import Interval, mean, rate
from jointdreamer.metrics import clip_score, frechet_distance, moments, recall_at, retrieval_ranks, turn_consistency
from jointdreamer.reading import is_number

VERSION = 1  # of the format
PERCENT = (0.0, 100.0)
# what a group's mean is taken of: the measure, and the values that it can have
MEANS: dict[str, tuple[float, float]] = {
    "clip_score": (-100.0, 100.0),
    "r_precision": PERCENT,
    "r_at_5": PERCENT,
    "resultant_length": (0.0, 1.0),
    "attributes": (0.0, 1.0),
    "consistency": (-1.0, 1.0),
    "roughness": (0.0, 180.0),
    "minutes": (0.0, math.inf),
    "seconds_per_step": (0.0, math.inf),
    "peak_memory_gb": (0.0, math.inf),
}
FROM_RESULT = ("minutes", "seconds_per_step", "peak_memory_gb")


def caption_set(runs: Sequence[Run], given: Sequence[str] | None) -> list[str]:
    """The captions that R-Precision chooses among: those given, else the runs' own; each once."""
    return list(dict.fromkeys(caption.strip() for caption in (given or [run.prompt for run in runs])))


def comparable_runs(
    runs: Sequence[Run], given: Sequence[str] | None, group_by: Sequence[str]
) -> tuple[list[Run], list[LeftOut], str]:
    """The runs whose groups compare, those left out, and in a sentence what is compared.

    It is easier to be retrieved among easier captions, so groups compare by the prompts that all of them have. A group
    that has none of these is left out; where no two groups share a prompt, all runs stay, and the sentence says so.
    With captions `given` the set is fixed, and the runs whose prompts it has stay.

    Raises UserError where the captions given hold no run's prompt.
    """
    if given is not None:
        captions = caption_set([], given)
        kept = [run for run in runs if run.prompt in captions]
        why = {run.prompt: f"the caption set lacks its prompt {run.prompt!r}" for run in runs}
        left_out = [{"folder": str(run.folder), "why": why[run.prompt]} for run in runs if run.prompt not in captions]
        if not kept:
            raise UserError(
                f"the caption set lacks {runs[0].prompt!r}, the prompt of {runs[0].folder}, and those of all other "
                "runs: add them to the file"
            )
        return kept, left_out, "Runs whose prompts are among the captions given."
    groups = grouped(runs, group_by)
    if "prompt" in group_by or len(groups) < 2:
        return list(runs), [], "All prompts."
    prompts = {label: {run.prompt for run in members} for label, members in groups.items()}
    having = {run.prompt: [label for label, own in prompts.items() if run.prompt in own] for run in runs}
    compared = max(having.values(), key=lambda labels: (len(labels), sum(len(groups[label]) for label in labels)))
    if len(compared) < 2:
        return list(runs), [], "The groups share no prompt: each is of prompts of its own, and they do not compare."
    shared = set.intersection(*(prompts[label] for label in compared))
    kept, left_out = [], []
    for label, members in groups.items():
        for run in members:
            if label not in compared:
                why = f"{_words(group_by, label)} shares no prompt with the other groups"
            elif run.prompt not in shared:
                lacks = next(other for other in compared if run.prompt not in prompts[other])
                why = f"{_words(group_by, lacks)} has no run of its prompt {run.prompt!r}"
            else:
                kept.append(run)
                continue
            left_out.append({"folder": str(run.folder), "why": why})
    if not left_out:
        return list(runs), [], "All prompts: every group has them."
    order = {id(run): number for number, run in enumerate(runs)}
    said = f"The {len(shared)} prompt(s) that all groups share; {len(left_out)} runs are left out."
    return sorted(kept, key=lambda run: order[id(run)]), sorted(left_out, key=lambda one: one["folder"]), said


def _words(group_by: Sequence[str], label: Sequence[str]) -> str:
    return " ".join(f"{key}={value}" for key, value in zip(group_by, label, strict=True)) or "a group"


def grouped(runs: Sequence[Run], group_by: Sequence[str]) -> dict[tuple[str, ...], list[Run]]:
    """The runs by their values of the keys, each as text, in the order of the runs.

    Raises UserError for a key that no run's config has; in some it may be missing.
    """
    for key in group_by:
        if not any(_has(run, key) for run in runs):
            there = ", ".join(str(name) for name in runs[0].config)
            raise UserError(
                f"group_by: no run has {key!r} in its config: choose method, energy, models, or dotted keys of {there}"
            )
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(text(run, key) for key in group_by), []).append(run)
    return groups


def _has(run: Run, key: str) -> bool:
    try:
        run.value(key)
    except KeyError:
        return False
    return True


def text(run: Run, key: str) -> str:
    """A run's value of a key in words: a text as it is, anything else as JSON, null where it has no such key."""
    value = run.value(key) if _has(run, key) else None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def scores(
    run: Run,
    measured: Measured,
    captions: Sequence[str],
    caption_features: np.ndarray,  # (C, D)
    base: Path,  # what paths are written relative to
) -> dict[str, Any]:
    """A run's row. With one caption there is nothing to retrieve, and with five the first five are all: None."""
    own = captions.index(run.prompt)
    ranks = retrieval_ranks(measured.features, caption_features, own)
    turntable = run.folder / "turntable" / "rgb.mp4"
    return {
        "folder": _relative(run.folder, base),
        "prompt": run.prompt,
        "seed": run.config["seed"],
        "method": str(run.config["name"]),
        "energy": str(run.config["energy"]["name"]),
        "models": run.models,
        **{key: _number(run.result.get(key)) for key in FROM_RESULT},
        "clip_score": clip_score(measured.features, caption_features[own]),
        "r_precision": recall_at(ranks, 1) if len(captions) > 1 else None,
        "r_at_5": recall_at(ranks, 5) if len(captions) > 5 else None,
        "janus": measured.janus,
        "janus_confidence": measured.janus_confidence,
        "front": measured.front or measured.janus,  # two fronts turn with no camera either
        "resultant_length": measured.resultant_length,
        "attributes": measured.attributes,
        "consistency": turn_consistency(measured.features) if len(measured.features) > 1 else None,
        "roughness": measured.roughness,
        "sheet": _relative(measured.sheet, base),
        "mesh": _relative(run.mesh, base) if run.mesh else None,
        "turntable": _relative(turntable, base) if os.path.isfile(turntable) else None,
    }


def _relative(path: Path, base: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return path.resolve().as_posix()


def _number(value: Any) -> float | None:
    return float(value) if is_number(value, 0, 1e9) else None


def summarise(
    runs: Sequence[Run],
    rows: Sequence[Mapping[str, Any]],
    measured: Sequence[Measured],
    group_by: Sequence[str],
    confidence: float,
    reference: np.ndarray | None,  # (N, D) FID's features of the reference, or None
) -> list[dict[str, Any]]:
    """A dict for each group: its keys, how many runs, prompts and seeds, each measure's interval, and FID.

    Janus and no front are rates in percent, of all runs, and exclude each other. FID is of all views of the group's
    runs together, and has no interval.
    """
    place = {id(run): number for number, run in enumerate(runs)}
    truth = None if reference is None else moments(reference)
    summary = []
    for label, members in grouped(runs, group_by).items():
        mine = [place[id(run)] for run in members]
        group: dict[str, Any] = {
            "keys": dict(zip(group_by, label, strict=True)),
            "runs": len(members),
            "prompts": len({run.prompt for run in members}),
            "seeds": len({run.config["seed"] for run in members}),
        }
        for name, (low, high) in MEANS.items():
            values = [rows[k][name] for k in mine if rows[k][name] is not None]
            group[name] = _as_dict(mean(values, confidence, low, high))
        group["janus"] = _as_dict(rate([rows[k]["janus"] for k in mine], confidence))
        group["no_front"] = _as_dict(rate([not rows[k]["front"] for k in mine], confidence))
        group["fid"] = group["fid_images"] = None
        if truth is not None:
            features = np.concatenate([measured[k].fid_features for k in mine])
            if features.shape[1] != len(truth[0]):
                raise UserError(
                    f"FID's features of the reference have {len(truth[0])} numbers, those of the runs "
                    f"{features.shape[1]}: remove the reference-*.npz that were kept, and measure again"
                )
            group["fid"], group["fid_images"] = frechet_distance(*truth, *moments(features)), len(features)
        summary.append(group)
    return summary


def _as_dict(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.as_dict()


def digest(runs: Sequence[Run]) -> str:
    """Which objects were evaluated, as 16 hex digits: what they were made for and their content, wherever they lie."""
    what = sorted([str(run.config["name"]), run.prompt, str(run.config["seed"]), run.digest] for run in runs)
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
