"""Finished runs that nobody trained: a folder as train.py leaves it, with a random object of a few numbers in it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trimesh.creation import box

from jointdreamer.files import to_json, write_text
from jointdreamer.runs.folder import RunFolder, run_path
from jointdreamer.scenes.background import SphericalBackground
from jointdreamer.scenes.nerf.field import HashGridField
from jointdreamer.scenes.nerf.volume import VolumeRenderer

CONFIG: dict[str, Any] = {
    "prompt": "a red robot",
    "seed": 0,
    "name": "mvs",
    "field": {"encoding": {"n_levels": 2, "log2_table_size": 6, "base_resolution": 4, "backend": "torch"}, "hidden": 8},
    "renderer": {"grid_resolution": 8, "n_samples": 24, "backend": "torch"},
    "background": {"eval_color": [0.85, 0.85, 0.85]},
    "output": {"elevation_deg": 15, "distance": 2.61, "fovy_deg": 40},
    "models": {"name": "toybox"},
    "energy": {"name": "mvs"},
    "schedule": {"steps": 2, "energy_weight": 20},
}


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """make_run("a blue pig", seed=1, method="none", root=..., **config) -> the folder of a finished run."""

    def make(
        prompt: str = "a red robot", seed: int = 0, method: str = "mvs", root: Path | None = None, **changes
    ) -> Path:
        config = copy.deepcopy(CONFIG) | {"prompt": prompt, "seed": seed, "name": method} | changes
        with torch.random.fork_rng():
            torch.manual_seed(sum(f"{prompt} {seed} {method}".encode()))
            field = HashGridField(**config["field"])
        parts: dict[str, Any] = {
            "field": field,
            "background": SphericalBackground(**config["background"]),
            "renderer": VolumeRenderer(field_radius=field.radius, **config["renderer"]),
        }
        occupied = torch.zeros_like(parts["renderer"].occupied)
        occupied[3:5, 3:5, 2:6] = True  # little to render
        parts["renderer"].occupied.copy_(occupied)
        folder = run_path(root or tmp_path / "runs", method, prompt, seed)
        with RunFolder.open(folder, config) as run:
            run.save(2, **parts)
        mesh = box().export(file_type="glb")
        assert isinstance(mesh, bytes)
        (folder / "mesh").mkdir()
        (folder / "mesh" / "mesh.glb").write_bytes(mesh)
        result = {"prompt": prompt, "seed": seed, "steps": 2, "minutes": 1.0 + seed, "seconds_per_step": 0.5}
        write_text(folder / "result.json", to_json({**result, "peak_memory_gb": 0.8, "mesh": True}))
        return folder

    return make
