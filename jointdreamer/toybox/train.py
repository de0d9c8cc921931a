"""Train a toybox model from scratch: `python -m jointdreamer.toybox.train MODEL`.

MODEL, in the order in which they lean on each other: `data` (the pictures), `vae`, `text-to-image` (with its text
encoder), `multi-view` and `novel-view` (both start from text-to-image), `clip`, `judge`, `flow`, `pixel` and
`coordinates` (which read a text as text-to-image does). Work lies in
`toybox_training/`; `--install` puts the newest weights into the package. A killed run goes on where it was when the
same command is given again. An earlier model that was not trained here is taken from the package; `--from-shipped`
starts the model itself from there too.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jointdreamer.errors import UserError, one_line
from jointdreamer.files import atomic_path
from jointdreamer.images import plot_curves
from jointdreamer.kernels.waiting import spinning_while_alone
from jointdreamer.schedules import warm_up_and_cosine
from jointdreamer.terminal import safe_output
from jointdreamer.toybox.muon import Muon
from jointdreamer.toybox.networks import EDITIONS, SHIPPED_EDITION
from jointdreamer.toybox.recipes.autoencoder import Vae
from jointdreamer.toybox.recipes.clip import Clip
from jointdreamer.toybox.recipes.coordinates import Coordinates
from jointdreamer.toybox.recipes.flow import Flow
from jointdreamer.toybox.recipes.judge import Judge
from jointdreamer.toybox.recipes.multi_view import MultiView
from jointdreamer.toybox.recipes.novel_view import NovelView
from jointdreamer.toybox.recipes.pictures import make_data, missing_input
from jointdreamer.toybox.recipes.pixel import Pixel
from jointdreamer.toybox.recipes.shipped import refuse_shipped, shipped_weights
from jointdreamer.toybox.recipes.text_to_image import TextToImage

RECIPES = {
    recipe.name: recipe for recipe in (Vae, TextToImage, MultiView, NovelView, Clip, Judge, Flow, Pixel, Coordinates)
}
DEFAULT_STEPS = {
    "vae": 2000,
    "text-to-image": 12000,
    "multi-view": 9000,
    "novel-view": 9000,
    "clip": 3000,
    "judge": 4000,
    "flow": 6000,
    "pixel": 2000,
    "coordinates": 6000,
}


def hidden_weights(net: nn.Module) -> list[Tensor]:
    """The matrices between a network's first and last layers: weights of convolutions and linear layers.

    Muon (Jordan et al. 2024) is for these: it makes their updates orthogonal, so what a network has to learn in
    directions of small gradients, fine detail above all, does not wait for the rest.
    """
    return [
        module.weight
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        and name.split(".")[-1] not in ("conv_in", "conv_out")
        and min(module.weight.flatten(1).shape) >= 16
    ]


class Trainer:
    """Runs a recipe: loss(step, rng) -> scalar; keeps an EMA, a curve, and a checkpoint to go on from."""

    def __init__(self, folder: Path, networks: dict[str, nn.Module], lr: float, steps: int, ema: float = 0.999):
        self.folder, self.networks, self.lr, self.steps, self.decay = folder, networks, lr, steps, ema
        self.trained = [p for net in networks.values() for p in net.parameters() if p.requires_grad]
        hidden = [p for net in networks.values() for p in hidden_weights(net) if p.requires_grad]
        taken = {id(p) for p in hidden}
        others = [p for p in self.trained if id(p) not in taken]
        self.optimizers: list[torch.optim.Optimizer] = [Muon(hidden, lr)] if hidden else []
        if others:
            self.optimizers.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=1e-2))
        self.average = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in networks.items()}
        self.step, self.curve = 0, []
        self.recent: list[float] = []  # losses since the curve's last point
        self.path = folder / "checkpoint.pt"
        if self.path.exists():
            self._load()

    def run(self, loss: Callable[[int, np.random.Generator], Tensor], sheet: Callable[[int], None], every: int) -> None:
        """Train to `steps`, showing progress; a sample sheet and a checkpoint every `every` steps."""
        began, first = time.time(), self.step
        while self.step < self.steps:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * warm_up_and_cosine(self.step, self.steps)
            rng = np.random.default_rng([self.step, 7])  # a step's draws depend on the step alone: resuming is exact
            torch.manual_seed(self.step)
            value = loss(self.step, rng)
            for net in self.networks.values():
                net.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            self._update_average()
            self.recent.append(value.item())
            if self.step % 50 == 0 or self.step == self.steps:
                self.curve.append((self.step, float(np.mean(self.recent))))
                rate = (time.time() - began) / (self.step - first)
                left = rate * (self.steps - self.step) / 60
                print(
                    f"{self.folder.name}  step {self.step}/{self.steps}  loss {np.mean(self.recent):.4f}  "
                    f"{rate:.2f} s/step  {left:.0f} min left",
                    flush=True,
                )
                self.recent = []
            if self.step % every == 0 or self.step == self.steps:
                self._save()
                with self.averaged():
                    sheet(self.step)
                curve = ([step for step, _ in self.curve], [loss for _, loss in self.curve])
                plot_curves(self.folder / "loss.png", {"loss": {"loss": curve}})

    def averaged(self):
        """A context in which the networks hold their averaged weights."""
        return swapped(self.networks, self.average)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, net in self.networks.items():
            frozen = not any(p.requires_grad for p in net.parameters())
            for key, value in net.state_dict().items():
                kept = self.average[name][key]
                if value.is_floating_point() and not frozen:
                    kept.lerp_(value, 1 - decay)
                else:
                    kept.copy_(value)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "curve": self.curve,
            "recent": self.recent,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "average": self.average,
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.step, self.curve, self.average = state["step"], state["curve"], state["average"]
        self.recent = state.get("recent", [])
        for name, net in self.networks.items():
            net.load_state_dict(state["networks"][name])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        print(f"{self.folder.name}: going on from step {self.step}", flush=True)


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


def main(argv: list[str] | None = None) -> int:
    safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["data", *DEFAULT_STEPS])
    parser.add_argument("--steps", type=int, help="optimiser steps (the learning rate's cosine ends there)")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument(
        "--folder", type=Path, default=Path("toybox_training"), help="where pictures and checkpoints go"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pictures", type=int, default=60_000, help="flat pictures of `data`")
    parser.add_argument(
        "--edition",
        type=int,
        choices=list(EDITIONS),
        default=SHIPPED_EDITION,
        help="words and latent channels of `data` and of all that is trained on it (networks.EDITIONS)",
    )
    parser.add_argument("--rigs", type=int, help="rigs of `data`; by default a sixth as many as pictures")
    parser.add_argument(
        "--from-shipped", action="store_true", help="start from the package's weights, not from scratch"
    )
    parser.add_argument("--install", action="store_true", help="put the newest weights into the package and stop")
    args = parser.parse_args(argv)
    for name in ("batch", "threads", "pictures", "rigs", "steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    torch.set_num_threads(args.threads)
    try:
        return run(args)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks; its exit status."""
    if args.model == "data":
        make_data(args.folder, args.pictures, args.rigs or max(1, args.pictures // 6), args.edition)
        return 0
    missing = missing_input(args.model, args.folder)
    if missing:
        print(f"{args.model} needs {missing} first: python -m jointdreamer.toybox.train {missing}", file=sys.stderr)
        return 2

    if args.from_shipped or args.install:
        refuse_shipped(args.folder, args.model)
    recipe: Any = RECIPES[args.model](args.folder, args.batch)
    if args.from_shipped:
        for name, net in recipe.networks.items():
            net.load_state_dict(shipped_weights(args.model, name))
    trainer = Trainer(args.folder / args.model, recipe.networks, recipe.lr, args.steps or DEFAULT_STEPS[args.model])
    if not args.install:
        trainer.folder.mkdir(parents=True, exist_ok=True)
        with spinning_while_alone():
            trainer.run(recipe.loss, recipe.sheet, every=max(1, min(250, trainer.steps // 4)))
    with trainer.averaged():
        where = recipe.install() if args.install else recipe.save(trainer.folder / "model")
    facts = {"model": args.model, "step": trainer.step, "images": trainer.step * recipe.batch, "saved": str(where)}
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
