"""Train M_CLS, the pair classifier of the CLS energy (Eq. 6, Appendix A.2): python train_classifier.py models=toybox

One process, or several: torchrun --nproc_per_node 2 train_classifier.py ... gives the same result.
Config stops in this file; everything it calls takes plain arguments.
"""

from jointdreamer.cli import main as cli

if __name__ == "__main__":
    cli.read_command("train_classifier")  # answers --help and mistyped words before the imports below take seconds

import sys
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path
from signal import SIGTERM
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.nn.utils import clip_grad_norm_

from jointdreamer.arguments import Range, Share, Takes
from jointdreamer.classifier.augment import Augmentation
from jointdreamer.classifier.batches import Batch, Corrections, to_batch
from jointdreamer.classifier.model import ClassifierSettings, PairClassifier, read_dino
from jointdreamer.classifier.pairs import PairSampler, is_held_out, open_views, prefetch, read_captions
from jointdreamer.cli.settings import Count, Device, Precision, Seed, Steps, check
from jointdreamer.comparison import compare_classifiers
from jointdreamer.errors import UserError, printable
from jointdreamer.files import try_folder
from jointdreamer.runs.checkpoint import seed_everything
from jointdreamer.runs.environment import checksums
from jointdreamer.runs.folder import RunFolder, due, run_path
from jointdreamer.runs.logger import Logger, check_finite
from jointdreamer.runs.machine import peak_memory_gb
from jointdreamer.runs.signals import stop_on_signals
from jointdreamer.schedules import warm_up_and_cosine

KEYS = ("seed", "name", "out_dir", "device", "precision", "start_from", "export", "data", "augmentation", "estimates")
KEYS += ("classifier", "training", "validation_groups", "every", "models", "logger")
ANGLES = [0.0, 30.0, 60.0, 90.0, 120.0, 150.0, 180.0]
NEARLY_TRUE = 0.03  # levels: from an image as near to the true view as this, no step is as good as a perfect one
MOST_ERROR = 4.0  # of one image, so that few that went astray do not outweigh the rest


@dataclass(frozen=True)
class Data:
    """The views, and which objects are held out."""

    folder: str | None
    toys: Annotated[int, Range(0, 10**7)]
    toy_seed: Seed
    held_out_percent: Annotated[float, Range(0.01, 90)]
    min_angle_deg: Annotated[float, Range(0, 120)]
    wrong_pose_share: Share
    background: Any
    workers: Annotated[int, Range(1, 256)]


@dataclass(frozen=True)
class Optimisation:
    """Steps, batches, rates, and the weights of the losses."""

    steps: Count
    groups: Annotated[int, Range(1, 10**6)]
    objects: Annotated[int, Range(2, 10**6)]
    views: Annotated[int, Range(2, 1000)]
    lr: Annotated[float, Range(1e-12, 1)]
    warm_up: Count
    weight_decay: Annotated[float, Range(0, 10)]
    clip: Annotated[float, Range(low=1e-6)]
    direction_weight: Annotated[float, Range(low=0)]
    derivative_weight: Annotated[float, Range(low=0)]
    step_weight: Annotated[float, Range(low=0)]
    ascent: Annotated[int, Range(0, 1000)]
    ascent_step: Annotated[float, Range(low=1e-6)]


@dataclass(frozen=True)
class Estimates:
    """How many batches are one-step estimates of the prior."""

    share: Share
    guided: Share
    guidance_scale: Annotated[float, Range(0, 1000)]
    t: Any


@dataclass(frozen=True)
class Every:
    """Steps between two rows, validations and checkpoints; 0 is never."""

    log: Count
    validate: Steps
    checkpoint: Steps


@dataclass(frozen=True)
class ClassifierConfig:
    """The config of train_classifier.py."""

    seed: Seed
    name: str
    out_dir: str
    device: Device
    precision: Precision
    data: Annotated[dict, Takes(Data)]
    augmentation: Annotated[dict, Takes(Augmentation)]
    estimates: Annotated[dict, Takes(Estimates)]
    classifier: Annotated[dict, Takes(ClassifierSettings)]
    training: Annotated[dict, Takes(Optimisation)]
    validation_groups: Annotated[int, Range(1, 10**6)]
    every: Annotated[dict, Takes(Every)]
    models: dict
    logger: dict


class Best:
    """The best validation so far, by ROC-AUC and, where taught, what the derivative does; it survives a resume."""

    def __init__(self):
        self.score, self.step = -inf, 0

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step = state["score"], state["step"]


def train(cfg: dict[str, Any]) -> int:
    """Train one classifier as the resolved config says, or go on with it; returns the exit status."""
    cfg = {key: cfg[key] for key in KEYS}  # `models` also brings what train.py needs
    cfg["every"] = {key: cfg["every"][key] for key in ("log", "validate", "checkpoint")}
    check(cfg, ClassifierConfig)
    data, training, every = cfg["data"], cfg["training"], cfg["every"]
    background = _range("data.background", data["background"], "greys")
    seed_everything(cfg["seed"])
    on_cpu = cfg["device"] == "cpu" or not torch.cuda.is_available()  # told so, accelerate joins processes there too
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=cfg["precision"])
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    if training["groups"] % processes:
        raise UserError(f"training.groups={training['groups']}: {processes} processes cannot share them evenly")

    # The views, and who is held out
    if data["folder"] is None:
        raise UserError("data.folder is empty: name the folder of views, data.folder=views_release")
    with accelerator.main_process_first():
        if data["toys"] and rank == 0:
            render_toys(data, cfg["classifier"]["image_size"])
    source = open_views(data["folder"])
    captions = read_captions(data["folder"], source.ids) if cfg["estimates"]["guided"] else {}
    sets: dict[bool, list[int]] = {True: [], False: []}
    for index, name in enumerate(source.ids):
        if name in captions or not cfg["estimates"]["guided"]:
            sets[is_held_out(name, data["held_out_percent"])].append(index)
    sizes = {"size": cfg["classifier"]["image_size"], "objects": training["objects"], "views": training["views"]}
    wrong = {key: data[key] for key in ("min_angle_deg", "wrong_pose_share")}
    sampler = PairSampler(source, sets[False], **sizes, **wrong, seed=cfg["seed"])
    validator = PairSampler(source, sets[True], **sizes, **wrong, seed=cfg["seed"])
    augmentation = Augmentation(**cfg["augmentation"])

    # The prior whose estimates the energy will show it
    teaches_derivative = training["derivative_weight"] > 0 or training["step_weight"] > 0
    if cfg["estimates"]["guided"] and not teaches_derivative:
        raise UserError(
            f"estimates.guided={cfg['estimates']['guided']}: guided estimates are only shown to be corrected; give "
            "training.derivative_weight or training.step_weight as well"
        )
    look_through = build_estimator(cfg["models"], cfg["estimates"], captions, device)

    # The network
    settings, weights = ClassifierSettings(**cfg["classifier"]), []
    classifier = PairClassifier(settings)
    if cfg["start_from"] is not None:
        classifier = PairClassifier.load(Path(cfg["start_from"]))
        if other := differences(classifier.settings, settings):
            raise UserError(f"start_from={cfg['start_from']} is a classifier of another shape ({other}): give the same")
        weights = [Path(cfg["start_from"])]
    elif dino := cfg["models"].get("classifier_backbone"):  # a toybox has none, and learns from scratch
        state, file = read_dino(dino["source"], download=device.type == "cuda")
        classifier.load_backbone(state, str(file))
        weights = [file]
    most_steps = training["ascent"] if teaches_derivative else None
    learner = build_learner(classifier, training["direction_weight"] > 0, training["ascent_step"]).to(device)
    optimizer, best = build_optimizer(learner, training["weight_decay"]), Best()
    parts = {"learner": learner, "optimizer": optimizer, "best": best}

    path = run_path(cfg["out_dir"], cfg["name"], f"{cfg['models']['name']} {data['folder']}", cfg["seed"])
    steps, files = training["steps"], checksums(weights) if rank == 0 else []
    with ExitStack() as stack:
        run = stack.enter_context(RunFolder.open(path, cfg, compare=compare_classifiers)) if rank == 0 else None
        start = 0
        threads = None
        if run is not None:
            if cfg["export"] is not None:
                try_folder(Path(cfg["export"]))
            threads = run.use_threads()
            complete = run.result(steps)
            if not complete:
                run.check_weights(files, steps)
            start = steps + 1 if complete else run.resume(**parts)
        if processes > 1:  # what the others cannot read: the folder is locked. The weights are handed on by `prepare`
            said = broadcast_object_list([start, optimizer.state_dict(), best.state_dict(), threads])
            start, best_state = said[0], said[2]
            torch.set_num_threads(said[3])
            optimizer.load_state_dict(said[1])
            best.load_state_dict(best_state)
        if start > steps:
            if rank == 0:
                export(path / "best", cfg["export"])
                print(f"{printable(path)}\nis complete: nothing to do")
            return 0
        model = accelerator.prepare(learner)
        logger = None
        if run is not None:
            logger = stack.enter_context(Logger(run.path, steps, every["log"]))
            logger.begin(start, cfg["logger"]["wandb"], cfg)
            n_pairs = sampler.n_pairs * training["groups"]
            logger.message(
                f"{run.path}: {len(sets[False])} objects and {len(sets[True])} held out, {n_pairs} pairs a step, "
                f"{sum(p.numel() for p in classifier.parameters() if p.requires_grad)} parameters; "
                f"{device}, {processes} process{'es' * (processes > 1)}"
            )
            run.write_command(cli.typed_command())
            run.write_environment(weights=files, device=str(device), processes=processes)
        stop = stack.enter_context(stop_on_signals())

        def load(key: tuple[int, int]) -> Batch:
            group, rng = sampler.group(*key)
            batch = to_batch(group, rng, background, augmentation, most_steps)
            return batch if look_through is None else look_through(batch, group, rng)

        mine = range(rank, training["groups"], processes)
        keys = ((step, number) for step in range(start, steps) for number in mine)
        batches = prefetch(load, keys, data["workers"], ahead=data["workers"] + len(mine))
        stack.callback(batches.close)  # pyright: ignore[reportAttributeAccessIssue]
        judge: dict[str, Any] = {
            "rank": rank,
            "processes": processes,
            "n_groups": cfg["validation_groups"],
            "background": background,
            "ascent": most_steps,
            "ascent_step": training["ascent_step"],
        }

        for step in range(start, steps):
            lr = training["lr"] * warm_up_and_cosine(step, steps, training["warm_up"])
            optimizer.zero_grad()
            seen = torch.zeros(6, device=device)  # what the processes add up: losses, accuracy, signals, the ascent's
            for position in range(len(mine)):
                batch = next(batches).to(device)
                last = position == len(mine) - 1  # the only one whose gradients travel between processes
                with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
                    logits, direction, ascent = model(batch)
                    bce = loss = binary_cross_entropy_with_logits(logits, batch.label)
                    if direction is not None:
                        mse = mse_loss(direction, batch.direction)
                        loss = bce + training["direction_weight"] * mse
                        seen[1] += mse.detach() / training["groups"]
                    if ascent is not None:
                        cosine, error = ascent
                        loss = loss + training["derivative_weight"] * (1 - cosine) + training["step_weight"] * error
                        seen[4:] += torch.stack(ascent).detach() / training["groups"]
                    accelerator.backward(loss / len(mine))
                seen[0] += bce.detach() / training["groups"]
                seen[2] += ((logits > 0) == batch.label.bool()).double().mean() / training["groups"]
            seen[3] = float(stop.requested is not None)
            seen = accelerator.reduce(seen, "sum") if processes > 1 else seen
            loss, direction_loss, accuracy, stopping, cosine, error = (float(x) for x in seen)  # pyright: ignore[reportGeneralTypeIssues]
            check_finite(
                step,
                loss + direction_loss + cosine + error,
                {"bce": loss, "direction": direction_loss, "derivative": cosine, "step": error},
                run.newest_checkpoint if run else None,
            )
            clip_grad_norm_(learner.parameters(), training["clip"])
            optimizer.step(SimpleNamespace(matrices=lr, vectors=lr))

            lesson = {"loss/direction": direction_loss} if learner.direction is not None else {}
            if teaches_derivative:
                lesson |= {"derivative_cosine": cosine, "step_error": error}

            done = step + 1
            found: dict[str, float] = {}
            if due(done, every["validate"]) or done == steps:
                found = validate(classifier, validator, accelerator, **judge)
            if run is not None and logger is not None:
                logger.log(step, loss, row=bool(found), more={"accuracy": accuracy, "lr": lr, **lesson, **found})
                if found:
                    logger.message(
                        f"held-out objects: accuracy {found['val/accuracy']:.4f}, AUC {found['val/auc']:.5f}"
                    )
                    classifier.save(run.still_there() / "last")
                    score = (
                        found["val/auc"] + found.get("val/derivative_cosine", 0.0) - found.get("val/ascent_error", 0.0)
                    )
                    if score > best.score:
                        best.score, best.step = score, done
                        classifier.save(run.path / "best")
                    logger.image("curves", step, save_curves(run.path))
                if due(done, every["checkpoint"]) or stopping or done == steps:
                    run.save(done, **parts)
            if stopping:
                stop.requested = stop.requested or SIGTERM  # it came to another process
                if logger is not None:
                    logger.message(f"stopped after {done} of {steps} steps, saved; the same command goes on")
                return stop.exit_status

        if run is not None and logger is not None:
            with stop.at_once():
                stop.check()
                final = validate(
                    PairClassifier.load(run.path / "best").to(device), validator, None, **{**judge, "processes": 1}
                )
                save_curves(run.path)
                result = {
                    "prompt": None, "seed": cfg["seed"], "energy": None, "models": cfg["models"]["name"],
                    "steps": steps, "minutes": run.seconds / 60, "seconds_per_step": run.seconds / steps,
                    "device": str(device), "peak_memory_gb": peak_memory_gb(), "best_step": best.step,
                    "objects": len(source.ids), "damaged": sorted({**sampler.damaged, **validator.damaged}), **final,
                }  # fmt: skip
                run.write_result(**result)
                logger.summary(result)
                export(run.path / "best", cfg["export"])
                logger.message(
                    f"best after {best.step} steps: accuracy {final['val/accuracy']:.4f}, "
                    f"AUC {final['val/auc']:.5f} on pairs of held-out objects; "
                    f"use it with models.classifier.source={run.path / 'best'}"
                )
                print(printable(run.path))
            if stop.requested:
                logger.message("stopped before all was made: the steps are saved, the same command makes the rest")
        accelerator.wait_for_everyone()
    return stop.exit_status if stop.requested else 0


def _range(name: str, given: Any, what: str) -> tuple[float, float]:
    right = isinstance(given, list) and len(given) == 2 and all(isinstance(x, int | float) for x in given)
    if not right or not 0 <= given[0] <= given[1] <= 1:
        raise UserError(f"{name}={given!r}: wanted [low, high], {what} from 0 to 1")
    return float(given[0]), float(given[1])


def render_toys(data: dict[str, Any], size: int) -> None:
    """Fill data.folder with toys, unless something is there."""
    folder = Path(data["folder"])
    if (folder / "ids.json").exists() or (folder.is_dir() and any(folder.iterdir()) and not _unfinished(folder)):
        return
    from jointdreamer.toybox.views import pack_toy_views

    def progress(done: int, total: int) -> None:
        print(printable(f"rendering toys into {folder}: {done} of {total}"), file=sys.stderr, flush=True)

    pack_toy_views(folder, data["toys"], data["toy_seed"], size, progress)


def _unfinished(folder: Path) -> bool:
    from jointdreamer.classifier.pairs import CAPTIONS

    parts = ("rgba.npy", "c2w.npy", CAPTIONS)
    return all(entry.name.startswith(".tmp-") or entry.name in parts for entry in folder.iterdir())


def differences(given: Any, wanted: Any) -> str:
    """What two settings do not share, in words."""
    return ", ".join(f"{k} {v}, wanted {vars(wanted)[k]}" for k, v in vars(given).items() if v != vars(wanted)[k])


def build_estimator(models: dict[str, Any], estimates: dict[str, Any], captions: dict[str, str], device: Any) -> Any:
    """None, or a function of (batch, group, rng) that replaces images of some batches by one-step estimates.

    The energy asks the classifier about the prior's one-step estimates, blurred and full of guesses at a large t, so
    it learns from those of noised renders: all images of a group at one t, as the views of a rig are. Guided ones,
    which know the object's caption and from where it is seen, show what the prior believes more than what was there (a
    face on every side), so nobody is asked whether they are coherent: they are only shown to be corrected.
    """
    t_range = _range("estimates.t", estimates["t"], "fractions of the timesteps")
    share, guided, scale = estimates["share"], estimates["guided"], float(estimates["guidance_scale"])
    if not share and not guided:
        return None
    import torch

    from jointdreamer.classifier.batches import as_estimates, as_guided_estimates
    from jointdreamer.classifier.estimates import one_step_images
    from jointdreamer.priors.prompts import caption_views, embed_texts
    from jointdreamer.priors.registry import build_prior

    prior: Any = build_prior("text_to_image", models, device)
    text_parts = prior.text_parts()
    empty = embed_texts([""], *text_parts)

    def see(rgb: Any, words: Any, nothing: Any, scale: float, rng: Any) -> Any:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        return one_step_images(prior, rgb.to(device), *t_range, words, nothing, 1 + scale, generator).clamp(0, 1)

    def look_through(batch: Any, group: Any, rng: Any) -> Any:
        if rng.random() < guided:
            texts = caption_views([captions[group.ids[n]] for n in group.object], torch.from_numpy(group.c2w))
            words, nothing = embed_texts([*texts, ""], *text_parts).split([len(texts), 1])
            return as_guided_estimates(batch, lambda rgb: see(rgb, words.repeat(2, 1, 1), nothing, scale, rng))

        def look(rgb: Any, rng: Any) -> Any:
            return rgb if rng.random() >= share else see(rgb, empty, empty, 0.0, rng)

        return as_estimates(batch, look, rng)

    return look_through


def ascend(classifier: Any, reference: Any, corrections: Corrections, steps: int, step_size: float) -> Any:
    """Where `pair_classifier.climb` leads the images that are shown, (N, 3, R, R)."""
    import torch

    from jointdreamer.classifier.model import climb

    with torch.no_grad():
        first = reference.take(corrections.first)

    def logits(images: Any) -> Any:
        return classifier.compare(first, classifier.encode(images), corrections.camera)

    return climb(corrections.shown, logits, steps, step_size)


def judge_ascent(
    classifier: Any, reference: Any, corrections: Corrections, create_graph: bool, step_size: float = 1.0
) -> tuple[Any, Any]:
    """How well the ascent's next step leads to the true view: a cosine, and the squared error that it leaves.

    The energy uses nothing of the classifier but its derivative, and that of an ordinary one is noise to the eye:
    following it changes the logit and nothing that one can see. So it is taught: of a pair whose second image shows
    something else (the first again, another side, another object), the derivative with respect to that image should
    point to the view that belongs there: the first number is the mean cosine of the two. How far a step goes is the
    second: of `step_size` times the derivative of log sigmoid(logit), relative to the error before it. So the logit
    has to stay low, and to rise, as long as something is wrong, and no step is taken from a true view.

    The energy takes several steps, and from the second on looks at images that no data set holds. So
    `corrections.steps` of them are taken first, and all this is asked for where they arrive.

    reference: features of the images that `corrections.first` counts.
    create_graph: for training on it, which takes second derivatives.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import cosine_similarity

    shown = ascend(classifier, reference, corrections, int(corrections.steps), step_size).requires_grad_(True)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second derivative
        logits = classifier.compare(reference.take(corrections.first), classifier.encode(shown), corrections.camera)
        (slope,) = torch.autograd.grad(logits.sum(), shown, create_graph=create_graph)
    slope, wanted = slope.flatten(1), (corrections.true - shown.detach()).flatten(1)
    step = step_size * torch.sigmoid(-logits)[:, None] * slope
    error = (wanted - step).square().sum(1) / (wanted.square().sum(1) + NEARLY_TRUE**2 * wanted.shape[1])
    return cosine_similarity(slope, wanted).mean(), error.clamp(max=MOST_ERROR).mean()


def build_learner(classifier: Any, tells_direction: bool, ascent_step: float) -> Any:
    """What is trained: the classifier, and where asked for a linear map from its class token to where the camera stood.

    Telling a wrong pose takes to know from where a view was taken, and the labels of pairs teach that to a backbone
    without pretraining very slowly. Where all objects share one front, as toys do, the direction can be said outright.
    The map is no part of the classifier, and is gone after the training.
    """
    from torch import nn

    class Learner(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = classifier
            self.direction = nn.Linear(classifier.settings.hidden_size, 3) if tells_direction else None

        def forward(self, batch):
            """Logits (P,), directions (N, 3) or None, and what `judge_ascent` says, or None without corrections."""
            features = classifier.encode(batch.rgb)
            logits = classifier.compare(features.take(batch.first), features.take(batch.second), batch.camera)
            direction = None if self.direction is None else self.direction(features.summary)
            ascent = None
            if batch.corrections is not None:
                seen = batch.corrections.seen
                reference = features if seen is None else classifier.encode(seen)
                ascent = judge_ascent(classifier, reference, batch.corrections, True, ascent_step)
            return logits, direction, ascent

    return Learner()


def build_optimizer(learner: Any, weight_decay: float) -> Any:
    """AdamW over what is trained; biases, norms and other vectors do not decay."""
    from jointdreamer.optim import ScheduledAdamW

    trained = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {"name": "matrices", "params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"name": "vectors", "params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return ScheduledAdamW(groups, {}, betas=(0.9, 0.999))


def validate(
    classifier: Any,
    sampler: Any,
    accelerator: Any,
    rank: int,
    processes: int,
    n_groups: int,
    background: tuple[float, float],
    ascent: int | None,
    ascent_step: float,
) -> dict[str, float]:
    """ROC-AUC and accuracy on the same pairs of held-out objects each time; by kind, and by the angle between views.

    ascent: unless it is None the derivative's cosine too, and, above 0, the squared error to the true views that is
    left after so many steps
    """
    import torch
    from accelerate.utils import gather_object

    from jointdreamer.classifier.batches import to_batch
    from jointdreamer.classifier.pairs import OTHER_OBJECT, TRUE, WRONG_POSE
    from jointdreamer.metrics import accuracy_by, roc_auc

    device, found = next(classifier.parameters()).device, []
    with torch.no_grad():
        for number in range(rank, n_groups, processes):
            group, rng = sampler.group(0, number)
            batch = to_batch(group, rng, background, most_steps=ascent).to(device)
            features = classifier.encode(batch.rgb)
            logits = classifier.compare(features.take(batch.first), features.take(batch.second), batch.camera)
            led = logits.new_zeros(1, 2)  # by the derivative: its cosine, the error left
            if (wrong := batch.corrections) is not None:
                cosine, _ = judge_ascent(classifier, features, wrong, False, ascent_step)
                there = ascend(classifier, features, wrong, ascent or 0, ascent_step)
                left = (there - wrong.true).square().sum() / (wrong.shown - wrong.true).square().sum()
                led = torch.stack([cosine, left])[None]
            found.append((number, *(x.cpu() for x in (logits, batch.label, batch.kind, batch.angle, led))))
    if processes > 1:
        found = gather_object(found)
    found = sorted(found, key=lambda one: int(one[0]))
    logits, label, kind, angle, led = (torch.cat([one[i] for one in found]) for i in range(1, 6))
    correct = (logits > 0) == label.bool()
    numbers = {"val/auc": roc_auc(logits, label), "val/accuracy": float(correct.double().mean())}
    if ascent is not None:
        numbers["val/derivative_cosine"] = float(led[:, 0].double().mean())
        numbers |= {"val/ascent_error": float(led[:, 1].double().mean())} if ascent else {}
    for name, what in (("true", TRUE), ("wrong_pose", WRONG_POSE), ("other_object", OTHER_OBJECT)):
        if (kind == what).any():
            numbers[f"val/accuracy/{name}"] = float(correct[kind == what].double().mean())
    for (low, high), share in accuracy_by(angle, correct, ANGLES).items():
        numbers[f"val/accuracy_at_deg/{low:03.0f}-{high:03.0f}"] = share
    return numbers


def save_curves(folder: Path) -> Path:
    """curves.png: the run so far, from its metrics.jsonl."""
    import json

    from jointdreamer.images import plot_curves

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if "val/auc" in row]

    def curve(key: str) -> tuple[list[float], list[float]]:
        points = [(row["step"] + 1, row[key]) for row in rows if row.get(key) is not None]
        return [x for x, _ in points], [y for _, y in points]

    by_angle = {key: share for key, share in (judged[-1] if judged else {}).items() if "at_deg" in key}
    centres = [sum(map(float, key.rsplit("/")[-1].split("-"))) / 2 for key in by_angle]
    return plot_curves(
        folder / "curves.png",
        {
            "loss": {"training": curve("loss")},
            "accuracy": {"training": curve("accuracy"), "held-out objects": curve("val/accuracy")},
            "ROC-AUC, held-out objects": {"AUC": curve("val/auc")},
            "accuracy by angle between views, degrees": {"accuracy": (centres, list(by_angle.values()))},
        },
    )


def export(best: Path, folder: str | None) -> None:
    """The best classifier into another folder, where one was asked for."""
    if folder is not None:
        from jointdreamer.classifier.model import PairClassifier

        PairClassifier.load(best).save(Path(folder))


if __name__ == "__main__":
    sys.exit(cli.main("train_classifier", train))
