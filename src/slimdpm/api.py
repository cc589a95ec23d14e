"""The library's front door: what the command line does, in a few lines of Python."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from rich.console import Console

from slimdpm.data.open_source import open_source
from slimdpm.recipe import TEACHER
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.hashing import short
from slimdpm.system.progress import Display
from slimdpm.system.sizes import Size
from slimdpm.training.job import Job
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job


def slim(
    teacher: str | Path | DiffusionPipeline,
    data: Any,
    *,
    output: str | Path | None = None,
    ratio: float | None = None,
    width: int | None = None,
    max_macs: float | str | None = None,
    max_params: float | str | None = None,
    speedup: float | None = None,
    max_ms: float | None = None,
    runtime: str | None = None,
    gated: bool | None = None,
    init: str | None = None,
    steps: int | None = None,
    hours: float | None = None,
    until: float | None = None,
    held_out: int | None = None,
    size: Size | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> DiffusionPipeline:
    """Distil a teacher into a slim student, as ``slimdpm slim`` does.

    Args:
        teacher: a pipeline, a diffusers folder or a hub id.
        data: a folder of images, an .npz or .npy, ``"hf:NAME"``, a uint8 array ``(N, H, W, 3)``, an
            `slimdpm.Arrays`, or a data set of the `datasets` library; ``"teacher"`` lets the teacher make it, see
            ``data.samples`` of a recipe.
        output: the run folder, with checkpoints, samples and report; the same call resumes a run that was stopped.
            Without it nothing is kept but the result.
        ratio: how many times fewer MACs the student shall have (12 if no budget is given).
        width: its base channels, instead of a ratio.
        max_macs: its conv+linear MACs at most, for example ``"500M"``.
        max_params: its parameters at most.
        speedup: how many times faster than the teacher one call of it shall be; candidates of several widths and
            depths are measured on this machine.
        max_ms: milliseconds of one call at most, measured in the same way.
        runtime: where both are measured: ``"pytorch"`` (the default), or ``"onnxruntime"`` or ``"openvino"`` on the
            CPU.
        gated: whether the student resamples through wavelet gates, as in the paper, or as its teacher does, in a
            U-Net that loads without slimdpm; by default what the recipe says, or else without.
        init: its first weights, ``"teacher"`` or ``"random"``.
        steps: optimiser steps.
        hours: instead of steps: so long takes training with its samples and report, from when the data is prepared;
            the steps that fit follow from a measured start.
        until: stop when the student's error on images held out is at most so many times the teacher's, for example
            1.05; at the latest after those steps or hours.
        held_out: images that are kept back from training for this, by default a fiftieth and at most 256, of fewer
            than 1,000 none.
        size: of the images in pixels, a number or ``(height, width)``; by default the teacher's.
        recipe: a YAML file with further settings.
        settings: settings by their dotted names in a recipe, for example ``{"train.lr": 1e-4}``.
        progress: show progress.

    Returns:
        the student: the teacher's pipeline around a slim U-Net with averaged weights.

    Raises:
        SlimdpmError: for whatever the user can mend; its text says what.
    """
    budget = {"ratio": ratio, "width": width, "max_macs": max_macs, "max_params": max_params}
    student = {**budget, "speedup": speedup, "max_ms": max_ms, "runtime": runtime, "init": init}
    length = {"steps": steps, "hours": hours, "until": until}
    rest = {**length, "gated": gated, "size": size, "held_out": held_out, "recipe": recipe, "settings": settings}
    return _run(output, progress, "slim", teacher, data, student, **rest)


def train(
    data: Any,
    *,
    model: str | Path | None = None,
    like: str | Path | DiffusionPipeline | None = None,
    output: str | Path | None = None,
    ratio: float | None = None,
    width: int | None = None,
    max_macs: float | str | None = None,
    max_params: float | str | None = None,
    speedup: float | None = None,
    max_ms: float | None = None,
    runtime: str | None = None,
    steps: int | None = None,
    hours: float | None = None,
    size: Size | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> DiffusionPipeline:
    """Train a U-Net on images alone, as ``slimdpm train`` does: a teacher, or the Lite baseline.

    Args:
        data: as for `slim`.
        model: a preset (see `slimdpm.PRESETS`), a config.json, or a folder with one.
        like: a pipeline whose U-Net, scheduler and autoencoder are taken, instead of a model.
        output: as for `slim`.
        ratio, width, max_macs, max_params, speedup, max_ms, runtime: the budget of a plain U-Net that is smaller
            than that network: Lite.
        steps, hours, size, recipe, settings, progress: as for `slim`.

    Returns:
        the pipeline with averaged weights.

    Raises:
        SlimdpmError: for whatever the user can mend; its text says what.
    """
    base = None if model is None else str(model)
    budget = {"ratio": ratio, "width": width, "max_macs": max_macs, "max_params": max_params}
    student = {**budget, "speedup": speedup, "max_ms": max_ms, "runtime": runtime, "base": base}
    rest = {"size": size, "steps": steps, "hours": hours, "recipe": recipe, "settings": settings}
    return _run(output, progress, "train", like, data, student, **rest)


def planned(
    task: str,
    teacher: str | Path | DiffusionPipeline | None,
    data: Any,
    student: Mapping[str, Any],
    *,
    gated: bool | None = None,
    size: Size | None = None,
    cache: bool | None = None,
    steps: int | None = None,
    hours: float | None = None,
    until: float | None = None,
    held_out: int | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    weights: bool = True,
    output: str | Path | None = None,
    display: Display | None = None,
) -> Job:
    """The job that the arguments of a function or of a command ask for. What is None is left to the recipe.

    Args:
        task: ``"slim"`` or ``"train"``.
        teacher, data, gated, size, steps, hours, until, held_out, recipe, settings: see `slim`.
        student: of a recipe's ``student`` section.
        cache: ``data.cache``.
        assignments: see `slimdpm.recipe_file.load_recipe`.
        weights, display: see `slimdpm.training.plan.plan_job`.
        output: the run folder, if there is to be one.
    """
    at_hand = isinstance(teacher, DiffusionPipeline)
    values = {
        "task": task,
        "teacher": None if at_hand or teacher is None else str(teacher),
        "student": {"kind": None if gated is None else "spectral" if gated else "plain", **student},
        "data": {"path": _data_name(data), "size": size, "cache": cache, "held_out": held_out},
        "train": {"steps": steps, "hours": hours, "until": until},
    }
    file = None if recipe is None else _path("recipe", recipe)
    loaded = load_recipe(file, assignments, values=_given(values), settings=settings)
    named = data is None or isinstance(data, (str, Path))
    return plan_job(
        loaded,
        teacher=teacher if at_hand else None,
        data=None if named else data,
        weights=weights,
        folder=None if output is None else _path("output", output),
        display=display,
    )


def _run(output: str | Path | None, progress: bool, *arguments: Any, **options: Any) -> DiffusionPipeline:
    """Plan and do what the arguments of `planned` ask for."""
    display = Display(Console() if progress else None)
    job = planned(*arguments, **options, output=output, display=display)
    if output is not None:
        return run_job(job, _path("output", output), display)
    with tempfile.TemporaryDirectory(prefix="slimdpm-") as folder:
        return run_job(job, folder, display)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, Path)):
        raise SlimdpmError(f"{name} is no path: {value!r}")
    return Path(value)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was not given, at any depth."""
    nested = {k: _given(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}


def _data_name(data: Any) -> str | None:
    """How the recipe calls the data; for an object at hand a name that changes with its content."""
    if isinstance(data, Path) and str(data) == TEACHER:
        return f"./{data}"  # the folder
    if data is None or isinstance(data, (str, Path)):
        return None if data is None else str(data)
    with blamed("the images cannot be read"):
        return f"{type(data).__name__} {short(open_source(data).identity())}"
