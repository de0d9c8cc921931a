"""The autoencoder's PSNR is the round trip's, and the command says it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from jointdreamer.toybox import autoencoder
from jointdreamer.toybox.world import FIRST


class Dimmer:
    """An autoencoder that gives back every image darker by 0.1."""

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x))

    def decode(self, z):
        return SimpleNamespace(sample=z - 0.2)


def test_the_psnr_is_that_of_the_error():
    rgb = torch.rand(5, 3, 64, 64) * 0.8 + 0.1
    back, psnr = autoencoder.round_trip(Dimmer(), rgb, batch=2)
    torch.testing.assert_close(back, rgb - 0.1)
    torch.testing.assert_close(psnr, torch.full((5,), 20.0))


def test_the_views_are_pictures_of_held_out_objects_and_the_same_again():
    views = autoencoder.held_out_views(2, 93, FIRST)
    assert views.shape == (8, 3, 64, 64) and views.min() >= 0 and views.max() <= 1
    assert torch.equal(views, autoencoder.held_out_views(2, 93, FIRST))


def test_the_command_measures_the_package_s_and_names_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["autoencoder", "--objects", "2", "--sheet", str(tmp_path / "sheet.png")])
    assert autoencoder.main() == 0
    said = capsys.readouterr().out
    assert "8 views of 2 held-out objects" in said and float(said.split(": ")[1].split(" dB")[0]) > 24
    assert (tmp_path / "sheet.png").exists()
    monkeypatch.setattr(sys, "argv", ["autoencoder", str(tmp_path / "nothing")])
    assert autoencoder.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", ["autoencoder", "--objects", "0"])
        autoencoder.main()
