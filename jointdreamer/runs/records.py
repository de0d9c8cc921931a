"""A run folder's small files: config.yaml, metrics.jsonl and result.json as they are read again, and the lock."""

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path
from jointdreamer.reading import DAMAGED, NOT_NOW, Unreadable, open_file, read_json, read_yaml
from jointdreamer.runs.checkpoint import checkpoint_files

try:
    import fcntl
except ImportError:  # Windows: runs without the lock
    fcntl = None

log = logging.getLogger(__name__)

RECORDS = (
    "config.yaml",
    "metrics.jsonl",
    "train.log",
    "result.json",
    "environment.json",
    "numerics.json",
    "command.txt",
    ".lock",
)
MOST_ROW_BYTES = 2**20


def refuse_odd_records(path: Path) -> None:
    """Raise UserError where a pipe, a folder or a link to itself has the name of one of a run's files.

    To open a pipe for writing waits for somebody who reads it.
    """
    for name in RECORDS:
        try:
            open_file(path / name).close()
        except Unreadable as error:
            if error.answer == DAMAGED:
                raise UserError(f"{error}: move it away, a run writes there") from error


def to_yaml(config: Mapping[str, Any]) -> str:
    """A config as YAML that says a value again where it stands twice: the reader refuses aliases."""
    return yaml.dump(config, Dumper=_NoAliases, sort_keys=False, allow_unicode=True, width=120)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_config(path: Path) -> dict[str, Any]:
    """What a run's `config.yaml` says. Raises `reading.Unreadable`."""
    found = read_yaml(path / "config.yaml")
    if not isinstance(found, dict):
        raise Unreadable(path / "config.yaml", DAMAGED, "not a mapping")
    return found


def read_result(path: Path) -> dict[str, Any] | None:
    """What a run's `result.json` says; None where it says nothing. Raises UserError if it cannot be read now."""
    try:
        result = read_json(path / "result.json")
    except Unreadable as error:
        if error.answer == NOT_NOW:
            raise
        return None
    return result if isinstance(result, dict) else None


def steps_done(path: Path) -> int:
    """How many steps of a run are kept: those of its newest checkpoint, or of its result."""
    said = (read_result(path) or {}).get("steps", 0)
    return max([step for step, _ in checkpoint_files(path)] + [said if isinstance(said, int) else 0])


def has_begun(path: Path) -> bool:
    """Whether there is anything to lose: a checkpoint, good or not, a row of metrics, or a result."""
    metrics = path / "metrics.jsonl"
    rows = metrics.exists() and metrics.stat().st_size > 0
    return rows or any((path / "checkpoints").glob("step_*")) or (path / "result.json").exists()


def truncate_metrics(path: Path, step: int) -> None:
    """Cut `metrics.jsonl` before its first row of `step` or later, and leave out lines that are no rows.

    So a run that was interrupted ends with the same file as one that was not. A row that was cut short by a kill, or
    comes after the step, is cut in place, in one operation: what a kill can leave is either the old file or the new.
    Raises: UserError if the file cannot be read now.
    """
    if not path.exists():
        return
    rows: list[bytes] = []
    try:
        with open_file(path) as stream:
            while (line := stream.readline(MOST_ROW_BYTES)) and ((at := _step_of(line)) is None or at < step):
                rows += [line] if at is not None else []
            kept = b"".join(rows)
            stream.seek(0)
            in_front = stream.read(len(kept)) == kept
    except (OSError, MemoryError) as error:
        raise Unreadable(path, NOT_NOW, error) from error
    if not in_front:
        with atomic_path(path) as temporary:
            temporary.write_bytes(kept)
    elif len(kept) < path.stat().st_size:
        os.truncate(path, len(kept))


def _step_of(line: bytes) -> int | None:
    """The step of a row of metrics; None for a line that is no row."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    at = row.get("step") if isinstance(row, dict) else None
    return at if isinstance(at, int) else None


def lock(path: Path) -> int | None:
    """Lock `path/.lock` until `unlock` or the end of the process, however it ends."""
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise UserError(
                f"another process (pid {holder}) is working in {path}: wait for it, stop it, or choose another name=..."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            log.warning("%s cannot be locked (%s): take care to run only one process in it", path, error.strerror)
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


def wait_for_others(path: Path, say: Callable[[str], None], every: float = 0.5) -> None:
    """Return once no other process works in the run folder `path`; says once that it waits."""
    waiting = False
    while (path / ".lock").exists():
        try:
            return unlock(lock(path))
        except UserError as error:
            if not waiting:
                say(str(error).partition(":")[0] + ": waiting for it")
            waiting = True
            time.sleep(every)


def unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
