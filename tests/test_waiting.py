"""Every program of ours tells OpenMP how to wait before torch loads it, unless the user has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.py"), *(ROOT / "jointdreamer").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
ASKS = """
import os, runpy, sys

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Torch())
program, sys.argv = sys.argv[1], sys.argv[1:]
if "/" in program:
    runpy.run_module(program.removesuffix(".py").replace("/", "."), run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, os.getcwd())
    runpy.run_path(program, run_name="__main__")
"""


def waiting(program: str, *words: str, **env: str) -> str:
    """How OpenMP is told to wait in the moment that `program` imports torch; empty where it never does."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", ASKS, program, *words], cwd=ROOT, env={**clean, **env}, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_wait_passively(program):
    assert waiting(program, "prompt=a") in ("passive", "")


def test_the_scripts_do_import_torch():
    assert waiting("train.py", "prompt=a") == waiting("jointdreamer/doctor.py") == "passive"


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "9")])
def test_a_user_s_own_choice_stays(name, value):
    assert waiting("train.py", "prompt=a", **{name: value}) == ("active" if value == "active" else "None")
