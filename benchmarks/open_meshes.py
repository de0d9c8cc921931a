"""Whether other programs show what a run made: `python -m benchmarks.open_meshes RUN ... --blender PYTHON`

Exports each run with `jointdreamer.export` and opens the files in Blender: its `bpy` package, in an environment of its
own whose Python is named (python3.11 -m venv /tmp/blender && /tmp/blender/bin/pip install bpy). Where the vertices lie
says whether the object stands upright with its front towards the viewer, -y there; the colours of sampled points are
held against the scene's own albedo at those points. With --validator the GLB, and the one that a report shows, also go
through Khronos' validator (npm install --prefix /tmp/validator gltf-validator).

Exit status: 0 if all claims hold, 1 if one does not, 2 for a mistake in the command.
"""

import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import parser_of, positive, show, table, verdict_lines, writable
from jointdreamer.errors import UserError, one_line
from jointdreamer.files import to_json, write_text

HERE = Path(__file__).parent
FORMATS = ("glb", "obj", "ply", "usdz")
BLENDER_TO_WORLD = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])  # (left x, back y, up z) -> (front x, left y, up z)
NEAR = 1e-5  # world units: how far a vertex may be from where it was
CLOSE = 2.0  # of 255
VALIDATE = """
const validator = require("gltf-validator"), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1]))).then(report => {
  console.log(JSON.stringify({ ...report.issues, messages: report.issues.messages.slice(0, 5) }));
});
"""


def in_blender(python: str, file: Path, points: int, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What Blender says of a file, and its samples. Raises UserError if it does not open it."""
    out = folder / f"{file.name}.npz"
    command = [python, str(HERE / "in_blender.py"), str(file), str(out), str(points)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except OSError as error:
        raise UserError(f"--blender {python}: {error.strerror}; wanted a Python that has bpy") from error
    if done.returncode or not out.is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise UserError(f"Blender did not open {file} ({said[-1]}); --blender wants a Python that has bpy")
    with np.load(out) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "facts"}
        return json.loads(str(stored["facts"])), arrays


def compared(surface: Any, colors: Any, arrays: dict[str, np.ndarray], sampling: str) -> dict[str, Any]:
    """The samples of one kind against the surface and its colour function."""
    import torch
    from scipy.spatial import KDTree

    corners = arrays[f"{sampling}_corners"] @ BLENDER_TO_WORLD.T
    weights, found = arrays[f"{sampling}_weights"], arrays[f"{sampling}_colors"]
    away, which = KDTree(np.asarray(surface.vertices)).query(corners)
    points = (corners * weights[..., None]).sum(1)
    normals = (np.asarray(surface.vertex_normals)[which] * weights[..., None]).sum(1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    with torch.no_grad():
        wanted = 255 * colors(torch.tensor(points).float(), torch.tensor(normals).float()).numpy()
    error = np.abs(found - wanted).max(1)
    return {
        "points": len(points),
        "vertices_off": float(away.max()),
        "mean": float(error.mean()),
        "p99": float(np.quantile(error, 0.99)),
        "worst": float(error.max()),
        "within": float((error <= CLOSE).mean()),
    }


def validated(folder: str, data: bytes) -> dict[str, Any]:
    """The validator's counts of a GLB. Raises UserError where it cannot run."""
    environment = {**os.environ, "NODE_PATH": str(Path(folder).resolve() / "node_modules")}
    with tempfile.NamedTemporaryFile(suffix=".glb") as file:
        file.write(data)
        file.flush()
        try:
            command = ["node", "-e", VALIDATE, file.name]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        except OSError as error:
            raise UserError(f"--validator: no node here ({error.strerror})") from error
    if done.returncode:
        raise UserError(
            f"--validator {folder}: npm install --prefix {folder} gltf-validator; {one_line(done.stderr)[-160:]}"
        )
    return json.loads(done.stdout)


def measure_run(run: str, args: Any, folder: Path) -> dict[str, Any]:
    """Export one run and look at its files."""
    from jointdreamer import export
    from jointdreamer.evaluation.report.glb import thin_glb
    from jointdreamer.runs.pictures import load_scene

    place = folder / "files"
    words = [run, f"mesh.resolution={args.resolution}", f"texture={args.texture}", f"out={place}"]
    if export.main([*words, f"format={','.join(FORMATS)}"]):
        raise UserError(f"{run} could not be exported")
    scene, config = load_scene(Path(run))
    surface, colors = scene.mesh(args.resolution), scene.surface_colors(args.resolution)
    if colors is None:
        raise UserError(f"{run}: its scene has no albedo to compare with")
    found: dict[str, Any] = {"run": run, "prompt": config["prompt"], "faces": len(surface.faces), "formats": {}}
    for suffix in FORMATS:
        file = place / f"mesh.{suffix}"
        facts, arrays = in_blender(args.blender, file, args.points, folder)
        samplings = sorted(name.removesuffix("_colors") for name in arrays if name.endswith("_colors"))
        samples = {name: compared(surface, colors, arrays, name) for name in samplings}
        found["formats"][suffix] = {"megabytes": file.stat().st_size / 1e6, "blender": facts, "samples": samples}
    if args.validator:
        files = {"exported": place / "mesh.glb", "the run's own": Path(run) / "mesh" / "mesh.glb"}
        data = {name: file.read_bytes() for name, file in files.items() if file.is_file()}
        data |= {f"{name}, in a report": thin_glb(of) for name, of in data.items()}
        found["validator"] = {name: validated(args.validator, of) for name, of in data.items()}
    return found


def verdicts(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the issue asks of the files."""
    said = []
    for suffix in FORMATS:
        looked = [run["formats"][suffix] for run in runs]
        samples = [one for of in looked for one in of["samples"].values()]
        upright = all(one["vertices_off"] < NEAR for one in samples) and all(of["samples"] for of in looked)
        said.append({"claim": f"{suffix}: upright, front towards -y", "holds": upright})
        exact = [of["samples"].get("texels", of["samples"].get("vertices")) for of in looked]
        worst = max((one["worst"] for one in exact if one), default=float("nan"))
        where = "vertices" if suffix == "ply" else "centres of texels"
        claim = f"{suffix}: colours within {CLOSE:g} of 255 at {where}: {worst:.2f}"
        said.append({"claim": claim, "holds": all(exact) and worst <= CLOSE})
        if suffix != "ply":
            textured = all((of["blender"]["material"] or {}).get("texture_found") for of in looked)
            said.append({"claim": f"{suffix}: texture found", "holds": textured})
            share = min(of["samples"].get("anywhere", {"within": 0.0})["within"] for of in looked)
            claim = f"{suffix}: colours within {CLOSE:g} of 255 at 99% of the points anywhere: {100 * share:.2f}%"
            said.append({"claim": claim, "holds": share >= 0.99})
    errors = [one["numErrors"] for run in runs for one in run.get("validator", {}).values()]
    said.append({"claim": "no errors of the Khronos validator", "holds": not any(errors) if errors else None})
    return said


def rows_of(runs: Sequence[dict[str, Any]]) -> list[list[Any]]:
    return [
        [
            f"{run['prompt']}, {suffix}, {name}",
            one["points"],
            one["mean"],
            one["p99"],
            one["worst"],
            one["vertices_off"],
        ]
        for run in runs
        for suffix, of in run["formats"].items()
        for name, one in of["samples"].items()
    ]


def main() -> int:
    parser = parser_of("open_meshes", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of train.py")
    parser.add_argument("--blender", required=True, metavar="PYTHON", help="a Python that has the package bpy")
    parser.add_argument("--validator", metavar="FOLDER", help="where npm has installed gltf-validator")
    parser.add_argument("--resolution", type=positive, default=256, help="mesh.resolution of the export (256)")
    parser.add_argument("--texture", type=positive, default=2048, help="of the export (2048)")
    parser.add_argument("--points", type=positive, default=20_000, help="samples of each file (20000)")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    from benchmarks.machine import describe

    try:
        if args.out is not None:
            writable(args.out)
        found = []
        for run in args.runs:
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure_run(run, args, Path(folder)))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    said = verdicts(found)
    print(table(["colours, of 255", "points", "mean", "p99", "worst", "vertices off"],
                [[*row[:-1], f"{row[-1]:.1e}"] for row in rows_of(found)]))  # fmt: skip
    for run in found:
        for name, one in run.get("validator", {}).items():
            counts = ", ".join(
                f"{show(one[key])} {key[3:].lower()}" for key in ("numErrors", "numWarnings", "numInfos")
            )
            print(f"validator, {run['prompt']}, {name}: {counts}")
    print(verdict_lines(said))
    record = {
        "benchmark": "open_meshes",
        "command": shlex.join(["python", "-m", "benchmarks.open_meshes", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe("cpu"),
        "runs": found,
        "verdicts": said,
    }
    if args.out is not None:
        write_text(args.out, to_json(record, indent=2) + "\n")
        print(f"written to {args.out}")
    return 0 if all(one["holds"] is not False for one in said) else 1


if __name__ == "__main__":
    raise SystemExit(main())
