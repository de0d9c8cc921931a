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
    from jointdreamer.distillation.joint import (
        add_noise,
        bounded_weight,
        energy_gradient,
        jsd_noise,
        limit_x0,
        mvdream_loss,
        sds_gradient,
        surrogate_loss,
    )
    from jointdreamer.energies.registry import build_energy
    from jointdreamer.kernels.ahead import compile_ahead
    from jointdreamer.optim import build_optimizer
    from jointdreamer.priors.latent import LatentDiffusion
    from jointdreamer.priors.prompts import encode_prompt
    from jointdreamer.priors.registry import build_guidance
    from jointdreamer.runs.folder import RunFolder, checksums, due, peak_memory_gb, run_path, seed_everything
    from jointdreamer.runs.logger import Logger, check_finite
    from jointdreamer.runs.memory import forecast_outputs, plan_as_before, plan_memory
    from jointdreamer.runs.pictures import save_outputs, save_previews, try_outputs
    from jointdreamer.runs.signals import Stop, stop_on_signals
    from jointdreamer.scenes.background import SphericalBackground
    from jointdreamer.scenes.nerf.encoding import HashEncoding
    from jointdreamer.scenes.nerf.field import HashGridField
    from jointdreamer.scenes.nerf.volume import VolumeRenderer
    from jointdreamer.scenes.regularizers import REGULARIZERS, needs_normals, regularizers
    from jointdreamer.scenes.shading import sample_shading
    from jointdreamer.schedules import Plan

    readers = {"cameras": Rig, "field": HashGridField, "background": SphericalBackground, "renderer": VolumeRenderer}
    readers |= {"optimizer": build_optimizer, "prompts": encode_prompt, "models.text_to_image": LatentDiffusion}
    readers |= {"energy": build_energy, "memory": plan_memory, "field.encoding": HashEncoding}
    cli.check(cfg, readers)
    plan, rig = Plan(cfg["schedule"]).check(["jsd", "mvdream", *REGULARIZERS]), Rig(**cfg["cameras"])
    generator = seed_everything(cfg["seed"])
    accelerator = Accelerator(cpu=cfg["device"] == "cpu", mixed_precision=cfg["precision"])
    device = accelerator.device
    compile_ahead(device, cfg["field"]["encoding"]["n_features"])
    path = run_path(cfg["out_dir"], cfg["name"], cfg["prompt"], cfg["seed"])

    with RunFolder.open(path, cfg, compare=compare) as run:
        if run.result(plan.steps):
            print(f"{printable(run.path)}\nis complete: nothing to do")
            return 0
        run.use_threads()

        # The object
        field = HashGridField(**cfg["field"]).to(device)
        background = SphericalBackground(**cfg["background"]).to(device)
        renderer = VolumeRenderer(field_radius=field.radius, **cfg["renderer"]).to(device)
        optimizer = build_optimizer({**field.parameter_groups(), **background.parameter_groups()}, **cfg["optimizer"])
        parts = {"field": field, "background": background, "renderer": renderer, "optimizer": optimizer}
        scene = (renderer, field, background)
        every, output, orbit = cfg["every"], cfg["output"], cli.eval_orbit(cfg["output"])

        def finish(logger: Logger, stop: Stop) -> int:
            """Make what the run is for; the exit status."""
            seconds = run.seconds
            with stop.at_once():
                stop.check()
                made = save_outputs(run.still_there(), scene, **output, say=logger.message)
                logger.show(plan.steps, made.files)
                result = {
                    "prompt": cfg["prompt"], "seed": cfg["seed"], "energy": cfg["energy"]["name"],
                    "models": cfg["models"]["name"], "steps": plan.steps, "minutes": run.seconds / 60,
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

        log_to = partial(Logger, run.path, plan.steps, every=every["log"], wandb=cfg["logger"]["wandb"], config=cfg)
        ends = (output["resolution"], output["mesh_resolution"])
        if run.is_trained(plan.steps):  # what is missing needs no prior
            forecast_outputs(*ends)
            try_outputs(run.path, output["views"] > 0, 0)
            if run.resume(**parts, generator=generator) == plan.steps:
                with log_to(plan.steps) as logger, stop_on_signals() as stop:
                    logger.message(f"{run.path}: all {plan.steps} steps are done; making the outputs")
                    run.write_command(cli.typed_command())
                    return finish(logger, stop)

        # The priors, frozen
        models, distillation = cfg["models"], cfg["distillation"]
        guidance = build_guidance(distillation["prior"], models, device)
        baseline = build_guidance("multi_view", models, device) if plan.max("loss.mvdream", 0) else None  # Fig. 10
        energy = build_energy(**cfg["energy"], device=device)
        energy.check_rig(rig)
        planned = partial(
            plan_memory, plan, rig, renderer, field, guidance, energy, device, baseline=baseline, output=ends
        )
        memory = plan_as_before(run.pinned(), cfg["memory"], planned)
        run.pin(rays_per_chunk=memory.rays_per_chunk, images_per_chunk=memory.images_per_chunk)
        tokenizer, text_encoder = guidance.text_parts()

        weights = checksums(
            [folder for model in (guidance, energy, baseline) if (folder := getattr(model, "folder", None))]
        )
        run.check_weights(weights, plan.steps)

        # Last: an energy of a user's own may draw its weights, the same ones before and after a resume
        start = run.resume(**parts, generator=generator)
        with log_to(start) as logger, stop_on_signals() as stop:
            priors = cli.models_line(cfg, device)
            networks = str(guidance.unet.dtype).removeprefix("torch.")
            backends = f"encoding on {field.encoding.backend}, rays on {renderer.backend}"
            logger.message(f"{run.path}: {priors}; {device}, {networks} networks; {backends}")
            text = encode_prompt(cfg["prompt"], cfg["negative_prompt"], tokenizer, text_encoder, **cfg["prompts"])
            del text_encoder  # a gigabyte that is needed once
            logger.message(memory.line)
            run.write_command(cli.typed_command())
            run.write_environment(
                weights=weights, encoding=field.encoding.backend, networks=networks, device=str(device)
            )
            try_outputs(run.path, output["views"] > 0, run.room(plan.steps - start, every["checkpoint"], *scene))
            eight = orbit_cameras(8, plan.max("resolution"), **orbit)
            gc.enable()

            for step in range(start, plan.steps):
                now = plan.at(step)  # every number that changes with time
                cameras = sample_cameras(rig, now.resolution, generator).to(device)  # c2w (B, V, 4, 4)
                renderer.update_occupancy(field, step, generator)
                with accelerator.autocast():
                    render = renderer(
                        field, background, cameras,
                        shading=sample_shading(generator, now.shading),
                        normals=needs_normals(now.loss),
                        generator=generator,
                        chunk=memory.rays_per_chunk,
                    )  # rgb (B, V, 3, R, R)  # fmt: skip
                latents = guidance.encode(render.rgb, generator, chunk=memory.images_per_chunk)  # (B, V, 4, h, w)

                # Joint score distillation (Sec. 4.1)
                noised = add_noise(guidance, latents, now.t_min, now.t_max, generator, distillation["weighting"])
                words = text.at(cameras, now.negative_prompt)
                pred = guidance.predict_noise(noised, words, now.guidance_scale)
                energy_grad, coherence = energy_gradient(
                    energy,
                    guidance,
                    noised,
                    pred,
                    render,
                    cameras,
                    words,
                    now.energy_weight,
                    generator,
                    mask=distillation["mask"],
                    mask_floor=distillation["mask_floor"],
                    energy_x0=distillation["energy_x0"],
                )
                energy_weight = bounded_weight(now.energy_weight, noised, distillation["energy_limit"])
                noise_pred = jsd_noise(pred.noise, energy_grad, noised.sigma_t, energy_weight)  # Eq. 5, in brackets
                noise_pred = limit_x0(noise_pred, noised, distillation["x0_limit"])
                grad = sds_gradient(noise_pred, noised.noise, noised.weight)

                losses = {"jsd": surrogate_loss(latents, grad)}
                losses |= regularizers(render, now.loss, field, cameras, generator)
                losses |= mvdream_loss(
                    baseline, render.rgb, noised, words, now.loss, generator, memory.images_per_chunk
                )
                loss = sum(getattr(now.loss, name) * value for name, value in losses.items())
                check_finite(step, loss, losses, run.newest_checkpoint)

                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step(now.lr)

                logger.log(step, loss, losses, now, coherence=coherence.mean(), opacity=render.opacity.mean())
                done = step + 1
                if due(done, every["view"]) or done == plan.steps:
                    seen = (guidance, noised, pred, energy_grad, noise_pred, distillation["energy_x0"])
                    shown = save_previews(run.still_there(), done, scene, eight, seen if energy_grad.any() else None)
                    for name, picture in shown.items():
                        logger.image(name, step, picture)
                stopping = stop.requested  # looked at once: a signal between the two lines would be left unsaved
                if due(done, every["checkpoint"]) or stopping or done == plan.steps:
                    run.save(done, **parts, generator=generator)
                if stopping:
                    logger.message(f"stopped after {done} of {plan.steps} steps, saved; the same command goes on")
                    return stop.exit_status

            # What it was for
            return finish(logger, stop)


if __name__ == "__main__":
    gc.disable()  # until the loop: a second of passes over half a million objects that imports make and nobody drops
    sys.exit(cli.main("config", train))
