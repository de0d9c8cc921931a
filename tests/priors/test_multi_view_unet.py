"""MVDream on the stock UNet. The oracle for the mapping is the original code's own layout, written down name by name.

`mvdream_state` (conftest.py) lists every weight of the original UNet (docs/conventions.md, Multi-view UNet) and
knows nothing of diffusers; what the converted network computes is checked by a second forward pass, written from the
architecture too.
"""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import conv2d, group_norm, pad, silu

from jointdreamer.cameras import Cameras, Rig, mvdream_camera, sample_cameras
from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.multi_view import MultiViewDiffusion
from jointdreamer.priors.multi_view_unet import load_multiview, set_views
from tests.conftest import ldm_unet_shapes, random_state
from tests.ldm_oracle import ldm_forward

WIDTHS, BLOCKS, ATTENDS, TEXT = (64, 128, 128), 2, (True, True, False), 24


@pytest.fixture(scope="module")
def state(mvdream_state):
    return mvdream_state(WIDTHS, BLOCKS, ATTENDS, TEXT)


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("mvdream") / "sd-v2.1-base-4view.pt"
    torch.save(state, path)
    return path


def ldm_encode(state, x):
    """The original encoder's moments in float64, for one block per level and two levels."""
    w = {k.removeprefix("first_stage_model."): v.double() for k, v in state.items()}

    def conv(name, x, **options):
        weight = w[f"{name}.weight"]
        return conv2d(x, weight, w[f"{name}.bias"], **{"padding": weight.shape[-1] // 2, **options})

    def gn(name, x):
        return group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def resnet(name, x):
        h = conv(f"{name}.conv1", silu(gn(f"{name}.norm1", x)))
        h = conv(f"{name}.conv2", silu(gn(f"{name}.norm2", h)))
        return h + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)

    h = resnet("encoder.down.0.block.0", conv("encoder.conv_in", x))
    h = conv("encoder.down.0.downsample.conv", pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    h = resnet("encoder.mid.block_1", resnet("encoder.down.1.block.0", h))
    q, k, v = (conv(f"encoder.mid.attn_1.{p}", gn("encoder.mid.attn_1.norm", h)).flatten(2) for p in "qkv")
    p = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
    h = h + conv("encoder.mid.attn_1.proj_out", (v @ p.transpose(1, 2)).view_as(h))
    h = resnet("encoder.mid.block_2", h)
    return conv("quant_conv", conv("encoder.conv_out", silu(gn("encoder.norm_out", h))))


def prior_of(path) -> MultiViewDiffusion:
    model = load_multiview(path)
    return MultiViewDiffusion(model.unet, model.vae, model.process, lambda: (None, None))


def predict(prior, x, t, text, cameras: Cameras) -> torch.Tensor:
    """The network's prediction (B, V, C, h, w), which is noise here."""
    (noise,) = prior.predict(x, t, [Condition(text)], cameras)
    return noise


def inputs(b=2, v=4, width=TEXT, size=8):
    g = torch.Generator().manual_seed(3)
    return (
        torch.randn(b, v, 4, size, size, generator=g),
        torch.tensor([7, 640])[:b],
        torch.randn(b, v, 5, width, generator=g),
        sample_cameras(Rig(n_rigs=b, n_views=v), 8, g),
    )


def test_every_weight_of_the_checkpoint_lands_and_nothing_is_invented(checkpoint, state):
    model = load_multiview(checkpoint)
    n = sum(v.numel() for k, v in state.items() if k.startswith(("model.", "first_stage_model.")))
    assert sum(p.numel() for part in (model.unet, model.vae) for p in part.parameters()) == n
    assert not any(p.is_meta or p.requires_grad for p in model.unet.parameters())
    assert model.process.prediction_type == "epsilon"
    assert torch.equal(model.process.alpha, scaled_linear_alphas_cumprod().sqrt())
    assert torch.equal(model.process.sigma, (1 - scaled_linear_alphas_cumprod()).sqrt())
    assert tuple(model.unet.config.attention_head_dim) == (1, 2, 2)  # 64 channels per head


def test_the_converted_unet_computes_what_the_original_does(checkpoint, state):
    prior = prior_of(checkpoint)
    x, t, text, cameras = inputs()
    camera = mvdream_camera(cameras.c2w)
    rows = (x.flatten(0, 1), t.repeat_interleave(4), text.flatten(0, 1), camera.flatten(0, 1))
    expected = ldm_forward(state, *rows, widths=WIDTHS, blocks=BLOCKS, attends=ATTENDS, views=4)
    out = predict(prior, x, t, text, cameras)
    assert out.shape == x.shape
    torch.testing.assert_close(out.flatten(0, 1).double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_stable_diffusion_1_s_layout_has_eight_heads(tmp_path):
    """sd-v1.5-4view.pt: no weight tells the heads; its transformers stand between 1x1 convolutions."""
    sizes = {"widths": (64, 128), "blocks": 1, "attends": (True, False)}
    state = random_state(ldm_unet_shapes(**sizes, text=TEXT, conv=True))
    torch.save({f"model.diffusion_model.{k}": v for k, v in state.items()}, tmp_path / "sd-v1.5-4view.pt")
    prior = prior_of(tmp_path / "sd-v1.5-4view.pt")
    assert tuple(prior.unet.config.attention_head_dim) == (8, 8) and not prior.unet.config.use_linear_projection
    x, t, text, cameras = inputs()
    rows = (x.flatten(0, 1), t.repeat_interleave(4), text.flatten(0, 1), mvdream_camera(cameras.c2w).flatten(0, 1))
    expected = ldm_forward(state, *rows, **sizes, heads=8, views=4)
    out = predict(prior, x, t, text, cameras)
    torch.testing.assert_close(out.flatten(0, 1).double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_the_diffusers_copies_with_the_original_names_are_read(state, checkpoint, tmp_path, prefix, suffix):
    """unet/ of the widely used copies belongs to a class of their own, which keeps the authors' names."""
    own = {k.removeprefix("model.diffusion_model."): v for k, v in state.items() if k.startswith("model.diff")}
    own = {prefix + k: v for k, v in own.items()}
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "unet" / f"diffusion_pytorch_model{suffix}"
    save_file(own, file) if suffix == ".safetensors" else torch.save(own, file)
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "MultiViewUNetModel", "model_channels": 64}')
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    ours, theirs = load_multiview(tmp_path).unet.state_dict(), load_multiview(checkpoint).unet.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    (lacking := dict(own)).pop(f"{prefix}out.2.bias")
    save_file(lacking, file) if suffix == ".safetensors" else torch.save(lacking, file)
    with pytest.raises(UserError, match="first missing key conv_out.bias"):
        load_multiview(tmp_path)


def test_a_folder_of_another_model_says_what_it_is(tiny_sd_folder, tmp_path):
    with pytest.raises(UserError, match="no multi-view UNet.*looks like a text-to-image model's UNet"):
        load_multiview(tiny_sd_folder())


def test_the_converted_vae_encodes_what_the_original_does(checkpoint, state):
    vae = load_multiview(checkpoint).vae
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    mean, _ = ldm_encode(state, x.double()).chunk(2, 1)
    posterior = vae.encode(x).latent_dist
    torch.testing.assert_close(posterior.mean.double(), mean, rtol=1e-3, atol=1e-4 * float(mean.abs().max()))
    assert vae.decode(posterior.mean).sample.shape == x.shape
    assert vae.config.scaling_factor == 0.18215


def test_permuting_views_with_their_cameras_permutes_the_answer(checkpoint):
    prior = prior_of(checkpoint)
    x, t, text, cameras = inputs()
    order = [2, 0, 3, 1]
    straight = predict(prior, x, t, text, cameras)
    permuted = predict(prior, x[:, order], t, text[:, order], cameras.select(torch.tensor([order, order])))
    torch.testing.assert_close(permuted, straight[:, order], rtol=1e-3, atol=1e-4 * float(straight.abs().max()))


def test_views_see_each_other_and_rigs_do_not(checkpoint):
    prior = prior_of(checkpoint)
    x, t, text, cameras = inputs()
    other = x.clone()
    other[0, 3] += 1
    before, after = predict(prior, x, t, text, cameras), predict(prior, other, t, text, cameras)
    assert (before - after)[0, 0].abs().max() > 1e-3
    torch.testing.assert_close(before[1], after[1])


def test_one_view_is_the_plain_unet(checkpoint):
    from diffusers.models.attention_processor import AttnProcessor2_0

    prior = prior_of(checkpoint)
    x, t, text, cameras = inputs(b=2, v=1)
    with torch.no_grad():
        single = predict(prior, x, t, text, cameras)
        prior.unet.set_attn_processor(AttnProcessor2_0())
        camera = mvdream_camera(cameras.c2w)[:, 0]
        plain = prior.unet(x[:, 0], t, encoder_hidden_states=text[:, 0], class_labels=camera).sample
    assert torch.equal(single[:, 0], plain)


def test_the_camera_matters(checkpoint):
    prior = prior_of(checkpoint)
    x, t, text, cameras = inputs()
    rolled = cameras.select(torch.tensor([[3, 0, 1, 2]] * 2))
    a, b = predict(prior, x, t, text, cameras), predict(prior, x, t, text, rolled)
    assert (a - b).abs().max() > 1e-3


def test_predict_leaves_the_cameras_alone_and_follows_the_number_of_views(checkpoint):
    prior = prior_of(checkpoint)
    for v in (4, 2):
        x, t, text, cameras = inputs(v=v)
        before = cameras.c2w.clone()
        predict(prior, x, t, text, cameras)
        assert torch.equal(cameras.c2w, before)
        assert {p.n_views for p in prior.unet.attn_processors.values()} == {v}


def test_half_rigs_are_a_fault(checkpoint):
    unet = load_multiview(checkpoint).unet
    x, t, text, cameras = inputs(b=1, v=2)
    set_views(unet, 3)
    with pytest.raises(ValueError, match="2 rows are not whole rigs of 3 views"):
        unet(x[0], t, encoder_hidden_states=text[0], class_labels=mvdream_camera(cameras.c2w)[0])


def test_a_wrapped_checkpoint_without_vae_or_schedule(state, tmp_path):
    state = {k: v for k, v in state.items() if k.startswith("model.")}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    model = load_multiview(tmp_path / "model.ckpt", torch.float16)
    assert model.vae is None and model.unet.dtype == torch.float16
    torch.testing.assert_close(model.process.alpha, scaled_linear_alphas_cumprod().sqrt())


def test_safetensors_of_the_same_layout(state, tmp_path):
    from safetensors.torch import save_file

    save_file(state, tmp_path / "model.safetensors")
    assert load_multiview(tmp_path / "model.safetensors").vae is not None


def test_diffusers_folder(tiny_mv_folder):
    prior = prior_of(tiny_mv_folder("sample"))
    assert prior.process.prediction_type == "sample" and prior.vae is not None
    x, t, text, cameras = inputs(width=16)
    assert predict(prior, x, t, text, cameras).shape == x.shape


# What a user can get wrong


def test_a_single_view_folder_is_refused(tiny_sd_folder):
    with pytest.raises(UserError, match="no multi-view UNet.*projection"):
        load_multiview(tiny_sd_folder())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {k: v for k, v in s.items() if "camera_embed" not in k}, "single-view"),
        (lambda s: {k: v for k, v in s.items() if "diffusion_model" not in k}, "no model.diffusion_model"),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("out.2.bias")}, "no complete"),
        (lambda s: s | {"model.diffusion_model.extra.weight": torch.ones(1)}, "no complete"),
        (lambda s: {k: v for k, v in s.items() if "decoder.conv_out" not in k}, "no complete"),
    ],
)
def test_checkpoints_that_are_not_whole_are_one_line(state, tmp_path, change, words):
    torch.save(change(state), tmp_path / "model.pt")
    with pytest.raises(UserError, match=words) as error:
        load_multiview(tmp_path / "model.pt")
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_model_names_the_first_keys_and_what_it_looks_like(state, tmp_path):
    other = {k: v for k, v in state.items() if "camera_embed" not in k}
    torch.save({**other, "cc_projection.weight": torch.ones(2)}, tmp_path / "zero123.pt")
    with pytest.raises(UserError) as error:
        load_multiview(tmp_path / "zero123.pt")
    for words in ("camera_embed.0.weight", "first unexpected key ", "looks like a novel-view model (Zero-1-to-3)"):
        assert words in str(error.value)
    torch.save({k: v for k, v in state.items() if not k.endswith("out.2.bias")}, tmp_path / "cut.pt")
    with pytest.raises(UserError, match="first missing key conv_out.bias, first unexpected key .none"):
        load_multiview(tmp_path / "cut.pt")


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"half a download")
    with pytest.raises(UserError, match="cannot read the checkpoint") as error:
        load_multiview(tmp_path / "model.pt")
    assert "\n" not in str(error.value)


class Bomb:
    def __reduce__(self):
        return (print, ("code from a checkpoint was run",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="cannot read"):
        load_multiview(tmp_path / "model.pt")
    assert "was run" not in capsys.readouterr().out


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_sizes_load_completely(tmp_path):
    """Stable Diffusion 2.1's UNet with cameras and its autoencoder: needs 8 GB of memory, 4 of disk, no download."""
    from tests.conftest import ldm_unet_shapes, ldm_vae_shapes

    unet = ldm_unet_shapes((320, 640, 1280, 1280), 2, (True, True, True, False), 1024)
    vae = ldm_vae_shapes((128, 256, 512, 512), 2)
    shapes = {f"model.diffusion_model.{k}": v for k, v in unet.items()}
    shapes |= {f"first_stage_model.{k}": v for k, v in vae.items()}
    file = tmp_path / "sd-v2.1-base-4view.pt"
    torch.save({k: torch.zeros(v, dtype=torch.half) for k, v in shapes.items()}, file)
    model = load_multiview(file, torch.half)
    assert sum(p.numel() for p in model.unet.parameters()) == sum(map(math.prod, unet.values()))
    assert model.vae is not None and sum(p.numel() for p in model.vae.parameters()) == sum(map(math.prod, vae.values()))
