"""The job: a run that is checked and planned. It is handed around whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from torch import nn

from slimdpm.data.sources import Source
from slimdpm.method.depth import left_out
from slimdpm.method.distiller import Distiller, TappedStudent
from slimdpm.method.features import FeaturePair
from slimdpm.method.slimming import Plan
from slimdpm.pipelines.shell import Shell
from slimdpm.pipelines.teacher import Teacher
from slimdpm.recipe import Recipe
from slimdpm.system.sizes import described


@dataclass(frozen=True)
class Job:
    """A run that is checked and planned; nothing is written yet.

    Attributes:
        recipe: resolved: what was left to a default that depends on the teacher is filled in.
        shell: the student's pipeline without its U-Net.
        plan: the student's config and cost, and what it is measured against.
        teacher: None for training without distillation.
        origin: the U-Net from whose weights the student starts; None for a random start.
        pairs: feature pairs for distillation.
        source: the images.
        conditions: what is known of each of them, if the network is told.
    """

    recipe: Recipe
    shell: Shell
    plan: Plan
    teacher: Teacher | None
    origin: Any
    pairs: list[FeaturePair]
    source: Source
    conditions: Sequence | None = None

    def distiller(
        self,
        student: TappedStudent,
        teacher: nn.Module | None,
        device: torch.device | str,
        kind: Callable[..., Distiller] = Distiller,
    ) -> Distiller:
        """The losses of this run.

        Args:
            student: on the device.
            teacher: there too, or None.
            device: of the step.
            kind: a subclass of `Distiller`, or what makes one, for other losses.
        """
        process = self.shell.process.to(device)
        return kind(
            student,
            replace(process, prediction=self.recipe.student.prediction or process.prediction),
            teacher=teacher,
            teacher_prediction=process.prediction,
            pairs=self.pairs,
            settings=self.recipe.losses,
        )

    @property
    def uses(self) -> int:
        """Steps that each batch serves, with the answers of a teacher that is asked."""
        return self.recipe.distill.uses if self.teacher is not None and self.recipe.losses.terms else 1

    @property
    def first_weights(self) -> str:
        """Where the student's come from, for people."""
        if self.origin is None:
            return "random"
        return "; ".join(["the teacher's most important channels", *left_out(self.origin.config, self.plan.config)])

    def card(self) -> dict[str, str]:
        """How the student is imported and called, for the pages that go with it; a plain one needs no slimdpm."""
        plain = hasattr(diffusers, self.plan.config["_class_name"])
        return {**self.shell.conditioning.card(), "first": "" if plain else "import slimdpm  # the U-Net's class\n"}

    def describe(self) -> list[str]:
        """What will run, in a few lines."""
        plan, recipe = self.plan, self.recipe
        widths = "-".join(str(c) for c in plan.config["block_out_channels"])
        lines = [f"student: {plan.config['_class_name']}, channels {widths}, {plan.cost}"]
        if self.teacher is not None or plan.cost != plan.teacher_cost:
            name = self.teacher.name if self.teacher else recipe.teacher or recipe.student.base
            lines.append(f"teacher: {name}, {plan.teacher_cost}: {plan.ratio:.2f} times the student's MACs")
        if recipe.student.timed is not None:
            lines.append(f"time: {recipe.student.timed}")
        if recipe.train.timed is not None:
            lines.append(f"hours: {recipe.train.timed}")
        if self.origin is not None:
            lines.append(f"first weights: {self.first_weights}")
        if self.teacher is not None:
            compared = "; ".join(str(pair) for pair in self.pairs) or "none, outputs only"
            why = "" if self.teacher.has_scales else ": a transformer has no features of a U-Net's scales"
            lines.append(f"feature pairs: {compared}{why}")
            if recipe.distill.guides:
                lines.append(f"guidance: of scale {recipe.distill.guidance:g} is learnt; samples need none, scale 1")
        conditioning = self.shell.conditioning.describe(recipe.conditioning.drop)
        lines += conditioning.splitlines() if conditioning else []
        lines += getattr(self.source, "remarks", [])
        held_out = f"; {recipe.data.held_out:,} are held out" if recipe.data.held_out else ""
        shown = f"{recipe.data.described(len(self.source))} as {described(self.shell.image_size)}"
        lines.append(f"data: {shown}{held_out}")
        train = recipe.train
        if train.warmup_steps >= train.steps:
            reached = f"{train.steps / train.warmup_steps:.0%} of train.lr"
            lines.append(f"warning: train.warmup is {train.warmup} of {train.steps} steps: the rate ends at {reached}")
        return lines
