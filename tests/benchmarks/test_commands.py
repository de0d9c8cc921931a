"""Each benchmark from its command line with --quick: what it writes and prints. No number is judged."""

import importlib
import json
import sys

import pytest

KEYS = {"benchmark", "command", "date", "machine", "settings"}
MACHINE = {"cpu", "cores", "threads", "gpu", "torch", "packages", "commit", "platform", "python", "load", "cc"}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """bench("render", "--repeats", "1") -> its JSON."""

    def run(name, *words, status=0):
        out = tmp_path / f"{name}.json"
        command = [f"benchmarks/{name}.py", "--quick", "--device", "cpu", "--out", str(out), *words]
        monkeypatch.setattr(sys, "argv", command)
        assert importlib.import_module(f"benchmarks.{name}").main() == status
        return json.loads(out.read_text()) if out.exists() else None

    return run


def test_encoding(bench, capsys):
    found = bench("encoding", "--repeats", "1")
    assert found.keys() >= {*KEYS, "sizes", "verdicts"} and found["machine"].keys() >= MACHINE
    [size] = found["sizes"]
    times = size["times"]
    assert {"torch", "numba"} <= times["forward"].keys() == times["forward + backward"].keys()
    assert {"torch", "numba"} <= times["its derivative"].keys()
    for backend, time in times["forward + backward"].items():
        parts = [times[name][backend]["median_ms"] for name in ("forward", "backward")]
        assert time["median_ms"] == pytest.approx(sum(parts)) and min(parts) > 0
    ratios = size["ratios"]
    assert ratios["torch"]["numba"] == pytest.approx(1 / ratios["numba"]["torch"])
    assert found["settings"]["points"] == 512
    assert "forward + backward" in capsys.readouterr().out


def test_encoding_refuses_a_kernel_that_is_wrong(monkeypatch):
    from benchmarks import encoding
    from jointdreamer.scenes.nerf.encoding import HashEncoding

    right = HashEncoding.forward
    monkeypatch.setattr(
        HashEncoding, "forward", lambda self, x: right(self, x) * (1.1 if self.backend != "torch" else 1)
    )
    with pytest.raises(RuntimeError, match="disagrees in: forward"):
        encoding.competitors(encoding.Size(2, 8), 64, "cpu")


def test_rasterize(bench, capsys):
    found = bench("rasterize", "--repeats", "1", "--resolution", "40", "--faces", "600", "--views", "2")
    assert found.keys() >= {*KEYS, "scene", "times", "ratios", "verdicts"}
    assert found["times"].keys() == {"rasterize", "interpolate", "antialias", "backward", "forward + backward"}
    assert {"torch", "numba"} <= found["times"]["rasterize"].keys() and "nvdiffrast" in found["left_out"]
    assert abs(found["scene"]["faces"] - 600) < 60 and 0.3 < found["scene"]["covered"] < 0.9
    assert len(found["verdicts"]) == 1 and "forward + backward" in capsys.readouterr().out


def test_rasterize_refuses_a_loop_that_is_wrong():
    from benchmarks import rasterize

    scene = rasterize.bumpy_sphere(40, 1, 600, "cpu")
    right = rasterize.torch_step(scene, "torch")
    wrong = right._replace(antialias=lambda of: {"image": right.antialias(of)["image"] * 1.1})
    with pytest.raises(RuntimeError, match="wrong disagrees in: image"):
        rasterize.check_same({"right": right, "wrong": wrong})


def test_rasterize_without_a_compiler_says_so_in_one_line(bench, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.c_loop.shutil.which", lambda name: None)
    found = bench("rasterize", "--repeats", "1", "--resolution", "16", "--faces", "100")
    assert found["left_out"]["C loop"] == "no cc with OpenMP here" and found["verdicts"][0]["holds"] is None
    assert "C loop: left out, no cc with OpenMP here" in capsys.readouterr().out


def test_render(bench):
    found = bench("render", "--repeats", "1", "--resolutions", "8,12", "--views", "2", "--renderer", "prune=false")
    rows = found["rows"]
    assert [(row["box"], row["resolution"]) for row in rows] == [
        (b, r) for r in (8, 12) for b in ("empty", "half", "full")
    ]
    for empty, half, full in (rows[:3], rows[3:]):
        assert empty["samples_marched"] == 0 and empty["samples_per_s"] == 0
        assert half["samples_marched"] == pytest.approx(full["samples_marched"] / 2, rel=0.2)
        assert full["rays"] == 2 * full["resolution"] ** 2
        assert full["samples_per_s"] / full["rays_per_s"] == pytest.approx(full["samples_marched"] / full["rays"])


def test_the_scenes_are_what_they_say():
    from benchmarks.render import Scene

    full, half = (Scene(12, 2, 32, filled, cells=8) for filled in (1.0, 0.5))
    scattered = Scene(12, 2, 32, 0.5, cells=8, scattered=True)
    surrounded = Scene(12, 2, 32, 0.5, cells=8, radius=3)
    for scene in (full, half, scattered, surrounded):
        scene.step()
    assert half.renderer.occupied.float().mean() == 0.5
    assert scattered.renderer.occupied.float().mean() == pytest.approx(0.5, abs=0.1)
    assert scattered.n_samples == pytest.approx(half.n_samples, rel=0.3)
    assert surrounded.renderer.occupied.sum() == half.renderer.occupied.sum()  # the same object in a larger box
    assert surrounded.n_samples == pytest.approx(half.n_samples, rel=0.02)
    assert surrounded.renderer.step_size == pytest.approx(half.renderer.step_size)


def test_scaling(bench, capsys):
    found = bench("scaling", "--repeats", "1")
    series = {one["name"]: one for one in found["series"]}
    assert series.keys() == {"pixels", "views", "samples", "levels", "emptied", "surrounded"}
    assert series["pixels"]["fit"].keys() >= {"slope", "intercept", "r2", "linear"}
    assert "exponent" in series["levels"] and "cost_of_empty" in series["emptied"]
    rising, x = series["pixels"]["samples"], series["pixels"]["x"]
    assert rising[-1] / rising[0] == pytest.approx(x[-1] / x[0], rel=0.1)
    assert len(found["verdicts"]) == 4
    assert "R^2" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("name", ("encoding", "rasterize", "render", "step", "scaling"))
def test_on_a_gpu(bench, name):
    words = ["--paper-size", "energy=mvs"] if name == "step" else []
    found = bench(name, "--device", "cuda", *words)
    assert found["machine"]["gpu"] and found["settings"]["device"] == "cuda"


@pytest.mark.parametrize("name", ("encoding", "rasterize", "render", "step", "scaling"))
@pytest.mark.parametrize("words", (["--repeats", "0"], ["--repeats", "x"], ["--colour"], ["--device", "tpu"]))
def test_a_bad_option_costs_one_line(name, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *words])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"benchmarks.{name}").main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words[-1] in error


def test_bad_values_cost_one_line(bench, capsys, monkeypatch, tmp_path):
    for name, word, said in (("render", "colour=1", "unknown key 'renderer.colour'"), ("render", "prune", "KEY=VALUE")):
        bench(name, "--renderer", word, status=2)
        assert said in capsys.readouterr().err
    bench("step", "nonsense", status=2)
    assert "'nonsense'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["benchmarks/scaling.py", "--out", str(tmp_path)])
    assert importlib.import_module("benchmarks.scaling").main() == 2
    assert "is a folder" in capsys.readouterr().err


def test_distillations(bench, capsys):
    found = bench("distillations", "--repeats", "1", "--methods", "vsd", "models=toybox")
    assert found.keys() >= {*KEYS, "methods", "verdicts"} and list(found["methods"]) == ["jsd", "vsd"]
    assert all(one["seconds_per_step"] > 0 and one["peak_memory_gb"] > 0 for one in found["methods"].values())
    assert "times SDS" in capsys.readouterr().out


def test_a_distillation_that_cannot_run_is_named_and_fails_the_verdict():
    from benchmarks.distillations import judge, relative

    found = {"jsd": {"seconds_per_step": 2.0, "peak_memory_gb": 1.0}, "vsd": {"failed": "no room"}}
    assert judge(found) == [{"claim": "VSD runs: no room", "holds": False}]
    assert relative(found)[1][:2] == ["VSD", "no room"]
    found["vsd"] = {"seconds_per_step": 4.5, "peak_memory_gb": 1.5}
    assert relative(found)[1] == ["VSD", "4.500", "2.25", "1.50", "1.50"] and not judge(found)[0]["holds"]


def test_waiting(bench, capsys, monkeypatch):
    from benchmarks import waiting

    assert len(waiting.POLICIES) == 5
    monkeypatch.setattr(waiting, "QUIET", 0)
    monkeypatch.delitem(waiting.POLICIES, "passive")
    monkeypatch.delitem(waiting.POLICIES, "spin 3,000 times")
    monkeypatch.delitem(waiting.POLICIES, "spin 30,000 times")
    found = bench("waiting", "--repeats", "1", "--threads", "1")  # two would wait for each other on a busy machine
    assert found.keys() >= {*KEYS, "seconds"} and len(found["seconds"]) == 2
    assert all(len(times) == 1 and times[0] > 0 for policy in found["seconds"].values() for times in policy.values())
    assert "beside a busy process" in capsys.readouterr().out
