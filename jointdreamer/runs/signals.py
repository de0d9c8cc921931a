"""Signals that end a run: it saves first, and the same command goes on.

```python
with stop_on_signals() as stop:
    for step in range(start, steps):
        ...
        if stop.requested:
            save(...)
            return stop.exit_status
    with stop.at_once():  # everything is saved
        stop.check()
        ...
    if stop.requested:
        return stop.exit_status
```
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it needs torch, and the command line answers mistakes without
    from jointdreamer.ranks import Ranks

# Ctrl-C, a plea to end, a closed terminal, and the warnings of batch systems (SLURM's, submitit's) before time is up
ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
IMPATIENT = (signal.SIGINT, signal.SIGTERM)  # whoever sends a second of these wants no more waiting


class Stop:
    """Whether someone asked the run to stop: `requested` is the signal's number, or None. Handles the signals."""

    def __init__(self, ranks: "Ranks | None" = None):
        self.ranks = ranks  # that are to agree; None is this process alone

    requested: int | None = None
    saved = False  # whether nothing would be lost by stopping in the middle

    def __call__(self, number: int, frame: Any) -> None:
        if self.requested in IMPATIENT and number in IMPATIENT:
            raise KeyboardInterrupt
        first, self.requested = self.requested is None, number
        if not first:  # a closed terminal says so twice, and SLURM warns before it sends SIGTERM
            return
        if self.ranks is not None and not self.ranks.first:
            return
        how = "stopping" if self.saved else "stopping after this step and saving; once more aborts at once"
        with suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, f"\n{signal.Signals(number).name}: {how}\n".encode())
        self.check()

    def agreed(self) -> int | None:
        """What was asked of this rank, or of any: signals come to each of them in its own time."""
        if self.ranks is None:
            return self.requested
        asked = self.ranks.highest(self.requested or 0) or None
        self.requested = self.requested or asked
        return asked

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for and nothing would be lost by it."""
        if self.saved and self.requested is not None:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that the first signal ends where it stands, for where everything is saved: look at `requested` then.

        What came just before is noticed by `check`.
        """
        self.saved = True
        try:
            yield
        except KeyboardInterrupt:
            if self.requested is None:
                raise
        finally:
            self.saved = False

    @property
    def exit_status(self) -> int:
        """128 + the signal, as a shell has it: a stopped run has not kept its promise, so never 0."""
        return 128 + (self.requested or 0)


@contextmanager
def stop_on_signals(ranks: "Ranks | None" = None) -> Iterator[Stop]:
    """Turn the signals of ENDING into a flag that the loop looks at after each step; a second Ctrl-C aborts at once.

    A second SIGINT or SIGTERM raises KeyboardInterrupt where the program stands; the others may come as often as they
    like. What is ignored stays ignored (nohup, a shell's `&`), but for SIGTERM. Outside the main thread, where Python
    takes no signal handlers, the flag stays unset.
    """
    stop = Stop(ranks)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    taken = [number for number in ENDING if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in taken}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hand_on(number: int) -> None:
    """Let the launcher's own handler have a signal, now that the run is saved: submitit requeues a preempted job."""
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)
