"""A budget of training time becomes a number of steps: the run is timed here, and what fits stands in the recipe.

The steps that are timed are real ones, of networks that are thrown away: the run itself starts afterwards as if they
had not been. It repeats, and is resumed, without being measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from slimdpm.conditioning import Conditioning
from slimdpm.data.dataset import Images
from slimdpm.method.distiller import Distiller
from slimdpm.recipe import Recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.amounts import duration
from slimdpm.system.devices import cuda_devices
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.machine import device_facts, runtime_facts
from slimdpm.system.processes import by_the_first
from slimdpm.system.progress import Display
from slimdpm.train_recipe import VALIDATIONS, TimedTraining
from slimdpm.training.accelerator import make_accelerator
from slimdpm.training.checkpoint import save_checkpoint
from slimdpm.training.job import Job
from slimdpm.training.student_folder import GRID, Results
from slimdpm.training.trainer import Trainer
from slimdpm.training.validation import Validation

SHARE = 0.03  # of the time that is given goes into timing steps,
LONGEST = 60.0  # but no more seconds than these
WARM = 3  # steps, at least, before steps are timed
REPORT = 10.0  # seconds of a report's milliseconds and figures
FIGURES = 1.5  # seconds of figures alone, as the report is written again with each grid
GRIDS = 5  # of samples by default

clock = time.perf_counter


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a run take on a machine.

    Attributes:
        step: of an optimiser step, the teacher's share included.
        checkpoint: to write one.
        student, teacher: to sample an image with the recipe's sampler; 0 without a teacher.
        validation: to measure the error on the images held out; 0 if there are none.
        start: to build the networks, take the first steps, which are slower, and measure the teacher's error.
        measured: that the measurement took.
    """

    step: float
    checkpoint: float
    student: float
    teacher: float
    validation: float
    start: float
    measured: float


def timed_job(
    job: Job,
    conditioning: Conditioning,
    images: Images,
    run: RunFolder,
    display: Display,
    distiller: Callable[..., Distiller] = Distiller,
) -> Job:
    """The job with the steps that fit into its hours. Of several processes the first one's clock counts, for all.

    Args:
        job: of the run, its number of steps not measured yet.
        conditioning: that it is trained with, see `slimdpm.training.prepare.prepare_data`.
        images: of the run.
        run: its folder, open.
        display: where is said that it takes a while.
        distiller: see `Trainer`.

    Raises:
        SlimdpmError: if not one step fits.
    """
    begun = clock()
    recipe = job.recipe
    assert recipe.train.hours is not None
    accelerator = make_accelerator(recipe, run)  # one apart: that of the run keeps its counts, and its scaler in fp16
    machine = device_facts(accelerator.device)
    allowed = min(SHARE * recipe.train.hours * 3600, LONGEST)
    display.say(f"timing steps, samples and a checkpoint on {machine}: more than {duration(allowed)}")
    trained = replace(job, shell=replace(job.shell, conditioning=conditioning))
    with torch.random.fork_rng(devices=cuda_devices(accelerator.device)):
        trainer = Trainer(trained, images, run, accelerator, None, distiller)
        step, start = _steps(trainer, allowed, begun)
        if recipe.train.compile:  # which takes minutes, and the run itself finds it done
            again = clock()
            trainer = Trainer(trained, images, run, accelerator, None, distiller)
            start = _steps(trainer, 0.0, again)[1]

    def chosen() -> TimedTraining:
        results = Results(job, run, accelerator.device, Display())
        results.keep_images(trainer.images)
        checkpoint = _checkpoint(trainer)
        student = _sampling(results, partial(results.sample, results.pipeline(trainer.weights())))
        teacher = _sampling(results, results.sample_teacher) if job.teacher is not None else 0.0
        validates = len(trainer.held_out) > 0 and recipe.train.validate_every != 0
        validation, first = _validation(trainer, results) if validates else (0.0, 0.0)
        pace = Pace(step, checkpoint, student, teacher, validation, start + first, clock() - begun)
        return fitting(recipe, pace, machine, runtime_facts(recipe.train.compile))

    timed = by_the_first(chosen)
    display.say(f"hours: {timed}")
    train = recipe.train.within(timed)
    train = train.model_copy(update={"warmup": train.warmup_steps})
    return replace(job, recipe=recipe.model_copy(update={"train": train}))


def fitting(recipe: Recipe, pace: Pace, machine: str, runtime: str) -> TimedTraining:
    """The steps that fit into a recipe's hours at this pace, with everything that comes between and after them.

    Raises:
        SlimdpmError: if there is none.
    """
    train, samples = recipe.train, recipe.samples
    assert train.hours is not None
    grid, every = min(GRID, samples.count), train.sample_every
    each = pace.step + pace.checkpoint / train.checkpoint_every
    once = pace.measured + pace.start + pace.checkpoint + REPORT + samples.count * (pace.student + pace.teacher)
    if every is None:
        once += grid * (GRIDS * pace.student + pace.teacher) + GRIDS * FIGURES
    elif every:
        each += (grid * pace.student + FIGURES) / every
        once += grid * pace.teacher
    if pace.validation:
        each, once = _with_validation(recipe, pace.validation, each, once)
    steps = math.floor((train.hours * 3600 - once) / each)
    if steps < 1:
        least = math.ceil((once + 100 * each) / 36) / 100
        raise SlimdpmError(
            f"{train.hours:g} hours are too short on {machine}: a step takes {pace.step:.3g} s, samples, checkpoints "
            f"and report {duration(once)}; a hundred steps take {least:g} hours"
        )
    return TimedTraining(
        hours=train.hours,
        steps=min(steps, 10**9),
        step_seconds=round(pace.step, 6),
        other_seconds=round(once + steps * (each - pace.step), 1),
        machine=machine,
        runtime=runtime,
    )


def _with_validation(recipe: Recipe, seconds: float, each: float, once: float) -> tuple[float, float]:
    """What a step takes and what comes but once, with measurements of the held-out error that take so long."""
    train, every = recipe.train, recipe.train.validate_every
    assert train.hours is not None and recipe.data.held_out is not None
    gap, once = train.validation_gap(recipe.data.held_out), once + seconds  # the last one
    if every is None and (train.hours * 3600 - once - VALIDATIONS * seconds) / each >= VALIDATIONS * gap:
        return each, once + VALIDATIONS * seconds
    return each + seconds / (every or gap), once


def _steps(trainer: Trainer, allowed: float, begun: float) -> tuple[float, float]:
    """Seconds of an optimiser step, and those from `begun` until they were steady.

    Whole groups of steps are timed: of the steps that a batch serves one asks the teacher.
    """
    group, count = trainer.job.uses, 0
    steps = trainer.rehearsal()
    for _ in range(math.ceil(WARM / group) * group):
        next(steps)
    mark = clock()
    while True:
        for _ in range(group):
            next(steps)
        count += group
        seconds = clock() - mark
        if by_the_first(lambda taken=seconds: taken >= allowed):  # type: ignore[misc]
            return seconds / count, mark - begun


def _checkpoint(trainer: Trainer) -> float:
    """Seconds to write one. The folder's student, which is written with it, is a fifth of its size."""
    mark = clock()
    with TemporaryDirectory(prefix=".pace.tmp-", dir=trainer.run.path) as folder:
        save_checkpoint(Path(folder), trainer.state, keep=1)
        return (clock() - mark) * 1.2


def _validation(trainer: Trainer, results: Results) -> tuple[float, float]:
    """Seconds to measure the held-out error, and by how many the first time takes longer."""
    validation = Validation(trainer.job, trainer.held_out, trainer.accelerator, results.network)
    marks = [clock()]
    for _ in range(2):
        validation(trainer.weights())
        marks.append(clock())
    first, further = marks[1] - marks[0], marks[2] - marks[1]
    return further, max(0.0, first - further)


def _sampling(results: Results, sample: Callable[[int, str, int], Any]) -> float:
    """Seconds to sample an image: from samplers of few steps, since each further one takes as long as the others."""
    wanted, count = results.recipe.samples.steps, min(GRID, results.recipe.samples.count)
    assert wanted is not None

    def seconds(steps: int) -> float:
        mark = clock()
        sample(count, "", steps)
        return clock() - mark

    few = min(2, wanted)
    seconds(few)  # the first call of a network is slower
    short = seconds(few)
    further = max(0.0, seconds(2 * few) - short) / few if wanted > 2 * few else short / few
    return (short + further * (wanted - few)) / count
