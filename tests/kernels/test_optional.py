"""Compiled paths are optional as a whole: the product without them, in processes where Numba cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jointdreamer import kernels

ROOT = Path(__file__).parents[2]


@pytest.fixture
def python(tmp_path):
    """python(*words) -> the finished process, which has no Numba and JOINTDREAMER_KERNELS=off."""
    (tmp_path / "absent" / "numba").mkdir(parents=True)
    (tmp_path / "absent" / "numba" / "__init__.py").write_text("raise ImportError('there is no Numba here')")
    path = os.pathsep.join(map(str, (tmp_path / "absent", ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "JOINTDREAMER_KERNELS": "off", "HF_HUB_OFFLINE": "1"}

    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_a_run_needs_no_kernels(python, tiny_run, tmp_path):
    free = ("field.encoding.backend=auto", "renderer.backend=auto", "device=cpu")
    done = python(str(ROOT / "train.py"), "prompt=a red robot", "energy=none", *tiny_run(*free))
    assert done.returncode == 0, done.stderr
    assert "encoding on torch, rays on torch" in done.stdout + done.stderr
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["device"].startswith("cpu")


RAY_CASTER = """
import importlib, sys
import numpy as np
for name in sys.argv[1:]:
    importlib.import_module(name)
from jointdreamer.toybox.raycast import SPHERE, Solid, pack, render
c2w = np.eye(4)
c2w[2, 3] = 3.0
rgba, depth, _ = render(pack([Solid(SPHERE, (0, 0, 0), (1, 1, 1), (1, 0, 0))]), c2w[None], np.array([0.8]), 5, 1)
print(round(float(depth[0, 2, 2]), 6), float(rgba[0, 0, 0, 3]))
assert not any(name.split(".")[0] in ("numba", "triton", "nerfacc") for name in sys.modules)
"""


def test_every_module_but_the_kernels_is_imported_without_them_and_the_ray_caster_draws(python):
    files = sorted((ROOT / "jointdreamer").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    done = python("-c", RAY_CASTER, *(name for name in names if "kernels." not in name and "__main__" not in name))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2.0", "0.0"]


@pytest.mark.kernels
def test_off_and_a_missing_numba_turn_them_off(monkeypatch):
    assert kernels.enabled()
    monkeypatch.setenv("JOINTDREAMER_KERNELS", "Off")
    assert not kernels.enabled() and kernels.compiled_loop(abs) is abs
    monkeypatch.delenv("JOINTDREAMER_KERNELS")
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert not kernels.enabled()
