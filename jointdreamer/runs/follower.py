"""The run folder as the ranks besides the first see it: theirs to name, not to read or write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jointdreamer.ranks import Ranks
from jointdreamer.runs.folder import RunFolder
from jointdreamer.runs.logger import Logger, SilentLogger
from jointdreamer.runs.same_config import Compare


class Follower(RunFolder):
    """A run of which another rank keeps the folder: nothing was done before, nothing is kept.

    What the folder holds comes from the first rank, by `Ranks.told` and `Ranks.share`.
    """

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], compare: Compare | None = None):
        return cls(Path(path), dict(config), None)

    def still_there(self) -> Path:
        return self.path

    def pin(self, **numbers: int | None) -> dict[str, int | None]:
        return numbers

    def pinned(self) -> dict[str, int | None]:
        return {}

    @property
    def checkpoints(self) -> list[tuple[int, Path]]:
        return []

    def save(self, step: int, **parts: Any) -> Path:
        return self.path

    def resume(self, only: bool = False, **parts: Any) -> int:
        return 0

    def check_weights(self, weights: Sequence[Mapping[str, str]], steps: int) -> None:
        pass

    def write_command(self, argv: Sequence[str]) -> None:
        pass

    def write_environment(self, weights: Sequence[Mapping[str, Any]] = (), **more: Any) -> None:
        pass

    def result(self, steps: int | None = None) -> dict[str, Any] | None:
        return None


def open_run(path: Path, config: Mapping[str, Any], compare: Compare, ranks: Ranks) -> RunFolder:
    """The run folder for the first rank, a `Follower` for the others."""
    return (RunFolder if ranks.first else Follower).open(path, config, compare=compare)


def open_log(run: RunFolder, steps: int, every: int, ranks: Ranks) -> Logger:
    """A `Logger` for the first rank, silence for the others."""
    return (Logger if ranks.first else SilentLogger)(run.path, steps, every=every)
