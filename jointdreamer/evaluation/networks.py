"""The networks that look at pictures: CLIP for images and texts, Inception for FID where somebody has it.

They are named in every result, and their files are part of the key under which a result is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError
from jointdreamer.evaluation.runs import file_identity
from jointdreamer.priors.prompts import shortened
from jointdreamer.reading import is_whole, read_json

TOYBOX = Path(__file__).resolve().parents[1] / "toybox" / "weights"
# CLIP's own pixel statistics (its preprocessor_config.json); the toybox CLIP was trained on [-1, 1]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH = 64  # pictures at a time


@dataclass(frozen=True)
class ClipFiles:
    """A CLIP on disk that nobody has loaded yet."""

    folder: Path
    title: str  # as results name it
    identity: str
    image_size: int
    width: int  # of its features
    toybox: bool

    @property
    def name(self) -> str:
        return f"{self.title}, {self.identity}"

    def load(self, device: Any = "cpu") -> "Clip":
        """Raises UserError for files that are no CLIP, damaged, or incomplete."""
        return Clip(self, device)


def toybox_clip() -> ClipFiles:
    """The small CLIP that was trained on the toybox's pictures; it comes with the package."""
    return _describe(TOYBOX / "clip", "toybox CLIP")


def clip_files(source: Any) -> ClipFiles:
    """CLIP from a folder or a hub id (or a list of them). Raises UserError if it is nowhere."""
    from jointdreamer.weights.find import find_weights

    # a tokenizer is one file or three, by the version that wrote it
    return _describe(find_weights(source, "clip", needs=("config.json", "tokenizer_config.json")), None)


def _describe(folder: Path, title: str | None) -> ClipFiles:
    config = read_json(folder / "config.json")
    vision = (config.get("vision_config") or {}) if isinstance(config, dict) else None
    # what the file of the original leaves out is transformers' default: ViT-B/32
    asked = ((vision, "image_size", 224), (vision, "patch_size", 32), (vision, "hidden_size", 768))
    asked = (*asked, (config, "projection_dim", 512))
    found = [group.get(key, default) for group, key, default in asked if isinstance(group, dict)]
    if len(found) < len(asked) or not all(is_whole(number, 1, 2**16) for number in found):
        raise UserError(f"{folder} holds no CLIP: its config.json does not name the sizes of one")
    size, patch, width, features = map(int, found)
    original = (size, patch, width) == (224, 32, 768)
    words = title or ("CLIP ViT-B/32" if original else f"a CLIP of width {width} and patches of {patch}")
    return ClipFiles(folder, words, file_identity(folder), size, features, title is not None)


class Clip:
    """Pictures and texts to vectors of one space, through transformers' CLIPModel."""

    def __init__(self, files: ClipFiles, device: Any = "cpu"):
        from transformers import CLIPModel
        from transformers.utils import logging as noise

        from jointdreamer.weights.parts import load_tokenizer

        noise.disable_progress_bar()
        kind: Any = CLIPModel
        try:
            model, report = kind.from_pretrained(files.folder, local_files_only=True, output_loading_info=True)
            tokenizer = load_tokenizer(files.folder)
        except Exception as error:  # whatever a damaged file provokes
            raise UserError(f"cannot load CLIP from {files.folder}: {str(error).splitlines()[0]}") from error
        lacks = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if lacks or len(tokenizer) < 3:  # transformers would fill both with nonsense and go on
            what = lacks[0] if lacks else "its vocabulary"
            raise UserError(f"cannot load CLIP from {files.folder}: {what} is missing; download it again")
        self.model: Any = model.float().eval().requires_grad_(False).to(device)
        self.tokenizer: Any = tokenizer
        self.size, self.device = files.image_size, device
        mean, std = ((0.5,) * 3, (0.5,) * 3) if files.toybox else (MEAN, STD)
        self.mean, self.std = (torch.tensor(x, device=device)[:, None, None] for x in (mean, std))

    @torch.no_grad()
    def images(self, rgb: Tensor) -> np.ndarray:
        """rgb (N, 3, R, R) in [0, 1] -> (N, D) float32, not normalised. Resized bicubic, antialiased."""
        found = []
        for part in rgb.split(BATCH):
            pixels = resized(part.to(self.device), self.size)
            features = self.model.get_image_features(pixel_values=(pixels - self.mean) / self.std)
            found.append(_vectors(features))
        return np.concatenate(found)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, not normalised; of a text that is too long the end is cut, but for its view words."""
        longest = self.model.config.text_config.max_position_embeddings
        rows = shortened(texts, self.tokenizer, longest)
        found = [_vectors(self.model.get_text_features(input_ids=ids.to(self.device))) for ids in rows.split(BATCH)]
        return np.concatenate(found)


def _vectors(features: Any) -> np.ndarray:
    features = features if isinstance(features, Tensor) else features.pooler_output  # transformers 4, 5
    return features.float().cpu().numpy()


def resized(rgb: Tensor, size: int) -> Tensor:
    """(N, 3, R, R) -> (N, 3, size, size) in [0, 1]."""
    if rgb.shape[-2:] == (size, size):
        return rgb
    resize = torch.nn.functional.interpolate
    return resize(rgb, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


class Inception:
    """The network of published FIDs as the TorchScript file that StyleGAN2-ADA and clean-fid share.

    file: inception-2015-12-05.pt; called as `net(uint8 images (N, 3, H, W), return_features=True)` -> (N, 2048). It
        resizes by itself. Nothing here downloads it, and no package that brings it installs without torchvision.
    Raises UserError for a file that is missing or no TorchScript.
    """

    def __init__(self, file: Path, device: Any = "cpu"):
        try:
            self.net: Any = torch.jit.load(str(file), map_location=device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"fid={file}: no TorchScript network ({str(error).splitlines()[0][:120]})") from error
        self.device = device

    @torch.no_grad()
    def images(self, rgb: Tensor) -> np.ndarray:
        """rgb (N, 3, R, R) in [0, 1] -> (N, D) float32."""
        pixels = rgb.clamp(0, 1).mul(255).round().to(torch.uint8)
        found = [self.net(part.to(self.device), return_features=True).float().cpu() for part in pixels.split(BATCH)]
        return torch.cat(found).numpy()
