"""Confidence intervals by the bootstrap, drawn once for all models, so that ratios of models are paired.

Every metric turns into replicates: its values on resampled images. Image i of a seed starts from the same noise in each
model, so all models are resampled alike, and all against the same resampled reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEVEL = 0.95  # of an interval


@dataclass(frozen=True)
class Measured:
    """A metric's value with its bootstrap replicates.

    Attributes:
        replicates: on resampled ones ``(B,)``; empty if the metric has none.
    """

    value: float
    replicates: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The percentile interval at `LEVEL`."""
        if not len(self.replicates):
            return None
        tail = 50 * (1 - LEVEL)
        low, high = np.percentile(self.replicates, [tail, 100 - tail])
        return float(low), float(high)

    def ratio(self, first: Measured) -> Measured:
        """This over the first model's."""
        if first.value == 0:
            return Measured(float("nan"))
        if not len(self.replicates) or not len(first.replicates) or not first.replicates.all():
            return Measured(self.value / first.value)  # the first may be 0: the ratio has no bounds
        return Measured(self.value / first.value, self.replicates / first.replicates)

    def as_json(self) -> dict[str, Any]:
        interval = self.interval
        value = self.value if np.isfinite(self.value) else None  # JSON knows no NaN
        return {"value": value, **({"low": interval[0], "high": interval[1]} if interval else {})}


@dataclass(frozen=True)
class Draws:
    """How often each image is drawn, as shares that sum to 1.

    Attributes:
        images: ``(B, N)`` float32.
        reference: ``(B, M)`` float32.
        groups: ``(B, G)``, for what is known for groups of images only.
    """

    images: np.ndarray
    reference: np.ndarray
    groups: np.ndarray


GROUPS = 10


def draw(count: int, reference_count: int, *, replicates: int = 500, seed: int = 0) -> Draws:
    """Draws of `count` images and as many reference images as there are, with replacement."""
    rng = np.random.default_rng(seed)
    return Draws(*(_shares(rng, n, replicates) for n in (count, reference_count, GROUPS)))


def _shares(rng: np.random.Generator, count: int, replicates: int) -> np.ndarray:
    shares = np.empty((replicates, count), np.float32)
    for row in shares:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return shares / np.float32(max(count, 1))


def from_mean(values: np.ndarray, shares: np.ndarray) -> Measured:
    """A mean over images ``(N,)``."""
    return Measured(float(np.mean(values)), shares @ np.asarray(values, np.float64))


def from_influence(value: float, influence: np.ndarray, reference_influence: np.ndarray, draws: Draws) -> Measured:
    """A statistic that is nearly linear in the images: its influences, mean 0, move it."""
    return Measured(value, value + draws.images @ influence + draws.reference @ reference_influence)


def unbiased_distance(values: np.ndarray) -> Measured:
    """A distance, never negative, of the sets and of each draw of them ``(1 + B,)``.

    Resampled sets are further apart than the sets themselves: that bias is taken off.
    """
    value, replicates = float(values[0]), values[1:]
    return Measured(value, np.maximum(replicates - replicates.mean() + value, 0))


def from_jackknife(value: float, without: np.ndarray, draws: Draws) -> Measured:
    """A statistic whose values without each group of images are known ``(G,)``: its pseudo-values are resampled."""
    groups = len(without)
    return from_parts(value, groups * value - (groups - 1) * without, draws)


def from_parts(value: float, parts: np.ndarray, draws: Draws) -> Measured:
    """A statistic that is the mean of parts ``(G,)``, one of each group of images."""
    spread = np.sqrt(len(parts) / (len(parts) - 1))  # so few are less spread than what they are drawn from
    return Measured(value, value + (draws.groups @ parts - parts.mean()) * spread)


def table(measured: Mapping[str, Measured]) -> dict[str, Any]:
    return {name: m.as_json() for name, m in measured.items()}
