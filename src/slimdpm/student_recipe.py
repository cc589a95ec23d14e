"""The student's section of a recipe: the network that is trained, and the budget that it is planned from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from slimdpm.system.validation import Section

_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_amount(value: Any) -> Any:
    """``"6.7G"`` as 6.7e9; what is no text passes through."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)\s*", value, re.IGNORECASE)
    if not match:
        raise ValueError(f"{value!r} is no amount; write for example 500M or 6.7G")
    return float(match[1]) * _UNITS.get(match[2].upper(), 1.0)


Amount = Annotated[float, BeforeValidator(parse_amount), Field(gt=0)]


class TimedStudent(Section):
    """What was measured for a budget in time, and what it chose."""

    config: dict[str, Any]
    """widths and depth, values of the diffusers config"""
    machine: str
    runtime: str
    teacher_ms: float = Field(gt=0)
    student_ms: float = Field(gt=0)

    def __str__(self) -> str:
        return (
            f"{self.student_ms:.2f} ms a call, {self.teacher_ms / self.student_ms:.2f} times less than the teacher's "
            f"{self.teacher_ms:.2f}, measured on {self.machine}, {self.runtime}"
        )


class StudentRecipe(Section):
    """The network that is trained."""

    kind: Literal["spectral", "plain", "lite"] | None = None
    """`spectral`: wavelet-gated resampling, as in the paper; without gates, the teacher's own resampling in a U-Net of
    diffusers, it is `plain` if it is distilled and `lite` if it is trained alone; by default `plain` for slim, `lite`
    for train"""
    base: str | None = None
    """for `train` without a teacher, and for a transformer's student: preset, config.json, or folder with one"""
    width: int | None = Field(None, ge=1, le=2**16)
    """base channels; the other levels keep the teacher's proportions"""
    ratio: float | None = Field(None, gt=1, lt=1000)
    """times fewer conv+linear MACs than the teacher; by default `12` for slim, if no budget is given"""
    max_macs: Amount | None = None
    """conv+linear MACs at most, `500M` or a number"""
    max_params: Amount | None = None
    """parameters at most"""
    speedup: float | None = Field(None, gt=1, lt=1000)
    """times faster than the teacher, one call of the network on this machine: chooses widths and depth"""
    max_ms: float | None = Field(None, gt=0, le=1e6)
    """milliseconds at most of one call of the network on this machine: chooses widths and depth"""
    runtime: Literal["pytorch", "onnxruntime", "openvino"] | None = None
    """where `speedup` and `max_ms` are measured: `pytorch`, which is the default and takes the GPU if there is one, or
    `onnxruntime` or `openvino` on the CPU, for a student that will be exported"""
    timed: TimedStudent | None = None
    """what `speedup` or `max_ms` chose and where it was measured; written into the run's recipe, and a recipe that has
    it gives the same student on any machine"""
    layout: Literal["sd"] | None = None
    """`sd`: one width times the teacher's proportions, with its norm groups, heads and depth, so that a student without
    gates fits a single file of Stable Diffusion in its original layout"""
    overrides: dict[str, Any] = Field({})
    """values of the diffusers config, among them `layers_per_block`, `wavelet_expansion`, `wavelet_down_mix`,
    `wavelet_gate_reduction`, `wavelet_gate_init`"""
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = None
    """`epsilon`, `v_prediction` or `sample`; by default the teacher's"""
    init: Literal["random", "teacher"] | None = None
    """first weights: `random`, or `teacher` for the most important channels of the teacher's own, see above; by
    default `teacher` for `slim` if the teacher is a U-Net, else `random`"""

    @model_validator(mode="after")
    def _one_budget(self) -> StudentRecipe:
        if len(self.budgets) > 1:
            raise ValueError(f"give one budget, not {' and '.join(self.budgets)}")
        if self.in_time and "block_out_channels" in self.overrides:
            raise ValueError(f"{self.budgets[0]} chooses the widths: leave block_out_channels out of the overrides")
        if self.layout is not None and "block_out_channels" in self.overrides:
            raise ValueError("layout chooses the widths: leave block_out_channels out of the overrides")
        for name in ("runtime", "timed"):
            if getattr(self, name) is not None and not self.in_time:
                raise ValueError(f"{name} belongs to a budget in time: give speedup or max_ms with it, or leave it out")
        return self

    @property
    def budgets(self) -> list[str]:
        """Which budgets are given."""
        known = ("width", "ratio", "max_macs", "max_params", "speedup", "max_ms")
        return [name for name in known if getattr(self, name) is not None]

    @property
    def in_time(self) -> bool:
        """Whether the budget is one in time."""
        return self.speedup is not None or self.max_ms is not None

    @property
    def fixed(self) -> dict[str, Any]:
        """The values of the diffusers config that are not planned any more."""
        return {**self.overrides, **(self.timed.config if self.timed is not None else {})}
