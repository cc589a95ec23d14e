"""What is chosen before the grid is run: learning rates, how gated resamplers mix channels, the distillation.

Each candidate is judged by the error of ε on images that are held out for choices, with one seed. The stages follow
each other: a later one is tried with what the earlier ones chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .grid import DENSE, DENSE_MIXED, GROUPED_MIXED, Cell, lambdas
from .measure import Measures, mean_error

RATES = (4e-3, 8e-3, 16e-3)


def rate_cells() -> list[Cell]:
    """The learning rates of Lite and of the gated network."""
    return [
        Cell(
            f"tune/{kind}-plain-{rate:g}",
            f"tune-{kind}",
            f"{kind}, learning rate {rate:g}",
            kind,
            distilled=False,
            rate=rate,
            stage=0,
        )
        for kind in ("lite", "spectral")
        for rate in RATES
    ]


def gating_cells() -> list[Cell]:
    """How the gated resamplers mix channels, but for the paper's way, which the rates were tried with."""
    ways = {"dense": DENSE, "mix": GROUPED_MIXED, "mixed": DENSE_MIXED}
    return [
        Cell(f"tune/gating-{name}", "tune-gating", f"gating: {name}", distilled=False, overrides=overrides, stage=1)
        for name, overrides in ways.items()
    ]


def loss_cells() -> list[Cell]:
    """The distillation: how much of it, from the outputs alone or from all feature pairs, as in the paper."""
    ways = {
        "outputs-0.5": lambdas(0.5, 0.5),
        "outputs-2": lambdas(2.0, 2.0),
        "all-0.1": lambdas(0.1, 0.1, **{"distill.pairs": "auto"}),
    }
    return [
        Cell(f"tune/losses-{name}", f"tune-{name.partition('-')[0]}", f"distillation: {name}", settings=way, stage=2)
        for name, way in ways.items()
    ]


def stages() -> list[list[Cell]]:
    """All candidates, stage by stage."""
    return [rate_cells(), gating_cells(), loss_cells()]


class Choices:
    """The winners so far.

    Args:
        measures: of a candidate that was run.
    """

    def __init__(self, measures: Callable[[Cell], Measures]):
        self._measures = measures

    def rate(self, cell: Cell) -> float:
        """A cell's learning rate."""
        rate = cell.rate or self._rated(cell.kind).rate
        assert rate is not None
        return rate

    def gating(self, cell: Cell) -> Mapping[str, Any]:
        """Values of a cell's config."""
        if cell.stage <= 1 or cell.kind == "lite":
            return {}
        return self._best([self._rated("spectral"), *gating_cells()]).overrides

    def losses(self, cell: Cell) -> Mapping[str, Any]:
        """Settings of a cell's distillation."""
        return self._best(loss_cells()).settings if cell.distilled and cell.stage > 2 else {}

    def _rated(self, kind: str) -> Cell:
        return self._best([cell for cell in rate_cells() if cell.kind == kind])

    def _best(self, cells: Sequence[Cell]) -> Cell:
        """The smallest error, averaged over the noise levels as a ratio to the first cell's."""
        found = [self._measures(cell) for cell in cells]
        errors = [mean_error(measures, found[0]) for measures in found]
        return cells[errors.index(min(errors))]
