"""M_CLS: do two views show one object from cameras that stand like this to each other? (Eq. 6, Appendix A.2)

A DINO backbone reads both images, an MLP reads the relative pose, the pose attends to the images' tokens, and a head
says how coherent the pair is. Where the release and the paper differ (docs/algorithm.md, The classifier), the first 9
of 12 blocks are frozen (a name that never matches freezes all of them in the release), the pose is a true relative pose
(there a transpose stands for an inverse), and the logit is unbounded (there a cosine).

Its weights are kept in a folder: `config.json` (the settings below) and `model.safetensors`, with the backbone under
the names of the original DINO code, since those of `transformers` change with its version.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, logsigmoid, scaled_dot_product_attention

from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path, to_json, write_text
from jointdreamer.weights.checkpoint import advice, read_checkpoint
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.folders import weight_files
from jointdreamer.weights.parts import read_part

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAMERA = "relative pose, OpenGL axes, in distances of the first camera"  # what `cameras.camera_numbers` makes
ROLE = "pair classifier"


LARGEST = 65536  # width, depth or size of a classifier


@dataclass(frozen=True)
class ClassifierSettings:
    """The shape of a classifier, and of what it is asked about. The defaults are DINO ViT-S/16's and Appendix A.2's."""

    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 384
    n_blocks: int = 12
    n_heads: int = 6
    layer_norm_eps: float = 1e-6
    frozen_blocks: int = 9  # of the backbone, the first ones, with the embeddings before them; 0 trains everything
    camera_width: int = 256
    attention_heads: int = 8
    attention_channels: int = 64  # per head
    head_width: int = 2048
    camera: str = CAMERA

    def __post_init__(self):
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.type in ("int", int)}
        wrong = [name for name, value in numbers.items() if not (name != "frozen_blocks") <= value <= LARGEST]
        if wrong:
            raise UserError(f"classifier.{wrong[0]}={numbers[wrong[0]]}: wanted a positive number up to {LARGEST}")
        if self.image_size % self.patch_size or self.hidden_size % self.n_heads:
            raise UserError(
                f"classifier: image_size {self.image_size} must be a multiple of patch_size {self.patch_size}, and "
                f"hidden_size {self.hidden_size} of n_heads {self.n_heads}"
            )
        if self.frozen_blocks > self.n_blocks:
            raise UserError(f"classifier.frozen_blocks={self.frozen_blocks}: there are n_blocks={self.n_blocks}")


class Features(NamedTuple):
    """What is known of N images before they are compared; each is computed once, however many pairs it is in."""

    summary: Tensor  # (N, C) the class token
    keys: Tensor  # (N, L, heads * channels)
    values: Tensor  # (N, L, heads * channels)

    def take(self, index: Tensor) -> "Features":
        return Features(*(x[index] for x in self))


class PairClassifier(nn.Module):
    """Logits of pairs of images; above 0 means coherent.

    The concatenated features of A.2 are read twice: as the 2 L tokens of both images, which the camera's embedding, one
    query, attends to, and as the two class tokens, to which the result is added. (The release attends to the 768
    concatenated channels as 768 tokens of one number each.) A learned offset tells the first image's tokens from the
    second's. The query is added to what it read, as in a transformer's decoder; without that the pose reaches the head
    only through the attention's weights, and wrong poses were hardly told from true ones.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ClassifierSettings | None = None):
        super().__init__()
        self.settings = s = settings or ClassifierSettings()
        self.backbone = _vit(s)
        inner = s.attention_heads * s.attention_channels
        self.camera = mlp(16, s.camera_width, s.hidden_size, layers=4)
        self.query = nn.Linear(s.hidden_size, inner)
        self.key_value = nn.Linear(s.hidden_size, 2 * inner)
        self.order = nn.Parameter(0.02 * torch.randn(2, 2 * inner))  # first image, second image
        self.out = nn.Linear(inner, 2 * s.hidden_size)
        self.norm = nn.LayerNorm(2 * s.hidden_size)
        self.head = mlp(2 * s.hidden_size, s.head_width, 1, layers=3)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        if s.frozen_blocks:
            self.backbone.embeddings.requires_grad_(False)
            for block in _blocks(self.backbone)[: s.frozen_blocks]:
                block.requires_grad_(False)

    def forward(
        self,
        rgb: Tensor,  # (N, 3, R, R) in [0, 1]
        first: Tensor,  # (P,) rows of rgb
        second: Tensor,  # (P,)
        camera: Tensor,  # (P, 16) from `cameras.camera_numbers`
    ) -> Tensor:
        """Logits (P,), float32."""
        features = self.encode(rgb)
        return self.compare(features.take(first), features.take(second), camera)

    def encode(self, rgb: Tensor) -> Features:
        """The features of images (N, 3, R, R) in [0, 1] of any size; differentiable."""
        size = (self.settings.image_size, self.settings.image_size)
        if rgb.shape[-2:] != size:
            rgb = interpolate(rgb, size, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.backbone((rgb - self.mean) / self.std).last_hidden_state  # (N, L, C), after the final norm
        keys, values = self.key_value(tokens).chunk(2, -1)
        return Features(tokens[:, 0], keys, values)

    def compare(self, first: Features, second: Features, camera: Tensor) -> Tensor:
        """Logits (P,) of P pairs, float32."""
        s = self.settings
        (key_1, value_1), (key_2, value_2) = (offset.chunk(2) for offset in self.order)

        def split(x: Tensor) -> Tensor:  # (P, L, heads * channels) -> (P, heads, L, channels)
            return x.unflatten(-1, (s.attention_heads, s.attention_channels)).transpose(1, 2)

        query = self.query(self.camera(camera))[:, None]  # one token
        keys = torch.cat([first.keys + key_1, second.keys + key_2], 1)
        values = torch.cat([first.values + value_1, second.values + value_2], 1)
        attended = scaled_dot_product_attention(split(query), split(keys), split(values))
        attended = self.out((query + attended.transpose(1, 2).flatten(2))[:, 0])
        summary = torch.cat([first.summary, second.summary], -1)
        return self.head(summary + self.norm(attended))[:, 0].float()

    # Weights

    def load_backbone(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take a backbone in the layout of the original DINO code (and timm) or of either generation of `transformers`.

        Behind a prefix (teacher.backbone., module., vit.) and beside a head too, of whatever training it comes from.
        Raises UserError, one line, with the first missing and the first unexpected name; every tensor of the backbone
        is used once.
        """
        state = _backbone(state)
        _load_strictly(self.backbone, _for_vit(self.backbone, _dino_names(state)), state, "DINO backbone", where)

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write config.json and model.safetensors into `folder`, each whole or not at all; returns the folder."""
        from safetensors.torch import save_file

        state = {key: value for key, value in self.state_dict().items() if not key.startswith("backbone.")}
        state |= {f"backbone.{key}": value for key, value in _dino_names(self.backbone.state_dict()).items()}
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file({key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}, temporary)
        write_text(folder / "config.json", to_json(asdict(self.settings), indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: Path) -> "PairClassifier":
        """Read what `save` wrote; float32, on the CPU.

        Raises UserError, one line: a folder that is no classifier, one made for another kind of camera, or weights
        that do not fit its config.
        """
        from safetensors.torch import load_file

        try:
            config = json.loads((folder / "config.json").read_text())
            known = {f.name for f in fields(ClassifierSettings)}
            if not isinstance(config, dict) or not {"camera", "image_size"} <= config.keys() <= known:
                raise ValueError("its config.json is of something else")
            settings = ClassifierSettings(**config)
            state = load_file(folder / "model.safetensors")
        except Exception as error:  # OSError, ValueError, SafetensorError, ...
            why = " ".join(str(error).split())[:160]
            raise UserError(
                f"{folder} is no {ROLE} ({why}): wanted config.json and model.safetensors as train_classifier.py "
                "writes them"
            ) from error
        if settings.camera != CAMERA:
            raise UserError(
                f"the {ROLE} in {folder} was trained for another camera input: {settings.camera!r}, here it is "
                f"{CAMERA!r}; train it again with python train_classifier.py"
            )
        model = cls(settings)
        backbone = {key[9:]: value for key, value in state.items() if key.startswith("backbone.")}
        rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
        where = str(folder / "model.safetensors")
        model.load_backbone(backbone, where)
        own = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
        _check_names(own, rest, ROLE, where)
        model.load_state_dict(rest, strict=False)
        return model


def climb(
    images: Tensor,  # (..., 3, H, W) in [0, 1]
    logits: Callable[[Tensor], Tensor],  # of such images, any shape
    steps: int,
    step_size: float,
    moving: Tensor | bool = True,  # broadcast to the images: the others stay
) -> Tensor:
    """Where `steps` steps of `step_size` times the derivative of the sum of log sigmoid(logit) lead, within [0, 1].

    Log sigmoid, as it no longer pulls where a pair is coherent. Without a graph; weights stay as they are.
    """
    images = images.detach().clamp(0, 1)
    for _ in range(steps):
        images.requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(logsigmoid(logits(images)).sum(), images)
        images = (images.detach() + step_size * slope * moving).clamp(0, 1)
    return images


def load_classifier(source: str | Path, image_size: int | None = None) -> tuple[PairClassifier, Path]:
    """A trained classifier, frozen, and the folder that it came from.

    image_size: what the caller decided for (models.classifier.image_size); None takes any.
    Raises UserError, one line, if there is none or it was trained for other images or cameras.
    """
    folder = find_weights(source, "classifier", download=False)
    model = PairClassifier.load(folder)
    if image_size is not None and model.settings.image_size != image_size:
        raise UserError(
            f"the {ROLE} in {folder} was trained on images of {model.settings.image_size} pixels, and "
            f"models.classifier.image_size is {image_size}: name another one, or that size"
        )
    return model.eval().requires_grad_(False), folder


def read_dino(source: str | Path | Sequence[str], download: bool = True) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a DINO backbone, and their file: a .pth of the original code or a `transformers` folder.

    Raises UserError, one line, if it cannot be found or read. Nothing in the file is executed.
    """
    path = find_weights(source, "classifier_backbone", download=download)
    if path.is_dir():
        return read_part(path), (weight_files(path) or [path])[0]
    return read_checkpoint(path), path


def mlp(n_in: int, width: int, n_out: int, layers: int) -> nn.Sequential:
    """`layers` linear maps with GELU between them."""
    sizes = [n_in, *[width] * (layers - 1), n_out]
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Linear(sizes[i], sizes[i + 1]), nn.GELU()]
    return nn.Sequential(*parts[:-1])


# The backbone and its names


def _vit(s: ClassifierSettings) -> Any:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=s.image_size,
        patch_size=s.patch_size,
        hidden_size=s.hidden_size,
        num_hidden_layers=s.n_blocks,
        num_attention_heads=s.n_heads,
        intermediate_size=4 * s.hidden_size,
        layer_norm_eps=s.layer_norm_eps,
        # from scratch, the library's 0.02, meant for a width of 768, leaves a narrow network deaf to its image
        initializer_range=s.hidden_size**-0.5,
    )
    return ViTModel(config, add_pooling_layer=False)


def _blocks(vit: Any) -> nn.ModuleList:
    return vit.layers if hasattr(vit, "layers") else vit.encoder.layer  # transformers 5, transformers 4


# Name in the original code -> in transformers 5 -> in transformers 4 (and in the files on the hub)
OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
BLOCK = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "attn.q": ("attention.q_proj", "attention.attention.query"),
    "attn.k": ("attention.k_proj", "attention.attention.key"),
    "attn.v": ("attention.v_proj", "attention.attention.value"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
}
BLOCK_PREFIX = (r"layers\.(\d+)\.", r"encoder\.layer\.(\d+)\.")


FIRST = (
    r"(.*?)(blocks\.0\.attn\.qkv|encoder\.layer\.0\.attention\.attention\.query|layers\.0\.attention\.q_proj)\.weight"
)
HEADS = re.compile(r"(head|fc|fc_norm|classifier|pooler|mask_token|embeddings\.mask_token|norm_pre)(\..*|_.*)?")


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one vision transformer without what stands before its names; of two networks the teacher's."""
    prefixes = sorted({found[1] for key in state if (found := re.fullmatch(FIRST, key))}, key=len)
    prefix = next((one for one in prefixes if "teacher" in one), prefixes[0] if prefixes else "")
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in inside.items() if not (prefixes and HEADS.fullmatch(key))}


def _dino_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Any layout -> the original one, with q, k and v in one tensor. Names that are none of ours stay as they are."""
    renamed = {_dino_name(key): value for key, value in state.items()}
    for key in [key for key in renamed if re.search(r"\.attn\.q\.(weight|bias)$", key)]:
        parts = [key.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[key.replace(".attn.q.", ".attn.qkv.")] = joined
    return renamed


def _dino_name(key: str) -> str:
    for generation, prefix in enumerate(BLOCK_PREFIX):
        if found := re.match(prefix, key):
            inside, kind = key[found.end() :].rsplit(".", 1) if "." in key[found.end() :] else (key, "")
            for ours, theirs in BLOCK.items():
                if inside == theirs[generation]:
                    return f"blocks.{found[1]}.{ours}.{kind}"
    for ours, theirs in OUTSIDE.items():
        if key == theirs or key.startswith(f"{theirs}."):
            return ours + key[len(theirs) :]
    return key


def _for_vit(vit: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original layout -> the names of the installed `transformers`."""
    generation = 0 if hasattr(vit, "layers") else 1
    prefix = ("layers", "encoder.layer")[generation]
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        found = re.match(r"blocks\.(\d+)\.(.+)\.(weight|bias)$", key)
        if found and found[2] == "attn.qkv" and len(value) % 3 == 0:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                named[f"{prefix}.{found[1]}.{BLOCK[f'attn.{part}'][generation]}.{found[3]}"] = rows
        elif found and found[2] in BLOCK:
            named[f"{prefix}.{found[1]}.{BLOCK[found[2]][generation]}.{found[3]}"] = value
        else:
            outside = next((name for name in OUTSIDE if key == name or key.startswith(f"{name}.")), None)
            named[key if outside is None else OUTSIDE[outside] + key[len(outside) :]] = value
    return named


def _load_strictly(model: nn.Module, state: dict[str, Tensor], given: Any, role: str, where: str) -> None:
    looks = advice(given, "classifier_backbone")
    _check_names(_dino_names(model.state_dict()), _dino_names(given), role, where, looks)
    model.load_state_dict(state)


def _check_names(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], role: str, where: str, looks: str = ""
) -> None:
    """Raise UserError unless both hold the same names and shapes."""
    missing, unexpected = ([key for key in a if key not in b] for a, b in ((wanted, given), (given, wanted)))
    other = [key for key in wanted if key in given and wanted[key].shape != given[key].shape]
    if not (missing or unexpected or other):
        return
    said = [f"first missing: {missing[0]}"] if missing else []
    said += [f"first unexpected: {unexpected[0]}"] if unexpected else []
    if other:
        shapes = tuple(wanted[other[0]].shape), tuple(given[other[0]].shape)
        said += [f"first of another shape: {other[0]}, wanted {shapes[0]}, got {shapes[1]}"]
    raise UserError(
        f"{where} does not hold the weights of this {role} ({'; '.join(said)}{looks}): name a file of the same "
        "architecture"
    )
