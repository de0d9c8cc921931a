"""Energies by name, the user's own, and what is said when there is none."""

import pytest

from jointdreamer.energies.base import Energy
from jointdreamer.energies.none import NoEnergy
from jointdreamer.energies.random import RandomEnergy
from jointdreamer.energies.registry import ENERGIES, build_energy
from jointdreamer.errors import UserError

MINE = """
from jointdreamer.energies.base import Energy

class MirrorEnergy(Energy):
    def __init__(self, strength=1.0):
        super().__init__()
        self.strength = strength

    def forward(self, views):
        return -self.strength * (views.x0 - views.x0.flip(-1)).square().flatten(1).sum(1)

class NotAnEnergy:
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mirror_energy_of_mine.py").write_text(MINE)
    (tmp_path / "energy_with_a_hole.py").write_text("import a_package_that_is_nowhere")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_short_names():
    assert isinstance(build_energy("none"), NoEnergy)
    random = build_energy("random", scale=2.0)
    assert isinstance(random, RandomEnergy) and random.scale == 2.0
    assert {"none", "mvs", "random"} <= set(ENERGIES)


def test_a_user_s_own_class(mine):
    energy = build_energy("mirror_energy_of_mine:MirrorEnergy", strength=3.0)
    assert isinstance(energy, Energy) and energy.strength == 3.0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mvd", {}, "choose one of none, .*mvs, .*random"),
        ("no_such_module:Energy", {}, "PYTHONPATH"),
        ("mirror_energy_of_mine:Mirror", {}, "no class 'Mirror'"),
        ("mirror_energy_of_mine:NotAnEnergy", {}, "derives from Energy"),
        ("mirror_energy_of_mine:MirrorEnergy", {"weight": 1}, "unknown key 'energy.weight': there are strength"),
        ("mvs", {}, "source"),
    ],
)
def test_mistakes_are_one_line(mine, name, options, words):
    with pytest.raises(UserError, match=words) as error:
        build_energy(name, **options)
    assert "\n" not in str(error.value)


def test_a_fault_inside_a_user_s_module_keeps_its_traceback(mine):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_nowhere"):
        build_energy("energy_with_a_hole:Energy")
