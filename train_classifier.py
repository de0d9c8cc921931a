"""Train M_CLS, the pair classifier of the CLS energy (Eq. 6, Appendix A.2): python train_classifier.py models=toybox

One process, or several: torchrun --nproc_per_node 2 train_classifier.py ... gives the same result.
Config stops in this file; everything it calls takes plain arguments.
"""

from jointdreamer.cli import main as cli

if __name__ == "__main__":
    cli.read_command("train_classifier")  # answers --help and mistyped words before the imports below take seconds

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGTERM
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_

from jointdreamer.classifier.augment import Augmentation
from jointdreamer.classifier.batches import Batch, load_batch
from jointdreamer.classifier.estimates import Estimator
from jointdreamer.classifier.learner import Learner, build_optimizer
from jointdreamer.classifier.losses import pair_losses
from jointdreamer.classifier.model import ClassifierSettings, PairClassifier, read_dino
from jointdreamer.classifier.pairs import PairSampler, is_held_out
from jointdreamer.classifier.prefetch import prefetch
from jointdreamer.classifier.validate import Best, Validation, save_curves
from jointdreamer.classifier.views import ViewSource, open_views, read_captions
from jointdreamer.cli.classifier import Every, Optimisation, check_classifier, interval
from jointdreamer.cli.settings import device_of
from jointdreamer.comparison import compare_classifiers
from jointdreamer.errors import UserError, printable
from jointdreamer.files import try_folder
from jointdreamer.kernels.waiting import spinning_while_alone
from jointdreamer.machine import peak_memory_gb
from jointdreamer.optim import ScheduledAdamW
from jointdreamer.priors.registry import build_prior
from jointdreamer.runs.checkpoint import seed_everything
from jointdreamer.runs.environment import checksums
from jointdreamer.runs.folder import RunFolder, due, run_path
from jointdreamer.runs.logger import Logger, check_finite
from jointdreamer.runs.signals import Stop, stop_on_signals
from jointdreamer.schedules import warm_up_and_cosine
from jointdreamer.toybox.views import render_toys


@dataclass
class Training:
    """What is optimised, on which pairs, and how it is validated."""

    settings: Optimisation
    every: Every
    learner: Learner
    optimizer: ScheduledAdamW
    best: Best
    source: ViewSource
    sampler: PairSampler  # of the objects to learn from
    load: Callable[[tuple[int, int]], Batch]  # (step, group) -> its pairs
    workers: int  # threads that load
    validation: Validation
    accelerator: Accelerator
    weights: list[Path]  # that it started from

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"learner": self.learner, "optimizer": self.optimizer, "best": self.best}


@dataclass
class Records:
    """What the first process writes, and it alone."""

    run: RunFolder
    logger: Logger


def optimise(training: Training, start: int, records: Records | None, stop: Stop) -> bool:
    """The optimisation from step `start` on; False if a signal ended it."""
    settings, accelerator, optimizer = training.settings, training.accelerator, training.optimizer
    rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    model = accelerator.prepare(training.learner)
    mine = range(rank, settings.groups, processes)
    keys = ((step, group) for step in range(start, settings.steps) for group in mine)

    with closing(prefetch(training.load, keys, training.workers, ahead=training.workers + len(mine))) as batches:
        for step in range(start, settings.steps):
            lr = settings.lr * warm_up_and_cosine(step, settings.steps, settings.warm_up)
            optimizer.zero_grad()
            seen = torch.zeros(6, device=device)  # what the processes add up: the losses' numbers, and a signal
            for position in range(len(mine)):
                batch = next(batches).to(device)
                last = position == len(mine) - 1  # the only one whose gradients travel between processes
                with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
                    losses = pair_losses(model(batch), batch)
                    loss = losses.total(settings.direction_weight, settings.derivative_weight, settings.step_weight)
                    accelerator.backward(loss / len(mine))
                seen[:5] += losses.numbers(settings.groups)
            seen[5] = float(stop.requested is not None)
            *numbers, stopping = add_up(seen, accelerator)
            bce, direction, accuracy, cosine, error = numbers
            check_finite(
                step,
                bce + direction + cosine + error,
                {"bce": bce, "direction": direction, "derivative": cosine, "step": error},
                records.run.newest_checkpoint if records else None,
            )
            clip_grad_norm_(training.learner.parameters(), settings.clip)
            optimizer.step(SimpleNamespace(matrices=lr, vectors=lr))

            done, found = step + 1, {}
            if due(done, training.every.validate) or done == settings.steps:
                found = training.validation(training.learner.classifier, rank, processes)
            if records is not None:
                taught = {"loss/direction": direction} if training.learner.direction is not None else {}
                if settings.teaches_derivative:
                    taught |= {"derivative_cosine": cosine, "step_error": error}
                more = {"accuracy": accuracy, "lr": lr, **taught, **found}
                records.logger.log(step, bce, row=bool(found), more=more)
                if found:
                    keep(training, step, found, records)
                if due(done, training.every.checkpoint) or stopping or done == settings.steps:
                    records.run.save(done, **training.parts)
            if stopping:
                stop.requested = stop.requested or SIGTERM  # it came to another process
                return False
    return True


def add_up(seen: Tensor, accelerator: Accelerator) -> list[float]:
    """The sum over all processes."""
    total = accelerator.reduce(seen, "sum") if accelerator.num_processes > 1 else seen
    return [float(x) for x in total]  # pyright: ignore[reportGeneralTypeIssues]


def keep(training: Training, step: int, found: dict[str, float], records: Records) -> None:
    """Save the classifier that was validated, as the best one too if it is, and the curves."""
    classifier, run, logger = training.learner.classifier, records.run, records.logger
    logger.message(f"held-out objects: accuracy {found['val/accuracy']:.4f}, AUC {found['val/auc']:.5f}")
    classifier.save(run.still_there() / "last")
    if training.best.improves(found, step + 1):
        classifier.save(run.path / "best")
    logger.image("curves", step, save_curves(run.path))


def train(cfg: dict[str, Any]) -> int:
    """Train one classifier as the resolved config says, or go on with it; returns the exit status."""
    cfg = check_classifier(cfg)
    seed_everything(cfg["seed"])
    on_cpu = device_of(cfg) == "cpu"  # told so, accelerate joins processes there too
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=cfg["precision"])
    training = prepare(cfg, accelerator)
    steps, first = training.settings.steps, accelerator.is_main_process
    path = run_path(cfg["out_dir"], cfg["name"], f"{cfg['models']['name']} {cfg['data']['folder']}", cfg["seed"])
    weights = checksums(training.weights) if first else []
    with ExitStack() as stack:
        if training.settings.teaches_derivative:
            # a switch of the whole process, which the threads that ask the prior for estimates see too: now and then in
            # another state, a run would not repeat itself
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        run = stack.enter_context(RunFolder.open(path, cfg, compare=compare_classifiers)) if first else None
        if run is not None and cfg["export"] is not None:
            try_folder(Path(cfg["export"]))
        start = resume(training, run, weights)
        if start > steps:
            if first:
                export(path / "best", cfg["export"])
                print(f"{printable(path)}\nis complete: nothing to do")
            return 0
        records = None
        if run is not None:
            records = Records(run, stack.enter_context(Logger(run.path, steps, training.every.log)))
            records.logger.begin(start, config=cfg, **cfg["logger"])
            records.logger.message(f"{run.path}: {describe(training)}")
            run.write_command(cli.typed_command())
            run.write_environment(weights=weights, device=str(accelerator.device), processes=accelerator.num_processes)
        stack.enter_context(spinning_while_alone())
        stop = stack.enter_context(stop_on_signals())
        if not optimise(training, start, records, stop):
            if records is not None:
                done = f"{records.run.newest_checkpoint} of {steps} steps"
                records.logger.message(f"stopped after {done}, saved; the same command goes on")
            return stop.exit_status
        if records is not None:
            finish(cfg, training, records, stop)
        accelerator.wait_for_everyone()
    return stop.exit_status if stop.requested else 0


def prepare(cfg: dict[str, Any], accelerator: Accelerator) -> Training:
    """What is trained, from which weights; the views, less those that are held out for the validation."""
    settings, data = Optimisation(**cfg["training"]), cfg["data"]
    if settings.groups % accelerator.num_processes:
        processes = accelerator.num_processes
        raise UserError(f"training.groups={settings.groups}: {processes} processes cannot share them evenly")
    size, background = cfg["classifier"]["image_size"], interval("data.background", data["background"], "greys")
    with accelerator.main_process_first():
        if data["toys"] and accelerator.is_main_process:
            render_toys(Path(data["folder"]), data["toys"], data["toy_seed"], size)
    source, guided = open_views(data["folder"]), cfg["estimates"]["guided"]
    captions = read_captions(data["folder"], source.ids) if guided else {}
    usable = [index for index, name in enumerate(source.ids) if name in captions or not guided]
    held_out = {index for index in usable if is_held_out(source.ids[index], data["held_out_percent"])}
    options = {"size": size, "objects": settings.objects, "views": settings.views, "seed": cfg["seed"]}
    options |= {key: data[key] for key in ("min_angle_deg", "wrong_pose_share")}
    sampler = PairSampler(source, [index for index in usable if index not in held_out], **options)
    validator = PairSampler(source, sorted(held_out), **options)

    most_steps = settings.ascent if settings.teaches_derivative else None
    load = partial(
        load_batch,
        sampler=sampler,
        background=background,
        augmentation=Augmentation(**cfg["augmentation"]),
        most_steps=most_steps,
        estimator=build_estimator(cfg, captions, accelerator.device),
    )
    classifier, weights = build_classifier(cfg, accelerator.device)
    learner = Learner(classifier, settings.direction_weight > 0, settings.ascent_step).to(accelerator.device)
    optimizer = build_optimizer(learner, settings.weight_decay)
    n_groups, every = cfg["validation_groups"], Every(**cfg["every"])
    validation = Validation(validator, n_groups, background, most_steps, settings.ascent_step)
    return Training(
        settings, every, learner, optimizer, Best(), source, sampler, load, data["workers"], validation, accelerator,
        weights,
    )  # fmt: skip


def build_estimator(cfg: dict[str, Any], captions: dict[str, str], device: torch.device) -> Estimator | None:
    """The one-step estimates that the energy will show the classifier, of the prior that it is to be used with."""
    share, guided, scale = (cfg["estimates"][key] for key in ("share", "guided", "guidance_scale"))
    if not share and not guided:
        return None
    t = interval("estimates.t", cfg["estimates"]["t"], "fractions of the timesteps")
    prior = build_prior("text_to_image", cfg["models"], device)
    return Estimator(prior, captions, share, guided, float(scale), t, device)


def build_classifier(cfg: dict[str, Any], device: torch.device) -> tuple[PairClassifier, list[Path]]:
    """A classifier to start from, and the files of its weights: another one, a DINO backbone's, or none."""
    settings, start_from = ClassifierSettings(**cfg["classifier"]), cfg["start_from"]
    classifier = PairClassifier(settings)
    if start_from is not None:
        classifier = PairClassifier.load(Path(start_from))
        if other := differences(classifier.settings, settings):
            raise UserError(f"start_from={start_from} is a classifier of another shape ({other}): give the same")
        return classifier, [Path(start_from)]
    dino = cfg["models"].get("classifier_backbone")
    if not dino:  # a toybox has none, and learns from scratch
        return classifier, []
    state, file = read_dino(dino["source"], download=device.type == "cuda")
    classifier.load_backbone(state, str(file))
    return classifier, [file]


def differences(given: ClassifierSettings, wanted: ClassifierSettings) -> str:
    """What two settings do not share, in words."""
    return ", ".join(f"{k} {v}, wanted {vars(wanted)[k]}" for k, v in vars(given).items() if v != vars(wanted)[k])


def resume(training: Training, run: RunFolder | None, weights: list[Any]) -> int:
    """The step to go on from, in every process; beyond the last one if the run is complete."""
    start, threads, steps = 0, None, training.settings.steps
    if run is not None:
        threads = run.use_threads()
        complete = run.result(steps)
        if not complete:
            run.check_weights(weights, steps)
        start = steps + 1 if complete else run.resume(**training.parts)
    if training.accelerator.num_processes > 1:
        # what the others cannot read: the folder is locked. The learner's weights are handed on by `prepare`
        optimizer, best = training.optimizer, training.best
        said = broadcast_object_list([start, optimizer.state_dict(), best.state_dict(), threads])
        start, best_state = said[0], said[2]
        torch.set_num_threads(said[3])
        optimizer.load_state_dict(said[1])
        best.load_state_dict(best_state)
    return start


def describe(training: Training) -> str:
    """Objects, pairs, parameters and processes, in words."""
    processes, classifier = training.accelerator.num_processes, training.learner.classifier
    held_out, n_pairs = len(training.validation.sampler.indices), training.sampler.n_pairs * training.settings.groups
    return (
        f"{len(training.sampler.indices)} objects and {held_out} held out, {n_pairs} pairs a step, "
        f"{sum(p.numel() for p in classifier.parameters() if p.requires_grad)} parameters; "
        f"{training.accelerator.device}, {processes} process{'es' * (processes > 1)}"
    )


def finish(cfg: dict[str, Any], training: Training, records: Records, stop: Stop) -> None:
    """Validate the best classifier again, from its files, and write the result."""
    run, logger, best = records.run, records.logger, records.run.path / "best"
    device, steps = training.accelerator.device, training.settings.steps
    with stop.at_once():
        stop.check()
        final = training.validation(PairClassifier.load(best).to(device))
        save_curves(run.path)
        result = {
            "prompt": None, "seed": cfg["seed"], "energy": None, "models": cfg["models"]["name"],
            "steps": steps, "minutes": run.seconds / 60, "seconds_per_step": run.seconds / steps,
            "device": str(device), "peak_memory_gb": peak_memory_gb(), "best_step": training.best.step,
            "objects": len(training.source.ids),
            "damaged": sorted({**training.sampler.damaged, **training.validation.sampler.damaged}), **final,
        }  # fmt: skip
        run.write_result(**result)
        logger.summary(result)
        export(best, cfg["export"])
        logger.message(
            f"best after {training.best.step} steps: accuracy {final['val/accuracy']:.4f}, "
            f"AUC {final['val/auc']:.5f} on pairs of held-out objects; use it with models.classifier.source={best}"
        )
        print(printable(run.path))
    if stop.requested:
        logger.message("stopped before all was made: the steps are saved, the same command makes the rest")


def export(best: Path, folder: str | None) -> None:
    """The best classifier into another folder, where one was asked for."""
    if folder is not None:
        PairClassifier.load(best).save(Path(folder))


if __name__ == "__main__":
    sys.exit(cli.main("train_classifier", train))
