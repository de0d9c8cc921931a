"""Do the declared ranges of torch, diffusers and transformers hold? python -m benchmarks.version_ranges

Every combination of the oldest and the newest release that pyproject.toml allows of the three, each with whatever else
pip then chooses: the smallest toybox run of every energy, stock diffusers on the shipped folder, and the tests of what
reads checkpoints. A combination that pip itself refuses is named and does not count. Needs pip, an index, and for each
release of torch about 6 GB; --folder keeps the environments for the next time. Run before a release.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
RANGED = ("torch", "diffusers", "transformers")
ENERGIES = ("none", "mvs", "cls", "i2i")
TESTS = ("tests/weights", "tests/priors", "tests/classifier/test_model.py", "tests/evaluation/test_networks.py")
TESTS += ("tests/toybox/test_weights.py",)
RUN = ("models=toybox", "schedule=smoke", "schedule.steps=3", "device=cpu", "output.views=1", "output.resolution=16")
RUN += ("output.mesh_resolution=16", "field.encoding.backend=torch", "renderer.backend=torch")


def declared() -> dict[str, Requirement]:
    """The base requirements of pyproject.toml, by name."""
    if sys.version_info < (3, 11):
        raise SystemExit("error: reading pyproject.toml needs Python 3.11 or newer")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {one.name: one for one in map(Requirement, project["dependencies"])}


def ends(requirement: Requirement) -> dict[str, str]:
    """What pip is asked for at both ends of a range; the newest is whatever pip finds in it."""
    lowest = next(one.version for one in requirement.specifier if one.operator == ">=")
    return {"oldest": f"{requirement.name}=={lowest}", "newest": str(requirement)}


def combinations(wanted: dict[str, Requirement]) -> list[dict[str, str]]:
    """Which end of each, those of one torch together: they share an environment."""
    ways = itertools.product(("oldest", "newest"), repeat=len(RANGED))
    return [dict(zip(RANGED, way, strict=True)) for way in ways if set(RANGED) <= wanted.keys()]


def install(folder: Path, way: dict[str, str], wanted: dict[str, Requirement]) -> tuple[Path, str]:
    """The environment's python after pip has made the combination, and pip's refusal in one line, or nothing."""
    place = folder / re.sub(r"[^\w.]+", "-", ends(wanted["torch"])[way["torch"]])
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    asked = [ends(wanted[name])[way[name]] for name in RANGED]
    asked += [str(one) for name, one in wanted.items() if name not in RANGED] + ["pytest", "pytest-timeout"]
    command = [str(python), "-m", "pip", "install", "-q", "--upgrade", "--upgrade-strategy", "only-if-needed", *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return python, (said[0] if said else done.stderr[-200:]) if done.returncode else ""


def failures(python: Path, out: Path) -> list[str]:
    """What does not work in an environment, each in one line."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    environment = {"OMP_NUM_THREADS": "2", **environment, "JOINTDREAMER_CACHE": str(out / "cache")}
    stock = "from jointdreamer.toybox.retrieval import sample; sample(['a red robot'], 2, 5.0, 0)"
    steps = {f"energy={e}": ["train.py", "prompt=a red robot", f"energy={e}", *RUN, f"out_dir={out}"] for e in ENERGIES}
    steps |= {
        "stock diffusers": ["-c", stock],
        "tests": ["-m", "pytest", "-q", "-m", "not gpu and not weights", *TESTS],
    }
    wrong = []
    for name, words in steps.items():
        done = subprocess.run([str(python), *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            wrong += [f"{name}: {line}" for line in lines if line.startswith("FAILED")] or [f"{name}: {lines[-1]}"]
    return wrong


def versions(python: Path) -> str:
    code = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {RANGED}), sep=', ')"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip()


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.version_ranges", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", type=Path, help="where the environments are made and kept (a temporary folder)")
    parser.add_argument("--torch", choices=("oldest", "newest"), help="only this end of torch's range")
    args = parser.parse_args(words)
    wanted, bad = declared(), 0
    with tempfile.TemporaryDirectory(prefix="versions-") as scratch:
        for k, way in enumerate(combinations(wanted)):
            if args.torch not in (None, way["torch"]):
                continue
            began = time.time()
            python, refused = install((args.folder or Path(scratch)).resolve(), way, wanted)
            named = ", ".join(f"{end} {name}" for name, end in way.items())
            if refused:
                # at the two ends of all ranges nothing may be refused: these are environments that we promise
                bad += len(set(way.values())) == 1
                print(f"{named}: pip refuses it: {refused}", flush=True)
                continue
            wrong = failures(python, Path(scratch) / f"runs-{k}")
            bad += bool(wrong)
            verdict = "; ".join(wrong) if wrong else "works"
            print(f"{named} ({versions(python)}): {verdict} [{time.time() - began:.0f} s]", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
