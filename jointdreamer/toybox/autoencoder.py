"""What is left of a picture after the autoencoder? `python -m jointdreamer.toybox.autoencoder [FOLDER]`

The PSNR of held-out objects, in combinations that nothing is trained on, seen from all sides; with --sheet a picture of
them above what comes back. FOLDER is an AutoencoderKL's, by default the package's.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdreamer.errors import UserError, one_line
from jointdreamer.images import grid, write_png
from jointdreamer.metrics import psnr
from jointdreamer.terminal import safe_output
from jointdreamer.toybox import data
from jointdreamer.toybox.networks import EDITIONS, SHIPPED_EDITION
from jointdreamer.toybox.recipes.shipped import FAMILY
from jointdreamer.toybox.world import Words
from jointdreamer.weights.parts import load_part


def held_out_views(n: int, seed: int, words: Words) -> Tensor:
    """Four views each of n objects (4 n, 3, 64, 64) in [0, 1], each on a light grey of its own."""
    pictures = data.rigs(n, seed, scarce=False, shape="held_out", combination="held_out", words=words)
    rng = np.random.default_rng(seed)
    return data.composite(pictures.rgba.reshape(4 * n, *pictures.rgba.shape[2:]), data.random_background(rng, 4 * n))


@torch.no_grad()
def round_trip(vae: Any, rgb: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 64, 64) in [0, 1] -> what comes back, clamped to [0, 1]; the PSNR of each (N,), dB."""
    parts = [vae.decode(vae.encode(2 * part - 1).latent_dist.mean).sample / 2 + 0.5 for part in rgb.split(batch)]
    back = torch.cat(parts).clamp(0, 1)
    return back, psnr(back, rgb)


def main() -> int:
    safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FAMILY / "vae", help="with config.json and the weights")
    parser.add_argument("--edition", type=int, choices=list(EDITIONS), default=SHIPPED_EDITION, help="of the words")
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--seed", type=int, default=93)
    parser.add_argument("--sheet", type=Path, help="write the first eight objects as a PNG")
    args = parser.parse_args()
    if args.objects < 1:
        parser.error(f"--objects must be at least 1, got {args.objects}")
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    try:
        vae = load_part(AutoencoderKL, args.folder.parent, args.folder.name, torch.float32)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    rgb = held_out_views(args.objects, args.seed, EDITIONS[args.edition].words)
    back, psnr = round_trip(vae, rgb)
    numbers = f"{psnr.mean():.2f} dB in the mean, {psnr.min():.2f} to {psnr.max():.2f}"
    print(f"{vae.config.latent_channels} channels, {len(rgb)} views of {args.objects} held-out objects: {numbers}")
    if args.sheet:
        rows = [part for k in range(0, min(32, len(rgb)), 16) for part in (rgb[k : k + 16], back[k : k + 16])]
        write_png(args.sheet, grid(torch.cat(rows), 16))
    return 0


if __name__ == "__main__":
    sys.exit(main())
