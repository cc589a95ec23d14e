"""A budget in time becomes a student: candidates are measured here, and what was chosen stands in the recipe.

So a run that is resumed and another machine get the same student and measure nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slimdpm.method.runtimes import PYTORCH, described_runtime, device_of
from slimdpm.method.slimming import student_base
from slimdpm.method.timed_plan import SECONDS, Stopwatch, TimeBudget, plan_in_time
from slimdpm.recipe import Recipe
from slimdpm.student_recipe import TimedStudent
from slimdpm.system.machine import device_facts
from slimdpm.system.processes import by_the_first
from slimdpm.system.progress import Display

Config = Mapping[str, Any]


def timed_recipe(recipe: Recipe, base: Config, measured: Config, tokens: int, display: Display) -> Recipe:
    """The recipe with what its budget in time chose. Of several processes the first measures, for all.

    Args:
        recipe: resolved, its student not measured yet.
        base: the config that is slimmed, with its size.
        measured: the config of the network that the student is compared with: mostly the same.
        tokens: length of the conditioning sequence.
        display: where is said that it takes a while.

    Raises:
        SlimdpmError: if no student is fast enough, or the network cannot be slimmed.
    """
    timed = by_the_first(lambda: _timed(recipe, base, measured, tokens, display))
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"timed": timed})})


def _timed(recipe: Recipe, base: Config, measured: Config, tokens: int, display: Display) -> TimedStudent:
    student, place = recipe.student, recipe.student.runtime or PYTORCH
    assert student.kind is not None
    device = device_of(place)
    machine, runtime = device_facts(device), described_runtime(place)
    seconds = f"{SECONDS:.0f} seconds" if place == PYTORCH else "a minute"
    display.say(
        f"measuring students of several widths and depths on {machine}, {runtime}: about {seconds}, "
        "more for large networks"
    )
    found = plan_in_time(
        base,
        TimeBudget(student.speedup, student.max_ms),
        Stopwatch(measured, device, tokens=tokens, runtime=place),
        machine=f"{machine}, {runtime}",
        kind=student.kind,
        overrides=student.overrides,
        tokens=tokens,
        layout=student.layout,
    )
    before = student_base(base, student.kind, student.overrides)
    changed = {key: value for key, value in found.config.items() if before.get(key) != value}
    return TimedStudent(
        config=changed | {"block_out_channels": found.config["block_out_channels"]},  # also if they are the teacher's
        machine=machine,
        runtime=runtime,
        teacher_ms=round(found.teacher_seconds * 1e3, 3),
        student_ms=round(found.student_seconds * 1e3, 3),
    )
