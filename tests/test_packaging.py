"""The four files that make an environment say the same thing. Read only: nothing is installed here."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
INSTALL = '-c constraints.txt -e ".[dev]"'
CONDA_ALLOWED = {"python", "pip", "git", "cuda-toolkit", "gcc", "gxx"}
# they depend on torchvision, which pulls the newest torch with it
PULL_TORCHVISION = {"torchvision", "lpips", "clean-fid", "timm", "open-clip-torch", "piq", "torch-fidelity", "xformers"}


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def project() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wanted(project) -> list[Requirement]:
    """The direct requirements, extras included."""
    extras = project["project"]["optional-dependencies"].values()
    return [Requirement(text) for group in [project["project"]["dependencies"], *extras] for text in group]


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    return {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines("constraints.txt"))
    }


def test_constraints_are_pins_of_public_releases_each_once(pinned):
    assert len(pinned) == len(lines("constraints.txt"))
    for line in lines("constraints.txt"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line  # no +cpu, no url, no path
    assert pinned["torch"] == "2.13.0"


def test_every_requirement_is_pinned_inside_its_range(wanted, pinned):
    for requirement in wanted:
        assert requirement.url is None
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} and {version}"


def test_every_requirement_has_a_lower_and_an_upper_bound(wanted):
    for requirement in wanted:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, str(requirement)


def test_torch_stays_below_the_release_that_has_no_cpu_wheel_here(wanted):
    [torch] = [requirement for requirement in wanted if requirement.name == "torch"]
    assert torch.specifier.contains("2.6.0") and torch.specifier.contains("2.13.0+cpu")
    assert not torch.specifier.contains("2.14.0")


def test_nothing_pulls_torchvision(wanted, pinned):
    assert not {canonicalize_name(requirement.name) for requirement in wanted} & PULL_TORCHVISION
    assert not pinned.keys() & PULL_TORCHVISION


def test_the_constraints_are_whole(pinned):
    """Everything that the pinned packages need, as installed here, is pinned too."""
    import importlib.metadata

    for name in pinned:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
        for need in map(Requirement, needs):
            # setuptools is the business of the build, and of the virtual environment
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in pinned.keys() | {"setuptools"}, f"{name} needs {need}"


def test_requirements_txt_makes_the_same_environment():
    assert lines("requirements.txt") == ["-c constraints.txt", "-e .[dev]"]


def test_environment_yml_adds_only_python_and_tools_to_it(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment.keys() == {"name", "channels", "dependencies"}
    assert environment["name"] == "jointdreamer" and environment["channels"] == ["conda-forge"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    [half] = [entry for entry in environment["dependencies"] if not isinstance(entry, str)]
    assert half == {"pip": lines("requirements.txt")}
    names = [re.split(r"[=<>!]", entry)[0] for entry in conda]
    assert set(names) <= CONDA_ALLOWED and {"python", "pip"} <= set(names)
    [python] = [entry.split("=")[1] for entry in conda if entry.startswith("python=")]
    assert SpecifierSet(project["project"]["requires-python"]).contains(python)


def test_ci_installs_as_the_readme_says():
    ci = ROOT / ".ci" / "run"
    assert f'pip" install -qq {INSTALL}' in ci.read_text(encoding="utf-8")
    assert f'pip" install -qq {INSTALL.replace("dev", "kernels")}' in ci.read_text(encoding="utf-8")
    assert os.name == "nt" or ci.stat().st_mode & stat.S_IXUSR
    readme = ROOT / "README.md"
    if readme.exists():
        assert f".venv/bin/pip install {INSTALL}" in readme.read_text(encoding="utf-8")


def test_the_package_is_found_with_its_weights(project):
    tools = project["tool"]["setuptools"]
    assert tools["packages"]["find"]["include"] == ["jointdreamer*", "hydra_plugins*"]
    report = ["evaluation/report/page/*", "evaluation/report/vendor/**/*"]
    assert tools["package-data"]["jointdreamer"] == ["toybox/weights/**/*", *report]
    folders = {path.parent for path in (ROOT / "jointdreamer").rglob("*.py")}
    missing = [folder for folder in folders if not (folder / "__init__.py").exists()]
    assert missing == [], "setuptools would leave these out"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as `pip install .` lays it down."""
    pytest.importorskip("setuptools")
    site = tmp_path_factory.mktemp("site")
    build = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(site), "build_py", "-d", str(site)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return site


@pytest.mark.parametrize(
    "words",
    [
        ["jointdreamer.weights", "list", "models=toybox"],
        ["jointdreamer", "weights", "list", "models=toybox"],
        ["jointdreamer", "train", "--cfg=job", "prompt_file=prompts/toybox16.txt", "prompt_id=0", "models=toybox"],
        ["jointdreamer", "evaluate", "--cfg=job"],
        ["jointdreamer", "train-classifier", "--cfg=job", "models=toybox"],
        ["jointdreamer", "sample2d", "--cfg=job", "models=toybox"],
    ],
    ids=" ".join,
)
def test_the_commands_find_their_configs_after_an_installation(installed, tmp_path, words):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stdout or "--cfg=job" in words
    assert (installed / "hydra_plugins" / "jointdreamer_sweeps.py").is_file()


def test_a_prompt_file_of_the_project_is_found_from_anywhere(tmp_path, monkeypatch):
    from jointdreamer.priors.prompts import read_prompts

    monkeypatch.chdir(tmp_path)
    assert len(read_prompts("prompts/toybox16.txt")) == 16


def test_an_unknown_command_names_the_known_ones():
    done = subprocess.run([sys.executable, "-m", "jointdreamer", "tain"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown command 'tain': choose one of train, ")


def test_every_module_we_import_is_a_requirement(wanted):
    """Top-level imports of the package and the scripts, against the names that the base dependencies install."""
    import ast

    installs = {"hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage"}
    names = [canonicalize_name(requirement.name) for requirement in wanted]
    known = {installs.get(name, name.replace("-", "_")) for name in names} | {"jointdreamer"} | sys.stdlib_module_names
    optional = {
        "tinycudann",
        "triton",
        "nerfacc",
        "nvdiffrast",
        "bitsandbytes",
        "rembg",
    }  # only ever behind an ImportError
    scripts = set(ROOT.glob("*.py")) - {ROOT / "setup.py"}  # which the build alone runs
    for file in [*(ROOT / "jointdreamer").rglob("*.py"), *scripts]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = {node.module or ""}
            else:
                continue
            tops = {module.split(".")[0] for module in found}
            assert tops <= known | optional, f"{file.relative_to(ROOT)}: {tops - known}"
