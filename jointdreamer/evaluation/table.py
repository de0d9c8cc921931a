"""An evaluation as Markdown and as CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jointdreamer.errors import one_line, printable

MARKUP = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {character: f"\\{character}" for character in "\\`|["}
)
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # the last four: of double width
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
NO_FRONT = (
    "It needs a front: objects with R below 0.4, or without a view that is told to be the front, have none and do not "
    "count as Janus."
)

# measure: heading, digits
COLUMNS: dict[str, tuple[str, int]] = {
    "clip_score": ("CLIP Score", 2),
    "r_precision": ("R-Precision %", 1),
    "r_at_5": ("R@5 %", 1),
    "fid": ("FID", 3),
    "janus": ("Janus %", 1),
    "no_front": ("no front %", 1),
    "resultant_length": ("R", 2),
    "attributes": ("words seen", 2),
    "consistency": ("consistency", 3),
    "roughness": ("roughness, degrees", 1),
    "minutes": ("minutes", 2),
    "peak_memory_gb": ("peak GB", 2),
}


def markdown(evaluation: Mapping[str, Any]) -> str:
    """The groups as a table, a measure that no group has left away, and what the numbers are, below it."""
    groups, extractors, captions = evaluation["groups"], evaluation["extractors"], evaluation["captions"]
    shown = [name for name in COLUMNS if any(group.get(name) is not None for group in groups)]
    keys = list(evaluation["group_by"])
    head = [*map(plain, keys), "runs", *(COLUMNS[name][0] for name in shown)]
    lines = [_row(head), "|---" * len(head) + "|"]
    for group in groups:
        cells = [plain(group["keys"][key]) for key in keys] + [str(group["runs"])]
        lines.append(_row([*cells, *(number_cell(group.get(name), COLUMNS[name][1]) for name in shown)]))
    lines += [
        "",
        f"Mean [{evaluation['confidence']:.0%} interval] over runs; {evaluation['intervals']}. "
        f"{evaluation['views']} views of {evaluation['resolution']} pixels a run.",
        f"CLIP: {plain(extractors['clip'])}; retrieval among {captions['count']} captions ({captions['kind']}). "
        f"{evaluation['compared']}",
        plain(_fid_line(evaluation)),
        f"Janus: {plain(extractors['janus'])}. {NO_FRONT}",
        "Consistency: mean CLIP cosine of neighbouring views (Esser et al. 2023). Roughness: mean angle between the "
        "normals of neighbouring pixels; curvature and edges are in it.",
        extractors["note"],
    ]
    if evaluation["left_out"]:
        lines += [
            "",
            "Left out:",
            *(f"- {plain(one['folder'])}: {plain(one['why'])}" for one in evaluation["left_out"]),
        ]
    return "\n".join(lines) + "\n"


def _fid_line(evaluation: Mapping[str, Any]) -> str:
    if not evaluation["reference"]:
        return "FID: no reference given."
    counts = sorted({group["fid_images"] for group in evaluation["groups"]})
    sizes = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    bias = "few pictures raise it" + ("" if len(counts) == 1 else ", so only groups of one size compare")
    against = f"{sizes} views a group against {evaluation['reference']}"
    return f"FID: {evaluation['extractors']['fid']}; {against}; {bias}."


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(text: Any) -> str:
    """Any text as words within a line of Markdown, never as markup, a link or a picture, nor as a terminal's codes."""
    return one_line(text).translate(MARKUP)


def number_cell(value: Any, digits: int, base: float = 1.0) -> str:
    """A number, or a mean and its interval (`Interval.as_dict`), over `base`; a dash for None."""
    if value is None:
        return "-"
    if not isinstance(value, Mapping):
        return f"{value / base:.{digits}f}"
    low, high = value["low"], value["high"]
    around = "" if low is None or high is None else f" [{low / base:.{digits}f}, {high / base:.{digits}f}]"
    return f"{value['mean'] / base:.{digits}f}{around}"


def runs_csv(rows: Sequence[Mapping[str, Any]], more: Mapping[str, Sequence[Any]]) -> str:
    """A line a run, with the columns of `rows`; `more` columns (the keys they are grouped by) at the end."""
    extra = [name for name in more if name not in rows[0]]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(cell, [*rows[0], *extra]))
    for number, row in enumerate(rows):
        writer.writerow(map(cell, [*row.values(), *(more[name][number] for name in extra)]))
    return out.getvalue()


def cell(value: Any) -> Any:
    """A value for a CSV: a text that a spreadsheet would take for a formula gets an apostrophe before it (OWASP, "CSV
    injection"), control characters other than the end of a line are written out."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = "\n".join(map(printable, value.split("\n")))
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text
