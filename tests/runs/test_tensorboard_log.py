"""TensorBoard beside a run, here a module that only remembers what it was sent."""

import importlib.util
import io
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from jointdreamer.errors import UserError
from jointdreamer.images import write_png
from jointdreamer.runs.logger import Logger
from jointdreamer.runs.tensorboard_log import check_tensorboard


class Writer:
    """A SummaryWriter that keeps its calls; `broken` ones raise."""

    made: list["Writer"] = []
    broken: set[str] = set()

    def __init__(self, folder: str, **options: Any):
        self.folder, self.options, self.calls = folder, options, []
        self.made.append(self)
        self._send("start")

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **options: self._send(name, *given)

    def _send(self, name: str, *given: Any) -> None:
        if name in self.broken:
            raise OSError(f"no {name}\nhere")
        self.calls.append((name, *given))


@pytest.fixture
def writers(monkeypatch) -> list[Writer]:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setattr(Writer, "broken", set())
    return Writer.made


def run(folder, start=0, **options) -> str:
    """A run of three steps with pictures and a result; what it says."""
    stream = io.StringIO()
    write_png(folder / "view.png", np.full((2, 3, 3), 255, np.uint8))
    with Logger(folder, steps=3, every=1, stream=stream) as logger:
        logger.begin(start, tensorboard=options, config={"seed": 7})
        for step in range(start, 3):
            logger.log(step, 0.5 * step, {"jsd": 1.0}, more={"note": None})
        logger.image("view", 2, folder / "view.png")
        logger.summary({"minutes": 1})
    return stream.getvalue()


def test_rows_pictures_config_and_result_are_sent(writers, tmp_path):
    said = run(tmp_path, flush_secs=30)
    (writer,) = writers
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.options == {"flush_secs": 30, "purge_step": None}
    scalars = [call[1:] for call in writer.calls if call[0] == "add_scalar"]
    assert [call for call in scalars if call[0] == "loss"] == [("loss", 0.0, 0), ("loss", 0.5, 1), ("loss", 1.0, 2)]
    assert ("loss/jsd", 1.0, 2) in scalars and not any(call[0] in ("step", "note") for call in scalars)
    (image,) = [call for call in writer.calls if call[0] == "add_image"]
    assert image[1] == "view" and image[2].shape == (2, 3, 3) and image[3] == 2
    texts = {call[1]: call[2] for call in writer.calls if call[0] == "add_text"}
    assert '"seed": 7' in texts["config"] and '"minutes": 1' in texts["result"]
    assert writer.calls[-1] == ("close",) and "warning" not in said


def test_a_resumed_run_hides_what_came_after_its_checkpoint(writers, tmp_path):
    run(tmp_path, start=2)
    assert writers[0].options["purge_step"] == 2


@pytest.mark.parametrize("part", ["start", "add_scalar", "add_image", "close"])
def test_a_failure_is_one_warning_and_the_run_goes_on(part, writers, tmp_path):
    Writer.broken.add(part)
    said = [line for line in run(tmp_path).splitlines() if "warning" in line]
    assert len(said) == 1 and f"(no {part} here): the run goes on without it" in said[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_it_is_one_line_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_tensorboard({"wandb": {}})
    check_tensorboard({"tensorboard": None})
    with pytest.raises(UserError, match=r"pip install -e '\.\[tensorboard\]'"):
        check_tensorboard({"tensorboard": {}})
