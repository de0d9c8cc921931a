"""The small files of a run folder: rows that are cut, odd things in their places, and one process at a time."""

import os

import pytest

from jointdreamer.errors import UserError
from jointdreamer.runs.folder import RunFolder
from jointdreamer.runs.records import RECORDS, truncate_metrics
from tests.runs.small_run import CONFIG, begin


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("odd", ["fifo", "loop", "folder"])
def test_a_pipe_in_place_of_a_record_is_one_line_and_nobody_waits(tmp_path, name, odd):
    begin(tmp_path, CONFIG)
    (tmp_path / name).unlink(missing_ok=True)
    if odd == "fifo":
        os.mkfifo(tmp_path / name)
    elif odd == "loop":
        (tmp_path / name).symlink_to(name)
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name}.*move it away"):
        RunFolder.open(tmp_path, CONFIG)


def test_a_config_with_one_list_twice_is_read_again(tmp_path):
    both = [0, 1]
    begin(tmp_path, {**CONFIG, "a": both, "b": both})
    RunFolder.open(tmp_path, {**CONFIG, "a": both, "b": both}).close()


@pytest.mark.parametrize("text", ["a: &a [*a]", "[" * 100_000, "", "5", "- 1", "\0"])
def test_an_odd_config_is_one_line(tmp_path, text):
    begin(tmp_path, CONFIG)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml cannot be read") as caught:
        RunFolder.open(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)


def test_metrics_are_cut_at_the_step_and_at_a_row_that_is_not_whole(tmp_path):
    file = tmp_path / "metrics.jsonl"
    truncate_metrics(file, 3)  # none there: nothing to do
    file.write_text('{"step": 0}\n{"step": 2}\n{"step": 3}\n')
    truncate_metrics(file, 3)
    assert file.read_text() == '{"step": 0}\n{"step": 2}\n'
    file.write_text('{"step": 0}\n{"step": 1}\n{"step": 2')
    truncate_metrics(file, 3)
    assert file.read_text() == '{"step": 0}\n{"step": 1}\n'


@pytest.mark.parametrize(
    "odd", ["\n", "rubbish\n", "[" * 100_000 + "\n", "null\n", '{"step": "1"}\n', "\0" * 3_000_000 + "\n"]
)
def test_a_line_that_is_no_row_costs_no_other_row(tmp_path, odd):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 0}}\n{odd}{{"step": 1}}\n{{"step": 2}}\n{{"step": 3}}\n')
    truncate_metrics(file, 3)
    assert file.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


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
