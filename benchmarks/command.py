"""What the benchmarks share on the command line: their options, their table, and where the JSON goes."""

import argparse
import datetime
import math
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jointdreamer.errors import UserError, one_line
from jointdreamer.files import to_json, write_text

RESULTS = Path(__file__).with_name("results")


class Parser(argparse.ArgumentParser):
    """A mistake costs one line and exit status 2, without the usage."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {one_line(message)}; see --help", file=sys.stderr)
        raise SystemExit(2)


def parser_of(name: str, description: str | None) -> Parser:
    """A parser without options, for `python -m benchmarks.NAME`."""
    return Parser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def options(name: str, description: str | None, repeats: int) -> Parser:
    """A parser with the options that every benchmark has."""
    parser = parser_of(name, description)
    parser.add_argument("--repeats", type=positive, default=None, help=f"measurements of each number ({repeats})")
    parser.add_argument("--threads", type=positive, default=None, help="CPU threads (what torch takes by itself)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cuda where there is one")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: the process's own seconds, on a busy machine"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works: numbers mean nothing")
    parser.add_argument(
        "--out", type=Path, help=f"JSON file (benchmarks/results/{name}-MACHINE.json; none with --quick)"
    )
    parser.set_defaults(default_repeats=repeats)
    return parser


def positive(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1 up, got {text!r}")
    return number


def positives(text: str) -> list[int]:
    """Whole numbers from 1 up between commas, for argparse."""
    return [positive(part) for part in text.split(",")]


def run(name: str, parser: Parser, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """Parse, measure, write the JSON; the exit status: 2 and one line for a user's mistake."""
    from benchmarks.machine import describe, file_name

    args = parser.parse_intermixed_args()
    if args.repeats is None:
        args.repeats = 2 if args.quick else args.default_repeats
    out = args.out
    try:
        if out is not None:  # refused now, not after an hour
            writable(out)
        args.device = prepare(args.device, args.threads)
        machine = describe(args.device)
        print(f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; {args.device}"
              f"{': ' + machine['gpu'] if machine['gpu'] else ''}; torch {machine['torch']}; load {machine['load']}",
              flush=True)  # fmt: skip
        record = {
            "benchmark": name,
            "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine,
        }
        measured = measure(args)  # which fills in what was not given
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "default_repeats")}
        record |= {"settings": settings, **measured}
        out = out or (None if args.quick else RESULTS / f"{name}-{file_name(machine, args.device)}.json")
        if out is not None:
            write_text(out, to_json(record, indent=2) + "\n")
            print(f"written to {out}")
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def writable(out: Path) -> None:
    """Make the folder of a file to come. Raises UserError where none can be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): name another file") from error
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in it")


def prepare(device: str, threads: int | None) -> str:
    """Set torch's threads; the device that "auto" means here.

    Raises UserError for cuda without a CUDA device.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; leave --device out to measure the CPU")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Text columns, the first to the left and the others to the right; floats with three digits, None as "-"."""
    cells = [list(header), *([show(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in cells]  # fmt: skip
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def show(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def verdict_lines(verdicts: Sequence[dict[str, Any]], quick: bool = False) -> str:
    """A line for each {"holds": true, false or null, "claim": text}; null: there was nothing to judge it by."""
    words = {True: "yes", False: "NO", None: "?"}
    lines = [f"{'-' if quick else words[v['holds']]:>3}  {v['claim']}" for v in verdicts]
    return "\n".join([*lines, *(["--quick: these numbers mean nothing"] if quick else [])])


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
