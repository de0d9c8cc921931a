import pytest

from jointdreamer.cli.messages import explain


@pytest.mark.parametrize(
    ("key", "there"), [("nmae", "prompt, "), ("schedule.stepz", "steps, resolution"), ("cameras.fov", "fovy_deg")]
)
def test_an_unknown_key_names_the_known_ones(key, there):
    said = explain(f"Could not override '{key}'.\nKey is not in struct", "config")
    assert key in said and there in said
