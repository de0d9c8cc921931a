"""One process at a time works in a run folder."""

import os

import pytest

from jointdreamer.errors import UserError
from jointdreamer.runs.folder import RunFolder
from tests.runs.small_run import CONFIG, begin


def test_one_process_at_a_time(tmp_path):
    first = RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(UserError, match=f"pid {os.getpid()}"):
        RunFolder.open(tmp_path, CONFIG)
    first.close()
    RunFolder.open(tmp_path, CONFIG).close()


def test_a_refused_folder_is_not_left_locked(tmp_path):
    begin(tmp_path, CONFIG)
    with pytest.raises(UserError, match="another config"):
        RunFolder.open(tmp_path, {**CONFIG, "seed": 1})
    RunFolder.open(tmp_path, CONFIG).close()
