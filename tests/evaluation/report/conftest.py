"""Small evaluations to report on: coloured balls with a sheet and a turntable, as evaluate.py would hand them over."""

import numpy as np
import pytest
import torch
import trimesh
from trimesh.visual import ColorVisuals

from jointdreamer.images import write_png, write_video
from jointdreamer.scenes.export import write_mesh
from jointdreamer.scenes.mesh.texture import add_texture

HOSTILE = "</script><img src=x onerror='window.hacked=1'><script>window.hacked=2</script> \u2028 \"a\" `${1}` & <b>pig"
HOSTILE += "\x1b[31m\x9b2J\x7f\u202e"


def ball(color=(255, 0, 0), subdivisions=2) -> trimesh.Trimesh:
    """Half of it, towards +x, in the colour, the other half blue."""
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    rgba = np.full((len(mesh.vertices), 4), 255, np.uint8)
    rgba[:, :3] = np.where(np.asarray(mesh.vertices)[:, :1] > 0, color, (0, 0, 255))
    mesh.visual = ColorVisuals(mesh, vertex_colors=rgba)
    return mesh


@pytest.fixture
def evaluation(tmp_path):
    """evaluation(prompts, methods, seeds) -> the content of an evaluation.json whose paths start from tmp_path."""

    def make(prompts=("a blue pig", HOSTILE), methods=("mvs", "none"), seeds=(0, 1)) -> dict:
        rng = np.random.default_rng(0)
        runs = []
        for method in methods:
            for number, prompt in enumerate(prompts):
                for seed in seeds:
                    folder = tmp_path / "runs" / f"{method}_{number}_{seed}"
                    mesh = ball(rng.integers(0, 256, 3))
                    write_mesh(folder / "mesh.glb", add_texture(mesh, 32) if method == "mvs" else mesh)
                    write_png(folder / "sheet.png", torch.rand(3, 8, 32))
                    write_video(folder / "turn.mp4", torch.rand(4, 3, 16, 16), fps=4)
                    clip, retrieved = float(rng.normal(30, 2)), float(rng.integers(0, 21) * 5)
                    runs.append(
                        {
                            "folder": f"runs/{folder.name}",
                            "prompt": prompt,
                            "seed": seed,
                            "method": method,
                            "energy": method,
                            "models": "toybox",
                            "minutes": 2.5,
                            "seconds_per_step": 0.4,
                            "peak_memory_gb": 0.8,
                            "clip_score": clip,
                            "r_precision": retrieved,
                            "r_at_5": 100.0,
                            "janus": bool(rng.random() < 0.5),
                            "janus_confidence": 0.9,
                            "consistency": None,
                            "sheet": f"runs/{folder.name}/sheet.png",
                            "mesh": f"runs/{folder.name}/mesh.glb",
                            "turntable": f"runs/{folder.name}/turn.mp4",
                        }
                    )
        groups = []
        for method in methods:
            mine = [run for run in runs if run["method"] == method]
            group = {"keys": {"method": method}, "runs": len(mine), "prompts": len(prompts), "seeds": len(seeds)}
            for name, factor in (("clip_score", 1), ("r_precision", 1), ("janus", 100), ("minutes", 1)):
                mean = factor * sum(run[name] for run in mine) / len(mine)
                group[name] = {"mean": mean, "low": 0.9 * mean, "high": 1.1 * mean, "n": len(mine)}
            groups.append({**group, "consistency": None, "fid": 12.5})
        return {
            "version": 1,
            "id": "0123456789abcdef",
            "made": "2026-11-22T22:00:00+00:00",
            "command": "python evaluate.py runs='<b>*'",
            "captions": {"kind": "runs", "count": len(prompts)},
            "extractors": {"clip": "toy", "fid": "toy", "janus": "toy", "comparable": False, "note": "Balls."},
            "group_by": ["method"],
            "runs": runs,
            "left_out": [{"folder": "runs/<i>x", "why": "unfinished"}],
            "groups": groups,
        }

    return make
