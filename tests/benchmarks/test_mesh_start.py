"""The benchmark of meshes before training: a ball of few faces has an outline that is blended, one of many has not."""

import pytest

from benchmarks.mesh_start import blended, main


def test_the_outline_of_a_fine_ball_is_blended_by_walking_only():
    assert blended(1, 64, False) > 0.3 > 0.05 > blended(5, 64, False)
    assert blended(5, 64, True) > 0.3


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_an_option_that_is_none_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--colour"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
