"""A job done: trained, and its results left in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from slimdpm.method.distiller import Distiller
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display
from slimdpm.training.accelerator import make_accelerator, tracking, where
from slimdpm.training.checkpoint import checkpoint_step, checkpoints
from slimdpm.training.job import Job
from slimdpm.training.prepare import inputs_of, prepare_data
from slimdpm.training.student_folder import Results
from slimdpm.training.timed_training import timed_job
from slimdpm.training.trainer import Trainer, Weights
from slimdpm.training.validation import Validation


def run_job(
    job: Job,
    folder: str | Path,
    display: Display | None = None,
    *,
    report: bool = True,
    distiller: Callable[..., Distiller] = Distiller,
) -> DiffusionPipeline:
    """Train, and leave the results in the run's folder; resumes what is there.

    Args:
        job: the run.
        folder: its folder.
        display: where progress is shown.
        report: sample and write the report at the end.
        distiller: a subclass of `Distiller`, or what makes one, for losses of one's own.

    Returns:
        the student's pipeline with the averaged weights.

    Raises:
        SlimdpmError: for a folder that holds something else, unreadable images, a full disk, a loss gone wrong.
        slimdpm.system.stop_signals.Stopped: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    display = display or Display()
    run = RunFolder(folder)
    job = replace(job, recipe=run.settled(job.recipe))
    run.check(job.recipe)
    accelerator = make_accelerator(job.recipe, run)
    if not accelerator.is_main_process:
        display = Display()
    accelerator.wait_for_everyone()  # what one begins in the folder another would not know as a run
    if accelerator.is_main_process:
        run.open(job.recipe)
    accelerator.wait_for_everyone()
    try:
        for line in [*job.describe(), *where(accelerator)]:
            display.say(line)
        try:
            if accelerator.is_main_process:
                _check_inputs(job, run, display)
            trainer = new_trainer(job, run, accelerator, display, distiller)
        except SlimdpmError:
            run.discard_if_new()
            raise
        return _train(replace(job, recipe=trainer.job.recipe), trainer, display, report)
    finally:
        run.close()


def _check_inputs(job: Job, run: RunFolder, display: Display) -> None:
    """Refuse to go on with other networks or images than a run began with; one that has all its steps may finish.

    Raises:
        SlimdpmError: naming what differs.
    """
    changed = " and ".join(run.changed_inputs(inputs_of(job, run)))
    if not changed:
        return
    found = checkpoints(run.checkpoints)
    line = f"{run.path} was begun with another content of {changed}"
    if not found or checkpoint_step(found[-1]) < job.recipe.train.steps:
        raise SlimdpmError(f"{line}; put back what was there, or choose another folder")
    display.say(f"warning: {line}; all steps are taken, the report is written with what is there now")


def new_trainer(
    job: Job,
    run: RunFolder,
    accelerator: Accelerator,
    display: Display | None = None,
    distiller: Callable[..., Distiller] = Distiller,
) -> Trainer:
    """A job's data made ready, and what trains on it in the run's open folder; the arguments are `Trainer`'s."""
    display = display or Display()
    images, conditioning = prepare_data(job, run, accelerator, display)
    if job.recipe.train.undecided:
        job = timed_job(job, conditioning, images, run, display, distiller)
        if accelerator.is_main_process:
            run.keep(job.recipe)
    job = replace(job, shell=replace(job.shell, conditioning=conditioning))
    return Trainer(job, images, run, accelerator, display, distiller)


def _train(job: Job, trainer: Trainer, display: Display, report: bool) -> DiffusionPipeline:
    run, accelerator = trainer.run, trainer.accelerator
    results = Results(job, run, accelerator.device, display)
    if accelerator.is_main_process:
        results.keep_images(trainer.images)

    def show(step: int, weights: Weights, samples: Mapping[str, np.ndarray]) -> None:
        from slimdpm.training.run_report import write_run_report  # here: matplotlib is slow to import

        write_run_report(results, weights, trainer.images, step, samples)

    def on_sample(step: int, weights: Weights) -> None:
        samples = results.save_grid(step, weights)
        if report and step < job.recipe.train.steps:  # at the end comes one with more samples
            show(step, weights, samples)

    validation = Validation(trainer.job, trainer.held_out, accelerator, results.network)
    with tracking(accelerator, job.recipe):
        weights = trainer.train(results.save_student, on_sample, validation)
    if report and accelerator.is_main_process:
        show(trainer.state.step, weights, results.save_samples(weights))
        display.say(f"student: {run.student}")
        display.say(f"report:  {run.report}")
    accelerator.wait_for_everyone()
    return results.pipeline(weights).to(accelerator.device)  # its autoencoder was elsewhere if latents were kept
