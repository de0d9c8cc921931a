"""What each toybox model learns from: its networks, its loss, its sample sheet, and the folder that it ships as."""

import copy
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointdreamer.diffusion import scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.files import atomic_path, write_text
from jointdreamer.images import grid, write_png
from jointdreamer.precision import network_dtype
from jointdreamer.priors.multi_view_unet import set_views
from jointdreamer.priors.placement import place
from jointdreamer.toybox import data, networks
from jointdreamer.toybox.nerf_views import nerf_views
from jointdreamer.toybox.networks import EDITIONS, SHIPPED_EDITION, Edition
from jointdreamer.toybox.world import COLORS, SHIPPED_WORDS, WORDS_OF_TEXT_TO_IMAGE_ONLY, Words, caption, sample_toy

WEIGHTS = Path(__file__).parent / "weights"
FAMILY = WEIGHTS / "text_to_image"  # the Stable Diffusion folder; its autoencoder and text encoder serve all
FLAT_SEED, RIG_SEED, NERF_SEED = 1, 2, 3


@contextmanager
def swapped(nets: dict[str, nn.Module], states: dict[str, dict[str, Tensor]]) -> Iterator[None]:
    """The networks hold `states`, in evaluation mode, inside the context."""
    kept = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in nets.items()}
    for name, net in nets.items():
        net.load_state_dict(states[name])
        net.eval()
    yield
    for name, net in nets.items():
        net.load_state_dict(kept[name])
        net.train()


def plot_curve(curve: list[tuple[int, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3))
    axes.semilogy(*zip(*curve, strict=True))
    axes.set(xlabel="step", ylabel="loss")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


EDITION_FILE = "edition.json"


def edition_number(folder: Path) -> int:
    """Of the pictures in a training folder; the first, if it does not say."""
    file = folder / EDITION_FILE
    return int(json.loads(file.read_text())["edition"]) if file.exists() else 1


def make_data(folder: Path, n: int, n_rigs: int, edition: int = SHIPPED_EDITION) -> None:
    """Render the flat pictures (n), the rigs and the views of fitted NeRFs (of n / 200 toys) into `folder`.

    Raises UserError if there are pictures of another edition.
    """
    made = (folder / "flat").exists() or (folder / EDITION_FILE).exists()
    if made and edition_number(folder) != edition:
        raise UserError(
            f"{folder} holds pictures of edition {edition_number(folder)}, asked for {edition}: name another --folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / EDITION_FILE, json.dumps({"edition": edition}))
    for name, make, count, seed in (
        ("flat", data.flat_pictures, n, FLAT_SEED),
        ("rigs", data.rigs, n_rigs, RIG_SEED),
        ("nerf", nerf_views, max(1, n // 200), NERF_SEED),
    ):
        began = time.time()

        def progress(done: int, total: int, name: str = name, began: float = began) -> None:
            print(f"{name}: {done} of {total}, {time.time() - began:.0f} s", flush=True)

        if not (folder / name / "toys.json").exists():
            make(count, seed, progress, words=EDITIONS[edition].words).save(folder / name)


def missing_input(model: str, folder: Path) -> str | None:
    """`data`, if it has to be made before `model` can be trained."""
    pictures = ["flat", "rigs", *(["nerf"] if model == "judge" else [])]
    return None if all((folder / name / "toys.json").exists() for name in pictures) else "data"


def averaged_weights(folder: Path, model: str, network: str) -> dict[str, Tensor]:
    """What an earlier model gives to a later one: its checkpoint's averaged weights, or those of the package.

    Raises UserError if there is no checkpoint and the package's are of another edition.
    """
    checkpoint = folder / model / "checkpoint.pt"
    if checkpoint.exists():
        return torch.load(checkpoint, weights_only=True)["average"][network]
    refuse_shipped(folder, model)
    return shipped_weights(model, network)


def refuse_shipped(folder: Path, model: str) -> None:
    """Raises UserError if the package's weights do not belong to what is trained in `folder`."""
    number = edition_number(folder)
    if number != SHIPPED_EDITION:
        mine, theirs = EDITIONS[number], EDITIONS[SHIPPED_EDITION]
        raise UserError(
            f"train {model} in {folder} first: its latents have {mine.latent_channels} channels (edition {number}), "
            f"the package's {theirs.latent_channels} (edition {SHIPPED_EDITION}); "
            f"python -m jointdreamer.toybox.train {model} --folder {folder}"
        )


# Where the package keeps each trained network, and what its names begin with there
SHIPPED = {
    ("vae", "vae"): ("text_to_image/vae", ""),
    ("text-to-image", "unet"): ("text_to_image/unet", ""),
    ("text-to-image", "text"): ("text_to_image/text_encoder", ""),
    ("multi-view", "unet"): ("multi_view/unet", ""),
    ("novel-view", "unet"): ("novel_view/unet", ""),
    ("novel-view", "tower"): ("novel_view/image_encoder", ""),
    ("novel-view", "projection"): ("novel_view/clip_camera_projection", "proj."),
    ("clip", "clip"): ("clip", ""),
    ("judge", "judge"): ("judge", ""),
}


def shipped_weights(model: str, network: str) -> dict[str, Tensor]:
    """The package's weights of a network, in float32, by the names that the network has."""
    from safetensors.torch import load_file

    folder, prefix = SHIPPED[model, network]
    if network == "text":
        prefix = _text_prefix()
    file = next((WEIGHTS / folder).glob("*.safetensors"))
    return {key.removeprefix(prefix): value.float() for key, value in load_file(file).items()}


def _text_prefix() -> str:
    """What the names of the shipped text encoder begin with, and those of the installed transformers' do not."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        names = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1)).state_dict()
    return "" if any(name.startswith("text_model.") for name in names) else "text_model."


class Recipe(ABC):
    """One model. `networks` are trained; the Trainer calls `loss` and `sheet`, and at the end `save` or `install`."""

    name = ""
    lr = 1e-3
    ships_as = ""  # folder below WEIGHTS

    def __init__(self, folder: Path, batch: int):
        self.folder, self.batch = folder, batch
        self.edition: Edition = EDITIONS[edition_number(folder)]
        self.words = self.edition.words
        self.flat = data.Pictures.load(folder / "flat")
        self.rigs = data.Pictures.load(folder / "rigs")
        self.networks: dict[str, Any] = {}

    @abstractmethod
    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        """The loss of one step; `rng` is the step's own."""

    @abstractmethod
    def sheet(self, step: int) -> None:
        """Show how far the networks are."""

    @abstractmethod
    def save(self, where: Path) -> Path:
        """Write the networks as they ship below `where`."""

    def install(self) -> Path:
        return self.save(WEIGHTS / self.ships_as)

    def write_sheet(self, step: int, rgb: Tensor, columns: int) -> None:
        write_png(self.folder / self.name / "sheets" / f"step_{step:06d}.png", grid(rgb.clamp(0, 1), columns))

    def random_views(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, list[tuple[Any, int, int]]]:
        """N RGBA views, half flat and half of rigs, and where they come from: (pictures, row, view)."""
        origins = []
        for k in range(n):
            source = self.flat if k % 2 else self.rigs
            origins.append((source, int(rng.integers(len(source))), int(rng.integers(source.azimuth.shape[1]))))
        return np.stack([source.rgba[row, view] for source, row, view in origins]), origins


class Vae(Recipe):
    """L1 + RMS of each image + a whisper of KL; every channel of the latents is brought to mean 0 and spread 1.

    The RMS keeps pulling when errors are small, where a squared error would have no gradient left.
    """

    name, ships_as, lr = "vae", "text_to_image/vae", 2e-3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(0)
        vae = networks.build_vae(self.edition)
        for name, module in vae.named_modules():
            if name.endswith("conv2"):  # residual blocks start as the identity
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        self.networks = {"vae": vae}

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rgba, _ = self.random_views(rng, self.batch)
        ground = data.random_background(rng, self.batch)
        colored = rng.random(self.batch) < 0.15  # a training render may have any background
        ground[colored] = rng.random((int(colored.sum()), 3))
        rgb = data.composite(rgba, ground)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = self.networks["vae"].encode(2 * rgb - 1).latent_dist
            out = self.networks["vae"].decode(posterior.sample()).sample
        error = out.float() - (2 * rgb - 1)
        kl = posterior.kl().float().mean() / rgb[0].numel()
        rms = (error.square().mean((1, 2, 3)) + 1e-6).sqrt().mean()
        return error.abs().mean() + rms + 1e-5 * kl

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        vae, rng = self.networks["vae"], np.random.default_rng(0)
        pictures = data.rigs(4, seed=99, scarce=False, shape="held_out", words=self.words)
        rgb = data.composite(pictures.rgba.reshape(16, 64, 64, 4), data.random_background(rng, 16))
        latents = vae.encode(2 * rgb - 1).latent_dist
        out = vae.decode(latents.mean).sample / 2 + 0.5
        psnr = -10 * torch.log10((out.clamp(0, 1) - rgb).square().mean((1, 2, 3))).mean()
        noise = float((latents.std / latents.mean.std((0, 2, 3), keepdim=True)).mean())
        print(f"vae: PSNR {psnr:.2f} dB on held-out objects, posterior {noise:.3f} of the latents' spread", flush=True)
        self.write_sheet(step, torch.cat([rgb, out]), 16)

    @torch.no_grad()
    def save(self, where: Path) -> Path:
        vae = self.networks["vae"]
        rgba = self.flat.rgba[:192, 0]
        rgb = data.composite(rgba, data.random_background(np.random.default_rng(0), len(rgba)))
        latents = torch.cat([vae.encode(2 * part - 1).latent_dist.mean for part in rgb.split(64)])
        networks.normalize_latents(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        return _save_part(vae, where)


class TextToImage(Recipe):
    """x0-prediction on latents, text encoder and UNet together; a tenth of the captions is empty (for CFG).

    The text encoder is frozen after a while, so that the multi-view model can start from it and share it.
    """

    name, ships_as, lr = "text-to-image", "text_to_image", 1e-3
    FREEZE_TEXT = 2500  # steps

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(1)
        self.tokenizer = networks.build_tokenizer(self.words)
        self.networks = {
            "unet": networks.build_unet(latent_channels=self.edition.latent_channels),
            "text": networks.build_text_encoder(self.tokenizer),
        }
        self.vae = _load_vae(folder)
        self.latents = _latents(folder, "flat", self.flat, self.vae)

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.flat), size=self.batch)
        captions = [
            ""
            if rng.random() < 0.1
            else data.flat_caption(self.flat.toys[r], self.flat.azimuth[r, 0], self.flat.elevation[r, 0], rng)
            for r in rows
        ]
        x0 = torch.from_numpy(self.latents[rows, 0].astype(np.float32))
        self.networks["text"].requires_grad_(step < self.FREEZE_TEXT)
        with torch.autocast("cpu", torch.bfloat16):
            words = self.networks["text"](tokens(self.tokenizer, captions)).last_hidden_state
        return denoising_loss(self.networks["unet"], x0, torch.randint(1000, (self.batch,)), words)

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        rng = np.random.default_rng(3)
        captions = [caption(sample_toy(rng, shape="held_out", words=self.words)) for _ in range(12)]
        captions += [f"a red robot with a blue hat, {way} view" for way in ("front", "side", "back")]
        captions += ["a green bear with a yellow scarf, back view"]
        words = self.networks["text"](tokens(self.tokenizer, captions + [""] * 16)).last_hidden_state
        noise = torch.randn(16, self.edition.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
        latents = ddim(lambda x, t, half: self.networks["unet"](x, t, half).sample, noise, words, guidance_scale=4.0)
        self.write_sheet(step, decode(self.vae, latents), 8)

    def save(self, where: Path) -> Path:
        _save_part(self.networks["unet"], where / "unet")
        text = _save_part(self.networks["text"], where / "text_encoder") / "config.json"
        # transformers reads weights into the type that the config names, diffusers into float32: a pipeline needs one
        write_text(text, json.dumps({**json.loads(text.read_text()), "dtype": "float32"}, indent=2) + "\n")
        _save_part(self.vae, where / "vae")
        _save_tokenizer(self.tokenizer, where / "tokenizer")
        networks.build_scheduler().save_pretrained(where / "scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (where / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        return where


class MultiView(Recipe):
    """Rigs of four views with their cameras; three steps in ten on flat pictures, as MVDream does, to keep the words.

    Not all words: some stay the text-to-image model's own (WORDS_OF_TEXT_TO_IMAGE_ONLY). It starts from the
    text-to-image weights and keeps that model's text encoder. A flat picture has no camera: zeros.
    """

    name, ships_as, lr = "multi-view", "multi_view", 6e-4
    FLAT_SHARE = 0.3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, batch)
        torch.manual_seed(2)
        unet = networks.build_unet(multiview=True, latent_channels=self.edition.latent_channels)
        unet.load_state_dict(
            averaged_weights(folder, "text-to-image", "unet"), strict=False
        )  # all but the camera's embedding
        self.networks = {"unet": unet}
        self.tokenizer = networks.build_tokenizer(self.words)
        self.text = networks.build_text_encoder(self.tokenizer).eval().requires_grad_(False)
        self.text.load_state_dict(averaged_weights(folder, "text-to-image", "text"))
        self.vae = _load_vae(folder)
        self.flat_latents = _latents(folder, "flat", self.flat, self.vae)
        self.rig_latents = _latents(folder, "rigs", self.rigs, self.vae)
        unknown = WORDS_OF_TEXT_TO_IMAGE_ONLY
        self.flat_rows = np.array([row for row, toy in enumerate(self.flat.toys) if not toy.words & unknown])

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        unet, texts = self.networks["unet"], []
        flat = rng.random() < self.FLAT_SHARE
        views = 1 if flat else 4
        source = self.flat if flat else self.rigs
        known = self.flat_rows if flat else np.arange(len(source))
        rows = known[rng.integers(len(known), size=self.batch // views)]
        for r in rows:
            azimuth, elevation = source.azimuth[r], source.elevation[r]
            if rng.random() < 0.1:
                texts += [""] * views
            elif flat:
                texts.append(data.flat_caption(source.toys[r], azimuth[0], elevation[0], rng))
            else:
                texts += data.rig_captions(source.toys[r], azimuth, elevation, rng)
        x0 = torch.from_numpy((self.flat_latents if flat else self.rig_latents)[rows].astype(np.float32)).flatten(0, 1)
        camera = torch.zeros(len(x0), 16) if flat else torch.from_numpy(source.camera[rows]).flatten(0, 1)
        timesteps = torch.randint(1000, (len(rows),)).repeat_interleave(views)
        with torch.no_grad():
            words = self.text(tokens(self.tokenizer, texts)).last_hidden_state
        set_views(unet, views)
        return denoising_loss(unet, x0, timesteps, words, class_labels=camera)

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        unet, rng = self.networks["unet"], np.random.default_rng(3)
        pictures = data.rigs(6, seed=98, scarce=False, shape="held_out", words=self.words)
        texts = [caption(sample_toy(rng, shape="held_out", words=self.words)) for _ in range(6)]
        words = self.text(tokens(self.tokenizer, [t for t in texts for _ in range(4)] + [""] * 24)).last_hidden_state
        camera = torch.from_numpy(pictures.camera[:1]).expand(6, 4, 16).flatten(0, 1)
        noise = torch.randn(24, self.edition.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
        set_views(unet, 4)
        latents = ddim(
            lambda x, t, half: unet(x, t, half, class_labels=camera.repeat(2, 1)).sample,
            noise,
            words,
            guidance_scale=4.0,
        )
        self.write_sheet(step, decode(self.vae, latents), 8)

    def save(self, where: Path) -> Path:
        _save_part(self.networks["unet"], where / "unet")
        networks.build_scheduler().save_pretrained(where / "scheduler")
        return where


class Clip(Recipe):
    """Contrastive, with captions without directions; for measuring only."""

    name, ships_as, lr = "clip", "clip", 1e-3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, 2 * batch)
        torch.manual_seed(3)
        self.tokenizer = networks.build_tokenizer(self.words)
        self.networks = {"clip": networks.build_clip(self.tokenizer)}

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rgb, origins = degraded_views(self, rng, self.batch)
        texts = [caption(source.toys[row], rng) for source, row, _ in origins]
        clip = self.networks["clip"]
        out = clip(input_ids=tokens(self.tokenizer, texts), pixel_values=2 * rgb - 1)
        # Two pictures of one combination share a caption: both are right answers.
        plain = [caption(source.toys[row]) for source, row, _ in origins]
        same = torch.tensor([[float(a == b) for b in plain] for a in plain])
        target = same / same.sum(1, keepdim=True)
        logits = out.logits_per_image
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        right = retrieval(self.networks["clip"], self.tokenizer, *held_out_fronts(100, words=self.words))
        print(f"clip: {right:.1%} of held-out renders retrieve their caption among 100", flush=True)

    def save(self, where: Path) -> Path:
        _save_part(self.networks["clip"], where)
        _save_tokenizer(self.tokenizer, where)
        return where


class Judge(Recipe):
    """Says what is seen; trained on clean, blurred and noisy views of all pictures, those of fitted NeRFs included."""

    name, ships_as, lr = "judge", "judge", 1e-3

    def __init__(self, folder: Path, batch: int):
        super().__init__(folder, 2 * batch)
        torch.manual_seed(4)
        self.networks = {"judge": networks.JudgeNet(self.words)}
        self.nerf = data.Pictures.load(folder / "nerf")
        self.extra = data.rigs(
            4000, seed=11, scarce=False, words=self.words
        )  # every word from every side: a judge must know them all

    def random_views(self, rng: np.random.Generator, n: int):
        origins = []
        for k in range(n):
            source = (self.flat, self.rigs, self.extra, self.nerf)[k % 4]
            origins.append((source, int(rng.integers(len(source))), int(rng.integers(source.azimuth.shape[1]))))
        return np.stack([source.rgba[row, view] for source, row, view in origins]), origins

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        rgb, origins = degraded_views(self, rng, self.batch)
        return judge_loss(self.networks["judge"](rgb), *judge_targets(origins, self.words))

    @torch.no_grad()
    def sheet(self, step: int) -> None:
        pictures = data.rigs(100, seed=97, scarce=False, shape="held_out", words=self.words)
        rgb = data.composite(
            pictures.rgba.reshape(400, 64, 64, 4), data.random_background(np.random.default_rng(0), 400)
        )
        origins = [(pictures, row, view) for row in range(100) for view in range(4)]
        answers, (targets, worn) = self.networks["judge"](rgb), judge_targets(origins, self.words)
        right = {name: (answers[name].argmax(1) == targets[name]).float() for name in targets}
        right["accessory_color"] = right["accessory_color"][worn]
        print("judge:", {name: f"{float(r.mean()):.1%}" for name, r in right.items()}, flush=True)

    def save(self, where: Path) -> Path:
        from safetensors.torch import save_file

        where.mkdir(parents=True, exist_ok=True)
        with atomic_path(where / "model.safetensors") as temporary:
            save_file({k: v.half().contiguous() for k, v in self.networks["judge"].state_dict().items()}, temporary)
        return where


RECIPES = {r.name: r for r in (Vae, TextToImage, MultiView, Clip, Judge)}


def tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """(N, 24) token numbers, padded as StableDiffusionPipeline pads."""
    return tokenizer(
        texts, padding="max_length", max_length=networks.TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def denoising_loss(unet: Any, x0: Tensor, timesteps: Tensor, words: Tensor, **condition: Tensor) -> Tensor:
    """x0-prediction, weighted by min(1 / sigma_t^2, 10)."""
    abar = scaled_linear_alphas_cumprod()[timesteps].float()[:, None, None, None]
    noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * torch.randn_like(x0)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(noisy, timesteps, words, **condition).sample.float()
    weight = (1 / (1 - abar)).clamp(max=10)
    return (weight * (predicted - x0).square()).mean()


@torch.no_grad()
def ddim(predict: Any, noise: Tensor, words: Tensor, guidance_scale: float, steps: int = 25) -> Tensor:
    """Deterministic sampling for the sheets. `words` holds the captions' rows, then the empty ones'."""
    abar, x = scaled_linear_alphas_cumprod().float(), noise
    times = torch.linspace(999, 0, steps + 1).long()
    for now, after in zip(times[:-1], times[1:], strict=True):
        cond, uncond = predict(torch.cat([x, x]), now.repeat(2 * len(x)), words).chunk(2)
        x0 = uncond + guidance_scale * (cond - uncond)
        noise = (x - abar[now].sqrt() * x0) / (1 - abar[now]).sqrt()
        x = abar[after].sqrt() * x0 + (1 - abar[after]).sqrt() * noise
    return x


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    return vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5


def degraded_views(recipe: Recipe, rng: np.random.Generator, n: int) -> tuple[Tensor, list]:
    """Views as a half-trained NeRF may show them: blurred, noisy, off in contrast; two in five stay clean."""
    rgba, origins = recipe.random_views(rng, n)
    return degrade(data.composite(rgba, data.random_background(rng, n)), rng), origins


def degrade(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur (a low resolution and back), smooth and fine noise, contrast: each on some of the images (N, 3, 64, 64)."""
    out = rgb.clone()
    for i in range(len(rgb)):
        if rng.random() < 0.4:
            continue
        image = rgb[i : i + 1]
        if rng.random() < 0.7:
            size = int(rng.integers(18, 56))
            small = F.interpolate(image, size=size, mode="bilinear", antialias=True)
            image = F.interpolate(small, size=64, mode="bilinear")
        if rng.random() < 0.5:
            blotches = torch.from_numpy(rng.normal(0, 0.06, (1, 3, 8, 8))).float()
            image = image + F.interpolate(blotches, size=64, mode="bicubic")
        if rng.random() < 0.3:
            image = image + torch.from_numpy(rng.normal(0, 0.04, (1, 3, 64, 64))).float()
        contrast, light = rng.uniform(0.8, 1.25), rng.uniform(-0.08, 0.08)
        out[i] = ((image - 0.5) * contrast + 0.5 + light)[0].clamp(0, 1)
    return out


FACE_ANGLE = np.radians(75)  # from the side and further round, no more than a sliver of the face shows


def judge_targets(origins: list, words: Words = SHIPPED_WORDS) -> tuple[dict[str, Tensor], Tensor]:
    """The true answers by head, and which of the toys wear something."""
    colors, kinds, patterns, accessories = map(list, (COLORS, words.kinds, words.patterns, words.accessories))
    azimuth = np.array([source.azimuth[row, view] for source, row, view in origins])
    toys = [source.toys[row] for source, row, _ in origins]
    bins = np.round(azimuth / (2 * np.pi) * networks.AZIMUTH_BINS).astype(int) % networks.AZIMUTH_BINS
    wrapped = (azimuth + np.pi) % (2 * np.pi) - np.pi
    targets = {
        "azimuth": bins,
        "face": (np.abs(wrapped) < FACE_ANGLE).astype(int),
        "kind": [kinds.index(t.kind) for t in toys],
        "color": [colors.index(t.color) for t in toys],
        "pattern": [patterns.index(t.pattern) for t in toys],
        "accessory": [accessories.index(t.accessory) for t in toys],
        "accessory_color": [colors.index(t.accessory_color) for t in toys],
    }
    return {k: torch.as_tensor(v) for k, v in targets.items()}, torch.tensor([t.accessory != "none" for t in toys])


def judge_loss(answers: dict[str, Tensor], targets: dict[str, Tensor], worn: Tensor) -> Tensor:
    """Cross-entropy of every head; the colour of clothes only where there are some."""
    total = torch.zeros(())
    for name, logits in answers.items():
        each = F.cross_entropy(logits, targets[name], reduction="none")
        total = total + (each[worn].mean() if name == "accessory_color" and worn.any() else each.mean())
    return total


def held_out_fronts(n: int, seed: int = 96, words: Words = SHIPPED_WORDS) -> tuple[Tensor, list[str]]:
    """N near-front renders of held-out objects with n different captions, on light grey."""
    rng, toys, captions = np.random.default_rng(seed), [], []
    while len(toys) < n:
        toy = sample_toy(rng, shape="held_out", combination="held_out", words=words)
        if caption(toy) not in captions:
            toys.append(toy)
            captions.append(caption(toy))
    return data.fronts(toys, seed), captions


@torch.no_grad()
def retrieval(clip: Any, tokenizer: Any, rgb: Tensor, captions: list[str]) -> float:
    """Share of the images (N, 3, 64, 64) whose own caption is nearest among all N."""
    out = clip(input_ids=tokens(tokenizer, captions), pixel_values=2 * rgb - 1)
    return float((out.logits_per_image.argmax(1) == torch.arange(len(rgb))).float().mean())


def _save_part(module: Any, where: Path) -> Path:
    """Write a diffusers or transformers part as fp16 safetensors; the module itself stays float32.

    As every release of transformers that we allow reads it: a text encoder by the names of the hub's files, which
    releases from 5.6 on no longer write and earlier ones need; and to be computed in float32 like its neighbours, which
    diffusers loads so unless it is told otherwise: half precision is how the files are stored.
    """
    from safetensors.torch import load_file, save_file

    copy.deepcopy(module).half().save_pretrained(where, safe_serialization=True)
    config, weights = where / "config.json", where / "model.safetensors"
    if not weights.exists():  # of diffusers
        return where
    said = json.loads(config.read_text())
    for key in {"dtype", "torch_dtype"} & said.keys():
        said[key] = "float32"
    config.write_text(json.dumps(said, indent=2) + "\n")
    state = load_file(weights)
    if "embeddings.token_embedding.weight" in state:
        state = {f"text_model.{key}": value for key, value in state.items()}
        with atomic_path(weights) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
    return where


def trained_family(folder: Path) -> Path:
    """The Stable Diffusion folder that was trained in `folder`, or the package's."""
    trained = folder / TextToImage.name / "model"
    if trained.exists():
        return trained
    refuse_shipped(folder, TextToImage.name)
    return FAMILY


def _save_tokenizer(tokenizer: Any, where: Path) -> None:
    """Write tokenizer.json and, for the CLIPTokenizer of transformers 4, vocab.json and merges.txt."""
    tokenizer.save_pretrained(where)
    if hasattr(tokenizer, "backend_tokenizer"):
        tokenizer.backend_tokenizer.model.save(str(where))


def _load_vae(folder: Path) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    trained = folder / "vae" / "model"
    if not trained.exists():
        refuse_shipped(folder, "vae")
        trained = FAMILY / "vae"
    vae: Any = AutoencoderKL.from_pretrained(trained)
    vae.register_to_config(_name_or_path="")  # else the path of the training folder ships with the weights
    return vae.eval().float().requires_grad_(False)


@torch.no_grad()
def _latents(folder: Path, name: str, pictures: data.Pictures, vae: Any) -> np.ndarray:
    """(N, V, C, 16, 16) float16 scaled latents of all pictures, each rig on a light grey of its own; made once."""
    path = folder / name / "latents.npy"
    if not path.exists():
        cpu = torch.device("cpu")
        encoder: Any = place(copy.deepcopy(vae).to(network_dtype("auto", cpu)), cpu)  # as a run encodes its renders
        rng, n, v = np.random.default_rng(5), len(pictures), pictures.azimuth.shape[1]
        latents = np.empty((n, v, vae.config.latent_channels, networks.LATENT_SIZE, networks.LATENT_SIZE), np.float16)
        for k in range(0, n, 64):
            rgba = pictures.rgba[k : k + 64]
            rgb = data.composite(rgba, data.random_background(rng, len(rgba))[:, None].repeat(v, 1)).flatten(0, 1)
            mean = encoder.encode((2 * rgb - 1).to(encoder.dtype)).latent_dist.mean.float()
            latents[k : k + 64] = (mean * vae.config.scaling_factor).unflatten(0, (-1, v)).numpy()
            if k % 6400 == 0:
                print(f"latents of {name}: {k} of {n}", flush=True)
        with atomic_path(path) as temporary:
            np.save(temporary, latents)
    return np.load(path)
