"""Imports point down (CONTRIBUTING.md, Where a line belongs), read from the source without importing anything."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jointdreamer"

GROUND = {
    "arguments",
    "errors",
    "files",
    "reading",
    "signals",
    "project",
    "terminal",
    "words",
}  # below all layers: everything may import these, they import nothing of ours but each other
LAYERS = {
    0: {"compiled", "schedules", "cameras", "diffusion", "optim", "images", "logger", "run"},
    1: {"fields", "formats", "models", "prompts", "metrics"},
    2: {"renderers", "guidance", "energies", "export", "data"},
    3: {"distillation", "regularizers", "outputs", "memory", "kernels", "sweeps"},
    # a whole world that uses the rest, its own table of runs included; whether two configs compute the same
    4: {"toybox", "comparison"},
    5: {"cli", "evaluation"},  # what the scripts beside the package share; runs that are finished, looked at
    6: {"doctor", "weights", "tables", "sample2d", "__main__"},  # scripts of their own, `python -m jointdreamer.doctor`
}
LAYER_OF = {unit: layer for layer, units in LAYERS.items() for unit in units}
SCRIPTS_ONLY = {"hydra", "omegaconf"}


def imported(tree: ast.AST, package: str) -> set[str]:
    """The full names of all modules that a module in `package` imports, wherever in it, type checking included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from jointdreamer import cameras` names a module by what it imports
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "jointdreamer" else {module}
    return names


def unit_of(module: str) -> str | None:
    """jointdreamer.scenes.nerf.base -> fields; None for modules that are not ours."""
    parts = module.split(".")
    return parts[1] if parts[0] == "jointdreamer" and len(parts) > 1 else None


def complaints(unit: str, modules: set[str]) -> list[str]:
    found = [
        f"{unit} imports {module}: only the scripts know Hydra"
        for module in modules
        if module.split(".")[0] in SCRIPTS_ONLY and (unit == "evaluation" or LAYER_OF.get(unit, 0) < LAYER_OF["cli"])
    ]
    for other in {unit_of(module) for module in modules} - {None, unit} - GROUND:
        if unit in GROUND or other not in LAYER_OF or LAYER_OF[other] >= LAYER_OF[unit]:
            found.append(f"{unit} (layer {LAYER_OF.get(unit, 'ground')}) imports {other} ({LAYER_OF.get(str(other))})")
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(file):
    relative = file.relative_to(PACKAGE)
    unit = relative.parts[0].removesuffix(".py")
    assert unit in LAYER_OF or unit in GROUND, f"{relative} has no layer: give it one here and in CONTRIBUTING.md"
    package = ".".join(["jointdreamer", *relative.parts[:-1]])
    assert complaints(unit, imported(ast.parse(file.read_text(encoding="utf-8")), package)) == []


def test_nobody_imports_the_scripts():
    scripts = {path.stem for path in ROOT.glob("*.py")} - {"setup"}
    for file in FILES:
        assert not imported(ast.parse(file.read_text(encoding="utf-8")), "jointdreamer") & scripts, file


def test_the_check_sees_what_it_should():
    def check(unit, source, package="jointdreamer"):
        return complaints(unit, imported(ast.parse(source), package))

    assert check("fields", "import torch\nfrom jointdreamer.cameras import rays\nfrom jointdreamer import errors") == []
    assert check("fields", "from .base import Field", "jointdreamer.fields") == []
    assert check("energies", "def f():\n    from jointdreamer.priors.base import Guidance")
    assert check("energies", "from ..guidance import base", "jointdreamer.energies")
    assert check("energies", "from jointdreamer import guidance")
    assert check("cameras", "import jointdreamer.schedules")
    assert check("fields", "import jointdreamer.scenes.nerf.volume")
    assert check("files", "from jointdreamer.runs.folder import slug")
    assert check("run", "from omegaconf import DictConfig")
    assert check("evaluation", "import hydra")
    assert check("toybox", "from jointdreamer.evaluation.runs import Run")
