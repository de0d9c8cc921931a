"""What a run also tells its numbers to, and goes on without: wandb, TensorBoard."""

from collections.abc import Callable
from typing import Any

from jointdreamer.errors import one_line


class Outside:
    """Something that may fail: the first failure is one warning, after it nothing more is sent.

    name: what warnings call it. warn: takes a warning, one line. A class over it sets `sink` to what is sent to.
    """

    def __init__(self, name: str, warn: Callable[[str], None]):
        self.name, self.warn = name, warn
        self.sink: Any = None  # None: nothing is sent

    def attempt(self, what: str, send: Callable[[Any], None]) -> None:
        """send(sink), if there is one. what: "log", "finish", ..., for the warning."""
        if self.sink is None:
            return
        try:
            send(self.sink)
        except Exception as error:
            self.give_up(what, error)

    def give_up(self, what: str, error: Exception) -> None:
        self.sink = None
        said = one_line(error)[:200] or type(error).__name__
        self.warn(f"warning: {self.name} could not {what} ({said}): the run goes on without it")
