"""Text to 3D by joint score distillation: python train.py prompt="a red robot with a blue hat" energy=mvs

`optimise` below is the paper's algorithm. Config stops in this file; everything it calls takes plain arguments.
"""

import gc

from jointdreamer.cli import main as cli

if __name__ == "__main__":
    gc.disable()  # until the loop: a second of passes over half a million objects that imports make and nobody drops
    cli.read_command("config")  # answers --help and mistyped words before the imports below take seconds

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from jointdreamer.cameras import Rig, orbit_cameras, sample_cameras
from jointdreamer.cli.objective import objective_of
from jointdreamer.cli.settings import device_of
from jointdreamer.cli.stages import start_of
from jointdreamer.cli.training import Every, Output, check_ranks, check_training, ground_of, reference_of
from jointdreamer.comparison import compare
from jointdreamer.distillation.base import Term, TrainedBeside, merged_groups, metrics_of, pictures_of, weighted_sum
from jointdreamer.distillation.registry import build_terms, loss_names
from jointdreamer.energies.registry import build_energy
from jointdreamer.errors import printable
from jointdreamer.kernels.waiting import spinning_while_alone
from jointdreamer.machine import peak_memory_gb
from jointdreamer.optim import ScheduledAdamW, build_optimizer
from jointdreamer.priors.prompts import Prompts
from jointdreamer.priors.registry import build_prior
from jointdreamer.ranks import Ranks
from jointdreamer.runs.checkpoint import checkpoint_files, seed_everything
from jointdreamer.runs.environment import checksums
from jointdreamer.runs.folder import RunFolder, due, folder_for, subject
from jointdreamer.runs.follower import open_log, open_run
from jointdreamer.runs.logger import Logger, check_finite
from jointdreamer.runs.memory import forecast_outputs, plan_as_before, plan_memory
from jointdreamer.runs.pictures import save_outputs, save_previews, try_outputs
from jointdreamer.runs.signals import Stop, stop_on_signals
from jointdreamer.scenes.base import Scene
from jointdreamer.scenes.registry import build_scene
from jointdreamer.scenes.regularizers import OPTIONAL
from jointdreamer.schedules import Plan
from jointdreamer.viewer.window import Viewer, open_viewer


@dataclass
class Training:
    """What is optimised, by what, and when."""

    plan: Plan  # every number that changes with time
    rig: Rig
    scene: Scene
    terms: Sequence[Term]
    optimizer: ScheduledAdamW
    generator: torch.Generator
    accelerator: Accelerator
    ranks: Ranks  # the processes that share the rigs
    rays_per_chunk: int | None  # rendered at a time, all by default
    every: Every
    output: Output
    viewer: Viewer | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        parts = {"scene": self.scene, "optimizer": self.optimizer, "generator": self.generator}
        beside = TrainedBeside(self.terms)
        return {**parts, "terms": beside} if beside.groups else parts


def optimise(training: Training, start: int, run: RunFolder, logger: Logger, stop: Stop) -> bool:
    """The optimisation from step `start` on; False if a signal ended it."""
    plan, scene, terms, optimizer = training.plan, training.scene, training.terms, training.optimizer
    generator, accelerator, every = training.generator, training.accelerator, training.every
    ranks, rigs = training.ranks, training.ranks.rigs(training.rig.n_rigs)
    preview = orbit_cameras(8, plan.max("resolution"), **training.output.orbit)

    for step in range(start, plan.steps):
        now = plan.at(step)
        cameras = sample_cameras(training.rig, now.resolution, generator)[rigs].to(accelerator.device)
        scene.before_step(step, generator)
        own = ranks.generator(generator)  # what this rank's B rigs draw from
        with accelerator.autocast():
            render = scene.render(cameras, now, own, training.rays_per_chunk)  # rgb (B, V, 3, R, R)

        losses = {}
        for term in terms:
            losses |= term(scene, render, cameras, now, own)
        losses |= scene.regularizers(render, now.loss, cameras, own)
        losses = ranks.averaged(losses)
        loss = weighted_sum(losses, now.loss)
        check_finite(step, loss, losses, run.newest_checkpoint)

        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step(now.lr)
        scene.after_step(step, optimizer)
        if training.viewer and training.viewer.watched:
            training.viewer.show(step + 1, loss, losses, now, stop)

        logger.log(step, loss, losses, now, more={"opacity": render.opacity.mean(), **metrics_of(terms)})
        if ranks.first and (due(step + 1, every.view) or step + 1 == plan.steps):
            logger.images(step, save_previews(run.still_there(), step + 1, scene, preview, pictures_of(terms)))
        if run.save_if_due(step + 1, plan.steps, every.checkpoint, stop, **training.parts):
            return False
    return True


def train(cfg: dict[str, Any], optimise: Callable[..., bool] = optimise) -> int:
    """Make one object as the resolved config says, or go on with it; returns the exit status."""
    check_training(cfg)
    on_cpu = device_of(cfg) == "cpu"
    ranks = Ranks.join(cuda=not on_cpu)
    check_ranks(ranks, cfg)
    first, path = start_of(cfg), folder_for(cfg)
    if first and first.config and ranks.told(not checkpoint_files(path)):
        if ranks.first:
            first.wait()
        if status := train(first.config, optimise):
            return status
    plan, generator = Plan(cfg["schedule"]), seed_everything(cfg["seed"])
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=cfg["precision"])  # on a CPU it joins ranks if told so
    output = Output(**cfg["output"])
    with open_run(path, cfg, compare, ranks) as run:
        if ranks.told(run.result(plan.steps) is not None):
            if ranks.first:
                print(f"{printable(run.path)}\nis complete: nothing to do")
            return 0
        run.use_threads()
        scene = build_scene(groups=cfg, device=accelerator.device, **cfg["scene"]).to(accelerator.device)
        plan.check([*loss_names(cfg["distillation"]["terms"]), *scene.regularizer_names, *OPTIONAL])
        with open_log(run, plan.steps, cfg["every"]["log"], ranks) as logger:
            training = None
            if ranks.told(run.is_trained(plan.steps) and run.resume(only=True, scene=scene) == plan.steps):
                if not ranks.first:
                    return 0
                # what is missing needs no prior
                forecast_outputs(output.resolution, output.mesh_resolution, output.texture)
                try_outputs(run.path, output.views > 0, 0)
                start = plan.steps
                logger.message(f"{run.path}: all {plan.steps} steps are done; making the outputs")
            else:
                fresh = not run.checkpoints
                if first and fresh and ranks.first:
                    first.give(scene)
                training = prepare(cfg, plan, scene, output, generator, accelerator, ranks, run, logger)
                start = run.resume(**training.parts)
                if first and start == 0 and not fresh:  # its checkpoints were damaged
                    first.give(scene)
                if ranks.first:
                    room = run.room(plan.steps - start, training.every.checkpoint, scene)
                    try_outputs(run.path, output.views > 0, room)
                start = ranks.share(start, training.parts)
            run.write_command(cli.typed_command())
            logger.begin(start, config=cfg, **cfg["logger"])
            seen = training.terms if training and ranks.first else None
            shown = open_viewer(cfg["viewer"], run.path, scene, seen, **output.orbit)
            with stop_on_signals(ranks) as stop, shown as viewer, spinning_while_alone():
                gc.enable()
                if training is not None and not optimise(replace(training, viewer=viewer), start, run, logger, stop):
                    done = f"{run.newest_checkpoint} of {plan.steps} steps"
                    logger.message(f"stopped after {done}, saved; the same command goes on")
                    return stop.exit_status
                return finish(cfg, plan.steps, scene, run, logger, stop) if ranks.first else 0


def prepare(
    cfg: dict[str, Any],
    plan: Plan,
    scene: Scene,
    output: Output,
    generator: torch.Generator,
    accelerator: Accelerator,
    ranks: Ranks,
    run: RunFolder,
    logger: Logger,
) -> Training:
    """What teaches the scene: terms, which ask frozen priors and, between the views, an energy; cut to what fits."""
    device, rig, reference = accelerator.device, Rig(**cfg["cameras"]), reference_of(cfg)
    terms = build_terms(
        **cfg["distillation"],
        prior=partial(build_prior, models=cfg["models"], device=device),
        energy=partial(build_energy, **cfg["energy"], models=cfg["models"], device=device),
        prompts=Prompts(cfg["prompt"], cfg["negative_prompt"], **cfg["prompts"]),
        rig=rig,
        reference=reference,
        ground=1.0 if reference is None else ground_of(cfg["background"]),
    )
    ends = (output.resolution, output.mesh_resolution, output.texture)
    share = replace(rig, n_rigs=rig.n_rigs // ranks.count)
    memory = plan_as_before(
        run.pinned(), cfg["memory"], partial(plan_memory, plan, share, scene, terms, device, output=ends)
    )
    networks = next((found for term in terms if (found := term.describe().get("networks"))), "no")
    backends = ", ".join(f"{part} on {backend}" for part, backend in scene.describe().items())
    logger.message(f"{run.path}: {cli.models_line(cfg, device)}; {device}, {networks} networks; {backends}")
    logger.message(memory.line)
    if (began := run.ranks_at_first(ranks.count)) != ranks.count:
        logger.message(f"begun on {began} rank(s), it goes on on {ranks.count}: not bit for bit as it would have been")
    run.pin(rays_per_chunk=memory.rays_per_chunk, images_per_chunk=memory.images_per_chunk)
    for term in terms:
        term.chunk = memory.images_per_chunk
    weights = checksums(list(dict.fromkeys(source for term in terms for source in term.sources())))
    run.check_weights(weights, plan.steps)
    run.write_environment(weights=weights, **scene.describe(), networks=networks, device=str(device))
    groups = merged_groups(part.parameter_groups() for part in (scene, *terms))
    optimizer = build_optimizer(groups, scene.lr_scale, **cfg["optimizer"])
    optimizer.check(plan.at(0).lr)
    optimizer.ranks = ranks
    chunk, every = memory.rays_per_chunk, Every(**cfg["every"])
    return Training(plan, rig, scene, terms, optimizer, generator, accelerator, ranks, chunk, every, output)


def finish(cfg: dict[str, Any], steps: int, scene: Scene, run: RunFolder, logger: Logger, stop: Stop) -> int:
    """Make what the run is for; the exit status."""
    seconds, device = run.seconds, next(scene.parameters()).device
    with stop.at_once():
        stop.check()
        made = save_outputs(run.still_there(), scene, **cfg["output"], say=logger.message)
        logger.show(steps, made.files)
        result = {
            "prompt": cfg["prompt"] or subject(cfg), "seed": cfg["seed"], "energy": cfg["energy"]["name"],
            "models": cfg["models"]["name"], "steps": steps, "minutes": run.seconds / 60,
            "seconds_per_step": seconds / steps, "peak_memory_gb": peak_memory_gb(),
            "device": str(device), "mesh": bool(made.files.get("mesh")), "missing": made.missing,
        }  # fmt: skip
        run.write_result(**result)
        if cfg["objective"]:
            result["objective"] = objective_of(cfg, run.path)
            logger.message(f"{cfg['objective']}: {result['objective']:.6g}")
        logger.summary(result)
        made.complain(run.path)
    if stop.requested:
        logger.message("stopped before all was made: the steps are saved, the same command makes the rest")
        return stop.exit_status
    print(printable(run.path))
    return 0


if __name__ == "__main__":
    sys.exit(cli.main("config", train))
