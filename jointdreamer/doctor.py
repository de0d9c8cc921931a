"""What this machine can do and what is missing: python -m jointdreamer.doctor [--json] [models=sdxl] [KEY=VALUE ...]

Packages, accelerator, memory and disk, pretrained models at hand, optional parts, and which commands will therefore
work. It asks no network, and what is missing is told, not a failure: it exits with 0.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jointdreamer.cli import main as cli
from jointdreamer.cli.messages import complain
from jointdreamer.errors import UserError, printable
from jointdreamer.project import PACKAGE, ROOT
from jointdreamer.terminal import safe_output

INSTALL = '.venv/bin/pip install -c constraints.txt -e ".[dev]"'
# Optional parts and how to get them; what is found may still refuse at its first use (a CUDA build without CUDA)
OPTIONAL = {
    "triton": "comes with a CUDA build of torch on Linux",
    "nerfacc": 'pip install -e ".[cuda]"',
    "tinycudann": "see https://github.com/NVlabs/tiny-cuda-nn, bindings/torch; needs nvcc",
}


def main(words: Sequence[str]) -> int:
    """Print the report; 0, or 2 for a word that no script takes."""
    safe_output()
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        report = examine([word for word in words if word != "--json"])
    except UserError as error:
        return complain(error)
    if "--json" in words:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(map(printable, lines(report))))
    return 0


def examine(words: Sequence[str]) -> dict[str, Any]:
    """The report as plain values, with the settings that train.py would get."""
    report: dict[str, Any] = {"python": platform.python_version(), "packages": packages()}
    report |= {"machine": machine(), "optional": optional(), "models": {}}
    if not_installed(report):  # then what reads the models may not even be imported
        report["commands"] = commands(report)
        return report
    given = next((word.partition("=")[2] for word in words if word.startswith("models=")), None)
    for name in [given] if given else ["toybox", "sd21"]:
        cfg = cli.composed("config", list(words), models=name)
        report["models"][name] = roles(cfg["models"])
    report["models"].get("toybox", {}).update(bundled())
    report["commands"] = commands(report)
    return report


def packages() -> dict[str, dict[str, Any]]:
    """Name -> version found (or None), versions wanted, and the problem in words (or None)."""
    found = {}
    for text in requirements():
        match = re.match(r"([\w.-]+)\s*([^;]*)", text)
        name, wanted = match.groups() if match else (text, "")
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = {"version": None, "wanted": wanted, "problem": "not installed"}
            continue
        problem = None if inside(version, wanted) else f"version {version} is outside {wanted}"
        found[name] = {"version": version, "wanted": wanted, "problem": problem}
    return found


def not_installed(report: Mapping[str, Any]) -> list[str]:
    """The packages that are missing."""
    return [name for name, one in report["packages"].items() if one["version"] is None]


def requirements() -> list[str]:
    """What the package needs to run: of the repository that it lies in, else of its installation."""
    project = ROOT / "pyproject.toml"
    if project.is_file() and sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    try:
        needs = importlib.metadata.requires("jointdreamer") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [need for need in needs if "extra ==" not in need]


def inside(version: str, wanted: str) -> bool:
    """Whether a version is inside a range such as ">=2.4,<2.14"; yes if that cannot be decided here."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)


def machine() -> dict[str, Any]:
    """The accelerator, free memory and free disk, GB (1e9 bytes)."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_free_gb": memory_free_gb(),
        "disk_free_gb": {"here": disk_free_gb(Path.cwd())},
        "gpu": None,
    }
    try:
        from huggingface_hub import constants

        found["disk_free_gb"]["hub cache"] = disk_free_gb(Path(constants.HF_HUB_CACHE))
        found["hub_cache"] = str(constants.HF_HUB_CACHE)
        found["offline"] = bool(constants.HF_HUB_OFFLINE)
    except ImportError:
        pass
    try:
        import torch
    except (ImportError, OSError):
        return found
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["gpu"] = {
            "name": torch.cuda.get_device_name(),
            "memory_free_gb": free / 1e9,
            "memory_gb": total / 1e9,
            "cuda": torch.version.cuda,
        }
    return found


def memory_free_gb() -> float | None:
    """Memory that programs can still get; None where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 / 1e9 if found else None


def disk_free_gb(path: Path) -> float | None:
    """Room on the disk of a folder that may not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free / 1e9
    except OSError:
        return None


def optional() -> dict[str, str | None]:
    """Optional part -> its version (or how one is logged in), None without it. Nothing is imported."""
    found: dict[str, str | None] = {}
    for name in OPTIONAL:
        there = importlib.util.find_spec(name) is not None
        try:
            found[name] = importlib.metadata.version(name) if there else None
        except importlib.metadata.PackageNotFoundError:
            found[name] = "installed"
    found["wandb login"] = wandb_login()
    return found


def wandb_login() -> str | None:
    """Where wandb finds a key, or None: runs are then kept offline."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    import netrc

    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return str(file) if netrc.netrc(file).authenticators("api.wandb.ai") else None
    except (OSError, netrc.NetrcParseError):
        return None


def roles(models: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Role -> title, where it is (or None), what is wrong with it (or None), the energies that need it, size."""
    from jointdreamer.weights.find import gate, is_remote, locate, sources
    from jointdreamer.weights.folders import damaged, lacking
    from jointdreamer.weights.roles import ROLES, about

    found = {}
    for role in [role for role in ROLES if role in models]:
        part = models[role]
        known, path, problem = about(role, part), None, None
        try:
            path = locate(part, role)
            parts = lacking(path, known.needs) if path.is_dir() else []
            problem = f"no weights in {', '.join(parts)}" if parts else damaged(path)
        except UserError as error:
            # what can be downloaded is merely not there yet; a path that was given is a mistake
            problem = None if any(map(is_remote, sources(part["source"], role))) else str(error)
        found[role] = {
            "title": known.title,
            "path": path and str(path),
            "problem": problem,
            "needed_by": list(known.needed_by),
            "use": known.use,
            "gigabytes": known.gigabytes,
            "memory_gb": known.memory_gb,
            "t5_gb": known.t5_gb,
            "gate": next(filter(None, map(gate, sources(part["source"], role))), None),
        }
    return found


def bundled() -> dict[str, dict[str, Any]]:
    """The other weights of the toybox, as `roles` has them."""
    from jointdreamer.weights.folders import damaged

    found = {}
    for name, title in (("clip", "CLIP of the toybox"), ("judge", "judge of the toybox's table")):
        path = PACKAGE / "toybox" / "weights" / name
        there = path.is_dir()
        problem = damaged(path) if there else f"{path} is missing"
        found[name] = {"title": title, "path": str(path) if there else None, "problem": problem, "needed_by": []}
    return found


def commands(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The main commands: whether each will work, and why or what to do."""
    done = []
    missing = not_installed(report)
    broken = f"not installed: {', '.join(missing)}: {INSTALL}" if missing else None
    gpu = report["machine"]["gpu"]

    def say(command: str, works: bool, note: str = "") -> None:
        done.append({"command": command, "works": works and not broken, "note": broken or note})

    if broken:
        say("python train.py", False)
    for name, there in report["models"].items():
        for energy in dict.fromkeys(energy for one in there.values() for energy in one["needed_by"]):
            needed = {role: one for role, one in there.items() if energy in one["needed_by"] or role == "text_to_image"}
            wrong = [one["problem"] for one in needed.values() if one["problem"]]
            absent = [role for role, one in needed.items() if not one["path"]]
            small = too_small(report["machine"], needed.get("text_to_image", {}))
            command = f'python train.py models={name} energy={energy} prompt="..."'
            if name == "toybox":
                note = "minutes on a CPU"
            else:
                note = "" if gpu else "but on a CPU it takes days: models=toybox, or a machine with CUDA"
            if wrong:
                note = wrong[0]
            elif absent:
                note = (
                    f"first: python -m jointdreamer.weights prefetch {' '.join(absent)}{of_models(name)} "
                    "(or models.ROLE.source=FOLDER)"
                )
                if closed := next(filter(None, (needed[role].get("gate") for role in absent)), None):
                    note = f"{closed}; then: {note.removeprefix('first: ')}"
            elif small:
                note = small
            say(command, not wrong and not absent and not small, note)
    toybox = report["models"].get("toybox", {})
    if "judge" in toybox:
        wrong = [one["problem"] for one in toybox.values() if one["problem"]]
        for command in ("python -m jointdreamer.toybox.table", "python evaluate.py runs=... of models=toybox"):
            say(command, not wrong, wrong[0] if wrong else "")
        say("python train_classifier.py models=toybox", True, "from scratch, an hour on a CPU")
    sd21 = report["models"].get("sd21", {})
    for role, command in {
        "clip": "python evaluate.py runs=... of models=sd21",
        "classifier_backbone": "python train_classifier.py models=sd21 data.folder=...",
    }.items():
        if role in sd21:
            there = sd21[role]["path"] and not sd21[role]["problem"]
            note = sd21[role]["problem"] or f"first: python -m jointdreamer.weights prefetch {role}"
            say(command, bool(there), "" if there else note)
    login = report["optional"]["wandb login"]
    note = f"logged in by {login}" if login else "offline, in the run's folder; `wandb login` sends it"
    say("python train.py logger=wandb ...", True, note)
    return done


def of_models(name: str) -> str:
    """The word that `python -m jointdreamer.weights` needs for these models."""
    return "" if name == "sd21" else f" models={name}"


def too_small(machine: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """What this machine lacks for the networks of a model, in words; nothing for one that fits or is not known."""
    gpu, free = machine["gpu"], machine["memory_free_gb"]
    need, t5 = model.get("memory_gb"), model.get("t5_gb") or 0.0
    if gpu and need and need > gpu["memory_gb"]:
        return f"its networks take {need:g} GB, the GPU has {gpu['memory_gb']:.1f} GB"
    if t5 and free is not None and t5 > free:
        spare = "; models.text_to_image.text_encoders=2 leaves T5 out" if "3.5" in model["title"] else ""
        return f"its T5 takes about {t5:g} GB of memory while it embeds the prompt, {free:.1f} GB are free{spare}"
    return ""


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    said = [f"python {report['python']}, {report['machine']['platform']}", "", "packages"]
    bad = {name: one for name, one in report["packages"].items() if one["problem"]}
    good = [f"{name} {one['version']}" for name, one in report["packages"].items() if not one["problem"]]
    said += [f"    {', '.join(good[i : i + 6])}" for i in range(0, len(good), 6)]
    said += [f"    {name}: {one['problem']} (wanted {one['wanted']}): {INSTALL}" for name, one in bad.items()]
    machine, gpu = report["machine"], report["machine"]["gpu"]
    said += ["", "machine"]
    said.append(
        f"    {gpu['name']}, {gpu['memory_free_gb']:.1f} of {gpu['memory_gb']:.1f} GB free, CUDA {gpu['cuda']}"
        if gpu
        else "    no CUDA device that torch sees"
    )
    memory = machine["memory_free_gb"]
    free = [f"memory {memory:.1f} GB" if memory is not None else "memory not known"]
    free += [f"disk {where} {room:.1f} GB" for where, room in machine["disk_free_gb"].items() if room is not None]
    said.append(f"    {machine['cpu_count']} CPU cores; free: {', '.join(free)}")
    if machine.get("offline"):
        said.append("    HF_HUB_OFFLINE is set: nothing will be downloaded")
    said += ["", "optional"]
    for name, version in report["optional"].items():
        said.append(
            f"    {name}: {version or 'no'}" + (f" ({OPTIONAL[name]})" if not version and name in OPTIONAL else "")
        )
    for name, there in report["models"].items():
        said += ["", f"models={name}"]
        for role, one in there.items():
            where = one["problem"] or one["path"] or "not on this machine"
            if not one["path"] and not one["problem"] and one.get("gigabytes"):
                where += f", about {one['gigabytes']:g} GB to download"
            option = "" if one["needed_by"] or "use" not in one else f"; {one['use']}"
            said.append(f"    {role}: {one['title']}: {where}{option}")
    said += ["", "commands"]
    for one in report["commands"]:
        said.append(
            f"    {'works' if one['works'] else 'NO   '}  {one['command']}{'   ' + one['note'] if one['note'] else ''}"
        )
    return said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
