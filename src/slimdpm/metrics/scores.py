"""All metrics of sets of images against real ones: one table, with intervals, ratios and a floor."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from slimdpm.metrics import distances
from slimdpm.metrics.collect import Collected
from slimdpm.metrics.extractors import Extractor
from slimdpm.metrics.intervals import (
    Draws,
    Measured,
    draw,
    from_influence,
    from_jackknife,
    from_mean,
    from_parts,
    table,
)
from slimdpm.metrics.pairs import PIXELS, Followed
from slimdpm.metrics.sliced import patches, sliced_wasserstein
from slimdpm.metrics.spectral import spectra, spectral_metrics
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display

FEW = 10_000  # images; with less the bias of a Fréchet distance is worth a warning
NEIGHBOURS = 3  # of precision and recall
FEWEST = 10  # images of a set
_HALVES = 2 * FEWEST  # real images at least, for the floor


@dataclass
class Evaluation:
    """The result.

    Attributes:
        models: metrics by the model's name; the first is what the others are compared with.
        ratios: of each further model to the first.
        floor: what two random halves of the real images measure against each other; no model is expected below it.
        followed: how closely the further models follow the first; None if none starts from the same noise.
    """

    models: dict[str, dict[str, Measured]]
    ratios: dict[str, dict[str, Measured]] = field(default_factory=dict)
    floor: dict[str, Measured] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    followed: Followed | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "models": {name: table(values) for name, values in self.models.items()},
            "ratios_to_the_first": {name: table(values) for name, values in self.ratios.items()},
            "floor": table(self.floor),
            **({"from_the_first": self.followed.as_json()} if self.followed else {}),
            "warnings": self.warnings,
            **self.facts,
        }


Rows = tuple[list[str], list[list[str]]]


def tables(result: Evaluation) -> list[Rows]:
    """Headings and rows: each model's values, the ratios to the first, how far they are from it. A row is a metric."""
    found = [_values(result), _ratios(result), _followed(result)]
    return [rows for rows in found if rows[1]]


def _values(result: Evaluation) -> Rows:
    models = list(result.models)
    headings = ["metric", *models, *(["two halves of the real"] if result.floor else [])]
    values = [
        [metric, *(_cell(m.get(metric)) for m in result.models.values())]
        + ([_cell(result.floor.get(metric), interval=False)] if result.floor else [])
        for metric in result.models[models[0]]
    ]
    return headings, values


def _ratios(result: Evaluation) -> Rows:
    first, ratios = next(iter(result.models)), result.ratios
    metrics = result.models[first] if ratios else ()
    return [f"ratio to {first}", *ratios], [[m, *(_cell(r.get(m)) for r in ratios.values())] for m in metrics]


def _followed(result: Evaluation) -> Rows:
    if result.followed is None:
        return [], []
    first, found = next(iter(result.models)), result.followed
    headings = [f"from {first}'s of the same noise", *found.models, f"two of {first}'s own"]
    return headings, [[PIXELS, *map(_cell, found.models.values()), _cell(found.unrelated, interval=False)]]


def _cell(measured: Measured | None, interval: bool = True) -> str:
    if measured is None or not np.isfinite(measured.value):
        return "–"
    bounds = measured.interval
    text = f"{measured.value:.3g}"
    return f"{text} ({bounds[0]:.3g} to {bounds[1]:.3g})" if interval and bounds else text


@dataclass(frozen=True)
class _Reference:
    """What is known of the real images."""

    moments: distances.Moments | None
    features: np.ndarray | None = None
    spectra: np.ndarray | None = None
    patches: dict[int, np.ndarray] | None = None

    @cached_property
    def kernel_means(self) -> np.ndarray:
        """The reference's part of the kernel distance, the same for all models."""
        assert self.features is not None
        return distances.kernel_means(self.features)

    @cached_property
    def radii(self) -> np.ndarray:
        """The reference's balls, for precision."""
        assert self.features is not None
        return distances.neighbour_radii(self.features, NEIGHBOURS)


def score(
    collected: list[Collected],
    real: Collected | None,
    moments: distances.Moments | None,
    *,
    replicates: int = 500,
    seed: int = 0,
    display: Display | None = None,
) -> Evaluation:
    """Measure sets of images.

    Args:
        collected: the models' images; the first is what the others are compared with.
        real: the real images, in a random order; None if only their moments are known.
        moments: of the real images' features, for the Fréchet distance; None takes those of `real`.

    Raises:
        SlimdpmError: if a set has fewer than `FEWEST` images.
    """
    display = display or Display()
    for c in [*collected, *([real] if real else [])]:
        check_count(c.name, len(c))
    extractor = collected[0].extractor
    if real is not None:
        features = real.features()
        known = moments or distances.moments(features)
        reference = _Reference(known, features, spectra(real.batches()), patches(real.batches()))
    else:
        reference = _Reference(moments)
    counts = {len(c) for c in collected}
    draws = {n: draw(n, len(real) if real else 1, replicates=replicates, seed=seed) for n in counts}
    models = {}
    for c in display.track(collected, len(collected), "measuring", "models"):
        models[c.name] = _measure(c, reference, draws[len(c)], extractor)
    first = next(iter(models.values()))
    ratios = {
        name: {metric: value.ratio(first[metric]) for metric, value in values.items()}
        for name, values in list(models.items())[1:]
    }
    floor = {}
    if real is not None and len(real) >= _HALVES:
        floor = _floor(
            reference, draw(len(real) // 2, (len(real) + 1) // 2, replicates=replicates, seed=seed), extractor
        )
    return Evaluation(models, ratios, floor, _warnings(collected, real, extractor))


def check_count(name: str, count: int) -> None:
    """Raise a `SlimdpmError` for a set of so few images that nothing can be said of it."""
    if count < FEWEST:
        raise SlimdpmError(f"{name} has {count} images; {FEWEST} at least are needed")


def check_moments(moments: distances.Moments | None, features: np.ndarray, extractor: Extractor) -> None:
    """Raise a `SlimdpmError` for moments of other features than these ``(N, D)``."""
    if moments is not None and moments.mean.shape != features.shape[1:]:
        raise SlimdpmError(
            f"the reference statistics have {len(moments.mean)} features, {extractor.name} has {features.shape[1]}: "
            "they belong to another network"
        )


def _measure(c: Collected, reference: _Reference, draws: Draws, extractor: Extractor) -> dict[str, Measured]:
    """All metrics of one model."""
    result = _feature_metrics(c.features(), reference, draws, extractor)
    logits = c.logits()
    if logits is not None and extractor.name == "inception":
        score = distances.inception_score(logits)
        result["Inception Score"] = from_parts(score.value, score.parts, draws)
    if reference.spectra is not None and reference.patches is not None:
        result |= spectral_metrics(spectra(c.batches()), reference.spectra, draws)
        result |= sliced_wasserstein(patches(c.batches()), reference.patches, draws)
    return result


def _feature_metrics(
    features: np.ndarray, reference: _Reference, draws: Draws, extractor: Extractor
) -> dict[str, Measured]:
    result: dict[str, Measured] = {}
    if reference.moments is not None:
        name = extractor.distance_name
        value = distances.frechet_distance(reference.moments, distances.moments(features))
        without = distances.frechet_jackknife(features, reference.moments)
        result[name] = from_jackknife(value, without, draws)
        infinity = distances.frechet_infinity(features, reference.moments)
        moved = result[name].replicates - value  # as the same images move the plain distance
        result[f"{name}∞"] = Measured(infinity.value, infinity.value + infinity.spread * moved)
    if reference.features is not None:
        kernel = distances.kernel_distance(features, reference.features, reference.kernel_means)
        influences = (kernel.influence, kernel.reference_influence)
        result[_kernel_name(extractor)] = from_influence(kernel.value, *influences, draws)
        shares = distances.precision_recall(features, reference.features, NEIGHBOURS, reference.radii)
        result["precision"] = from_mean(shares.precise, draws.images)
        result["recall"] = from_mean(shares.recalled, draws.reference)
    return result


def _kernel_name(extractor: Extractor) -> str:
    return "KID" if extractor.name == "inception" else f"kernel distance ({extractor.name})"


def _floor(whole: _Reference, draws: Draws, extractor: Extractor) -> dict[str, Measured]:
    """One half of the real images measured against the other. They come in a random order already."""
    assert whole.features is not None and whole.spectra is not None and whole.patches is not None
    half = len(whole.features) // 2
    middle = {size: len(p) // 2 for size, p in whole.patches.items()}
    rest = whole.features[half:]
    return {
        **_feature_metrics(whole.features[:half], _Reference(distances.moments(rest), rest), draws, extractor),
        **spectral_metrics(whole.spectra[:half], whole.spectra[half:], draws),
        **sliced_wasserstein(
            {size: p[: middle[size]] for size, p in whole.patches.items()},
            {size: p[middle[size] :] for size, p in whole.patches.items()},
            draws,
        ),
    }


def _warnings(collected: list[Collected], real: Collected | None, extractor: Extractor) -> list[str]:
    fewest = min(len(c) for c in [*collected, *([real] if real else [])])
    name = extractor.distance_name
    found = []
    if fewest < FEW:
        found.append(
            f"{name} is biased upward with {fewest} images, the more so the better the model: compare it at equal "
            f"numbers only; {_kernel_name(extractor)} is unbiased, {name}∞ is extrapolated in the model's images"
        )
    if extractor.name != "inception":
        found.append(
            f"these features are {extractor.name}'s: the distances are no FID and compare only with their like"
        )
    return found
