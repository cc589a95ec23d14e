"""The paper's complexity tables, counted anew: ours beside the paper's (tables 1 to 4 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

from slimdpm.method.cost import measure
from slimdpm.method.presets import PRESETS, Preset
from slimdpm.system import amounts

# Task, and its presets: teacher, Lite, Spectral.
TASKS = {
    "FFHQ, CelebA-HQ, LSUN-Bedroom": "ldm4",
    "LSUN-Church": "ldm8-church",
    "ImageNet, class-conditional": "ldm4-imagenet",
    "text-to-image": "sd-v1",
}
KINDS = {"teacher": "", "Lite": "-lite", "Spectral": "-spectral"}


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        task, network: as the paper has them.
        macs: conv+linear, the paper's convention.
        macs_all: with the products inside attention.
        paper_params, paper_macs: the paper's, None where there is none.
        recalled: the paper's figures are from memory and not checked against its page.
    """

    task: str
    network: str
    preset: str
    params: int
    macs: int
    macs_all: int
    paper_params: float | None
    paper_macs: float | None
    recalled: bool
    note: str

    def cells(self) -> list[str]:
        """For a table: task, network, parameters, the paper's, difference, MACs, the paper's, difference, MACs all."""
        return [
            self.task,
            self.network,
            amounts.parameters(self.params),
            self._claim(self.paper_params, 1e6, "M"),
            difference(self.params, self.paper_params),
            amounts.macs(self.macs),
            self._claim(self.paper_macs, 1e9, "G"),
            difference(self.macs, self.paper_macs),
            amounts.macs(self.macs_all),
        ]

    def _claim(self, value: float | None, unit: float, letter: str) -> str:
        if value is None:
            return "–"
        return f"{value / unit:g} {letter}" + ("*" if self.recalled else "")


def difference(ours: float, paper: float | None) -> str:
    """In percent of the paper's figure."""
    return "–" if paper is None else f"{100 * (ours / paper - 1):+.2f} %"


def complexity_rows() -> list[Row]:
    """Every network of the paper's complexity claims, in the paper's order."""
    return [_row(task, kind, PRESETS[base + suffix]) for task, base in TASKS.items() for kind, suffix in KINDS.items()]


def _row(task: str, kind: str, preset: Preset) -> Row:
    cost = measure(preset.config, tokens=preset.tokens)
    return Row(
        task, kind, preset.name, cost.params, cost.macs, cost.macs_all, *preset.paper, preset.recalled, preset.note
    )
