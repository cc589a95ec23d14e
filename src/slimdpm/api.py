"""The library's front door: what the command line does, in a few lines of Python."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from rich.console import Console

from slimdpm.data.open_source import open_source
from slimdpm.recipe import TEACHER
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import blamed
from slimdpm.system.hashing import short
from slimdpm.system.progress import Display
from slimdpm.system.sizes import Size
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
    steps: int | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> DiffusionPipeline:
    """Distil a teacher into a slim student.

    Args:
        teacher: a pipeline, a diffusers folder or a hub id.
        data: a folder of images, an .npz or .npy, ``"hf:NAME"``, a uint8 array ``(N, H, W, 3)``, or a data set of
            the `datasets` library; ``"teacher"`` lets the teacher make it, see ``data.samples`` of a recipe.
        output: the run folder, with checkpoints, samples and report; the same call resumes a run that was stopped.
            Without it nothing is kept but the result.
        ratio: how many times fewer MACs the student shall have (12 if no budget is given).
        width: its base channels, instead of a ratio.
        max_macs: its conv+linear MACs at most, for example ``"500M"``.
        max_params: its parameters at most.
        steps: optimiser steps.
        recipe: a YAML file with further settings.
        settings: settings by their dotted names in a recipe, for example ``{"train.lr": 1e-4}``.
        progress: show progress.

    Returns:
        the student: the teacher's pipeline around a slim U-Net with averaged weights.

    Raises:
        SlimdpmError: for whatever the user can mend; its text says what.
    """
    budget = {"ratio": ratio, "width": width, "max_macs": max_macs, "max_params": max_params}
    values = {
        "task": "slim",
        "teacher": None if isinstance(teacher, DiffusionPipeline) else str(teacher),
        "student": _given(budget),
    }
    return _run(values, teacher, data, output, steps, recipe, settings, progress)


def train(
    model: str | Path,
    data: Any,
    *,
    output: str | Path | None = None,
    size: Size | None = None,
    steps: int | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> DiffusionPipeline:
    """Train a U-Net on images alone: a teacher, or a baseline.

    Args:
        model: a preset (see `slimdpm.PRESETS`), a config.json, or a folder with one.
        data: as for `slim`.
        output: as for `slim`.
        size: of the images in pixels, a number or ``(height, width)``, by default the config's.
        steps: optimiser steps.
        recipe: a YAML file with further settings.
        settings: settings by their dotted names in a recipe.
        progress: show progress.

    Returns:
        the pipeline with averaged weights.

    Raises:
        SlimdpmError: for whatever the user can mend; its text says what.
    """
    values = {"task": "train", "student": {"base": str(model)}, "data": _given({"size": size})}
    return _run(values, None, data, output, steps, recipe, settings, progress)


def _run(values, teacher, data, output, steps, recipe, settings, progress) -> DiffusionPipeline:
    for section, entries in (("data", {"path": _data_name(data)}), ("train", _given({"steps": steps}))):
        values[section] = {**values.get(section, {}), **entries}
    loaded = load_recipe(Path(recipe) if recipe else None, values=values, settings=settings)
    job = plan_job(loaded, teacher=teacher if isinstance(teacher, DiffusionPipeline) else None, data=data)
    display = Display(Console() if progress else None)
    if output is not None:
        return run_job(job, output, display)
    with tempfile.TemporaryDirectory(prefix="slimdpm-") as folder:
        return run_job(job, folder, display)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _data_name(data: Any) -> str:
    """How the recipe calls the data; for an object at hand a name that changes with its content."""
    if isinstance(data, Path) and str(data) == TEACHER:
        return f"./{data}"  # the folder
    if isinstance(data, (str, Path)):
        return str(data)
    with blamed("the images cannot be read"):
        return f"{type(data).__name__} {short(open_source(data).identity())}"
