"""The report of a run, from what it left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from slimdpm.data.dataset import Images
from slimdpm.method.latency import brief_latencies
from slimdpm.report.page import Entry, Report, write_report
from slimdpm.system.amounts import duration
from slimdpm.system.devices import resident
from slimdpm.system.documents import read_text
from slimdpm.system.machine import machine_facts
from slimdpm.system.sizes import described
from slimdpm.training.student_folder import Results


def write_run_report(
    results: Results, weights: Mapping[str, Tensor], images: Images, step: int, samples: Mapping[str, np.ndarray]
) -> None:
    """Write ``report.html`` of a run: of one that goes on, what there is after this step.

    Args:
        weights: of the student.
        images: the training images.
        samples: of its networks by name, from the same noise.
    """
    recipe, run, plan = results.recipe, results.run, results.job.plan
    if not results.seconds:
        results.seconds = _seconds(results, {results.name: results.network(weights)})
    curve = run.metrics()
    entries = []
    if results.teacher is not None:
        entries.append(Entry("teacher", plan.teacher_cost, samples["teacher"], results.seconds["teacher"]))
    entries.append(Entry(results.name, plan.cost, samples[results.name], results.seconds[results.name], curve))
    chosen = np.random.default_rng(recipe.train.seed).permutation(len(images))[: len(samples[results.name])]
    summary = f"trained from {recipe.data.path}"
    if results.teacher is not None:
        summary = f"{results.teacher.name} made {plan.ratio:.1f} times cheaper"
    with resident(results.shell.frozen, results.place):  # the teacher's samples are decoded to be shown
        real = _readable(images, chosen)
    notes = [f"After step {step:,} of {recipe.train.steps:,}."] if step < recipe.train.steps else []
    if len(real) < len(chosen):
        notes.append(f"{len(chosen) - len(real)} of the images cannot be read any more")
    report = Report(
        title=run.path.resolve().name,
        summary=summary,
        entries=entries,
        real=real,
        facts=_facts(results, len(images), step, curve),
        recipe=recipe.to_yaml(),
        student=str(run.student) if run.student.is_dir() else None,
        card=results.job.card(),
        notes=notes,
        analysis=read_text(run.analysis_html) if run.analysis_html.exists() else "",
    )
    write_report(run.report, report)


def _facts(results: Results, images: int, step: int, curve: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    recipe = results.recipe
    held_out = f", {recipe.data.held_out:,} more held out" if recipe.data.held_out else ""
    return {
        "optimiser steps": f"{step:,} of {recipe.train.batch_size} images",
        "training time": duration(curve[-1]["seconds"]) if curve else "not logged",
        "seed": str(recipe.train.seed),
        "data": f"{recipe.data.described(images)} as {described(results.shell.image_size, '×')}{held_out}",
        "sampler": f"{recipe.samples.scheduler}, {recipe.samples.steps} steps, seed {recipe.samples.seed}",
        **machine_facts(),
    }


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
