"""The hash encoding against plain loops written from tiny-cuda-nn's equations, and its backends against each other.

What is said of `triton` runs where there is a CUDA device, and in its interpreter: `test_hash_triton.py` starts that.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from jointdreamer.errors import UserError
from jointdreamer.kernels.hash_grid import interpreted
from jointdreamer.scenes.nerf import encoding
from jointdreamer.scenes.nerf.encoding import HashEncoding

ROOT = Path(__file__).parents[3]
needs_numba = pytest.mark.skipif("numba" not in encoding.available_backends(), reason="numba is not installed")
FAST = [
    pytest.param(
        name, marks=pytest.mark.skipif(encoding.obstacle(name) is not None, reason=f"{encoding.obstacle(name)}")
    )
    for name in ("numba", "triton")
]
ALL = ["torch", *FAST]

# Level 0 is dense and 1 and 2 are hashed; the table of level 0 has 4 unused entries.
SMALL = {"n_levels": 3, "n_features": 2, "log2_table_size": 7, "base_resolution": 4, "growth": 1.7}
# On cell borders (p = s x + 1/2 is whole), on the border of the box, outside it, and in general position.
SPECIAL = torch.tensor(
    [[0, 0, 0], [1, 1, 1], [0, 1, 0.5], [0.5, 0.5, 0.5], [1 / 6, 0.5, 5 / 6], [1, 0.3, 0.999],
     [-0.01, 0.4, 0.5], [-3, -2, -1], [1.2, 0.5, 7.0], [0.3, 1.00001, -0.00001]]
)  # fmt: skip


def oracle(x, params, n_levels, n_features, log2_table_size, base_resolution, growth):
    """Features (N, L * F) in float64 by loops over points, levels, corners and features."""
    out = np.zeros((len(x), n_levels * n_features))
    start = 0
    for level in range(n_levels):
        scale = float(np.float32(base_resolution * growth**level - 1))
        resolution = math.ceil(scale) + 1
        entries = min(-(-(resolution**3) // 8) * 8, 2**log2_table_size)
        for n, point in enumerate(x):
            p = [c * scale + 0.5 for c in point]
            for corner in range(8):
                weight, vertex = 1.0, []
                for axis in range(3):
                    bit = (corner >> axis) & 1
                    fraction = p[axis] - math.floor(p[axis])
                    weight *= fraction if bit else 1 - fraction
                    vertex.append((math.floor(p[axis]) + bit) % 2**32)
                if resolution**3 <= entries:
                    index = (vertex[0] + vertex[1] * resolution + vertex[2] * resolution**2) % 2**32
                else:
                    index = vertex[0] ^ (vertex[1] * 2654435761 % 2**32) ^ (vertex[2] * 805459861 % 2**32)
                for f in range(n_features):
                    entry = (start + index % entries) * n_features + f
                    out[n, level * n_features + f] += weight * params[entry]
        start += entries
    assert start * n_features == len(params)
    return out


def grid(backend, dtype=torch.float32, **options):
    torch.manual_seed(1)
    module = HashEncoding(**{**SMALL, **options}, backend=backend)
    torch.nn.init.normal_(module.params)
    return module.to(dtype)


def on_its_device(backend, *tensors):
    """Modules and tensors where the backend wants them."""
    device = "cuda" if backend == "triton" and not interpreted() else "cpu"
    return [tensor.to(device) for tensor in tensors]


def general(n, dtype=torch.float64, margin=1e-3):
    """n points of the box that keep clear of every cell border of SMALL, where the derivatives jump."""
    scales = torch.tensor([3.0, 5.8, 10.56])
    x = torch.rand(20 * n + 20, 3, dtype=torch.float64)
    fraction = (x[..., None] * scales + 0.5) % 1
    return x[((fraction > margin) & (fraction < 1 - margin)).all(-1).all(-1)][:n].to(dtype)


@pytest.mark.parametrize(
    "options", [{}, {"n_features": 1}, {"n_features": 3, "n_levels": 1}, {"log2_table_size": 10, "base_resolution": 5}]
)
def test_features_follow_the_equations(options):
    module = grid("torch", torch.float64, **options)
    x = torch.cat([SPECIAL.double(), torch.rand(30, 3, dtype=torch.float64)])
    expected = oracle(x.numpy(), module.params.detach().numpy(), **{**SMALL, **options})
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-4)  # float32 scales


def test_paper_size_is_tiny_cuda_nns():
    module = HashEncoding(backend="torch")
    assert module.params.numel() == 12_599_920  # what the library reports for this configuration
    assert module.resolutions[0] == 16 and module.resolutions[-1] == 4096
    assert module.scales.dtype == np.float32
    assert module.params.abs().max() <= 1e-4 and module.params.std() > 0.5e-4


def test_corner_past_the_border_runs_into_the_next_row():
    """At x = 1 of a dense level with R vertices, half of the weight lies on vertex R, which is the next row's first."""
    module = grid("torch", torch.float64, n_levels=1, n_features=1, log2_table_size=10)
    with torch.no_grad():
        module.params.zero_()
        module.params[4] = 1.0  # vertex (0, 1, 0) with R = 4
    x = torch.tensor([[1.0, 0.5 / 3, 0.5 / 3]], dtype=torch.float64)  # p = (3.5, 1, 1): vertices y = 1, z = 1
    assert module(x).item() == 0
    x[0, 1:] = torch.tensor([-0.5 / 3, -0.5 / 3])  # p = (3.5, 0, 0): vertices (3, 0, 0) and (4, 0, 0) = (0, 1, 0)
    assert module(x).item() == pytest.approx(0.5)


def test_encoding_is_continuous_also_across_the_border():
    module = grid("torch", torch.float64)
    below, above = (SPECIAL.double() + sign * 1e-9 for sign in (-1, 1))
    torch.testing.assert_close(module(below), module(above), atol=1e-6, rtol=0)


def test_torch_derivatives_of_first_and_second_order():
    module = grid("torch", torch.float64)
    x, params = general(4).requires_grad_(), module.params

    def features(x, params):
        return torch.func.functional_call(module, {"params": params}, (x,))

    assert gradcheck(features, (x, params), eps=1e-7, atol=1e-5, fast_mode=True)
    assert gradgradcheck(features, (x, params), eps=1e-7, atol=1e-4, fast_mode=True)


def test_position_gradient_is_autograds():
    module = grid("torch", torch.float64)
    x = torch.cat([SPECIAL.double(), general(20)]).requires_grad_()
    grad = torch.randn(len(x), module.out_features, dtype=torch.float64)
    expected = torch.autograd.grad(module(x), x, grad)[0]
    torch.testing.assert_close(module.position_gradient(x, grad), expected)


def derivatives(module, x, grad, direction):
    """Everything up to second order, from the features and from `position_gradient`."""
    x, grad = x.clone().requires_grad_(), grad.clone().requires_grad_()
    features = module(x)
    first = torch.autograd.grad(features, (x, module.params), grad, create_graph=True)
    second = torch.autograd.grad((first[0] * direction).sum(), (x, module.params, grad), retain_graph=True)
    of_params = torch.autograd.grad((first[1] * torch.sin(module.params.detach())).sum(), (x, grad))
    position = module.position_gradient(x, grad)
    of_position = torch.autograd.grad((position * direction).sum(), (x, module.params, grad))
    return [features, *first, *second, *of_params, position, *of_position]


def agree(backend, x, atol=2e-3, rtol=1e-4, **options):
    """All derivatives of a fast backend and of torch at the points x."""
    slow, fast, x = on_its_device(backend, grid("torch", **options), grid(backend, **options), x)
    grad, direction = torch.randn(len(x), slow.out_features), torch.randn(len(x), 3)
    grad, direction = on_its_device(backend, grad, direction)
    ours, theirs = derivatives(fast, x, grad, direction), derivatives(slow, x, grad, direction)
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(our, their, atol=atol, rtol=rtol, equal_nan=True, msg=lambda m, i=i: f"{i}: {m}")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("options", [{}, {"n_features": 1, "n_levels": 1}, {"log2_table_size": 12}])
def test_fast_backends_are_torch(backend, options):
    n = 700 if options else 2500  # more than one block: of 256 in numba, of 2048 in Triton's interpreter
    agree(backend, torch.cat([SPECIAL, torch.rand(n, 3)]), **options)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("n_features", [3, 4, 8])
def test_wide_tables(backend, n_features):
    """The gradients that training takes; only one width compiles the one for the points too, which takes seconds."""
    if backend == "triton" and n_features == 3:
        pytest.skip("no power of two: refused, see below")
    modules = on_its_device(backend, grid("torch", n_features=n_features), grid(backend, n_features=n_features))
    x = on_its_device(backend, torch.rand(300, 3))[0].requires_grad_(n_features == 4)
    grad = on_its_device(backend, torch.randn(300, modules[0].out_features))[0]
    results = []
    for module in modules:
        features = module(x)
        wanted = (module.params, x) if x.requires_grad else (module.params,)
        results.append([features, *torch.autograd.grad(features, wanted, grad)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("log2_table_size", [10, 6], ids=["dense", "hashed"])
def test_fast_backends_are_torch_on_every_border(backend, log2_table_size):
    """Corners, edges, faces and middles of cells, inside the box, on its border and outside: also the side taken.

    The scale is 8, so that all positions are exact, multiplied and added in one rounding or in two.
    """
    half_cells = torch.cartesian_prod(*[torch.arange(-3, 20) / 16] * 3)
    assert {0.0, 0.0625, 1.0} <= set(half_cells.flatten().tolist())  # p = 1/2 (the box), 1 (a cell), 8 1/2 (the box)
    far = torch.tensor([[1e6, -1e6, 0.5], [-1e6, 0.25, 1e6], [-1000.0, -0.5, 3.0]])
    x = torch.cat([half_cells[torch.randperm(len(half_cells))[:2000]], half_cells[:1], half_cells[-1:], far])
    agree(backend, x, n_levels=1, base_resolution=9, log2_table_size=log2_table_size)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_fast_backends_are_torch_for_few_points(backend, n):
    agree(backend, torch.rand(n, 3))


@needs_numba
def test_a_million_points():
    slow, fast = grid("torch", n_levels=2), grid("numba", n_levels=2)
    x = torch.rand(1_000_000, 3)
    ours, theirs = fast(x), slow(x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    # a whole number as gradient of every feature: what the corners get adds up to the points, in float32
    ours.backward(torch.ones_like(ours))
    theirs.backward(torch.ones_like(theirs))
    torch.testing.assert_close(fast.params.grad, slow.params.grad, rtol=1e-3, atol=1e-1)
    assert fast.params.grad is not None
    assert fast.params.grad.double().sum().item() == pytest.approx(4_000_000, rel=1e-4)


@pytest.mark.parametrize("backend", ["torch", FAST[1]])
def test_half_tables_give_float32_features(backend):
    """The sums are those of float32 tables with the same values, and the gradient is rounded once."""
    half, single = grid(backend, torch.float16), grid("torch")
    single.load_state_dict({"params": half.params.detach().float()})
    half, single, x = on_its_device(backend, half, single, torch.rand(1500, 3))
    grad, direction = torch.randn(len(x), half.out_features), torch.randn(len(x), 3)
    ours, theirs = (derivatives(m, x, *on_its_device(backend, grad, direction)) for m in (half, single))
    of_params = [tensor.shape == half.params.shape for tensor in theirs]
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if of_params[i]:
            assert our.dtype == torch.float16
            if backend == "torch":
                continue  # adds up in half
            torch.testing.assert_close(our.float(), their, atol=1e-2, rtol=1e-3)
        elif i != 6 and i != 7:  # from the gradient of the parameters, which is rounded
            assert our.dtype == torch.float32
            torch.testing.assert_close(our, their, atol=2e-3, rtol=1e-4)


@needs_numba
def test_numba_agrees_with_the_equations_at_full_size():
    """Sixteen levels up to resolution 4096, where float32 leaves three digits of the position in the cell."""
    options: dict = SMALL | {"n_levels": 16, "log2_table_size": 12, "base_resolution": 16, "growth": 1.447269237440378}
    module = grid("numba", **options)
    x = torch.rand(40, 3)
    expected = oracle(x.double().numpy(), module.params.detach().double().numpy(), **options)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=2e-2)
    np.testing.assert_allclose(module(x).detach().numpy()[:, :16], expected[:, :16], atol=2e-4)


@needs_numba
def test_numba_gives_the_same_bits_on_any_number_of_threads():
    module = grid("numba", log2_table_size=10, base_resolution=16)
    x, direction = torch.rand(5000, 3), torch.randn(5000, 3)
    grad = torch.randn(5000, module.out_features)
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 2):
            torch.set_num_threads(n_threads)
            results.append(derivatives(module, x, grad, direction))
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_numba
def test_positions_that_need_no_gradient_get_none(monkeypatch):
    """The gradient of the parameters must not pay for that of the points, nor the other way round."""
    from jointdreamer.kernels import hash_numba

    calls = []
    for name in ("gather", "scatter", "position_gradient"):
        function = getattr(hash_numba, name)
        monkeypatch.setattr(hash_numba, name, lambda *a, _f=function, _n=name, **k: (calls.append(_n), _f(*a, **k))[1])
    module = grid("numba")
    module(torch.rand(10, 3)).sum().backward()
    assert calls == ["gather", "scatter"]
    calls.clear()
    module.position_gradient(torch.rand(10, 3), torch.rand(10, module.out_features)).sum().backward()
    assert calls == ["position_gradient", "scatter"]


@pytest.mark.parametrize("backend", ALL)
def test_no_points(backend):
    module, x = on_its_device(backend, grid(backend), torch.empty(0, 3))
    x.requires_grad_()
    features = module(x)
    assert features.shape == (0, module.out_features)
    assert module.position_gradient(x, features).shape == (0, 3)
    features.sum().backward()
    assert module.params.grad is not None and not module.params.grad.any()


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # of NumPy, in which Triton's interpreter computes
def test_wild_points_do_not_crash(backend):
    x = torch.tensor([[1e6, -1e6, 0.5], [1e30, -1e30, 0.0], [float("inf"), float("nan"), 0.0]])
    module, x = on_its_device(backend, grid(backend), x.requires_grad_())
    features = module(x)
    features.sum().backward()
    assert features.shape == (3, 6) and features[:2].isfinite().all() and features[2].isnan().all()


@needs_numba
@pytest.mark.kernels
def test_auto_takes_numba_for_float32_and_torch_for_float64():
    assert grid("auto").backend == "numba"
    assert grid("auto", torch.float64).backend == "torch"
    assert grid("auto", torch.float64)(torch.rand(2, 3, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(UserError, match="choose 'torch' or 'auto'"):
        grid("numba", torch.float64)(torch.rand(2, 3, dtype=torch.float64))


@pytest.mark.kernels
def test_auto_takes_what_fits_the_device(monkeypatch):
    """The rule alone, for devices that are not here."""
    from types import SimpleNamespace

    tried = []

    def auto(available, device, dtype=torch.float32, n_features=2, sound=("tcnn", "triton")):
        monkeypatch.setattr(encoding, "available_backends", lambda: available)
        monkeypatch.setattr(encoding, "agrees", lambda name, *_: (tried.append(name), name in sound)[1])
        params = SimpleNamespace(device=torch.device(device), dtype=dtype)
        field = SimpleNamespace(requested_backend="auto", params=params, n_features=n_features)
        return HashEncoding.backend.fget(field)  # type: ignore[misc]

    everything = encoding.BACKENDS
    assert auto(everything, "cpu") == "numba"
    assert auto(everything, "cuda") == "tcnn"
    assert auto(("torch", "numba", "triton"), "cuda") == "triton"
    assert auto(("torch", "numba"), "cuda") == "torch"
    assert auto(everything, "cuda", torch.float64) == "torch"
    assert auto(everything, "cuda", torch.float16) == "tcnn"
    assert auto(everything, "cuda", n_features=3) == "torch"
    assert auto(everything, "mps") == "torch"
    assert auto(everything, "cuda", sound=("triton",)) == "triton"
    tried.clear()
    assert auto(everything, "cuda", sound=()) == "torch" and tried == ["tcnn", "triton"]


@needs_numba
def test_a_backend_is_tried_before_auto_takes_it(monkeypatch, caplog):
    """On the CPU, with the compiled kernels in the place of a GPU's: sound, wrong, failing."""
    from jointdreamer.kernels import hash_numba

    cpu = torch.device("cpu")
    try:
        before = torch.get_rng_state()
        encoding.agrees.cache_clear()
        assert encoding.agrees("numba", cpu, torch.float32) and not caplog.records
        assert torch.equal(torch.get_rng_state(), before)

        for name in ("gather", "scatter", "position_gradient"):
            kernel = getattr(hash_numba, name)
            with monkeypatch.context() as patch, caplog.at_level("WARNING"):
                encoding.agrees.cache_clear()
                caplog.clear()
                patch.setattr(hash_numba, name, lambda *args, _kernel=kernel, **kwargs: 1.1 * _kernel(*args, **kwargs))
                assert not encoding.agrees("numba", cpu, torch.float32)
                assert not encoding.agrees("numba", cpu, torch.float32)  # said once
                (record,) = caplog.records
                assert "'numba' fails its test on cpu (its numbers are 10% off)" in record.getMessage()

        def broken(*_, **__):
            raise RuntimeError("no kernel image\nis available")

        encoding.agrees.cache_clear()
        monkeypatch.setattr(hash_numba, "gather", broken)
        assert not encoding.agrees("numba", cpu, torch.float32)
        assert "(no kernel image is available)" in caplog.records[-1].getMessage()
    finally:
        encoding.agrees.cache_clear()


def test_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr(encoding, "available_backends", lambda: ("torch",))
    monkeypatch.setattr(encoding.importlib.util, "find_spec", lambda name: None)
    encoding.obstacle.cache_clear()
    try:
        with pytest.raises(
            UserError, match=r"'numba' is not available here \(pip install numba\): choose one of auto, torch"
        ):
            HashEncoding(backend="numba")
        with pytest.raises(UserError, match=r"'triton' .*\(on Linux: pip install .*kernels.*choose one of auto, torch"):
            HashEncoding(backend="triton")
        with pytest.raises(UserError, match=r"'tcnn' .*\(pip install .*tiny-cuda-nn.*choose one of auto, torch"):
            HashEncoding(backend="tcnn")
        with pytest.raises(UserError, match=r"'cuda13' .*\(no such backend\)"):
            HashEncoding(backend="cuda13")
    finally:
        encoding.obstacle.cache_clear()
    assert HashEncoding(**SMALL).backend == "torch"


def test_triton_without_a_device(monkeypatch):
    monkeypatch.setattr(encoding.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    encoding.obstacle.cache_clear()
    try:
        with pytest.raises(UserError, match="'triton' is not available here .*no CUDA device; TRITON_INTERPRET=1"):
            HashEncoding(backend="triton")
    finally:
        encoding.obstacle.cache_clear()


def test_impossible_sizes():
    with pytest.raises(UserError, match="n_levels"):
        HashEncoding(n_levels=0)
    with pytest.raises(UserError, match="growth"):
        HashEncoding(growth=3.0)
    with pytest.raises(UserError, match="growth"):
        HashEncoding(growth=-1.5)


@pytest.mark.parametrize("backend", ["triton", "tcnn"])
def test_widths_that_gpu_kernels_do_not_take(monkeypatch, backend):
    monkeypatch.setattr(encoding, "available_backends", lambda: encoding.BACKENDS)
    with pytest.raises(UserError, match=f"'{backend}' takes n_features 1, 2, 4, 8, got 3"):
        HashEncoding(n_features=3, backend=backend)


@pytest.mark.parametrize("shape", [(5,), (5, 2), (2, 5, 3)])
def test_points_of_another_shape(shape):
    with pytest.raises(UserError, match=r"points \(N, 3\), got \("):
        grid("torch")(torch.rand(shape))


def test_tables_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(encoding, "free_bytes", lambda device: 24_000_000_000)
    made = []
    monkeypatch.setattr(torch, "empty", lambda *a, _f=torch.empty, **k: (made.append(a), _f(*a, **k))[1])
    vertices = [math.ceil(16 * 1.447269237440378**level - 1) + 1 for level in range(16)]
    size = sum(min(n**3, 2**28) for n in vertices) * 2 * 4 / 1e9
    assert size < 24 < 4 * size  # they would fit, and could not be trained
    expected = f"hash tables take {size:.1f} GB, {4 * size:.1f} GB with .*cpu has 24.0 GB free: lower field.encoding"
    with pytest.raises(UserError, match=expected):
        HashEncoding(n_levels=16, log2_table_size=28)
    assert all(sizes in ((0,), ((0,),)) for sizes in made)
    HashEncoding(**SMALL)


def test_tables_that_do_not_fit_are_refused_before_they_are_moved(monkeypatch):
    """The meta device stands for a small one."""
    module = HashEncoding(**SMALL)
    monkeypatch.setattr(encoding, "free_bytes", lambda device: 1000 if device.type == "meta" else math.inf)
    with pytest.raises(UserError, match="meta has 0.0 GB free"):
        torch.nn.Sequential(module).to("meta")
    assert module.params.device.type == "cpu"
    assert module.double().params.dtype == torch.float64  # no move, no question


@needs_numba
def test_folder_that_cannot_be_written(tmp_path):
    """Without any folder for Numba's cache the kernels still compile: as a module whose source Numba cannot locate."""
    source = ROOT / "jointdreamer" / "kernels" / "hash_numba.py"
    program = (
        "import numpy as np\n"
        "scope = {'__name__': 'nowhere'}\n"
        f"exec(compile(open({str(source)!r}).read(), '<nowhere>', 'exec'), scope)\n"
        "add = scope['compiled'](lambda a: a + 1)\n"
        "assert add(np.zeros(3)).tolist() == [1, 1, 1]\n"
    )
    blocked = tmp_path / "file"
    blocked.write_text("")  # a folder inside a file cannot be made, not even by root
    environment = {**os.environ, "HOME": str(blocked / "home"), "XDG_CACHE_HOME": str(blocked / "cache")}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_numba
def test_the_next_run_compiles_nothing():
    """Numba keys its cache by what a kernel closes over: nothing there may differ from process to process."""
    program = (
        "import torch\n"
        "from jointdreamer.kernels import hash_numba\n"
        "from jointdreamer.scenes.nerf.encoding import HashEncoding\n"
        "HashEncoding(n_levels=2, log2_table_size=5, backend='numba')(torch.rand(9, 3)).sum().backward()\n"
        "stats = [make(2, False).stats for make in (hash_numba.gather_kernel, hash_numba.scatter_kernel)]\n"
        "print([sum(s.cache_hits.values()) for s in stats], [sum(s.cache_misses.values()) for s in stats])\n"
    )
    grid("numba")(torch.rand(9, 3)).sum().backward()  # compiles them here, if nobody did
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[1,", "1]", "[0,", "0]"]
