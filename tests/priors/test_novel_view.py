"""Zero-1-to-3 and Wonder3D: every tensor of the official layouts used, and what plain functions compute from them.

The layouts are written down name by name in conftest.py; the networks a second time in ldm_oracle.py and below.
"""

import json
import math
import shutil

import pytest
import torch
from torch.nn.functional import conv2d, interpolate, layer_norm, linear

from jointdreamer.cameras import Rig, relative_pose, sample_cameras
from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from jointdreamer.energies.reconstruction import ReconstructionEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.novel_view import CLIP_MEAN, CLIP_STD
from jointdreamer.priors.registry import load_novel_view
from jointdreamer.priors.wonder3d import AZIMUTH_DEG, class_labels
from jointdreamer.priors.zero123 import relative_numbers, stable_numbers
from tests.ldm_oracle import ldm_forward

SIZES = {"widths": (32, 64), "blocks": 1, "attends": (True, False), "heads": 8}
ORTHO = Rig(n_rigs=2, n_views=6, azimuth_deg=AZIMUTH_DEG, projection="orthographic", fovy_deg=(30, 30))


@pytest.fixture(scope="module")
def zero123(zero123_file):
    return load_novel_view("zero123", zero123_file, image_size=16)


@pytest.fixture(scope="module")
def wonder3d(wonder3d_folder):
    return load_novel_view("wonder3d", wonder3d_folder, image_size=16)


def inputs(rig, b=2, t=(200, 800)):
    g = torch.Generator().manual_seed(5)
    cameras = sample_cameras(rig, 16, g)
    return {
        "image": torch.rand(b, 3, 16, 16, generator=g),
        "reference": cameras.select(torch.zeros(b, 1, dtype=torch.long)),
        "x_t": torch.randn(b, rig.n_views, 4, 8, 8, generator=g),
        "t": torch.tensor(t[:b]),
        "cameras": cameras,
    }


def x0_of(model, image, reference, x_t, t, cameras, generator=None):
    """The views' guided x0 (B, V, C, h, w) as the energy takes it of them."""
    condition = model.embed_image(image, reference, cameras)
    started = model.start(condition, x_t, t, cameras, generator)
    found = ReconstructionEnergy(model)._x0(started, t, condition, condition.zeros(), cameras)
    return found[:, -x_t.shape[1] :]


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-3, atol=tolerance * float(b.abs().max()))


# The plain networks


def openai_vision(state, pixels):
    """OpenAI's CLIP vision tower in float64: 64 channels a head, quick GELU, no normalisation of the embedding."""
    prefix = "cond_stage_model.model.visual."
    w = {k.removeprefix(prefix): v.double() for k, v in state.items() if k.startswith(prefix)}

    def ln(name, x):
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    patch = w["conv1.weight"].shape[-1]
    x = conv2d(pixels.double(), w["conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], 1) + w["positional_embedding"]
    x = ln("ln_pre", x)
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        y = ln(f"{block}.ln_1", x)
        q, k, v = linear(y, w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"]).chunk(3, -1)
        out = torch.zeros_like(x)
        for head in range(x.shape[-1] // 64):
            part = slice(64 * head, 64 * head + 64)
            out[..., part] = (q[..., part] @ k[..., part].transpose(1, 2) / 8).softmax(-1) @ v[..., part]
        x = x + linear(out, w[f"{block}.attn.out_proj.weight"], w[f"{block}.attn.out_proj.bias"])
        y = linear(ln(f"{block}.ln_2", x), w[f"{block}.mlp.c_fc.weight"], w[f"{block}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + linear(y, w[f"{block}.mlp.c_proj.weight"], w[f"{block}.mlp.c_proj.bias"])
    return ln("ln_post", x[:, 0]) @ w["proj"]


def averaged(state):
    """The UNet of the checkpoint by its own names, with the values of the running average."""
    names = [k for k in state if k.startswith("model.diffusion_model.")]
    return {k: state["model_ema." + k.removeprefix("model.").replace(".", "")] for k in names}


def zero123_x0(state, model, given, scale):
    """The whole call, row by row, from the conventions: float64 but for the autoencoder."""
    pixels = interpolate(given["image"], (8, 8), mode="bicubic", align_corners=True)
    pixels = (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    embedding = openai_vision(state, pixels)
    with torch.no_grad():
        mode = model.vae.encode(2 * given["image"] - 1).latent_dist.mean.double()  # not scaled
    abar, unet, rows = scaled_linear_alphas_cumprod().double(), averaged(state), []
    ref, cameras = given["reference"], given["cameras"]
    for b in range(len(mode)):
        t = given["t"][b : b + 1]
        for v in range(cameras.n_views):
            x = given["x_t"][b, v].double()
            pose = torch.tensor(
                [
                    (math.pi / 2 - cameras.elevation[b, v]) - (math.pi / 2 - ref.elevation[b, 0]),
                    math.sin(cameras.azimuth[b, v] - ref.azimuth[b, 0]),
                    math.cos(cameras.azimuth[b, v] - ref.azimuth[b, 0]),
                    cameras.distance[b, v] - ref.distance[b, 0],
                ]
            ).double()
            token = torch.cat([embedding[b], pose])
            token = state["cc_projection.weight"].double() @ token + state["cc_projection.bias"].double()
            cond = ldm_forward(unet, torch.cat([x, mode[b]])[None], t, token[None, None], **SIZES)[0]
            none = torch.cat([x, torch.zeros_like(mode[b])])[None]
            uncond = ldm_forward(unet, none, t, torch.zeros_like(token)[None, None], **SIZES)[0]
            noise = uncond + scale * (cond - uncond)
            rows.append((x - (1 - abar[t]).sqrt() * noise) / abar[t].sqrt())
    return torch.stack(rows).view(given["x_t"].shape)


# Zero-1-to-3


def test_every_tensor_of_the_checkpoint_is_used_once(zero123, zero123_state):
    ignored = ("model_ema.", "cond_stage_model.model.")
    used = [k for k in zero123_state if "." in k and not k.startswith(ignored)]
    used += [k for k in zero123_state if k.startswith("cond_stage_model.model.visual.")]
    count = sum(zero123_state[k].numel() for k in used)
    assert sum(p.numel() for p in zero123.parameters()) == count
    assert not any(x.is_meta for x in [*zero123.parameters(), *zero123.buffers()])
    assert not any(p.requires_grad for p in zero123.parameters())
    assert type(zero123.unet).__name__ == "UNet2DConditionModel" and zero123.unet.config.in_channels == 8
    assert zero123.process.prediction_type == "epsilon"


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_zero123_computes_what_the_original_does(zero123_file, zero123_state, scale):
    zero123 = load_novel_view("zero123", zero123_file, image_size=16, guidance_scale=scale)
    rig = Rig(n_rigs=2, n_views=3)
    given = inputs(rig)
    elsewhere = sample_cameras(rig, 16, torch.Generator().manual_seed(9))  # another height and distance
    given["reference"] = elsewhere.select(torch.tensor([[1], [2]]))
    close(x0_of(zero123, **given), zero123_x0(zero123_state, zero123, given, scale))


def test_a_checkpoint_without_an_average_is_its_own(zero123, zero123_state, tmp_path):
    state = {k: v for k, v in zero123_state.items() if not k.startswith("model_ema.")}
    mean = averaged(zero123_state)
    torch.save({**state, **mean}, tmp_path / "same.ckpt")  # the average's values under the weights' names; no wrapper
    given = inputs(Rig(n_rigs=2))
    again = load_novel_view("zero123", tmp_path / "same.ckpt", image_size=16)
    torch.testing.assert_close(x0_of(again, **given), x0_of(zero123, **given))
    torch.save(state, tmp_path / "raw.ckpt")
    raw = load_novel_view("zero123", tmp_path / "raw.ckpt", image_size=16)
    assert (x0_of(raw, **given) - x0_of(zero123, **given)).abs().max() > 1e-2


def test_the_four_numbers_of_a_pose():
    cameras = sample_cameras(Rig(n_views=4, elevation_deg=(10, 10)), 8, torch.Generator().manual_seed(0))
    numbers = relative_numbers(cameras.select(torch.tensor([[0]])), cameras)[0]
    expected = [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0]]  # 90 degrees apart, else alike
    torch.testing.assert_close(numbers, torch.tensor(expected).float(), atol=1e-5, rtol=0)
    high = sample_cameras(Rig(n_views=4, elevation_deg=(30, 30)), 8, torch.Generator().manual_seed(0))
    assert relative_numbers(cameras, high)[0, 0, 0] == pytest.approx(-math.radians(20))  # polar falls as it rises


def test_both_diffusers_layouts_are_read(tiny_nv_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    given = inputs(Rig(n_rigs=2))
    first = load_novel_view("zero123", tiny_nv_folder)
    assert first.image_size == 16 and first.process.prediction_type == "sample"
    other = tmp_path / "other"
    shutil.copytree(tiny_nv_folder, other)
    (other / "clip_camera_projection").rename(other / "cc_projection")
    file = other / "cc_projection" / "diffusion_pytorch_model.safetensors"
    state = {k.replace("proj.", "projection."): v for k, v in load_file(file).items()}
    save_file(state, file)
    torch.testing.assert_close(x0_of(load_novel_view("zero123", other), **given), x0_of(first, **given))


def test_views_are_drawn_apart_and_need_the_image(zero123):
    given = inputs(Rig(n_rigs=2))
    whole = x0_of(zero123, **given)
    alone = {**given, "cameras": given["cameras"].select(torch.tensor([[2], [2]]))}
    alone["x_t"] = given["x_t"][:, 2:3]
    close(x0_of(zero123, **alone), whole[:, 2:3])
    assert (x0_of(zero123, **{**given, "image": 1 - given["image"]}) - whole).abs().max() > 1e-2
    turned = {**given, "reference": given["cameras"].select(torch.ones(2, 1, dtype=torch.long))}
    assert (x0_of(zero123, **turned) - whole).abs().max() > 1e-2


def test_x0_limit(tiny_nv_folder):
    given = inputs(Rig(n_rigs=2))
    models = (load_novel_view("zero123", tiny_nv_folder, x0_limit=limit) for limit in (None, 0.1))
    free, bound = (x0_of(model, **given) for model in models)
    assert free.abs().max() > 0.1
    torch.testing.assert_close(bound, free.clamp(-0.1, 0.1))


# Wonder3D


def test_wonder3d_names_are_the_official_ones_and_all_used(wonder3d, wonder3d_state):
    names = set(wonder3d.unet.state_dict())
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    joint = {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"}
    assert {f"{block}.attn_joint_mid.{name}" for name in joint} <= names
    assert {f"{block}.norm_joint_mid.weight", "class_embedding.linear_1.weight"} <= names
    assert sum(p.numel() for p in wonder3d.unet.parameters()) == sum(v.numel() for v in wonder3d_state.values())
    assert type(wonder3d.unet).__name__ == "UNet2DConditionModel"
    assert not any(p.is_meta or p.requires_grad for p in wonder3d.parameters())


def test_wonder3d_unet_computes_what_the_plain_one_does(wonder3d, wonder3d_state):
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(24, 8, 8, 8, generator=g)  # two rigs: 12 normal maps, then 12 colours
    t, context, labels = torch.randint(1000, (24,)), torch.randn(24, 1, 16, generator=g), torch.randn(24, 10)
    with torch.no_grad():
        out = wonder3d.unet(rows, t, context, class_labels=labels).sample
    close(out, ldm_forward(wonder3d_state, rows, t, context, labels, **SIZES, views=6))


def plain_wonder3d(state, x_t, t, embedding, latents, scale):
    """x0 (12, C, h, w) of one rig, normals first, in float64: each half of the guidance in a call of its own."""
    abar = scaled_linear_alphas_cumprod().double()[t]
    labels = []
    numbers = [(0, 0), (-0.2362, 0.8125), (-0.1686, 1.6934), (0.5220, 3.1406), (0.6904, 4.8359), (0.3733, 5.5859)]
    for flags in ((1, 0), (0, 1)):
        for polar, azimuth in numbers:
            five = torch.tensor([0, polar, azimuth, *flags]).half().double()
            labels.append(torch.cat([five.sin(), five.cos()]))

    def noise(on):
        rows = torch.cat([x_t.double(), on * latents.double().expand(12, -1, -1, -1)], 1)
        context = (on * embedding.double()).expand(12, 1, -1)
        return ldm_forward(state, rows, t.expand(12), context, torch.stack(labels), **SIZES, views=6)

    guided = noise(0) + scale * (noise(1) - noise(0)) if scale != 1 else noise(1)
    return (x_t - (1 - abar).sqrt() * guided) / abar.sqrt()


def test_wonder3d_rig_by_rig(wonder3d, wonder3d_state):
    given, g = inputs(ORTHO), torch.Generator().manual_seed(7)
    out = x0_of(wonder3d, **given, generator=g)
    assert out.shape == (2, 6, 4, 8, 8)

    g = torch.Generator().manual_seed(7)
    condition = wonder3d.embed_image(given["image"], given["reference"], given["cameras"])
    embedding, latents = condition.embedding, condition.extra["image"]
    mode = wonder3d.vae.encode(2 * given["image"] - 1).latent_dist.mean
    close(latents, 0.18215 * mode[:, None].expand(-1, 6, -1, -1, -1))  # scaled
    assert torch.equal(embedding, embedding[:, :1].expand(-1, 6, -1, -1))  # the same for every view
    pure = torch.randn(2, 12, 4, 8, 8, generator=g)
    fresh = torch.randn(2, 6, 4, 8, 8, generator=g)
    for b in range(2):
        known = (embedding[b, 0, 0], latents[b, 0])
        t = given["t"][b]
        normals = plain_wonder3d(wonder3d_state, pure[b], torch.tensor(999), *known, scale=1)[:6]
        abar = scaled_linear_alphas_cumprod().double()[t]
        x_t = torch.cat([abar.sqrt() * normals + (1 - abar).sqrt() * fresh[b], given["x_t"][b]])
        close(out[b], plain_wonder3d(wonder3d_state, x_t, t, *known, scale=3)[6:], 1e-3)


def test_older_wonder3d_names(wonder3d, wonder3d_folder, tmp_path):
    shutil.copytree(wonder3d_folder, tmp_path / "old")
    from safetensors.torch import load_file

    file = tmp_path / "old" / "unet" / "diffusion_pytorch_model.safetensors"
    state = {k.replace("_joint_mid", "_joint_twice"): v for k, v in load_file(file).items()}
    file.unlink()
    torch.save(state, tmp_path / "old" / "unet" / "diffusion_pytorch_model.bin")
    again = load_novel_view("wonder3d", tmp_path / "old", image_size=16)
    for (name, a), (other, b) in zip(again.unet.named_parameters(), wonder3d.unet.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b)


def test_labels_carry_the_flags_through_sine_and_cosine():
    labels = class_labels()
    assert labels.shape == (2, 6, 10)
    torch.testing.assert_close(labels[:, 0, 3:5], torch.tensor([[1.0, 0.0], [0.0, 1.0]]).sin())
    torch.testing.assert_close(labels[0, :, :3], labels[1, :, :3])


# What does not fit


@pytest.mark.parametrize("change", [{"n_views": 4}, {"azimuth_deg": None}, {"projection": "perspective"}])
def test_wonder3d_refuses_other_rigs(wonder3d, change):
    options = {"n_views": 6, "azimuth_deg": AZIMUTH_DEG, "projection": "orthographic", **change}
    if options["n_views"] == 4:
        options["azimuth_deg"] = None
    wonder3d.check_rig(Rig(n_views=6, azimuth_deg=AZIMUTH_DEG, projection="orthographic"))
    with pytest.raises(UserError, match="six fixed orthographic views.*novel_view=wonder3d") as error:
        wonder3d.check_rig(Rig(**options))
    assert "\n" not in str(error.value)


def test_wonder3d_refuses_other_cameras(wonder3d):
    given = inputs(ORTHO)
    for wrong in (given["cameras"].select(torch.tensor([[1, 2, 3, 4, 5, 0]] * 2)),):
        with pytest.raises(UserError, match="not the six"):
            x0_of(wonder3d, **{**given, "cameras": wrong})
    with pytest.raises(UserError, match="6 views, got 4"):
        x0_of(wonder3d, **{**given, "x_t": given["x_t"][:, :4]})


def test_zero123_refuses_parallel_rays_and_lone_views(zero123):
    zero123.check_rig(Rig())
    for wrong in (Rig(n_views=1), Rig(projection="orthographic")):
        with pytest.raises(UserError, match="perspective cameras"):
            zero123.check_rig(wrong)


UNET = "model.diffusion_model."


def without(*names):
    return lambda state: {k: v for k, v in state.items() if k not in names}


def having(name):
    return lambda state: state | {name: torch.ones(1)}


CLIP_BLOCK = "cond_stage_model.model.visual.transformer.resblocks.1"


@pytest.mark.parametrize(
    ("change", "missing", "unexpected"),
    [
        (without(f"{UNET}out.0.bias"), "conv_norm_out.bias", "(none)"),
        (having(f"{UNET}label_emb.0.weight"), "(none)", f"{UNET}label_emb.0.weight"),
        (having(f"{UNET}output_blocks.0.0.odd.weight"), "(none)", f"{UNET}output_blocks.0.0.odd.weight"),
        (having("lora.0.weight"), "(none)", "lora.0.weight"),
        (having("model_ema.odd"), "model_ema.diffusion_model", "model_ema.odd"),
        (without(f"{CLIP_BLOCK}.mlp.c_fc.bias"), "layers.1.mlp.fc1.bias", "(none)"),
        (having("cond_stage_model.model.visual.odd"), "(none)", "cond_stage_model.model.visual.odd"),
        (without("cc_projection.weight", "cc_projection.bias"), "cc_projection.weight", "(none)"),
        (without("cc_projection.bias"), "bias", "(none)"),
        (without(f"{UNET}input_blocks.1.0.out_layers.3.weight"), "input_blocks.1.0.out_layers.3.weight", "(none)"),
    ],
)
def test_checkpoints_that_are_not_whole_are_one_line(zero123_state, tmp_path, change, missing, unexpected):
    raw = {k: v for k, v in zero123_state.items() if not k.startswith("model_ema.")}
    torch.save(change(raw), tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="no complete Zero-1-to-3 checkpoint: first missing key") as error:
        load_novel_view("zero123", tmp_path / "model.ckpt")
    said = str(error.value).partition("first missing key ")[2]
    assert "\n" not in said
    assert missing in said.split(", ")[0] and unexpected in said.split(", ")[1]


def test_an_autoencoder_that_is_not_whole_is_one_line(zero123_state, tmp_path):
    torch.save(without("first_stage_model.decoder.conv_out.bias")(zero123_state), tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=r"its autoencoder.*decoder\.conv_out\.bias") as error:
        load_novel_view("zero123", tmp_path / "model.ckpt")
    assert "\n" not in str(error.value)


def test_another_architecture_is_named_by_its_keys(mvdream_state, tmp_path):
    torch.save(mvdream_state(), tmp_path / "mv.pt")
    with pytest.raises(UserError) as error:
        load_novel_view("zero123", tmp_path / "mv.pt")
    assert "first missing key cc_projection.weight" in str(error.value)
    assert "first unexpected key model.diffusion_model.camera_embed.0.weight" in str(error.value)


def test_other_folders_are_refused(tiny_sd_folder, tiny_nv_folder, wonder3d_folder, tmp_path):
    with pytest.raises(UserError, match="clip_camera_projection"):
        load_novel_view("zero123", tiny_sd_folder())
    with pytest.raises(UserError, match="no image_encoder|image_encoder"):
        load_novel_view("wonder3d", tiny_sd_folder())
    with pytest.raises(UserError, match="10 numbers"):
        load_novel_view("wonder3d", tiny_nv_folder)
    with pytest.raises(UserError, match="clip_camera_projection"):
        load_novel_view("zero123", wonder3d_folder)
    with pytest.raises(UserError, match="no Wonder3D folder"):
        load_novel_view("wonder3d", tmp_path / "file.ckpt")
    with pytest.raises(UserError, match="unknown kind.*zero123, wonder3d"):
        load_novel_view("zero456", tmp_path)


def test_a_wonder3d_unet_of_one_domain_is_refused(wonder3d_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(wonder3d_folder, tmp_path / "single")
    file = tmp_path / "single" / "unet" / "diffusion_pytorch_model.safetensors"
    state = {k: v for k, v in load_file(file).items() if "joint" not in k}
    save_file({**state, "extra.weight": torch.ones(1)}, file)
    with pytest.raises(UserError, match=r"first missing key .*joint_mid.*first unexpected key extra\.weight"):
        load_novel_view("wonder3d", tmp_path / "single")


# The real sizes


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["zero123", "wonder3d"])
def test_the_real_sizes_load_completely(kind, tmp_path):
    """Stable Diffusion 1's UNet and autoencoder, CLIP ViT-L/14: needs 10 GB of memory and 6 of disk, no download."""
    from tests.conftest import ldm_unet_shapes, ldm_vae_shapes, openai_vision_shapes, zero123_shapes

    real = {"widths": (320, 640, 1280, 1280), "blocks": 2, "attends": (True, True, True, False), "text": 768}
    if kind == "zero123":
        unet = ldm_unet_shapes(**real, channels=8, camera=0, conv=True)
        vae = ldm_vae_shapes((128, 256, 512, 512), 2)
        shapes = zero123_shapes(unet, vae, openai_vision_shapes(1024, 24, 14, 16, 768), 768)
        state = {k: torch.zeros(v, dtype=torch.half) for k, v in shapes.items()}
        torch.save({"state_dict": state}, tmp_path / "zero123-xl.ckpt")
        del state
        model = load_novel_view("zero123", tmp_path / "zero123-xl.ckpt", dtype=torch.half)
        assert model.image_size == 256
        used = [k for k in shapes if not k.startswith(("model_ema.", "cond_stage_model."))]
        used += [k for k in shapes if k.startswith("cond_stage_model.model.visual.")]
        assert sum(p.numel() for p in model.parameters()) == sum(math.prod(shapes[k]) for k in used)
        assert model.image_encoder.config.image_size == 224
        return
    from safetensors.torch import save_file

    from jointdreamer.priors.ldm import unet_names
    from jointdreamer.priors.wonder3d import read_unet

    shapes = ldm_unet_shapes(**real, channels=8, camera=10, conv=True, joint=True)
    state = {new: torch.zeros(shapes[old], dtype=torch.half) for new, old in unet_names(shapes, 2).items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    del state
    config = {
        "sample_size": 32,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": real["widths"],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlockMV2D"] * 3 + ["DownBlock2D"],
        "mid_block_type": "UNetMidBlockMV2DCrossAttn",
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlockMV2D"] * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 10,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    unet = read_unet(tmp_path, torch.half)
    assert sum(p.numel() for p in unet.parameters()) == sum(map(math.prod, shapes.values()))


def test_the_six_cameras_turn_about_the_reference_s_own_up():
    cameras = sample_cameras(ORTHO, 16, torch.Generator().manual_seed(3))
    for v, angle in enumerate(map(math.radians, AZIMUTH_DEG)):
        pose = relative_pose(cameras.c2w[:, 0], cameras.c2w[:, v])[:, :3, :3].double()
        c, s = math.cos(angle), math.sin(angle)
        about_up = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]]).double()
        torch.testing.assert_close(pose, about_up.expand(2, 3, 3), atol=1e-5, rtol=0)


# Stable Zero123: the same names and shapes, another fourth number


@pytest.mark.parametrize(
    "name", ["stable_zero123.ckpt", "stable-zero123-v1.ckpt", "models--stabilityai--stable-zero123/a.ckpt"]
)
def test_stable_zero123_is_not_taken_for_its_ancestor(zero123_file, tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    shutil.copy(zero123_file, file)
    with pytest.raises(UserError, match="Stable Zero123 by its name.*models.novel_view.kind=stable_zero123") as error:
        load_novel_view("zero123", file)
    assert "\n" not in str(error.value)
    assert load_novel_view("stable_zero123", file, image_size=16).numbers is stable_numbers


def test_stable_zero123_hears_where_the_image_was_taken_from(zero123_file, tmp_path):
    """threestudio's: the last number is the reference's polar angle, 90 degrees minus its elevation, in radians."""
    given = inputs(Rig(n_rigs=2, n_views=3))
    numbers = stable_numbers(given["reference"], given["cameras"])
    assert torch.equal(numbers[..., :3], relative_numbers(given["reference"], given["cameras"])[..., :3])
    elevation = given["reference"].elevation.rad2deg()
    torch.testing.assert_close(numbers[..., 3], torch.deg2rad(90 - elevation).expand(2, 3))
    (tmp_path / "file").mkdir()
    nameless = shutil.copy(zero123_file, tmp_path / "file" / "model.ckpt")
    stable, plain = (load_novel_view(kind, nameless, image_size=16) for kind in ("stable_zero123", "zero123"))
    assert (x0_of(stable, **given) - x0_of(plain, **given)).abs().max() > 1e-3
