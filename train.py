"""Text to 3D by joint score distillation: python train.py prompt="a red robot with a blue hat" energy=mvs

The loop below is the paper's algorithm. Config stops in this file; everything it calls takes plain arguments.
"""

import gc
import sys
from functools import partial
from typing import Any

from jointdreamer.cli import main as cli
from jointdreamer.errors import printable


def train(cfg: dict[str, Any]) -> int:
    """Make one object as the resolved config says, or go on with it; returns the exit status."""
    # Imported here, so that --help and a mistyped word are answered before these seconds.
    from accelerate import Accelerator

    from jointdreamer.cameras import Rig, orbit_cameras, sample_cameras
    from jointdreamer.comparison import compare
    from jointdreamer.distillation.base import metrics_of, pictures_of, weighted_sum
    from jointdreamer.distillation.registry import build_terms
    from jointdreamer.energies.registry import build_energy
    from jointdreamer.kernels.ahead import compile_ahead
    from jointdreamer.optim import build_optimizer
    from jointdreamer.priors.latent import LatentDiffusion
    from jointdreamer.priors.prompts import Prompts, encode_prompt
    from jointdreamer.priors.registry import build_prior
    from jointdreamer.runs.folder import RunFolder, checksums, due, peak_memory_gb, run_path, seed_everything
    from jointdreamer.runs.logger import Logger, check_finite
    from jointdreamer.runs.memory import forecast_outputs, plan_as_before, plan_memory
    from jointdreamer.runs.pictures import save_outputs, save_previews, try_outputs
    from jointdreamer.runs.signals import Stop, stop_on_signals
    from jointdreamer.scenes.background import SphericalBackground
    from jointdreamer.scenes.nerf.encoding import HashEncoding
    from jointdreamer.scenes.nerf.field import HashGridField
    from jointdreamer.scenes.nerf.volume import VolumeRenderer
    from jointdreamer.scenes.registry import build_scene
    from jointdreamer.schedules import Plan

    readers = {"cameras": Rig, "field": HashGridField, "background": SphericalBackground, "renderer": VolumeRenderer}
    readers |= {"optimizer": build_optimizer, "prompts": encode_prompt, "models.text_to_image": LatentDiffusion.build}
    readers |= {"energy": build_energy, "memory": plan_memory, "field.encoding": HashEncoding}
    cli.check(cfg, readers)
    every, output, orbit = cfg["every"], cfg["output"], cli.eval_orbit(cfg["output"])
    models, distillation = cfg["models"], dict(cfg["distillation"])
    plan, rig, generator = Plan(cfg["schedule"]), Rig(**cfg["cameras"]), seed_everything(cfg["seed"])
    accelerator = Accelerator(cpu=cfg["device"] == "cpu", mixed_precision=cfg["precision"])
    device = accelerator.device
    compile_ahead(device, cfg["field"]["encoding"]["n_features"])

    with RunFolder.open(run_path(cfg["out_dir"], cfg["name"], cfg["prompt"], cfg["seed"]), cfg, compare=compare) as run:
        if run.result(plan.steps):
            print(f"{printable(run.path)}\nis complete: nothing to do")
            return 0
        run.use_threads()
        scene = build_scene(groups=cfg, **cfg["scene"]).to(device)
        plan.check([*distillation["terms"], *scene.regularizer_names])
        log_to = partial(Logger, run.path, plan.steps, every=every["log"], wandb=cfg["logger"]["wandb"], config=cfg)

        def finish(logger: Logger, stop: Stop) -> int:
            """Make what the run is for; the exit status."""
            seconds = run.seconds
            with stop.at_once():
                stop.check()
                made = save_outputs(run.still_there(), scene, **output, say=logger.message)
                logger.show(plan.steps, made.files)
                result = {
                    "prompt": cfg["prompt"], "seed": cfg["seed"], "energy": cfg["energy"]["name"],
                    "models": models["name"], "steps": plan.steps, "minutes": run.seconds / 60,
                    "seconds_per_step": seconds / plan.steps, "peak_memory_gb": peak_memory_gb(),
                    "device": str(device), "mesh": bool(made.files.get("mesh")), "missing": made.missing,
                }  # fmt: skip
                run.write_result(**result)
                logger.summary(result)
                made.complain(run.path)
            if stop.requested:
                logger.message("stopped before all was made: the steps are saved, the same command makes the rest")
                return stop.exit_status
            print(printable(run.path))
            return 0

        ends = (output["resolution"], output["mesh_resolution"])
        if run.is_trained(plan.steps):  # what is missing needs no prior
            forecast_outputs(*ends)
            try_outputs(run.path, output["views"] > 0, 0)
            run.resume(scene=scene, generator=generator)
            with log_to(plan.steps) as logger, stop_on_signals() as stop:
                logger.message(f"{run.path}: all {plan.steps} steps are done; making the outputs")
                run.write_command(cli.typed_command())
                return finish(logger, stop)

        # What teaches it: terms, which ask frozen priors and, between the views, an energy
        energy = build_energy(**cfg["energy"], device=device)
        prompts = Prompts(cfg["prompt"], cfg["negative_prompt"], **cfg["prompts"])
        prior = partial(build_prior, models=models, device=device)
        terms = build_terms(distillation.pop("terms"), distillation, energy, prior, prompts)
        for term in terms:
            term.check(rig)
        planned = partial(plan_memory, plan, rig, scene, terms, device, output=ends)
        memory = plan_as_before(run.pinned(), cfg["memory"], planned)
        run.pin(rays_per_chunk=memory.rays_per_chunk, images_per_chunk=memory.images_per_chunk)
        for term in terms:
            term.chunk = memory.images_per_chunk
        groups = {**scene.parameter_groups()}
        for term in terms:
            groups |= term.parameter_groups()
        parts = {"scene": scene, "optimizer": build_optimizer(groups, scene.lr_scale, **cfg["optimizer"])}
        optimizer = parts["optimizer"]
        weights = checksums(list(dict.fromkeys(source for term in terms for source in term.sources())))
        run.check_weights(weights, plan.steps)

        # Last: an energy of a user's own may draw its weights, the same ones before and after a resume
        start = run.resume(**parts, generator=generator)
        with log_to(start) as logger, stop_on_signals() as stop:
            networks = terms[0].describe().get("networks", "no")
            backends = ", ".join(f"{part} on {backend}" for part, backend in scene.describe().items())
            logger.message(f"{run.path}: {cli.models_line(cfg, device)}; {device}, {networks} networks; {backends}")
            logger.message(memory.line)
            run.write_command(cli.typed_command())
            run.write_environment(weights=weights, **scene.describe(), networks=networks, device=str(device))
            try_outputs(run.path, output["views"] > 0, run.room(plan.steps - start, every["checkpoint"], scene))
            eight = orbit_cameras(8, plan.max("resolution"), **orbit)
            gc.enable()

            for step in range(start, plan.steps):
                now = plan.at(step)  # every number that changes with time
                cameras = sample_cameras(rig, now.resolution, generator).to(device)  # c2w (B, V, 4, 4)
                scene.before_step(step, generator)
                with accelerator.autocast():
                    render = scene.render(cameras, now, generator, memory.rays_per_chunk)  # rgb (B, V, 3, R, R)

                losses = {}
                for term in terms:
                    losses |= term(scene, render, cameras, now, generator)
                losses |= scene.regularizers(render, now.loss, cameras, generator)
                loss = weighted_sum(losses, now.loss)
                check_finite(step, loss, losses, run.newest_checkpoint)

                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step(now.lr)
                scene.after_step(step, optimizer)

                logger.log(step, loss, losses, now, **{"opacity": render.opacity.mean(), **metrics_of(terms)})
                if due(step + 1, every["view"]) or step + 1 == plan.steps:
                    previews = save_previews(run.still_there(), step + 1, scene, eight, pictures_of(terms))
                    logger.images(step, previews)
                if run.save_if_due(step + 1, plan.steps, every["checkpoint"], stop, **parts, generator=generator):
                    logger.message(f"stopped after {step + 1} of {plan.steps} steps, saved; the same command goes on")
                    return stop.exit_status
            return finish(logger, stop)


if __name__ == "__main__":
    gc.disable()  # until the loop: a second of passes over half a million objects that imports make and nobody drops
    sys.exit(cli.main("config", train))
