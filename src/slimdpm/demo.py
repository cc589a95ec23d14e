"""``slimdpm demo``: slim a small teacher on a CPU in minutes, and compare with a Lite baseline of equal cost.

The teacher lies in ``assets/demo-teacher`` at half precision; ``recipes/demo-teacher.yaml`` is what made it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from rich.table import Table

from slimdpm.data.demo_photographs import demo_source
from slimdpm.data.images import grid, save_picture, to_model_range
from slimdpm.method.cost import Cost
from slimdpm.method.latency import brief_latencies
from slimdpm.metrics.denoising import denoising_errors
from slimdpm.pipelines.loading import ASSETS, load_pipeline
from slimdpm.pipelines.sampling import sample_images
from slimdpm.pipelines.shell import shell_of
from slimdpm.recipe import Recipe
from slimdpm.recipe_file import load_recipe
from slimdpm.report.page import Entry, Report, write_report
from slimdpm.run_folder import RunFolder
from slimdpm.system import amounts
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display, figures_table
from slimdpm.training.job import Job
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

SAMPLES = 64
SAMPLE_STEPS = 25
COLUMNS = 16  # of comparison.png: a row each of teacher, Lite and Spectral from the same noise


def demo_recipe(seed: int = 0, steps: int | None = None) -> Recipe:
    """The recipe of the demo's student."""
    values = {"train": {"seed": seed, **({"steps": steps} if steps else {})}}
    return load_recipe(ASSETS / "demo.yaml", values=values)


def lite_recipe(recipe: Recipe) -> Recipe:
    """The baseline: a plain U-Net of the same budget, from random weights, trained plainly for as many steps."""
    student = {"kind": "lite", "init": "random"}
    return recipe.model_copy(
        update={
            "task": "train",
            "student": recipe.student.model_copy(update=student),
            "train": recipe.train.model_copy(update={"snr_gamma": "none"}),
        }
    )


def run_demo(folder: Path, *, seed: int = 0, steps: int | None = None, display: Display | None = None) -> list[Entry]:
    """Train both students, measure, and write ``report.html`` and ``comparison.png``; a run that was stopped goes on.

    Args:
        steps: optimiser steps of each, by default those of the recipe.

    Returns:
        teacher, Lite and Spectral as the report shows them.
    """
    display = display or Display()
    recipe = demo_recipe(seed, steps)
    spectral = plan_job(recipe)
    lite = plan_job(lite_recipe(recipe))
    pipelines = {
        "lite": run_job(lite, folder / "lite", display, report=False),
        "spectral": run_job(spectral, folder / "spectral", display, report=False),
    }
    teacher = load_pipeline("demo:teacher")
    display.say("measuring milliseconds of teacher and lite and spectral")
    seconds = brief_latencies({"teacher": teacher.unet, **{name: p.unet for name, p in pipelines.items()}})
    costs = {"teacher": spectral.plan.teacher_cost, "lite": lite.plan.cost, "spectral": spectral.plan.cost}
    entries = [
        _measure(name, pipeline, costs[name], seconds[name], folder, display)
        for name, pipeline in {"teacher": teacher, **pipelines}.items()
    ]
    path = folder / "report.html"
    write_report(path, _report(spectral, entries, folder))
    rows = [entry.samples[:COLUMNS] for entry in entries]
    save_picture(folder / "comparison.png", grid(np.concatenate(rows), COLUMNS, zoom=2))
    if display.console is not None:
        display.console.print(summary_table(entries))
    display.say(f"report: {path}")
    return entries


def _measure(
    name: str, pipeline: DiffusionPipeline, cost: Cost, seconds: float, folder: Path, display: Display
) -> Entry:
    """Errors on the held-out crops and samples of one network."""
    held_out = torch.from_numpy(demo_source("held-out").images).permute(0, 3, 1, 2)
    with display.task(f"held-out error of {name}", 5 * len(held_out), unit="crops") as task:
        errors = denoising_errors(
            pipeline.unet, shell_of(pipeline).process, to_model_range(held_out), progress=task.advance
        )
    with display.task(f"sampling {name}", SAMPLES, unit="images") as task:
        samples = sample_images(
            pipeline, SAMPLES, steps=SAMPLE_STEPS, scheduler="ddim", batch_size=32, progress=task.advance
        )
    curve = [] if name == "teacher" else RunFolder(folder / name).metrics()
    return Entry(name, cost, samples, seconds, curve, errors)


def summary_table(entries: list[Entry]) -> Table:
    """The three networks side by side; errors are means over the noise levels."""
    headings = ["network", "parameters", "MACs", "teacher ÷ it", "ms", "error of ε", "in the upper half"]
    rows = [
        [
            entry.name,
            amounts.parameters(entry.cost.params),
            amounts.macs(entry.cost.macs),
            f"{entries[0].cost.macs / entry.cost.macs:.2f}",
            f"{entry.seconds * 1e3:.1f}",
            *(f"{np.mean(values):.4f}" for values in (entry.errors.overall, entry.errors.upper)),
        ]
        for entry in entries
        if entry.errors is not None
    ]
    return figures_table(headings, rows)


def _report(job: Job, entries: list[Entry], folder: Path) -> Report:
    recipe = job.recipe
    return Report(
        title="slimdpm demo",
        summary=f"A student with {job.plan.ratio:.1f} times fewer MACs beside a Lite of equal cost and as many steps.",
        entries=entries,
        real=demo_source("held-out").images,
        facts={
            "optimiser steps": f"{recipe.train.steps:,} of {recipe.train.batch_size} images, each student",
            "seed": str(recipe.train.seed),
            "data": "32×32 crops of 14 photographs; errors and spectrum of real images on 512 crops of 2 others",
            "sampler": f"ddim, {SAMPLE_STEPS} steps, seed 0",
            **machine_facts(),
        },
        recipe=recipe.to_yaml(),
        card=job.card(),
        student=str(folder / "spectral" / "student"),
    )
