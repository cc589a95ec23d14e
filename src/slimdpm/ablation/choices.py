"""What is chosen before the grid is run: learning rates, how gated resamplers mix channels, the distillation.

Each candidate is judged by the error of ε on images that are held out for choices, with one seed. The stages follow
each other: a later one is tried with what the earlier ones chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slimdpm.ablation.grid import DENSE, DENSE_MIXED, FAMILIES, GROUPED_MIXED, Cell, lambdas
from slimdpm.ablation.measure import Measures, mean_error

RATES = (4e-3, 8e-3, 16e-3)
FIRST_LOSSES: Mapping[str, Any] = lambdas(0.5, 0.5)  # with which the rates are chosen, and a candidate itself


def rate_cells(*, distilled: bool) -> list[Cell]:
    """The learning rates of the plain families, or of the distilled ones."""
    return [
        Cell(
            f"tune/{kind}-{'distilled' if distilled else 'plain'}-{rate:g}",
            f"tune-{kind}",
            f"{kind}, {'distilled' if distilled else 'plain'}, learning rate {rate:g}",
            kind,
            distilled,
            rate=rate,
            stage=2 if distilled else 0,
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
    """The distillation, but for the one that the rates were tried with."""
    ways = {
        "outputs-2": lambdas(2.0, 2.0),
        "all-0.1": lambdas(0.1, 0.1, **{"distill.pairs": "auto"}),
    }
    return [
        Cell(f"tune/losses-{name}", f"tune-{name}", f"distillation: {name}", settings=settings, stage=3)
        for name, settings in ways.items()
    ]


def stages() -> list[list[Cell]]:
    """All candidates, stage by stage."""
    return [rate_cells(distilled=False), gating_cells(), rate_cells(distilled=True), loss_cells()]


class Choices:
    """The winners so far.

    Args:
        measures: of a candidate that was run.
    """

    def __init__(self, measures: Callable[[Cell], Measures]):
        self._measures = measures

    def rate(self, family: str) -> float:
        """The learning rate of a family."""
        rate = self._best_rated(family).rate
        assert rate is not None
        return rate

    def gating(self, cell: Cell) -> Mapping[str, Any]:
        """Values of a cell's config."""
        if cell.stage <= 1 or cell.kind == "lite":
            return {}
        return self._best([self._best_rated(FAMILIES["spectral", False]), *gating_cells()]).overrides

    def losses(self, cell: Cell) -> Mapping[str, Any]:
        """Settings of a cell's distillation."""
        if not cell.distilled:
            return {}
        if cell.stage <= 3:
            return FIRST_LOSSES
        best = self._best([self._best_rated(FAMILIES["spectral", True]), *loss_cells()])
        return {**FIRST_LOSSES, **best.settings}

    def _best_rated(self, family: str) -> Cell:
        rated = [*rate_cells(distilled=False), *rate_cells(distilled=True)]
        return self._best([cell for cell in rated if cell.family == family])

    def _best(self, cells: Sequence[Cell]) -> Cell:
        """The smallest error, averaged over the noise levels as a ratio to the first cell's."""
        found = [self._measures(cell) for cell in cells]
        errors = [mean_error(measures, found[0]) for measures in found]
        return cells[errors.index(min(errors))]
