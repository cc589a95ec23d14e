"""How closely a model follows another: how far its samples are from the other's of the same noise and condition.

Distances of sets ask whether a student's samples look like photographs; these ask whether they are the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimdpm.metrics.collect import ImageSet
from slimdpm.metrics.intervals import Draws, Measured, draw, from_mean
from slimdpm.system.tensor_store import Store

PIXELS = "difference of pixels, of 255"


@dataclass(frozen=True)
class Followed:
    """How far samples are from the first model's, see `pixels_apart`; means over the images.

    Attributes:
        models: of each further model that starts where the first does.
        unrelated: of two samples of the first that have nothing to do with each other: what not following at all is.
    """

    models: dict[str, Measured]
    unrelated: Measured

    def as_json(self) -> dict[str, Any]:
        told = {**self.models, "two of the first's own": self.unrelated}
        return {name: {PIXELS: measured.as_json()} for name, measured in told.items()}


def pixels_apart(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The root of the mean squared difference of the pixels, which go to 255, of each image and its other: ``(N,)``.

    Args:
        images, others: uint8 ``(N, H, W, C)``.
    """
    squares = (images.astype(np.float64) - others) ** 2
    return np.sqrt(squares.mean(axis=tuple(range(1, squares.ndim))))


def alike(sets: Sequence[ImageSet]) -> list[ImageSet]:
    """The further sets that start where the first does."""
    first, *others = sets
    return [images for images in others if images.start is not None and images.start == first.start]


def followed(
    sets: Sequence[ImageSet], pictures: Mapping[str, Store | None], *, replicates: int = 500, seed: int = 0
) -> Followed | None:
    """Of each further set that starts where the first does; None if none does.

    Args:
        sets: of equally many images.
        pictures: the images of those that were sampled, by the sets' names, see `slimdpm.metrics.collect.Collected`.
        replicates, seed: of the intervals, see `slimdpm.metrics.intervals.draw`.
    """
    first, own, others = sets[0], pictures[sets[0].name], alike(sets)
    if own is None or not others:
        return None
    draws = draw(len(first), 1, replicates=replicates, seed=seed)
    stores = {images.name: store for images in others if (store := pictures[images.name]) is not None}
    found = {name: _between(own.batches("image"), store, draws) for name, store in stores.items()}
    return Followed(found, _between(_turned(own), own, draws))


def _between(images: Iterable[Tensor], others: Store, draws: Draws) -> Measured:
    pairs = zip(images, others.batches("image"), strict=True)
    return from_mean(np.concatenate([pixels_apart(a.numpy(), b.numpy()) for a, b in pairs]), draws.images)


def _turned(store: Store) -> Iterator[Tensor]:
    """The images of a store, each where the next one was; the last one comes first."""
    last = store.row(store.layout.rows - 1)["image"][None]
    for batch in store.batches("image"):
        yield torch.cat([last, batch[:-1]])
        last = batch[-1:]
