"""What a run says: metrics.jsonl and train.log always, a progress line, and wandb and TensorBoard when asked.

The same calls work with and without these. `metrics.jsonl` holds nothing that a clock had a say in, so an interrupted
and an uninterrupted run end with the same bytes; times go to the progress line, to `train.log` and to the two.
"""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from tqdm import tqdm

from jointdreamer.errors import UserError, one_line, printable
from jointdreamer.files import disk_full, is_disk_full, to_json
from jointdreamer.runs.tensorboard_log import TensorBoard
from jointdreamer.runs.wandb_log import Wandb

RATE_SECONDS = 60.0  # over which the seconds of a step are measured
QUIET_SECONDS = 10.0  # between two progress lines where no terminal shows a bar


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite.

    A UserError: one line and status 2, no traceback. The cause is a setting (a rate, a weight, half precision) far from
    the line that notices, so a stack would point at the wrong place, and a change of settings is the way out.
    """


def check_finite(step: int, loss: Any, losses: Mapping[str, Any] | None = None, checkpoint: int | None = None) -> float:
    """The loss as a float. `losses` (name -> scalar) name the guilty one; `checkpoint` is the step that was last saved.

    Raises: NonFiniteLoss. Call it before the optimiser's step, so that the parameters are still good.
    """
    value = float(_number(loss))
    if math.isfinite(value):
        return value
    guilty = [name for name, part in (losses or {}).items() if not math.isfinite(float(_number(part)))]
    kept = "no checkpoint was written yet" if checkpoint is None else f"the checkpoint of step {checkpoint} is kept"
    raise NonFiniteLoss(
        f"step {step}: the loss is {value}{' (from ' + ', '.join(guilty) + ')' if guilty else ''}, so the run stopped; "
        f"{kept}. Lower the learning rates (schedule.lr...) or use full precision, under another name=..."
    )


class Logger:
    """Rows of numbers, pictures and messages of one run, in its folder and wherever else they are wanted.

    folder: the run folder. steps: how many the run has. every: a row each so many steps, and at the last one.
    stream: where progress goes (stderr).
    Messages are shown from the beginning; `begin` comes before the first step.
    Raises: UserError when the disk is full. A failing wandb or TensorBoard is one warning, never an error.
    """

    def __init__(
        self,
        folder: str | Path,
        steps: int,
        every: int = 10,
        stream: Any = None,
    ):
        if every < 1:
            raise UserError(f"every.log={every}: wanted a number of steps, 1 or more")
        self.folder, self.steps, self.every = Path(folder), steps, every
        self._stream = sys.stderr if stream is None else stream
        self._tty = bool(getattr(self._stream, "isatty", lambda: False)())
        self._metrics: Any = None  # opened for the first row: a run that is refused before it has none
        self._text = (self.folder / "train.log").open("a", encoding="utf-8", errors="backslashreplace")
        self._bar: tqdm | None = None
        self._start = 0
        self._package = logging.getLogger("jointdreamer")
        self._before = (self._package.propagate, self._package.level)
        self._handler = _Messages(self.message)
        self._package.addHandler(self._handler)
        # through us instead of the root's handlers: a warning then keeps the bar whole and reaches train.log
        self._package.propagate = False
        self._package.setLevel(logging.INFO)
        self._others: list[Wandb | TensorBoard] = []
        self._started = self._last_line = time.monotonic()
        self._laps: deque[tuple[float, int]] = deque()  # (when, steps done) of the last minute

    def begin(
        self,
        start: int = 0,
        wandb: Mapping[str, Any] | None = None,
        tensorboard: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Show progress from step `start` on.

        wandb: options of `wandb.init` (project, group, tags, ...), or None for no wandb. tensorboard: options of its
        `SummaryWriter`, or None. config: what they show as the config.
        """
        self._start = start
        if self._tty:
            self._bar = tqdm(total=self.steps, initial=start, file=self._stream, unit="step", dynamic_ncols=True)
        if wandb is not None:
            self._others.append(Wandb(self.folder, wandb, config or {}, self.message))
        if tensorboard is not None:
            self._others.append(TensorBoard(self.folder, tensorboard, config or {}, start, self.message))
        self._started = self._last_line = time.monotonic()  # last: wandb takes its time to start

    # Numbers

    def log(
        self,
        step: int,
        loss: Any,
        losses: Mapping[str, Any] | None = None,
        now: SimpleNamespace | None = None,
        row: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Count `step` (from 0) as done; each `every` steps write its row.

        losses: unweighted terms by name, `loss/<name>` in the row. now: the plan's numbers, `now/<name>`, nested ones
        `now/lr/encoding`. row: write one whatever `every` says. more: further numbers by name. Scalars
        may be tensors.
        """
        done, clock = step + 1, time.monotonic()
        seconds = self._seconds_per_step(clock, done)
        due = row or step % self.every == 0 or done == self.steps
        line_due = done == self.steps or clock - self._last_line >= QUIET_SECONDS or done == self._start + 1
        if self._bar is not None:
            shown = {"loss": f"{float(_number(loss)):.4g}"} | (
                {"px": now.resolution} if now is not None and hasattr(now, "resolution") else {}
            )
            self._bar.set_postfix(shown | {"s/step": f"{seconds:.3g}"}, refresh=False)
            self._bar.update(done - self._bar.n)
        if due or (line_due and self._bar is None):
            line = self._progress_line(done, float(_number(loss)), now, seconds)
            if due:
                self._write_log(line)
            if line_due and self._bar is None:
                self._last_line = clock
                print(line, file=self._stream, flush=True)
        if due:
            numbers = {"step": step, "loss": _number(loss)}
            numbers |= {f"loss/{name}": _number(value) for name, value in (losses or {}).items()}
            numbers |= {name: _number(value) for name, value in (more or {}).items()}
            numbers |= _flat("now", now) if now is not None else {}
            if self._metrics is None:
                self._metrics = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._write(self._metrics, to_json(numbers))
            for other in self._others:
                other.log(numbers | {"seconds_per_step": seconds})

    def _seconds_per_step(self, clock: float, done: int) -> float:
        """Of the last minute, without the first step, which compiles: a mean since then would lag behind each stage."""
        self._laps.append((clock, done))
        while len(self._laps) > 2 and self._laps[1][0] <= clock - RATE_SECONDS:
            self._laps.popleft()
        then, before = self._laps[0]
        return (clock - then) / (done - before) if done > before else clock - self._started

    def _progress_line(self, done: int, loss: float, now: SimpleNamespace | None, seconds: float) -> str:
        resolution = f"  {now.resolution} px" if now is not None and hasattr(now, "resolution") else ""
        left = f"ETA {duration((self.steps - done) * seconds)}"
        return f"step {done}/{self.steps}  loss {loss:.4g}{resolution}  {seconds:.3g} s/step  {left}"

    # Words and pictures

    def message(self, text: str) -> None:
        """A line for the person who watches, and for `train.log`."""
        text = printable(text)
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)
        self._write_log(text)

    def show(self, step: int, files: Mapping[str, Sequence[Path]]) -> None:
        """Say which files a run has made at its end, by name, and show them in wandb and TensorBoard."""
        kinds = {".png": "image", ".mp4": "video", ".glb": "mesh"}
        for path in (path for paths in files.values() for path in paths):
            self._media(kinds[path.suffix], path.stem, step, path)
        made = [str(path.relative_to(self.folder)) for paths in files.values() for path in paths]
        self.message(f"made {', '.join(made) or 'nothing'} in {self.folder}")

    def images(self, step: int, files: Mapping[str, Path]) -> None:
        """`image` of several pictures by name."""
        for name, path in files.items():
            self.image(name, step, path)

    def image(self, name: str, step: int, path: str | Path) -> None:
        """Show a picture that was written to `path` (wandb and TensorBoard: in the folder it is there already)."""
        self._media("image", name, step, path)

    def _media(self, kind: str, name: str, step: int, path: str | Path) -> None:
        for other in self._others:
            other.media(kind, name, step, Path(path))

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's result, for wandb's table of runs and TensorBoard's texts."""
        for other in self._others:
            other.summary(values)

    # Ends and files

    def close(self, failed: bool = False) -> None:
        """Put everything back and let wandb finish. Calling it twice does no harm."""
        if self._text.closed:
            return
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        for other in self._others:
            other.finish(failed)
        self._package.removeHandler(self._handler)
        self._package.propagate, level = self._before
        self._package.setLevel(level)
        for file in filter(None, (self._metrics, self._text)):
            with suppress(OSError):  # every write is flushed: what is left here has failed before and was reported
                file.close()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close(failed=error is not None)

    def _write_log(self, text: str) -> None:
        self._write(self._text, f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}")

    def _write(self, file: Any, line: str) -> None:
        try:
            file.write(line + "\n")
            file.flush()  # a killed process loses nothing that reached the system
        except OSError as error:
            if is_disk_full(error, self.folder):
                raise disk_full(Path(file.name)) from error
            raise


class SilentLogger(Logger):
    """The logger of a rank besides the first: it says and writes nothing, warnings of the package included."""

    def __init__(self, *given: Any, **options: Any):
        self._package = logging.getLogger("jointdreamer")
        self._level = self._package.level
        self._package.setLevel(logging.CRITICAL + 1)

    def begin(self, *given: Any, **options: Any) -> None:
        pass

    def log(self, *given: Any, **options: Any) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def images(self, step: int, files: Mapping[str, Path]) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        self._package.setLevel(self._level)


class _Messages(logging.Handler):
    """Hands the package's log records to `Logger.message`, one line each."""

    def __init__(self, show: Callable[[str], None]):
        super().__init__(logging.INFO)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        self._show(prefix + one_line(record.getMessage()))


def duration(seconds: float) -> str:
    """12s, 3m05s, 2h07m."""
    whole = round(max(0.0, seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, Mapping):
        items = [_flat(f"{prefix}/{key}", inner) for key, inner in value.items()]
        return {key: inner for item in items for key, inner in item.items()}
    return {prefix: _number(value)}
