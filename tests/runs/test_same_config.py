"""Whether a folder belongs to a config: what differs is named, what computes nothing may differ."""

import pytest

from jointdreamer.errors import UserError
from jointdreamer.runs.folder import RunFolder
from tests.runs.small_run import CONFIG, begin


def test_foreign_config_is_refused_by_the_names_of_its_keys(tmp_path):
    begin(tmp_path, CONFIG)
    other = {**CONFIG, "guidance": {"scale": 50.0}, "extra": 1}
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path, other)
    message = str(caught.value)
    assert "guidance.scale is 30.0 there, 50.0 here" in message
    assert "extra is absent there, 1 here" in message
    assert "\n" not in message and "name=" in message


def test_foreign_config_message_stays_short(tmp_path):
    begin(tmp_path, {**CONFIG, "prompt": "x" * 10_000, **{f"k{i}": 0 for i in range(50)}})
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path, {**CONFIG, "prompt": "y" * 10_000, **{f"k{i}": 1 for i in range(50)}})
    assert len(str(caught.value)) < 1000 and "46 more" in str(caught.value)


def test_what_does_not_change_the_numbers_may_differ(tmp_path):
    begin(tmp_path, CONFIG)
    RunFolder.open(tmp_path, {**CONFIG, "out_dir": "elsewhere", "every": {"log": 1}, "logger": {"wandb": {}}}).close()


def test_settings_that_are_not_numbers_are_equal_to_themselves(tmp_path):
    config = {**CONFIG, "a": float("nan"), "b": [1, float("nan"), {"c": float("nan")}]}
    begin(tmp_path, config)
    RunFolder.open(tmp_path, config).close()
    with pytest.raises(UserError, match="a is nan there, 1 here"):
        RunFolder.open(tmp_path, {**config, "a": 1})
