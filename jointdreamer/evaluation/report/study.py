"""The human study: what the raters' files say together.

A file is what `study.html` of a report downloads: for each trial (a prompt with a seed) the objects in the order they
were shown, whether the rater saw a Janus object in each, and which one was preferred. See `read_study` for its form.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jointdreamer.errors import UserError, one_line
from jointdreamer.evaluation.statistics import wilson
from jointdreamer.evaluation.table import plain
from jointdreamer.reading import MIB, is_whole, read_json

KIND, VERSION = "jointdreamer-study", 1


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement beyond chance of raters who put subjects into categories: 1 full, 0 that of chance.

    counts: (subjects, categories), how many raters chose the category. Fleiss (Psychological Bulletin 76, 1971), where
    every subject has as many ratings. Where they differ, each subject's agreement is still that among its own pairs of
    ratings (a subject with a single rating has none and is left out) and chance is the share of all ratings.
    None where it is not defined: no subject was rated twice, or all ratings are of one category.
    """
    rated = [row for row in counts if sum(row) >= 2]
    if not rated:
        return None
    table = np.asarray(rated, dtype=np.float64)
    n = table.sum(1)
    observed = ((table**2).sum(1) - n) / (n * (n - 1))
    chance = float(((table.sum(0) / table.sum()) ** 2).sum())
    if chance >= 1:
        return None
    return (float(observed.mean()) - chance) / (1 - chance)


def aggregate_study(files: Iterable[str | Path], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the raters say together, one file a rater, about the runs of `evaluation` (the content of evaluation.json).

    Shares are fractions of 1, with Wilson's 95% intervals over all ratings (several raters of one object count as
    several ratings, so the intervals speak of these objects and not of new ones):
    `{"version", "evaluation", "raters": [name], "trials": answered by anyone, "methods": [{"method", "objects",
    "janus": {"yes", "n", "rate", "low", "high"}, "preferred": {"wins", "n", "share", "low", "high"}}],
    "agreement": {"statistic", "janus": {"kappa", "subjects"}, "preferred": {"kappa", "subjects"}}}`.
    A method nobody rated has null shares. Kappa is Fleiss' over what two or more raters rated, null where undefined.

    A file that cannot be read, is no study file or is of another report is left out, `"left_out": [{"file", "why"}]`;
    of two files of one rater the one that was saved later counts, by its own word, else the later in the list.

    Raises: UserError without a file that can be used, and for an evaluation that is none.
    """
    paths = [Path(file) for file in files]
    if not paths:
        raise UserError(
            "study= names no file: wanted the JSON files that raters downloaded from the report's study.html"
        )
    check_evaluation(evaluation)
    methods = list(dict.fromkeys(str(run["method"]) for run in evaluation["runs"]))
    studies, left_out = read_studies(paths, evaluation)
    janus: dict[tuple, Counter[bool]] = defaultdict(Counter)  # object (prompt, seed, method, copy) -> ratings
    chosen: dict[tuple, Counter[str]] = defaultdict(Counter)  # trial (prompt, seed) -> preferred methods
    offered: Counter[str] = Counter()  # method -> in how many preferences it could have won
    for study in studies.values():
        for answer in study["answers"]:
            trial, objects = (answer["prompt"], answer["seed"]), answer["objects"]
            for entry in objects:
                if entry["janus"] is not None:
                    janus[(*trial, entry["method"], entry["object"])][entry["janus"]] += 1
            if answer["preferred"] is not None:
                chosen[trial][objects[answer["preferred"]]["method"]] += 1
                offered.update({entry["method"] for entry in objects})
    if not janus and not chosen:
        raise UserError("the study files hold no answer: wanted at least one object rated")

    wins = Counter[str]()
    for counter in chosen.values():
        wins.update(counter)
    rows = []
    for method in methods:
        rated = [counter for (_, _, its_method, _), counter in janus.items() if its_method == method]
        yes, n = sum(counter[True] for counter in rated), sum(counter.total() for counter in rated)
        rows.append(
            {
                "method": method,
                "objects": len(rated),
                "janus": {"yes": yes, "n": n, **share("rate", yes, n)},
                "preferred": {
                    "wins": wins[method],
                    "n": offered[method],
                    **share("share", wins[method], offered[method]),
                },
            }
        )
    seen = [[counter[False], counter[True]] for counter in janus.values()]
    preferred = [[counter[method] for method in methods] for counter in chosen.values()]
    trials = {key[:2] for key in janus} | set(chosen)
    return {
        "version": VERSION,
        "evaluation": evaluation["id"],
        "raters": list(studies),
        "left_out": left_out,
        "trials": len(trials),
        "methods": rows,
        "agreement": {
            "statistic": "Fleiss' kappa",
            "janus": {"kappa": fleiss_kappa(seen), "subjects": rated_twice(seen)},
            "preferred": {"kappa": fleiss_kappa(preferred), "subjects": rated_twice(preferred)},
        },
    }


def share(name: str, successes: int, n: int) -> dict[str, float | None]:
    """successes / n under `name`, and its interval; nulls where n is 0."""
    if not n:
        return {name: None, "low": None, "high": None}
    low, high = wilson(successes, n)
    return {name: successes / n, "low": low, "high": high}


def rated_twice(counts: Sequence[Sequence[int]]) -> int:
    """How many subjects have two ratings or more: those that the kappa speaks of."""
    return sum(sum(row) >= 2 for row in counts)


def check_evaluation(evaluation: Any) -> None:
    """Raises UserError unless it is the content of an evaluation.json, as far as a study needs it."""
    runs = evaluation.get("runs") if isinstance(evaluation, Mapping) else None
    runs = runs if isinstance(runs, list) and isinstance(evaluation.get("id"), str) else [None]
    if not all(
        isinstance(run, dict)
        and isinstance(run.get("prompt"), str)
        and is_whole(run.get("seed"), 0)
        and isinstance(run.get("method"), str)
        for run in runs
    ):
        raise UserError("the evaluation.json is damaged: wanted an id and its runs; make it anew with evaluate.py")


def read_studies(
    paths: Sequence[Path], evaluation: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """The study of each rater, and what was left out. Raises UserError where no file can be used."""
    studies: dict[str, tuple[str, Path, dict[str, Any]]] = {}  # of each rater: when it was saved, where it is, itself
    left_out = []
    for path in paths:
        try:
            study = read_study(path, evaluation)
        except UserError as error:
            left_out.append({"file": str(path), "why": one_line(error).removeprefix(f"{path}: ")})
            continue
        here, before = (str(study.get("saved")), path, study), studies.get(study["rater"])
        if before is not None:
            here, other = (here, before) if here[0] >= before[0] else (before, here)
            why = f"rater {one_line(study['rater'])[:60]!r} comes twice, and {here[1]} is the later one"
            left_out.append({"file": str(other[1]), "why": why})
        studies[study["rater"]] = here
    if not studies:
        raise UserError(f"study file {left_out[0]['file']}: {left_out[0]['why']}")
    return {rater: study for rater, (_, _, study) in studies.items()}, left_out


def read_study(path: Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The content of one study file, checked against the evaluation that it should be about.

    An answer: `{"prompt": str, "seed": int, "objects": [{"method": str, "object": str, "janus": bool | null}],
    "preferred": place in objects | null}`; null is what the rater left open, "object" the name that the report gives to
    what was shown, which tells two runs of one method apart.

    Raises: UserError.
    """
    study = read_json(path, 16 * MIB)
    if not isinstance(study, dict) or study.get("kind") != KIND:
        raise UserError(f"{path}: wanted the JSON that study.html downloads, got some other JSON")
    if study.get("version") != VERSION:
        raise UserError(f"{path}: wanted version {VERSION}, got {_short(study.get('version'))}")
    if study.get("evaluation") != evaluation["id"]:
        raise UserError(
            f"{path}: it is of another report: wanted answers about evaluation {evaluation['id']}, got "
            f"{_short(study.get('evaluation'))}; name that one, out_dir=..., or its runs"
        )
    if problem := complaint(study, evaluation["runs"]):
        raise UserError(f"{path}: it was changed by hand or cut off: {problem}; ask the rater for it again")
    return study


def _short(value: Any) -> str:
    return repr(value)[:40]


def complaint(study: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with a study's content, if anything: every object must be of a run that the evaluation has."""
    if not isinstance(study.get("rater"), str) or not study["rater"]:
        return "it names no rater"
    if not isinstance(study.get("answers"), list):
        return "it has no list of answers"
    known = Counter((run["prompt"], run["seed"], str(run["method"])) for run in runs)
    trials = set()
    for number, answer in enumerate(study["answers"], 1):
        try:
            trial, objects, preferred = (answer["prompt"], answer["seed"]), answer["objects"], answer["preferred"]
            if not isinstance(objects, list):
                return f"answer {number} has no list of objects"
            if trial in trials:
                return f"answer {number} is the second about the same prompt and seed"
            trials.add(trial)
            if Counter((*trial, entry["method"]) for entry in objects) - known:
                return f"answer {number} shows an object that the evaluation lacks"
            if any(not (mark is None or isinstance(mark, bool)) for mark in (entry["janus"] for entry in objects)):
                return f"answer {number} has a Janus mark that is neither yes nor no"
            if any(not isinstance(entry["object"], str) for entry in objects):
                return f"answer {number} does not name its objects"
            if preferred is not None and not (type(preferred) is int and 0 <= preferred < len(objects)):
                return f"answer {number} prefers what it did not show"
        except (TypeError, LookupError):
            return f"answer {number} lacks a part"
    return None


def study_table(aggregate: Mapping[str, Any]) -> str:
    """What `aggregate_study` returns as a Markdown table with the agreement under it."""

    def percent(entry: Mapping[str, Any], name: str) -> str:
        if entry[name] is None:
            return "–"
        return f"{100 * entry[name]:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"

    def agreement(name: str) -> str:
        entry = aggregate["agreement"][name]
        if entry["kappa"] is None:
            return "not defined" if entry["subjects"] else "nothing was rated by two"
        return f"{entry['kappa']:.2f} over {entry['subjects']}"

    lines = [
        "| method | Janus rate, % [95%] | ratings | preferred, % [95%] | choices |",
        "|---|---|---|---|---|",
    ]
    for row in aggregate["methods"]:
        lines.append(
            f"| {plain(row['method'])} | {percent(row['janus'], 'rate')} | {row['janus']['n']} | "
            f"{percent(row['preferred'], 'share')} | {row['preferred']['n']} |"
        )
    lines += [
        "",
        f"{len(aggregate['raters'])} rater(s), {aggregate['trials']} prompt(s) x seed(s). "
        f"{aggregate['agreement']['statistic']}: Janus {agreement('janus')}, preference {agreement('preferred')}.",
    ]
    return "\n".join(lines) + "\n"
