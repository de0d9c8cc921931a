"""M_CLS against a plain float64 twin written from Appendix A.2 and the DINO code's names; files; what it refuses."""

import argparse
import json
import math
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jointdreamer.cameras import Rig, camera_numbers, look_at, sample_cameras
from jointdreamer.classifier.model import (
    ClassifierSettings,
    PairClassifier,
    load_classifier,
    read_dino,
)
from jointdreamer.errors import UserError

SMALL: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 12,
    "n_blocks": 3,
    "n_heads": 3,
    "frozen_blocks": 2,
}


# The oracle


def affine(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def layer_norm(s: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """One head after the other; (Q, C), (K, C), (K, C) -> (Q, C)."""
    parts = []
    for q, k, v in zip(*(x.chunk(heads, -1) for x in (query, key, value)), strict=True):
        weight = (q @ k.T / math.sqrt(q.shape[-1])).exp()
        parts.append(weight / weight.sum(-1, keepdim=True) @ v)
    return torch.cat(parts, -1)


def vision_transformer(s: dict[str, Tensor], image: Tensor, patch: int, heads: int, eps: float) -> Tensor:
    """One image (3, R, R), normalised, through a network with the DINO code's names -> (L, C)."""
    rows = []
    for y in range(0, image.shape[1], patch):
        for x in range(0, image.shape[2], patch):
            square = image[:, y : y + patch, x : x + patch]
            rows.append((s["patch_embed.proj.weight"] * square).sum((1, 2, 3)) + s["patch_embed.proj.bias"])
    tokens = torch.cat([s["cls_token"][0], torch.stack(rows)]) + s["pos_embed"][0]
    n = 1 + max(int(key.split(".")[1]) for key in s if key.startswith("blocks."))
    for block in (f"blocks.{i}" for i in range(n)):
        q, k, v = affine(s, f"{block}.attn.qkv", layer_norm(s, f"{block}.norm1", tokens, eps)).chunk(3, -1)
        tokens = tokens + affine(s, f"{block}.attn.proj", attend(q, k, v, heads))
        inside = gelu(affine(s, f"{block}.mlp.fc1", layer_norm(s, f"{block}.norm2", tokens, eps)))
        tokens = tokens + affine(s, f"{block}.mlp.fc2", inside)
    return layer_norm(s, "norm", tokens, eps)


def perceptron(s: dict[str, Tensor], name: str, x: Tensor, layers: int) -> Tensor:
    for i in range(layers):
        x = affine(s, f"{name}.{2 * i}", gelu(x) if i else x)
    return x


def oracle(state: dict[str, Tensor], config: dict, image_1: Tensor, image_2: Tensor, camera: Tensor) -> Tensor:
    """The logit of one pair: A.2, step by step."""
    s = {key: value.double() for key, value in state.items()}
    dino = {key[9:]: value for key, value in s.items() if key.startswith("backbone.")}
    mean, std = (torch.tensor(x).double().view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    patch, heads, eps = config["patch_size"], config["n_heads"], config["layer_norm_eps"]
    seen = [vision_transformer(dino, (x.double() - mean) / std, patch, heads, eps) for x in (image_1, image_2)]
    both = torch.cat([affine(s, "key_value", tokens) + offset for tokens, offset in zip(seen, s["order"], strict=True)])
    key, value = both.chunk(2, -1)
    query = affine(s, "query", perceptron(s, "camera", camera.double()[None], 4))
    attended = affine(s, "out", query + attend(query, key, value, config["attention_heads"]))
    summary = torch.cat([tokens[0] for tokens in seen])
    return perceptron(s, "head", summary + layer_norm(s, "norm", attended, 1e-5), 3)[0, 0]


def dino_state(width: int, blocks: int, patch: int, tokens: int) -> dict[str, Tensor]:
    """A random backbone with the names and shapes of the DINO code, typed from it."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(blocks):
        for name, n_out, n_in in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (n_out, n_in), f"blocks.{i}.{name}.bias": (n_out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    g = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=g) / max(1, math.prod(shape[1:])) ** 0.5 for key, shape in shapes.items()}


def old_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as facebook/dino-vits16 has them."""
    plain = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "norm.": "layernorm.",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    }
    inside = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, number, *rest, kind = key.split(".")
            block, name = f"encoder.layer.{number}", ".".join(rest)
            if name == "attn.qkv":
                for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    renamed[f"{block}.attention.attention.{part}.{kind}"] = third.clone()
            else:
                renamed[f"{block}.{inside[name]}.{kind}"] = value
        else:
            (prefix,) = [prefix for prefix in plain if key.startswith(prefix)]
            renamed[plain[prefix] + key[len(prefix) :]] = value
    return renamed


def poses(n: int) -> Tensor:
    return sample_cameras(Rig(n_rigs=n, n_views=2), 8, torch.Generator().manual_seed(3)).c2w


# The network


def test_the_forward_is_the_plain_twin_s(tiny_classifier_folder):
    model = PairClassifier.load(tiny_classifier_folder)
    config = json.loads((tiny_classifier_folder / "config.json").read_text())
    state = load_file(tiny_classifier_folder / "model.safetensors")
    rgb, first, second = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 0, 3, 3, 2])
    camera = camera_numbers(*poses(5).unbind(1))
    logits = model(rgb, first, second, camera)
    pairs = zip(first, second, camera, strict=True)
    expected = torch.stack([oracle(state, config, rgb[a], rgb[b], c) for a, b, c in pairs])
    assert expected.std() > 0.05
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_logit_is_unbounded_and_the_order_of_a_pair_matters(tiny_classifier_folder):
    model = PairClassifier.load(tiny_classifier_folder)
    rgb, camera = torch.rand(2, 3, 16, 16), camera_numbers(*poses(1).unbind(1))
    there, back = (model(rgb, torch.tensor([a]), torch.tensor([1 - a]), camera) for a in (0, 1))
    assert (there - back).abs().item() > 1e-2
    with torch.no_grad():
        dict(model.named_parameters())["head.4.weight"].mul_(1000)
    assert model(rgb, torch.tensor([0]), torch.tensor([1]), camera).abs().item() > 10


def test_images_of_any_size_are_resized_inside_with_a_gradient(tiny_classifier_folder):
    model = PairClassifier.load(tiny_classifier_folder)
    large = torch.rand(2, 3, 48, 48, requires_grad=True)
    small = torch.nn.functional.interpolate(large, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    for a, b in zip(model.encode(large), model.encode(small), strict=True):
        torch.testing.assert_close(a, b)
    model.encode(large).summary.sum().backward()
    assert large.grad is not None and (large.grad != 0).float().mean() > 0.9


def test_the_camera_is_the_true_relative_pose_whatever_the_world_s_frame():
    c2w = poses(6).double()
    numbers = camera_numbers(c2w[:, 0], c2w[:, 1])
    expected = torch.linalg.inv(c2w[:, 0]) @ c2w[:, 1]
    expected[:, :3, 3] /= c2w[:, 0, :3, 3].norm(dim=-1)[:, None]
    torch.testing.assert_close(numbers, expected.flatten(1))
    turn = look_at(*(torch.tensor(x, dtype=torch.float64) for x in (0.3, 1.1, 0.0)))  # about the origin
    torch.testing.assert_close(camera_numbers(turn @ c2w[:, 0], turn @ c2w[:, 1]), numbers)
    farther = c2w.clone()
    farther[..., :3, 3] *= 3.0  # a longer lens from farther away
    torch.testing.assert_close(camera_numbers(farther[:, 0], farther[:, 1]), numbers)
    torch.testing.assert_close(camera_numbers(c2w[:, 0], c2w[:, 0]), torch.eye(4).double().flatten().expand(6, 16))


def test_dino_vit_s_16_with_nine_of_twelve_blocks_frozen_counts_as_the_paper_s():
    model = PairClassifier()
    block = 4 * 384 + (384 + 1) * 1152 + (384 + 1) * 384 + (384 + 1) * 1536 + (1536 + 1) * 384
    backbone = 12 * block + 2 * 384 + 384 + 197 * 384 + (3 * 16 * 16 + 1) * 384
    assert backbone == 21_665_664  # DINO's own count for ViT-S/16
    assert sum(p.numel() for p in model.backbone.parameters()) == backbone
    camera = (16 + 1) * 256 + 2 * (256 + 1) * 256 + (256 + 1) * 384
    attention = (384 + 1) * 512 + (384 + 1) * 1024 + 2 * 1024 + (512 + 1) * 768 + 2 * 768
    head = (768 + 1) * 2048 + (2048 + 1) * 2048 + 2048 + 1
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 3 * block + 2 * 384 + camera + attention + head
    assert not any(p.requires_grad for p in model.backbone.embeddings.parameters())


# Its weights


@pytest.mark.parametrize("rename", [lambda s: s, old_transformers_names], ids=["dino", "transformers 4"])
def test_every_tensor_of_either_layout_is_used_once(rename):
    state = dino_state(12, 3, 8, 10)
    model = PairClassifier(ClassifierSettings(**SMALL))
    model.load_backbone(rename(state), "here")
    image = torch.rand(3, 24, 24)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    doubles = {key: value.double() for key, value in state.items()}
    expected = vision_transformer(doubles, ((image - mean) / std).double(), 8, 3, 1e-6)
    torch.testing.assert_close(model.encode(image[None]).summary[0].double(), expected[0], rtol=1e-4, atol=1e-4)
    for key in rename(state):  # none is left out unnoticed
        with pytest.raises(UserError, match="first missing"):
            model.load_backbone({name: value for name, value in rename(state).items() if name != key}, "here")


WRAPPINGS = {
    "state_dict": lambda s: {"state_dict": s},
    "teacher": lambda s: {
        "student": {f"module.backbone.{k}": torch.zeros_like(v) for k, v in s.items()},
        "teacher": {f"backbone.{k}": v for k, v in s.items()} | {"head.mlp.0.weight": torch.zeros(2, 12)},
        "args": argparse.Namespace(arch="vit_small"),
    },
    "flat teacher": lambda s: (
        {f"student.backbone.{k}": torch.zeros_like(v) for k, v in s.items()}
        | {f"teacher.backbone.{k}": v for k, v in s.items()}
        | {"teacher.head.last_layer.weight_g": torch.zeros(2)}
    ),
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "timm with a head": lambda s: s | {"head.weight": torch.zeros(10, 12), "head.bias": torch.zeros(10)},
    "transformers 4": lambda s: old_transformers_names(s) | {"pooler.dense.weight": torch.zeros(12, 12)},
    "for classification": lambda s: (
        {f"vit.{k}": v for k, v in old_transformers_names(s).items()} | {"classifier.weight": torch.zeros(3, 12)}
    ),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_public_wrappings_of_dino_are_one_backbone(tmp_path, monkeypatch, wrapping):
    monkeypatch.setenv("JOINTDREAMER_CACHE", str(tmp_path / "cache"))
    state = dino_state(12, 3, 8, 10)
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "dino.pth")
    model, expected = (PairClassifier(ClassifierSettings(**SMALL)) for _ in range(2))
    expected.load_backbone(state, "here")
    found, path = read_dino(tmp_path / "dino.pth")
    model.load_backbone(found, str(path))
    ours, theirs = model.backbone.state_dict(), expected.backbone.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_dinov2_is_named(tmp_path):
    state = dino_state(12, 3, 8, 10) | {"blocks.0.ls1.gamma": torch.ones(12)}
    with pytest.raises(UserError, match="first unexpected: blocks.0.ls1.gamma; it looks like a DINOv2"):
        PairClassifier(ClassifierSettings(**SMALL)).load_backbone(state, "dinov2.pth")


def test_the_layout_of_the_official_file_fits_the_default():
    state = dino_state(384, 12, 16, 197)
    assert len(state) == 150  # tensors in dino_deitsmall16_pretrain.pth
    model = PairClassifier()
    model.load_backbone(state, "here")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (dino_state(12, 4, 8, 10), ["first unexpected: blocks.3."]),
        (dino_state(12, 2, 8, 10), ["first missing: blocks.2."]),
        (dino_state(24, 3, 8, 10), ["first of another shape", "12", "24"]),
        (
            {"model.diffusion_model.out.0.weight": torch.ones(2)},
            ["first missing: cls_token", "looks like a text-to-image"],
        ),
    ],
)
def test_another_architecture_is_one_line(state, says):
    with pytest.raises(UserError) as error:
        PairClassifier(ClassifierSettings(**SMALL)).load_backbone(state, "dino.pth")
    assert all(text in str(error.value) for text in ["dino.pth", "DINO backbone", *says]) and "\n" not in str(
        error.value
    )


def test_dino_files_are_read_without_running_code(tmp_path, monkeypatch):
    monkeypatch.setenv("JOINTDREAMER_CACHE", str(tmp_path / "cache"))
    state = dino_state(12, 1, 8, 10)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights in"):
        read_dino(tmp_path / "folder")
    torch.save(state, tmp_path / "dino.pth")
    torch.save(state, tmp_path / "folder" / "pytorch_model.bin")
    for source in (tmp_path / "dino.pth", tmp_path / "folder", ["/nowhere", str(tmp_path / "dino.pth")]):
        found, path = read_dino(source)
        assert found.keys() == state.keys() and path.is_file()
    save_file(state, tmp_path / "folder" / "model.safetensors")
    assert read_dino(tmp_path / "folder")[1].suffix == ".safetensors"
    torch.save({"hook": print}, tmp_path / "evil.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "dino.pth").read_bytes()[:500])
    for name in ("evil.pth", "half.pth"):
        with pytest.raises(UserError, match=name):
            read_dino(tmp_path / name)
    with pytest.raises(UserError, match=r"models\.classifier_backbone\.source"):
        read_dino("/nowhere")


def test_saving_and_loading_keeps_the_logits(tmp_path):
    model = PairClassifier(ClassifierSettings(**SMALL))
    back, folder = load_classifier(model.save(tmp_path / "classifier", torch.float32), image_size=24)
    assert folder == tmp_path / "classifier" and not any(p.requires_grad for p in back.parameters())
    arguments = (
        torch.rand(3, 3, 24, 24),
        torch.tensor([0, 1]),
        torch.tensor([2, 0]),
        camera_numbers(*poses(2).unbind(1)),
    )
    assert torch.equal(back(*arguments), model(*arguments))
    names = load_file(tmp_path / "classifier" / "model.safetensors").keys()
    assert {name[9:] for name in names if name.startswith("backbone.")} == dino_state(12, 3, 8, 10).keys()


def edited(folder, tmp_path, **changes):
    shutil.copytree(folder, tmp_path / "edited")
    file = tmp_path / "edited" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return tmp_path / "edited"


def test_a_classifier_for_other_images_or_cameras_is_refused(tiny_classifier_folder, tmp_path):
    with pytest.raises(UserError, match=r"trained on images of 16 pixels.*image_size is 224"):
        load_classifier(tiny_classifier_folder, image_size=224)
    with pytest.raises(UserError, match="another camera input: 'angles'"):
        load_classifier(edited(tiny_classifier_folder, tmp_path, camera="angles"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_blocks": 3}, "first missing: blocks.2"),
        ({"head_width": 8}, "another shape: head"),
        ({"a": 1}, "something else"),
    ],
)
def test_weights_that_do_not_fit_their_config(tiny_classifier_folder, tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        load_classifier(edited(tiny_classifier_folder, tmp_path, **change))


def test_no_classifier_says_how_to_get_one(tmp_path):
    with pytest.raises(UserError, match="pair classifier not found.*train_classifier.py"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"image_size": 30}, {"frozen_blocks": 13}, {"n_heads": 7}, {"n_blocks": 0}, {"head_width": -1}]
)
def test_settings_that_no_network_has(wrong):
    with pytest.raises(UserError, match="classifier"):
        ClassifierSettings(**wrong)
