import pytest

from jointdreamer.cli.main import composed
from jointdreamer.cli.messages import explain
from jointdreamer.errors import UserError


@pytest.mark.parametrize(
    ("key", "there"), [("nmae", "prompt, "), ("schedule.stepz", "steps, resolution"), ("cameras.fov", "fovy_deg")]
)
def test_an_unknown_key_names_the_known_ones(key, there):
    said = explain(f"Could not override '{key}'.\nKey is not in struct", "config")
    assert key in said and there in said


@pytest.mark.parametrize("word", ["experiment=image/zero123", "experiment=agp"])
def test_an_experiment_of_other_models_names_those_that_it_has(word):
    with pytest.raises(UserError) as caught:
        composed("config", [word], "sdxl")
    assert str(caught.value) == f"{word} is made for models=sd21 and toybox, not for sdxl: take one of them"


def test_a_choice_in_a_folder_of_folders_names_the_others():
    with pytest.raises(UserError, match="unknown given_image 'zero123': choose one of sd21/imagedream,"):
        composed("config", ["given_image=zero123"], "sd21")
