"""What the tests share: no network, one thread, and tiny random models on disk."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "JOINTDREAMER_CACHE" not in os.environ:  # converted checkpoints; children of the tests inherit it
    import atexit
    import shutil
    import tempfile

    os.environ["JOINTDREAMER_CACHE"] = tempfile.mkdtemp(prefix="jointdreamer-tests-")
    atexit.register(shutil.rmtree, os.environ["JOINTDREAMER_CACHE"], ignore_errors=True)

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
# A shell starts what it runs in the background, and nohup everything, with some of these ignored; the tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TINY_CLASSIFIER: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "n_blocks": 2,
    "n_heads": 2,
    "frozen_blocks": 1,
    "camera_width": 12,
    "attention_heads": 2,
    "attention_channels": 6,
    "head_width": 20,
}
Shapes = dict[str, tuple[int, ...]]
WORDS = ("a", "red", "robot", "with", "hat", "front", "side", "back", "overhead", "view", ",")


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` skip themselves on a machine without one, those marked `kernels` where these are off."""
    missing = {} if torch.cuda.is_available() else {"gpu": "needs a CUDA device"}
    from jointdreamer import kernels

    if not kernels.enabled():
        missing["kernels"] = "compiled kernels are off"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process begins with a stretch of the tests, so that what a file's tests share is made once."""
    from xdist.scheduler.worksteal import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_bfloat16_units(monkeypatch):
    """Networks built in a test answer alike on every CPU; runs that a test launches take what the machine has."""
    monkeypatch.setattr("jointdreamer.precision.has_bfloat16_units", lambda: False)


def tiny_tokenizer() -> Any:
    """A CLIPTokenizer that knows the letters and merges of WORDS; any other letter is unknown to it."""
    from jointdreamer.toybox.networks import tokenizer_of

    vocab, merges = {"<|startoftext|>": 0, "<|endoftext|>": 1}, []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        whole = ""
        for piece in pieces:
            vocab.setdefault(piece, len(vocab))
            if whole and (whole, piece) not in merges:
                merges.append((whole, piece))
            whole += piece
            vocab.setdefault(whole, len(vocab))
    return tokenizer_of(vocab, merges)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A CLIPTokenizer that knows only the words (and letters) of WORDS."""
    return tiny_tokenizer()


def _unet(**changes) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    options: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**{**options, **changes})


def _vae() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    options: dict[str, Any] = {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(**options)


def _scheduler(prediction_type: Any) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _once(factory, name: str) -> Callable[[str], Path]:
    """Each prediction type's folder is written the first time that a test asks for it."""
    made: dict[str, Path] = {}

    def folder(prediction_type: str = "epsilon") -> Path:
        if prediction_type not in made:
            made[prediction_type] = factory.mktemp(f"{name}_{prediction_type}")
            with torch.random.fork_rng():
                torch.manual_seed(1)
                _write(made[prediction_type], name, prediction_type)
        return made[prediction_type]

    return folder


def _write(folder: Path, name: str, prediction_type: str) -> None:
    _scheduler(prediction_type).save_pretrained(folder / "scheduler")
    _vae().save_pretrained(folder / "vae")
    if name == "mv":
        unet = _unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)
        unet.save_pretrained(folder / "unet")
        return
    from transformers import CLIPTextConfig, CLIPTextModel

    _unet().save_pretrained(folder / "unet")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory) -> Callable[[str], Path]:
    """tiny_sd_folder(prediction_type="epsilon") -> a random text-to-image diffusers folder: 16 px, latents 4x8x8.

    Text embeddings are 12 x 16. Shared by the session: copy it before you damage it.
    """
    return _once(tmp_path_factory, "sd")


@pytest.fixture(scope="session")
def tiny_mv_folder(tmp_path_factory) -> Callable[[str], Path]:
    """tiny_mv_folder(prediction_type="epsilon") -> a random multi-view folder of the same sizes, with vae/."""
    return _once(tmp_path_factory, "mv")


@pytest.fixture(scope="session")
def tiny_text_to_image(tmp_path_factory) -> Callable[[str], Path]:
    """tiny_text_to_image("sdxl") -> a random folder in the layout of that `models`, 16 px: sdxl, sd35 or if.

    Shared by the session: copy it before you damage it.
    """
    from tests.priors.folders import WRITERS

    made: dict[str, Path] = {}

    def folder(models: str) -> Path:
        if models not in made:
            made[models] = tmp_path_factory.mktemp(models)
            with torch.random.fork_rng():
                torch.manual_seed(1)
                WRITERS[models](made[models])
        return made[models]

    return folder


@pytest.fixture(scope="session")
def tiny_classifier_folder(tmp_path_factory) -> Path:
    """A random pair classifier as train_classifier.py saves it: 16 px, two blocks."""
    from jointdreamer.classifier.model import ClassifierSettings, PairClassifier

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = PairClassifier(ClassifierSettings(**TINY_CLASSIFIER))
        for p in model.parameters():  # the initial logits hardly depend on the images
            p.requires_grad_(False)
            p.add_(torch.randn(p.shape) * (1.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1))
    return model.save(tmp_path_factory.mktemp("classifier"))


# MVDream in the original code's layout (docs/conventions.md, Multi-view UNet), name by name; nothing of diffusers


def ldm_unet_shapes(widths, blocks, attends, text, channels=4, camera=16, conv=False, joint=False) -> Shapes:
    """Name -> shape of every weight of model.diffusion_model.

    channels: in; camera: numbers of the camera, or 0; conv: 1x1 convolutions around the transformers (Stable
    Diffusion 1) instead of matrices; joint: Wonder3D's attention between domains.
    """
    s, temb, one = {}, 4 * widths[0], (1, 1) if conv else ()

    def affine(name, *shape):
        s[f"{name}.weight"], s[f"{name}.bias"] = shape, shape[:1]

    def resnet(name, cin, cout):
        affine(f"{name}.in_layers.0", cin)
        affine(f"{name}.in_layers.2", cout, cin, 3, 3)
        affine(f"{name}.emb_layers.1", cout, temb)
        affine(f"{name}.out_layers.0", cout)
        affine(f"{name}.out_layers.3", cout, cout, 3, 3)
        if cin != cout:
            affine(f"{name}.skip_connection", cout, cin, 1, 1)

    def transformer(name, c):
        affine(f"{name}.norm", c)
        affine(f"{name}.proj_in", c, c, *one)
        block = f"{name}.transformer_blocks.0"
        attentions = [("attn1", c), ("attn2", text), *([("attn_joint_mid", c)] if joint else [])]
        for attn, context in attentions:
            s[f"{block}.{attn}.to_q.weight"] = (c, c)
            s[f"{block}.{attn}.to_k.weight"] = s[f"{block}.{attn}.to_v.weight"] = (c, context)
            affine(f"{block}.{attn}.to_out.0", c, c)
        affine(f"{block}.ff.net.0.proj", 8 * c, c)
        affine(f"{block}.ff.net.2", c, 4 * c)
        for norm in ("norm1", "norm2", "norm3", *(["norm_joint_mid"] if joint else [])):
            affine(f"{block}.{norm}", c)
        affine(f"{name}.proj_out", c, c, *one)

    for name, width in (("time_embed", widths[0]), *([("camera_embed", camera)] if camera else [])):
        affine(f"{name}.0", temb, width)
        affine(f"{name}.2", temb, temb)
    affine("input_blocks.0.0", widths[0], channels, 3, 3)
    skips, c, i = [widths[0]], widths[0], 1
    for level, width in enumerate(widths):
        for _ in range(blocks):
            resnet(f"input_blocks.{i}.0", c, width)
            c = width
            if attends[level]:
                transformer(f"input_blocks.{i}.1", c)
            skips.append(c)
            i += 1
        if level < len(widths) - 1:
            affine(f"input_blocks.{i}.0.op", c, c, 3, 3)
            skips.append(c)
            i += 1
    resnet("middle_block.0", c, c)
    transformer("middle_block.1", c)
    resnet("middle_block.2", c, c)
    i = 0
    for level in reversed(range(len(widths))):
        for position in range(blocks + 1):
            resnet(f"output_blocks.{i}.0", c + skips.pop(), widths[level])
            c = widths[level]
            if attends[level]:
                transformer(f"output_blocks.{i}.1", c)
            if level and position == blocks:
                affine(f"output_blocks.{i}.{2 if attends[level] else 1}.conv", c, c, 3, 3)
            i += 1
    affine("out.0", c)
    affine("out.2", 4, c, 3, 3)
    return s


def ldm_vae_shapes(widths=(32, 64), blocks=1) -> Shapes:
    """Name -> shape of every weight of first_stage_model."""
    s = {}

    def affine(name, *shape):
        s[f"{name}.weight"], s[f"{name}.bias"] = shape, shape[:1]

    def resnet(name, cin, cout):
        affine(f"{name}.norm1", cin)
        affine(f"{name}.conv1", cout, cin, 3, 3)
        affine(f"{name}.norm2", cout)
        affine(f"{name}.conv2", cout, cout, 3, 3)
        if cin != cout:
            affine(f"{name}.nin_shortcut", cout, cin, 1, 1)

    def middle(name, c):
        resnet(f"{name}.mid.block_1", c, c)
        affine(f"{name}.mid.attn_1.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            affine(f"{name}.mid.attn_1.{part}", c, c, 1, 1)
        resnet(f"{name}.mid.block_2", c, c)

    affine("encoder.conv_in", widths[0], 3, 3, 3)
    c = widths[0]
    for level, width in enumerate(widths):
        for j in range(blocks):
            resnet(f"encoder.down.{level}.block.{j}", c, width)
            c = width
        if level < len(widths) - 1:
            affine(f"encoder.down.{level}.downsample.conv", c, c, 3, 3)
    middle("encoder", c)
    affine("encoder.norm_out", c)
    affine("encoder.conv_out", 8, c, 3, 3)
    affine("quant_conv", 8, 8, 1, 1)
    affine("post_quant_conv", 4, 4, 1, 1)
    affine("decoder.conv_in", c, 4, 3, 3)
    middle("decoder", c)
    for level in reversed(range(len(widths))):
        for j in range(blocks + 1):
            resnet(f"decoder.up.{level}.block.{j}", c, widths[level])
            c = widths[level]
        if level:
            affine(f"decoder.up.{level}.upsample.conv", c, c, 3, 3)
    affine("decoder.norm_out", c)
    affine("decoder.conv_out", 3, c, 3, 3)
    return s


@pytest.fixture(scope="session")
def mvdream_state() -> Callable[..., dict[str, torch.Tensor]]:
    """mvdream_state(...) -> a random checkpoint as the original code saves it, the autoencoder and the rest included.

    widths, blocks, attends: channels of the UNet's levels, residual blocks in each, whether a level attends; text: the
    width of the text embeddings.
    """

    from jointdreamer.diffusion import scaled_linear_alphas_cumprod

    def make(widths=(64, 128), blocks=1, attends=(True, False), text=16) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(0)
        shapes = {f"model.diffusion_model.{k}": v for k, v in ldm_unet_shapes(widths, blocks, attends, text).items()}
        shapes |= {f"first_stage_model.{k}": v for k, v in ldm_vae_shapes().items()}
        state = {k: torch.randn(v, generator=g) / max(1, math.prod(v[1:])) ** 0.5 for k, v in shapes.items()}
        state["cond_stage_model.model.ln_final.weight"] = torch.ones(3)  # the text tower is nobody's here
        state["betas"] = torch.ones(1000)
        state["alphas_cumprod"] = scaled_linear_alphas_cumprod()
        return state

    return make


@pytest.fixture(scope="session")
def imagedream_state(mvdream_state) -> dict[str, torch.Tensor]:
    """A random checkpoint of ImageDream by its authors' names: MVDream's, and what reads a picture.

    16 tokens of width 16, from features of width 128.
    """
    from jointdreamer.priors.imagedream import Resampler

    state = {key: value for key, value in mvdream_state().items() if not key.startswith("cond_stage_model.")}
    shapes = {
        f"image_embed.{k}": tuple(v.shape) for k, v in Resampler(16, 32, 128, 16, 128, 64, 2).state_dict().items()
    }
    for key in [key for key in state if key.endswith("attn2.to_k.weight")]:
        for name in ("to_k_ip", "to_v_ip"):
            own = key.removeprefix("model.diffusion_model.").replace("to_k", name)
            shapes[own] = tuple(state[key].shape)
    shapes = {f"model.diffusion_model.{key}": shape for key, shape in shapes.items()}
    clip = openai_vision_shapes(width=128, layers=2, patch=4, side=2, embedding=8)
    return state | random_state(shapes | {f"clip_model.model.{key}": shape for key, shape in clip.items()})


@pytest.fixture(scope="session")
def imagedream_file(imagedream_state, tmp_path_factory) -> Path:
    """`imagedream_state` as a checkpoint. Shared by the session: copy it before you damage it."""
    path = tmp_path_factory.mktemp("imagedream") / "sd-v2.1-base-4view-ipmv.pt"
    torch.save(imagedream_state, path)
    return path


# Novel-view models: Zero-1-to-3 as its authors saved it, Wonder3D as its authors' diffusers saved it

NOVEL_VIEW = {"widths": (32, 64), "blocks": 1, "attends": (True, False)}
CLIP_WIDTH, CLIP_LAYERS, CLIP_PATCH, CLIP_SIDE, EMBEDDING = 128, 2, 4, 2, 16


def openai_vision_shapes(width, layers, patch, side, embedding) -> Shapes:
    """Name -> shape of every weight of OpenAI's CLIP without its text tower; side: patches along an image."""
    s: Shapes = {"visual.class_embedding": (width,), "visual.proj": (width, embedding)}
    s["visual.conv1.weight"] = (width, 3, patch, patch)
    s["visual.positional_embedding"] = (side**2 + 1, width)
    for norm in ("ln_pre", "ln_post"):
        s[f"visual.{norm}.weight"] = s[f"visual.{norm}.bias"] = (width,)
    for i in range(layers):
        block = f"visual.transformer.resblocks.{i}"
        for name, shape in {
            "attn.in_proj_": (3 * width, width),
            "attn.out_proj.": (width, width),
            "mlp.c_fc.": (4 * width, width),
            "mlp.c_proj.": (width, 4 * width),
            "ln_1.": (width,),
            "ln_2.": (width,),
        }.items():
            s[f"{block}.{name}weight"], s[f"{block}.{name}bias"] = shape, shape[:1]
    # of the deleted text tower
    s |= {
        "positional_embedding": (77, 8),
        "text_projection": (8, 8),
        "logit_scale": (),
        "token_embedding.weight": (9, 8),
    }
    return s | {"ln_final.weight": (8,), "ln_final.bias": (8,)}


def zero123_shapes(unet: Shapes, vae: Shapes, clip: Shapes, embedding: int) -> Shapes:
    """Name -> shape of every tensor of a Zero-1-to-3 checkpoint, with the running average but the schedule's tables."""
    shapes = {f"model.diffusion_model.{k}": v for k, v in unet.items()}
    shapes |= {f"model_ema.diffusion_model{k.replace('.', '')}": v for k, v in unet.items()}
    shapes |= {"model_ema.decay": (), "model_ema.num_updates": ()}
    shapes |= {f"first_stage_model.{k}": v for k, v in vae.items()}
    shapes |= {f"cond_stage_model.model.{k}": v for k, v in clip.items()}
    return shapes | {"cc_projection.weight": (embedding, embedding + 4), "cc_projection.bias": (embedding,)}


def random_state(shapes: Shapes) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(v, generator=g) / max(1, math.prod(v[1:])) ** 0.5 for k, v in shapes.items()}


@pytest.fixture(scope="session")
def zero123_state() -> dict[str, torch.Tensor]:
    """A random checkpoint of Zero-1-to-3 in the authors' layout: 16 px, latents 4x8x8, embeddings of 16 numbers."""
    from jointdreamer.diffusion import scaled_linear_alphas_cumprod

    unet = ldm_unet_shapes(**NOVEL_VIEW, text=EMBEDDING, channels=8, camera=0, conv=True)
    clip = openai_vision_shapes(CLIP_WIDTH, CLIP_LAYERS, CLIP_PATCH, CLIP_SIDE, EMBEDDING)
    state = random_state(zero123_shapes(unet, ldm_vae_shapes(), clip, EMBEDDING))
    return state | {"betas": torch.ones(1000), "alphas_cumprod": scaled_linear_alphas_cumprod()}


@pytest.fixture(scope="session")
def zero123_file(zero123_state, tmp_path_factory) -> Path:
    """`zero123_state` as zero123-xl.ckpt. Shared by the session: copy it before you damage it."""
    path = tmp_path_factory.mktemp("zero123") / "zero123-xl.ckpt"
    torch.save({"state_dict": zero123_state, "epoch": 3}, path)
    return path


@pytest.fixture(scope="session")
def wonder3d_state() -> dict[str, torch.Tensor]:
    """Random weights of a small Wonder3D UNet by the names of the original layout, for `ldm_forward`."""
    return random_state(ldm_unet_shapes(**NOVEL_VIEW, text=EMBEDDING, channels=8, camera=10, conv=True, joint=True))


@pytest.fixture(scope="session")
def wonder3d_folder(wonder3d_state, tmp_path_factory) -> Path:
    """`wonder3d_state` as the authors' folder. Shared by the session: copy it before you damage it."""
    from safetensors.torch import save_file

    from jointdreamer.priors.ldm import unet_names

    folder = tmp_path_factory.mktemp("wonder3d")
    unet = {new: wonder3d_state[old] for new, old in unet_names(wonder3d_state, NOVEL_VIEW["blocks"]).items()}
    (folder / "unet").mkdir()
    save_file(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    config = {
        "_class_name": "UNetMV2DConditionModel",
        "sample_size": 8,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": NOVEL_VIEW["widths"],
        "layers_per_block": NOVEL_VIEW["blocks"],
        "down_block_types": ["CrossAttnDownBlockMV2D", "DownBlock2D"],
        "mid_block_type": "UNetMidBlockMV2DCrossAttn",
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlockMV2D"],
        "cross_attention_dim": EMBEDDING,
        "attention_head_dim": 8,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 10,
        "cd_attention_mid": True,
        "num_views": 6,
    }
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    _novel_view_parts(folder, "epsilon")
    return folder


def _novel_view_parts(folder: Path, prediction_type: str) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(2)
        _vae().save_pretrained(folder / "vae")
        config = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            projection_dim=EMBEDDING,
        )
        CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    _scheduler(prediction_type).save_pretrained(folder / "scheduler")


@pytest.fixture(scope="session")
def tiny_nv_folder(tmp_path_factory) -> Path:
    """A random Zero-1-to-3 diffusers folder of the same sizes, with vae/."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("nv")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        _unet(in_channels=8).save_pretrained(folder / "unet")
        projection = {"proj.weight": torch.randn(16, 20) / 4, "proj.bias": torch.zeros(16)}
    _novel_view_parts(folder, "sample")
    (folder / "clip_camera_projection").mkdir()
    save_file(projection, folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors")
    (folder / "clip_camera_projection" / "config.json").write_text("{}")
    return folder


# train.py, without paying for its imports each time


class Launcher:
    """`python train.py WORDS`, in a process of its own that has imported everything already (launcher.py)."""

    def __init__(self):
        script = Path(__file__).with_name("launcher.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer() == "ready"
        self.running = False

    def start(self, folder: Path, words: list[str], seconds: int = 300, script: str = "train", **env: str) -> None:
        """Begin a run in `folder`, whose output goes to folder/stdout and folder/stderr; killed after `seconds`.

        script: train or train_classifier.
        """
        if self.running:  # a test that failed has not waited for its run: its answer is not the next one's
            self.finish()
        self.running = True
        folder.mkdir(parents=True, exist_ok=True)
        output = {name: str(folder / name) for name in ("stdout", "stderr")}
        job = {"words": words, "cwd": str(folder), "env": env, "seconds": seconds, "script": script, **output}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def finish(self) -> int:
        """Wait for the run; its exit status, or minus the signal that ended it."""
        self.running = False
        return int(self._answer())

    def run(self, folder: Path, words: list[str], seconds: int = 300, script: str = "train", **env: str) -> int:
        self.start(folder, words, seconds, script, **env)
        return self.finish()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="session")
def launcher():
    """launcher.run(folder, words, **env) -> the exit status of `python train.py WORDS` in `folder`."""
    made = Launcher()
    yield made
    made.close()


@pytest.fixture(scope="session")
def second_launcher():
    """Another one, for what takes two processes at a time."""
    made = Launcher()
    yield made
    made.close()


@pytest.fixture
def run_on_cuda(tmp_path) -> Callable[[list[str]], Path]:
    """run_on_cuda(words) -> the folder of a run of train.py whose device=cpu became cuda.

    In a process of its own: CUDA does not outlive the launcher's fork.
    """

    def run(words: list[str]) -> Path:
        line = ["device=cuda" if word == "device=cpu" else word for word in words]
        script = Path(__file__).parents[1] / "train.py"
        done = subprocess.run([sys.executable, str(script), *line], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (result,) = tmp_path.rglob("result.json")
        assert json.loads(result.read_text())["device"].startswith("cuda")
        return result.parent

    return run


@pytest.fixture(scope="session")
def tiny_run(tiny_sd_folder, tiny_mv_folder, tiny_nv_folder) -> Callable[..., list[str]]:
    """tiny_run("energy=none") -> the words of a run of two steps with tiny random models; later words win."""
    sd, mv = tiny_sd_folder(), tiny_mv_folder()

    def words(*more: str) -> list[str]:
        given = {word.partition("=")[0] for word in more}
        default = [
            "models=toybox",
            f"models.text_to_image.source={sd}",
            "models.text_to_image.image_size=16",
            f"models.multi_view.source={mv}",
            f"models.multi_view.vae={sd}",
            "models.multi_view.image_size=16",
            f"models.novel_view.source={tiny_nv_folder}",
            f"models.novel_view.vae={sd}",
            "models.novel_view.image_size=16",
            "schedule.steps=2",
            "schedule.resolution=8",
            "schedule.energy_weight=1",
            "field.encoding.n_levels=2",
            "field.encoding.backend=torch",
            "renderer.backend=torch",  # loading the compiled kernels takes longer than these two steps
            "renderer.n_samples=16",
            "renderer.grid_resolution=8",
            "every.log=1",
            "every.checkpoint=1",
            "every.view=0",
            "output.views=2",
            "output.resolution=8",
            "output.mesh_resolution=8",
            "output.texture=16",
        ]
        return [*(word for word in default if word.partition("=")[0] not in given), *more]

    return words
