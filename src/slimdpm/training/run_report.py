"""The report of a run, from what it left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from slimdpm.data.dataset import Images
from slimdpm.data.images import grid, save_picture, zoom_for
from slimdpm.method.latency import brief_latencies
from slimdpm.report.page import COLUMNS, Entry, Report, write_report
from slimdpm.system.amounts import duration
from slimdpm.system.devices import resident
from slimdpm.system.documents import read_text
from slimdpm.system.machine import machine_facts
from slimdpm.system.sizes import described
from slimdpm.training.student_folder import Results


def write_run_report(results: Results, weights: Mapping[str, Tensor], images: Images) -> None:
    """Sample teacher and student from the same noise, and write ``samples/`` and ``report.html`` of a run."""
    recipe, run, plan = results.recipe, results.run, results.job.plan
    count = recipe.samples.count
    name = "student" if results.teacher is not None else "network"
    seconds = _seconds(results, {name: results.pipeline(weights).unet})
    entries = []
    if results.teacher is not None:
        samples = results.sample(results.teacher_pipeline(), count, "sampling the teacher")
        entries.append(Entry("teacher", plan.teacher_cost, samples, seconds["teacher"]))
    samples = results.sample(results.pipeline(weights), count, "sampling the student")
    curve = run.metrics()
    entries.append(Entry(name, plan.cost, samples, seconds[name], curve))
    for entry in entries:
        picture = grid(entry.samples, COLUMNS, zoom=zoom_for(entry.samples))
        save_picture(run.samples / f"{entry.name}.png", picture)
    chosen = np.random.default_rng(recipe.train.seed).permutation(len(images))[:count]
    facts = {
        "optimiser steps": f"{recipe.train.steps:,} of {recipe.train.batch_size} images",
        "training time": duration(curve[-1]["seconds"]) if curve else "not logged",
        "seed": str(recipe.train.seed),
        "data": f"{recipe.data.described(len(images))} as {described(results.shell.image_size, '×')}",
        "sampler": f"{recipe.samples.scheduler}, {recipe.samples.steps} steps, seed {recipe.samples.seed}",
        **machine_facts(),
    }
    summary = f"trained from {recipe.data.path}"
    if results.teacher is not None:
        summary = f"{results.teacher.name} made {plan.ratio:.1f} times cheaper"
    with resident(results.shell.frozen, results.place):  # the teacher's samples are decoded to be shown
        real = _readable(images, chosen)
    report = Report(
        title=run.path.resolve().name,
        summary=summary,
        entries=entries,
        real=real,
        facts=facts,
        recipe=recipe.to_yaml(),
        student=str(run.student),
        card=results.job.card(),
        notes=[] if len(real) == len(chosen) else [f"{len(chosen) - len(real)} of the images cannot be read any more"],
        analysis=read_text(run.analysis_html) if run.analysis_html.exists() else "",
    )
    write_report(run.report, report)


def _seconds(results: Results, networks: dict[str, Any]) -> dict[str, float]:
    """Of a forward pass of the networks, and of the teacher's."""
    if results.teacher is not None:
        networks = {"teacher": results.teacher.unet.to(results.place), **networks}
    results.display.say(f"measuring milliseconds of {' and '.join(networks)}")
    tokens = dict.fromkeys(networks, results.shell.conditioning.tokens)
    return brief_latencies(networks, tokens=tokens, size=results.shell.size)


def _readable(images: Images, chosen: Iterable[int]) -> np.ndarray:
    """The squares of those that can be read: what has been trained is worth a report, whatever became of the data."""
    squares = []
    for number in map(int, chosen):
        with suppress(Exception):  # decoders raise anything at all
            squares.append(images.square(number, np.random.default_rng(number)))
    return np.stack(squares) if squares else np.empty((0, 1, 1, 1), np.uint8)
