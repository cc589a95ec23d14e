"""The training section of a recipe: the loop, how long it runs, and when it is good enough."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from slimdpm.system.amounts import duration
from slimdpm.system.validation import Batch, Count, Number, Section, Seed

Beta = Annotated[float, Field(ge=0, lt=1)]  # of AdamW
VALIDATIONS = 20  # in a run by default; and they take at most as small a part of it


class TimedTraining(Section):
    """What was measured for a budget of training time, and the steps that fit into it."""

    hours: float
    """that were given"""
    steps: Count
    step_seconds: float = Field(ge=0)
    other_seconds: float = Field(ge=0)
    """of the measurement, samples, validation, checkpoints and report"""
    machine: str
    runtime: str

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps of {self.step_seconds:.3g} s and {duration(self.other_seconds)} for samples, "
            f"checkpoints and report fit into {self.hours:g} hours, measured on {self.machine}, {self.runtime}"
        )


class TrainRecipe(Section):
    """The loop."""

    steps: Count = 100_000
    """optimiser steps"""
    hours: float | None = Field(None, gt=0, le=8760)
    """train so long, samples and report included: `steps` is what fits, see [a budget of training
    time](#a-budget-of-training-time)"""
    timed: TimedTraining | None = None
    """what was measured for `hours`, and the steps that it chose; written into the run's recipe, and a recipe that has
    it takes the same steps on any machine"""
    batch_size: Batch = 64
    """images in a step, over all processes"""
    max_batch_per_device: Batch | None = None
    """more are accumulated"""
    lr: float = Field(2e-4, gt=0, le=1e3)
    """AdamW's learning rate"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """`constant`, `linear`, `cosine`; by default `constant`, with `hours` `cosine`"""
    warmup: int | None = Field(None, ge=0, le=10**9)
    """steps in which the learning rate rises; a run keeps what it began with; by default 500, of a short run a tenth
    of its steps"""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """of AdamW"""
    weight_decay: Number = 0.0
    """of AdamW"""
    clip: float | None = Field(1.0, gt=0, le=1e6)
    """norm to which the gradient is clipped, or `null`"""
    snr_gamma: Literal["none"] | Annotated[float, Field(gt=0)] | None = None
    """γ of [min-SNR](https://arxiv.org/abs/2303.09556) weighting of L_DDPM; `none` weighs all timesteps alike, as the
    paper does; by default `5` for slim, `none` for train"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """`fp32`, `bf16`, `fp16`; weights stay in single precision"""
    ema: float = Field(0.9999, ge=0, lt=1)
    """decay of the averaged weights, reached gradually: after *s* steps it is at most *s* ÷ (9 + *s*), so that a short
    run's average is of about its last ninth; by default 0.9999, with `hours` more if else a long run's were of less"""
    freeze: list[str] = Field([])
    """parameters of the student that stay as they start, by patterns such as `"*.gate.*"`"""
    seed: Seed = 0
    """of initial weights, order, noise"""
    compile: bool = False
    """`torch.compile` student and teacher"""
    gradient_checkpointing: bool = False
    """less memory, more time"""
    checkpoint_every: Count = 1000
    """steps"""
    keep: Count = 2
    """newest checkpoints kept"""
    log_every: Count = 50
    """steps"""
    sample_every: int | None = Field(None, ge=0, le=10**9)
    """steps between grids of samples; 0 for none; by default a fifth of the steps"""
    validate_every: int | None = Field(None, ge=0, le=10**9)
    """steps between measurements of the error on `data.held_out`, and there is one at the end; 0 for none; by default
    a twentieth of the steps, more if else it would cost more than a twentieth of the training"""
    until: float | None = Field(None, gt=0, le=1e6)
    """stop when the error on `data.held_out` is at most so many times the teacher's, see [good enough](#good-enough)"""
    trackers: list[str] = Field(["tensorboard"])
    """any that accelerate knows; `[]` for none"""

    @model_validator(mode="after")
    def _steps_or_hours(self) -> TrainRecipe:
        timed, named = self.timed, "steps" in self.model_fields_set
        if named and self.undecided:
            raise ValueError("give steps or hours, not both: hours choose the steps")
        if timed is not None and timed.hours != self.hours:
            raise ValueError(f"timed is of {timed.hours:g} hours: leave steps and timed out to have others measured")
        if timed is not None and (not named or timed.steps != self.steps):
            raise ValueError(f"hours chose {timed.steps} steps: leave hours and timed out to have others")
        return self

    @property
    def warmup_steps(self) -> int:
        return min(500, self.steps // 10) if self.warmup is None else self.warmup

    @property
    def undecided(self) -> bool:
        """Whether the number of steps is still to be measured."""
        return self.hours is not None and self.timed is None

    def validation_gap(self, held_out: int) -> int:
        """Steps, at least, between two measurements of the error on so many images, unless `validate_every` says else.

        Of an image a step takes what three predictions do and more: forward, backward, the teacher.
        """
        return math.ceil(VALIDATIONS * held_out / (3 * self.batch_size))

    def validates(self, step: int, held_out: int) -> bool:
        """Whether the error on so many images is measured after a step."""
        every = self.validate_every
        if every is None:
            every = max(1, self.steps // VALIDATIONS, self.validation_gap(held_out))
        return bool(held_out and every) and (step % every == 0 or step == self.steps)

    def within(self, timed: TimedTraining) -> TrainRecipe:
        """With the steps that were chosen; the average is of the last ninth of them however many they are."""
        ema = self.ema if "ema" in self.model_fields_set else max(self.ema, 1 - 9 / (9 + timed.steps))
        return self.model_copy(update={"steps": timed.steps, "timed": timed, "ema": ema})
