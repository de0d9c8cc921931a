"""Imports point down and never run in a circle (CONTRIBUTING.md, Where a line belongs), read from the source.

Seen are imports anywhere in a file, relative ones, those for type checking, and modules that a string names: what a
registry or `import_module` loads ("jointdreamer.energies.none:NoEnergy").
"""

import ast
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jointdreamer"

LAYERS = (  # from the ground up: a room imports its own files and those of rooms in lines above
    {"errors"},
    {"files", "reading", "project", "terminal", "arguments", "ranks", "machine"},
    {"cameras", "schedules", "diffusion", "images", "metrics", "optim", "precision"},
    {"formats", "weights", "reference"},
    {"kernels"},
    {"scenes"},
    {"priors"},
    {"classifier"},
    {"energies"},
    {"distillation"},
    {"runs"},
    {"comparison"},
    {"viewer"},
    {"toybox"},
    {"data"},
    {"evaluation"},
    {"cli"},
    {"tables", "doctor", "sample2d", "export"},
    {"view"},
    {"__main__"},
)
HYDRA = {"hydra", "omegaconf"}


def room(module: str) -> str:
    """jointdreamer.scenes.nerf.base -> scenes; a room's __main__ is a script."""
    return "__main__" if module.endswith(".__main__") else (module.split(".") + [""])[1]


def height(module: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room(module) in rooms)


def imported(source: str, package: str, modules: Iterable[str]) -> set[str]:
    """The modules of ours, and the foreign ones, that a file in `package` imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            within = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else module for name in within}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {name for name in re.findall(r"^(jointdreamer(?:\.\w+)+)", node.value) if name in modules}
    return found - {"jointdreamer"}


def complaints(module: str, found: Iterable[str]) -> list[str]:
    said = []
    for other in found:
        if other.split(".")[0] in HYDRA and room(module) not in {"cli", "__main__", "tables", "doctor", "sample2d"}:
            said.append(f"{module} imports {other}: only scripts and cli/ know Hydra")
        ours = other.startswith("jointdreamer.") and room(other) != room(module)
        if ours and height(other) >= height(module):
            said.append(f"{module} imports {other}, which does not lie below it")
    return said


FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file != PACKAGE / "__init__.py"
}


def graph() -> Mapping[str, set[str]]:
    found = {}
    for module, file in FILES.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        found[module] = imported(file.read_text(encoding="utf-8"), package, FILES)
    return found


GRAPH = graph()


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    assert height(module) >= 0
    assert complaints(module, GRAPH[module]) == []


def test_no_two_files_import_each_other_in_a_circle():
    ours = {module: {other for other in found if other in FILES and other != module} for module, found in GRAPH.items()}
    for module in CIRCLES:
        ours[module] -= CIRCLES[module]
    TopologicalSorter(ours).prepare()


CIRCLES = {  # to be removed
    "jointdreamer.priors.novel_view": {"jointdreamer.priors.zero123", "jointdreamer.priors.wonder3d"},
}


def test_every_room_has_a_layer():
    assert {room(module) for module in FILES} == set().union(*LAYERS)


def test_nobody_imports_the_scripts():
    scripts = {path.stem for path in ROOT.glob("*.py")} - {"setup"}
    for module, found in GRAPH.items():
        assert not found & scripts, module


def test_the_check_sees_what_it_should():
    def check(module, source, package="jointdreamer"):
        return complaints(module, imported(source, package, FILES))

    fine = "import torch\nfrom jointdreamer.cameras import rays\nfrom jointdreamer import errors"
    assert check("jointdreamer.scenes.background", fine) == []
    assert check("jointdreamer.scenes.background", "from .shading import Shading", "jointdreamer.scenes") == []
    assert check("jointdreamer.priors.base", "def f():\n    from jointdreamer.energies.base import Views")
    assert check("jointdreamer.priors.base", "from ..energies import base", "jointdreamer.priors")
    assert check("jointdreamer.priors.base", "from jointdreamer import energies")
    assert check("jointdreamer.priors.base", "import_module('jointdreamer.energies.none')")
    assert check("jointdreamer.priors.base", "NAMES = {'none': 'jointdreamer.energies.none:NoEnergy'}")
    assert check("jointdreamer.cameras", "import jointdreamer.schedules")
    assert check("jointdreamer.runs.folder", "from omegaconf import DictConfig")
    assert check("jointdreamer.evaluation.runs", "import hydra")
    assert check("jointdreamer.toybox.table", "from jointdreamer.evaluation.runs import Run")
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
