"""Whether a change of the code changes what a run computes: this checkout beside another commit, bit for bit.

    python -m benchmarks.same_bits COMMIT energy=mvs schedule.steps=40       the same words for both
    python -m benchmarks.same_bits COMMIT energy=mvs schedule.steps=40 --resume-at 20    stopped there, and resumed
    python -m benchmarks.same_bits COMMIT --all schedule.steps=40            every energy and distillation, and a resume
    python -m benchmarks.same_bits COMMIT new.key=1 --other-words "old.key=1"            a key that was renamed

Both run train.py with the same interpreter on the CPU (unless device=... is given), one after the other, each with its
own code, output folder and caches; nothing of them is kept without --keep. Compared are metrics.jsonl, what the last
checkpoint holds of the scene, the optimiser and the random generator, and the pictures, videos and meshes. Names may
differ, content may not. Columns of the metrics that only repeat the schedule (now/...) are shown, and decide nothing.

Exit status: 0 all the same, 1 something differs, 2 a mistake in the command.
"""

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.command import Parser, parser_of, positive, table
from jointdreamer.errors import UserError, one_line

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {"prompt": "a red robot with a blue hat", "models": "toybox", "device": "cpu", "every.log": "1"}
QUICK = ["experiment=smoke"]  # where no words are given
ALL = [f"energy={name}" for name in ("none", "mvs", "cls", "i2i", "random")]
ALL += ["distillation=mvdream", "distillation=sum"]
RESUMED = "energy=mvs"  # of --all
PICTURES = (".png", ".mp4", ".glb", ".obj", ".ply")
CLOCK = ("second", "minute", "time", "memory")  # columns of the metrics that a clock or the machine has a say in
SCHEDULE = "now/"


@dataclass(frozen=True)
class Side:
    """One of the two: a tree of code, and where it may write."""

    name: str
    tree: Path
    work: Path

    def environment(self) -> dict[str, str]:
        """Nothing that another commit has compiled or converted is taken up."""
        path = [str(self.tree), *filter(None, [os.environ.get("PYTHONPATH")])]
        caches = {name: str(self.work / name.lower()) for name in ("NUMBA_CACHE_DIR", "JOINTDREAMER_CACHE")}
        return {**os.environ, **caches, "PYTHONPATH": os.pathsep.join(path)}


@dataclass(frozen=True)
class Job:
    """A run to compare, by its words on each side; stopped once after about `resume_at` steps."""

    words: list[str]
    other_words: list[str]
    resume_at: int | None = None
    names: list[str] = field(default_factory=list)  # what the table calls it

    @property
    def title(self) -> str:
        resumed = [f"resumed at {self.resume_at}"] if self.resume_at is not None else []
        return " ".join([*(self.names or self.words), *resumed])


def arguments() -> Parser:
    parser = parser_of("same_bits", __doc__)
    parser.add_argument("commit", help="the other commit: a hash, a branch, a tag")
    parser.add_argument("words", nargs="*", help="for train.py (experiment=smoke)")
    parser.add_argument("--all", action="store_true", help="every energy, both other distillations, and a resume")
    parser.add_argument("--resume-at", type=positive, metavar="N", help="stop after about N steps, and go on")
    parser.add_argument("--other-words", metavar="WORDS", help="words of the other commit, in place of these")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where both runs are kept (nowhere)")
    return parser


def main() -> int:
    args = arguments().parse_intermixed_args()
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        return 0 if compare(args.commit, jobs(args), ROOT, args.keep) else 1
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)  # through every `finally`: runs are stopped and folders removed


def jobs(args: Any) -> list[Job]:
    """What to run. Raises UserError for words that are none."""
    words = args.words or QUICK
    other = words if args.other_words is None else shlex.split(args.other_words)
    for word in (*words, *other):
        if "=" not in word and word[:1] not in "+~":
            raise UserError(f"{word!r}: wanted words like train.py's, e.g. energy=mvs schedule.steps=40")
    if not args.all:
        return [Job(words, other, args.resume_at)]
    if args.resume_at is None and not any(word.startswith("schedule.steps=") for word in words) and args.words:
        raise UserError("--all stops a run in its middle: say where it is, --resume-at N or schedule.steps=N")
    steps = [int(word.partition("=")[2]) for word in words if word.startswith("schedule.steps=")]
    middle = args.resume_at or (steps[-1] // 2 if steps else 6)
    found = [Job([*words, choice], [*other, choice], names=[choice]) for choice in ALL]
    return [*found, Job([*words, RESUMED], [*other, RESUMED], middle, names=[RESUMED])]


def compare(commit: str, todo: Sequence[Job], root: Path = ROOT, keep: Path | None = None) -> bool:
    """Run every job on both sides and print the table; whether all of it is the same.

    Raises UserError for a commit that is not there, and for a run that fails.
    """
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UserError(f"--keep {keep}: holds something already; name another folder")
    with tempfile.TemporaryDirectory(prefix="same-bits-") as temporary:
        place = Path(temporary)
        tree, digest = place / "code", resolve(commit, root)
        unpack(digest, tree, root)
        sides = [Side("this checkout", root, place / "this"), Side(f"commit {digest[:9]}", tree, place / "other")]
        print(f"{sides[0].name} {root} and {sides[1].name} ({commit})", flush=True)
        for side in sides:
            side.work.mkdir()
            check_code(side)
        rows, same = [], True
        for number, job in enumerate(todo):
            runs = []
            for side, words in zip(sides, (job.words, job.other_words), strict=True):
                began = time.monotonic()
                runs.append(run(side, side.work / f"runs{number}", words, job.resume_at))
                print(f"{job.title}: {side.name}, {time.monotonic() - began:.0f} s", flush=True)
            for what, verdict, detail in differences(*runs):
                rows.append([job.title, what, "-" if verdict is None else "same" if verdict else "DIFFERS", detail])
                same = same and verdict is not False
            if keep is not None:
                for side, made in zip(("this", "other"), runs, strict=True):
                    shutil.copytree(made, keep / str(number) / side)
        print("\n" + table(["run", "what", "verdict", ""], rows))
        print("\neverything is the same" if same else "\nNOT the same")
    return same


# Code


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # a hook's GIT_DIR
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, env=clean, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise UserError("git is not installed: another commit cannot be read") from error


def resolve(commit: str, root: Path) -> str:
    """The full hash of a commit."""
    found = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if found.returncode:
        raise UserError(f"no commit {commit!r} in {root}: wanted a hash, a branch or a tag (git log --oneline)")
    return found.stdout.decode().strip()


def unpack(commit: str, folder: Path, root: Path) -> None:
    """The files of a commit. An archive and no worktree: whatever ends this process, the repository is untouched."""
    archive = git(root, "archive", "--format=tar", commit)
    if archive.returncode:
        raise UserError(f"git archive {commit}: {archive.stderr.decode(errors='replace').strip()}")
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        if hasattr(tarfile, "data_filter"):  # Python 3.10.12 and 3.11.4 on
            files.extraction_filter = tarfile.data_filter
        files.extractall(folder)


def check_code(side: Side) -> None:
    """Refuse an environment in which a tree would run the package of another."""
    command = [sys.executable, "-c", "import jointdreamer; print(jointdreamer.__file__)"]
    done = subprocess.run(command, cwd=side.tree, env=side.environment(), capture_output=True, text=True)
    if done.returncode or not Path(done.stdout.strip()).resolve().is_relative_to(side.tree.resolve()):
        raise UserError(
            f"{side.name} would import {done.stdout.strip() or 'no jointdreamer'}, not its own: {side.tree}"
        )


# Runs


def run(side: Side, out: Path, words: Sequence[str], resume_at: int | None) -> Path:
    """The folder of a finished run of train.py. Raises UserError, with train.py's own last line, where it fails."""
    given = {word.partition("=")[0].lstrip("+~") for word in words}
    more = [f"{key}={value}" for key, value in DEFAULTS.items() if key not in given and f"{key}_file" not in given]
    command = [sys.executable, str(side.tree / "train.py"), *more, *words, f"out_dir={out}"]
    if resume_at is not None:
        status, said = launch(side, command, lambda: steps_done(out) >= resume_at)
        if status != 128 + signal.SIGTERM:
            over = "was over" if status == 0 else f"ended with status {status} ({said})"
            raise UserError(f"{side.name} {over} before it could be stopped at step {resume_at}: name an earlier one")
    status, said = launch(side, command)
    if status:
        raise UserError(f"{side.name}: train.py {shlex.join(words)} ended with status {status}: {said}")
    found = list(out.glob("**/result.json"))
    if len(found) != 1:
        raise UserError(f"{side.name}: wanted one run in {out}, found {len(found)}: words of one run, no sweep")
    return found[0].parent


def launch(side: Side, command: Sequence[str], stop: Any = None) -> tuple[int, str]:
    """Exit status, and the last line on stderr; SIGTERM is sent once as soon as `stop()` is true."""
    errors = side.work / "stderr"
    with errors.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=side.tree, env=side.environment(), preexec_fn=_default_signals if os.name == "posix" else None,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream,
        )  # fmt: skip
        try:
            while stop is not None and process.poll() is None:
                if stop():
                    process.send_signal(signal.SIGTERM)
                    break
                time.sleep(0.005)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    lines = errors.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
    return (status if status >= 0 else 128 - status), lines[-1]


def _default_signals() -> None:
    """A shell may have us ignore them (nohup, a job in the background), and children inherit that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def steps_done(out: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in out.glob("**/metrics.jsonl"))


# Comparisons


def differences(here: Path, there: Path) -> Iterator[tuple[str, bool | None, str]]:
    """(what, whether it is the same; None: it does not matter, in words) of two run folders."""
    columns = [metrics(folder) for folder in (here, there)]
    results, schedule = (
        [{k: v for k, v in c.items() if k.startswith(SCHEDULE) == asked} for c in columns] for asked in (False, True)
    )
    yield "metrics.jsonl", *judge("columns", *results, explain=first_row)
    same, detail = judge("columns", *schedule, explain=first_row)
    if not same:
        yield "schedule (now/...)", None, detail
    yield "last checkpoint", *judge("tensors", *(tensors(folder) for folder in (here, there)), explain=largest)
    yield "pictures, meshes", *judge("files", *(pictures(folder) for folder in (here, there)))


def judge(kind: str, here: Mapping[str, Any], there: Mapping[str, Any], explain: Any = None) -> tuple[bool, str]:
    """Whether two collections hold the same contents, under whatever names, each as often; and what differs."""
    prints = [{name: fingerprint(value) for name, value in side.items()} for side in (here, there)]
    wrong = [name for name in prints[0] if name in prints[1] and prints[0][name] != prints[1][name]]
    if Counter(prints[0].values()) == Counter(prints[1].values()):
        renamed = [name for name in prints[0] if prints[0][name] != prints[1].get(name)]
        return True, f"{len(here)} {kind}" + (f", {len(renamed)} under other names" if renamed else "")
    parts = [f"{len(wrong)} of {len(here)} {kind} differ, first {wrong[0]}"] if wrong else []
    if wrong and explain is not None:
        parts[0] += f" ({explain(here[wrong[0]], there[wrong[0]])})"
    for where, own, others in (("here", *prints), ("there", *prints[::-1])):
        names = [name for name in own if name not in others and own[name] not in others.values()]
        if names:
            parts.append(f"{len(names)} only {where}, first {names[0]}")
    return False, "; ".join(parts) or f"some {kind} are there more often than on the other side"


def fingerprint(value: Any) -> str:
    """Of everything that `value` is, bit for bit."""
    if hasattr(value, "numpy"):
        import torch

        raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"
    if isinstance(value, Path):
        return value.suffix + hashlib.sha256(value.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def metrics(run: Path) -> dict[str, list[Any]]:
    """metrics.jsonl as columns of (step, value); a number as it is written."""
    columns: dict[str, list[Any]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if not any(word in name for word in CLOCK):
                columns.setdefault(name, []).append((row["step"], value))
    return columns


def tensors(run: Path) -> dict[str, Any]:
    """The tensors of the newest checkpoint's parts, by their path in it."""
    import torch

    newest = max((run / "checkpoints").glob("step_*.pt"), default=None)
    if newest is None:
        raise UserError(f"{run} has no checkpoint")
    return dict(_leaves(torch.load(newest, map_location="cpu", weights_only=True)["parts"]))


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    elif hasattr(value, "numpy"):
        yield where, value


def pictures(run: Path) -> dict[str, Path]:
    files = sorted(file for file in run.rglob("*") if file.suffix in PICTURES and not file.name.startswith("."))
    return {str(file.relative_to(run)): file for file in files}


def first_row(here: list[Any], there: list[Any]) -> str:
    found = next((a, b) for a, b in zip([*here, None], [*there, None], strict=False) if a != b)
    return " and ".join("no row" if row is None else f"{row[1]!r} at step {row[0]}" for row in found)


def largest(here: Any, there: Any) -> str:
    if here.shape != there.shape or here.dtype != there.dtype:
        return f"{tuple(here.shape)} {here.dtype} and {tuple(there.shape)} {there.dtype}"
    return f"by at most {(here.double() - there.double()).abs().max().item():.3g}"


if __name__ == "__main__":
    sys.exit(main())
