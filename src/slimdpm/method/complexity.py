"""The paper's complexity tables, counted anew: ours beside the paper's (tables 1 to 4 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slimdpm.method.cost import Cost, measure
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
    """One network of a task, as the paper has them, with our preset and what we count of it."""

    task: str
    network: str
    preset: Preset
    cost: Cost

    def as_json(self) -> dict[str, Any]:
        params, macs = self.preset.paper
        theirs = {"paper_params": params, "paper_macs": macs, "recalled": self.preset.recalled}
        about = {"task": self.task, "network": self.network, "preset": self.preset.name, "note": self.preset.note}
        return {**about, **vars(self.cost), **theirs}

    def cells(self) -> list[str]:
        """For a table: task, network, parameters, the paper's, difference, MACs, the paper's, difference, MACs all."""
        cost, (params, macs) = self.cost, self.preset.paper
        counted = [amounts.parameters(cost.params), self._claim(params, 1e6, "M"), difference(cost.params, params)]
        counted += [amounts.macs(cost.macs), self._claim(macs, 1e9, "G"), difference(cost.macs, macs)]
        return [self.task, self.network, *counted, amounts.macs(cost.macs_all)]

    def _claim(self, value: float | None, unit: float, letter: str) -> str:
        if value is None:
            return "–"
        return f"{value / unit:g} {letter}" + ("*" if self.preset.recalled else "")


def difference(ours: float, paper: float | None) -> str:
    """In percent of the paper's figure."""
    return "–" if paper is None else f"{100 * (ours / paper - 1):+.2f} %"


def complexity_rows() -> list[Row]:
    """Every network of the paper's complexity claims, in the paper's order."""
    networks = [(task, kind, PRESETS[base + suffix]) for task, base in TASKS.items() for kind, suffix in KINDS.items()]
    return [Row(*network, measure(network[2].config, tokens=network[2].tokens)) for network in networks]
