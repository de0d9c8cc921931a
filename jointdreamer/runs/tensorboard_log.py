"""TensorBoard, as something that may fail: the run goes on without it. An extra, imported where a run asks for it."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jointdreamer.errors import UserError
from jointdreamer.files import to_json
from jointdreamer.runs.outside import Outside


def check_tensorboard(logger: Mapping[str, Any]) -> None:
    """Raise UserError, one line, if the config's `logger` asks for TensorBoard and it is not installed."""
    if logger.get("tensorboard") is not None and importlib.util.find_spec("tensorboard") is None:
        raise UserError("logger=tensorboard is not installed: pip install -e '.[tensorboard]', or take logger=wandb")


class TensorBoard(Outside):
    """Rows and pictures of a run as TensorBoard shows them.

    folder: the run folder, the events go to its tensorboard/. options: of `SummaryWriter`. start: what was written of
    later steps by a run that was interrupted is hidden. Films and meshes lie in the run folder, and only there.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        config: Mapping[str, Any],
        start: int,
        warn: Callable[[str], None],
    ):
        super().__init__("tensorboard", warn)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.sink = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None, **options)
        except Exception as error:
            self.give_up("start", error)
        self.attempt("show the config", lambda writer: writer.add_text("config", _code(config), start))

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of numbers, with its `step`."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.attempt("log", lambda writer, name=name, value=value: writer.add_scalar(name, value, row["step"]))

    def media(self, kind: str, name: str, step: int, path: Path) -> None:
        """A picture; films and meshes are left out."""
        if kind == "image":
            self.attempt("log the image", lambda writer: writer.add_image(name, _pixels(path), step, dataformats="HWC"))

    def summary(self, values: Mapping[str, Any]) -> None:
        self.attempt("write the summary", lambda writer: writer.add_text("result", _code(values)))

    def finish(self, failed: bool) -> None:
        self.attempt("finish", lambda writer: writer.close())
        self.sink = None


def _pixels(path: Path) -> Any:
    from jointdreamer.images import read_picture

    return read_picture(path)[..., :3]


def _code(values: Mapping[str, Any]) -> str:
    """As text that Markdown leaves alone."""
    return "\n".join(f"    {line}" for line in to_json(values, indent=2).splitlines())
