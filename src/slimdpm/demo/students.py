"""The demo's students, which get as many seconds of training each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DiffusionPipeline

from slimdpm.method.latency import step_seconds
from slimdpm.recipe import DEFAULT_GAMMA, Recipe
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.documents import read_json
from slimdpm.system.files import write_json
from slimdpm.system.packaged import ASSETS
from slimdpm.system.processes import pick_device
from slimdpm.system.progress import Display
from slimdpm.training.accelerator import make_accelerator
from slimdpm.training.job import Job
from slimdpm.training.plan import plan_job
from slimdpm.training.run import new_trainer, run_job

MAIN = "plain"  # the student that `slimdpm slim` makes
TURNS = 6  # of each student on the clock, after one that is not counted


def demo_recipe(seed: int = 0, steps: int | None = None, file: Path = ASSETS / "demo.yaml") -> Recipe:
    """The recipe of the student that `slimdpm slim` makes."""
    values = {"train": {"seed": seed, **({"steps": steps} if steps else {})}}
    return load_recipe(file, values=values)


def lite_recipe(recipe: Recipe, *, fair: bool = True) -> Recipe:
    """Lite beside it: the same network, trained on the images alone.

    Args:
        recipe: of the distilled student.
        fair: it starts from the teacher's channels and has min-SNR weighting, too; the paper's Lite has neither.
    """
    student = {"kind": "lite", "init": "teacher" if fair else "random"}
    return recipe.model_copy(
        update={
            "task": "train",
            "student": recipe.student.model_copy(update=student),
            "train": recipe.train.model_copy(update={"snr_gamma": DEFAULT_GAMMA if fair else "none"}),
        }
    )


def gated_recipe(recipe: Recipe) -> Recipe:
    """Spectral beside it: wavelet-gated resampling, of the same MACs, distilled in the same way."""
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"kind": "spectral"})})


def train_students(
    recipe: Recipe, folder: Path, display: Display
) -> tuple[dict[str, Job], dict[str, DiffusionPipeline]]:
    """Lite, Spectral and `MAIN`, trained for as many seconds; what is done already is not done again.

    The others' steps follow from those of `MAIN` and from the seconds that a step of each takes here. They are measured
    once for a folder, so that a demo that was stopped goes on as it began.

    Returns:
        of each the job, and the pipeline with averaged weights.
    """
    shared = recipe.data.model_copy(update={"cache": str(folder / "cache")})  # the photographs are decoded once
    recipe = recipe.model_copy(update={"data": shared})
    recipes = {"lite": lite_recipe(recipe), "spectral": gated_recipe(recipe), MAIN: recipe}
    jobs = {name: plan_job(each, folder=folder / name) for name, each in recipes.items()}
    RunFolder(folder / MAIN).check(jobs[MAIN].recipe)
    seconds = seconds_per_step(jobs, folder, display)
    budget = recipe.train.steps * seconds[MAIN]
    jobs = {name: lasting(job, max(1, round(budget / seconds[name]))) for name, job in jobs.items()}
    steps = ", ".join(f"{name} {job.recipe.train.steps:,}" for name, job in jobs.items())
    display.say(f"steps in the same seconds: {steps}")
    return jobs, {name: run_job(job, folder / name, display, report=False) for name, job in jobs.items()}


def seconds_per_step(jobs: Mapping[str, Job], folder: Path, display: Display) -> dict[str, float]:
    """Median seconds of an optimiser step of each student; they take turns, in groups that one answer serves."""
    file = folder / "seconds.json"
    if file.exists():
        return read_json(file)
    display.say("timing a step of each student")
    group = max(job.uses for job in jobs.values())
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="slimdpm-") as place, torch.random.fork_rng():
        walks = {name: _rehearsed(job, Path(place) / name) for name, job in jobs.items()}
        device = pick_device(None)
        # Processor time stands still while other work has the cores: by the wall one busy minute quadrupled Lite.
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        found = step_seconds(walks, device, group=group, rounds=TURNS, clock=clock)
    write_json(file, found)
    return found


def _rehearsed(job: Job, folder: Path) -> Iterator[None]:
    """Steps of a student that is thrown away."""
    job, run = lasting(job, 10**6), RunFolder(folder)
    run.open(job.recipe)
    try:
        trainer = new_trainer(job, run, make_accelerator(job.recipe, run))
    finally:
        run.close()
    return trainer.rehearsal()


def lasting(job: Job, steps: int) -> Job:
    """The job with so many steps."""
    train = job.recipe.train.model_copy(update={"steps": steps})
    return replace(job, recipe=job.recipe.model_copy(update={"train": train}))
