"""Does the text-to-image model draw what it is told? `python -m jointdreamer.toybox.retrieval`

The stock StableDiffusionPipeline samples the shipped folder, unmodified, for 100 captions of held-out combinations; the
toybox CLIP then looks for each picture's own caption among all 100. The same is done for true renders, and the judge
says how many of the words it sees. `--model flow` and `--model pixel` are sampled by their priors of this package.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jointdreamer.cameras import Cameras, orbit_cameras
from jointdreamer.images import grid, write_png
from jointdreamer.priors.flow import RectifiedFlow
from jointdreamer.priors.network import NetworkPrior
from jointdreamer.priors.pixel import PixelDiffusion
from jointdreamer.priors.prompts import Prompts
from jointdreamer.toybox.judge import load_judge
from jointdreamer.toybox.recipes.clip import held_out_fronts, retrieval
from jointdreamer.toybox.recipes.shipped import FAMILY, WEIGHTS
from jointdreamer.toybox.world import ACCESSORIES, COLORS, KINDS, PATTERNS, parse_caption
from jointdreamer.weights.parts import load_tokenizer


def sample(captions: list[str], steps: int, guidance_scale: float, seed: int, batch: int = 20) -> Tensor:
    """One picture (N, 3, 64, 64) in [0, 1] a caption, by stock diffusers."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(FAMILY, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator, parts = torch.Generator().manual_seed(seed), []
    for k in range(0, len(captions), batch):
        part = captions[k : k + batch]
        out = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generator, output_type="pt"
        )
        parts.append(out.images)
    return torch.cat(parts).float()


def load_flow(dtype: str = "auto") -> RectifiedFlow:
    """The toybox's rectified flow."""
    return RectifiedFlow.build(WEIGHTS / "flow", vae=FAMILY, text_encoders=1, image_size=64, x0_limit=5.0, dtype=dtype)


def load_pixel(dtype: str = "auto") -> PixelDiffusion:
    """The toybox's model over pixels."""
    return PixelDiffusion.build(WEIGHTS / "pixel", x0_limit=1.0, dtype=dtype)


@torch.no_grad()
def draw(
    prior: NetworkPrior, text: str, cameras: Cameras, steps: int, guidance_scale: float, generator: torch.Generator
) -> Tensor:
    """Views (V, C, R, R) of a prior by DDIM without noise on the way; for a rectified flow these are Euler's steps.

    cameras: one rig of V
    guidance_scale: in the usual convention
    """
    process, words = prior.process, prior.embed(Prompts(text, view_dependent=False))
    conditions = [words.at(cameras), words.nothing(cameras)]
    x = torch.randn(1, cameras.n_views, *prior.latent_shape, generator=generator)
    times = torch.linspace(process.last, 0, steps + 1).long()
    for now, after in zip(times[:-1], times[1:], strict=True):
        predicted = prior.predict(x, now[None], conditions, cameras)
        noise = prior.guidance.noise(process, x, now[None], *predicted, guidance_scale=guidance_scale - 1)
        alpha_t, sigma_t = process.at(after[None])
        x = alpha_t * process.x0(noise, x, now[None]) + sigma_t * noise
    return prior.decode(x)[0].clamp(0, 1)


def draw_each(prior: NetworkPrior, captions: list[str], steps: int, guidance_scale: float, seed: int) -> Tensor:
    """One picture (N, 3, 64, 64) in [0, 1] a caption, by a prior of this package, resized."""
    generator, camera = torch.Generator().manual_seed(seed), orbit_cameras(1, 64, distance=2.61)
    rgb = torch.cat([draw(prior, text, camera, steps, guidance_scale, generator) for text in captions])
    return interpolate(rgb, (64, 64), mode="bilinear", align_corners=False)


def load_clip() -> tuple[Any, Any]:
    """The toybox CLIP and its tokenizer."""
    from transformers import CLIPModel

    clip: Any = CLIPModel.from_pretrained(WEIGHTS / "clip", local_files_only=True)
    return clip.float().eval(), load_tokenizer(WEIGHTS / "clip")


@torch.no_grad()
def words_seen(rgb: Tensor, captions: list[str]) -> dict[str, float]:
    """Share of the pictures whose kind, colour, pattern and accessory the judge names as the caption does."""
    answers = load_judge()(rgb)
    toys = [parse_caption(text) for text in captions]
    names = {"kind": KINDS, "color": list(COLORS), "pattern": list(PATTERNS), "accessory": ACCESSORIES}
    return {
        head: sum(
            toy is not None and words[int(best)] == getattr(toy, head)
            for toy, best in zip(toys, answers[head].argmax(1), strict=True)
        )
        / len(toys)
        for head, words in names.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["text-to-image", "flow", "pixel"], default="text-to-image")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=5.0, help="in the usual convention of diffusers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write the samples as a PNG")
    args = parser.parse_args()
    renders, captions = held_out_fronts(args.captions)
    if args.model == "text-to-image":
        samples = sample(captions, args.steps, args.guidance_scale, args.seed)
    else:
        prior = {"flow": load_flow, "pixel": load_pixel}[args.model]()
        samples = draw_each(prior, captions, args.steps, args.guidance_scale, args.seed)
    clip, tokenizer = load_clip()
    for name, rgb in (("true renders", renders), ("samples", samples)):
        seen = ", ".join(f"{head} {share:.0%}" for head, share in words_seen(rgb, captions).items())
        print(f"{name}: {retrieval(clip, tokenizer, rgb, captions):.0%} retrieve their caption; judged {seen}")
    if args.sheet:
        write_png(args.sheet, grid(samples, 10))


if __name__ == "__main__":
    main()
