"""How good a cell's student is: its error as a denoiser on unseen images, and its samples beside real images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.images import to_model_range
from slimdpm.data.open_source import open_source
from slimdpm.metrics import distances
from slimdpm.metrics.collect import Collected, Generated, Given, collect
from slimdpm.metrics.denoising import denoising_errors
from slimdpm.metrics.extractors import Extractor, load_extractor
from slimdpm.metrics.intervals import draw
from slimdpm.metrics.sliced import patches, sliced_wasserstein
from slimdpm.metrics.spectral import spectra, spectral_metrics
from slimdpm.pipelines.shell import shell_of
from slimdpm.system.progress import Display

EXTRACTOR = "efficientnet-lite0"  # needs no download

Measures = dict[str, float]


HELD_OUT = "held-out "  # what the errors on the images for choices are called beside those of the evaluation


def error_measures(pipeline: DiffusionPipeline, images: np.ndarray, prefix: str = "") -> Measures:
    """Mean squared errors of ε on images ``(N, H, W, C)`` uint8, one for each timestep, overall and upper half."""
    samples = to_model_range(torch.from_numpy(images).permute(0, 3, 1, 2))
    found = denoising_errors(pipeline.unet, shell_of(pipeline).process, samples)
    return {
        f"{prefix}{what} error t={t}": value
        for what, values in (("overall", found.overall), ("upper-half", found.upper))
        for t, value in zip(found.timesteps, values, strict=True)
    }


@dataclass(frozen=True)
class Judge:
    """Compares samples with the evaluation's images, whose features are computed once.

    Attributes:
        folder: keeps samples and features; an evaluation that was stopped goes on.
        images: the evaluation's, uint8 ``(N, H, W, C)``.
        count: samples of each network.
        steps: of dpm++.
    """

    folder: Path
    images: np.ndarray
    count: int
    steps: int

    def measures(self, name: str, pipeline: DiffusionPipeline) -> Measures:
        """Errors of the denoiser, and distances of its samples."""
        return {**error_measures(pipeline, self.images), **self.distances(name, pipeline)}

    def distances(self, name: str, pipeline: DiffusionPipeline) -> Measures:
        """Distances of its samples alone."""
        return self._compared(self._made(name, pipeline), self._real)

    def floor(self) -> Measures:
        """One half of the real images beside the other."""
        a, b = (self._given(f"half {i}", self.images[i::2]) for i in (0, 1))
        return self._compared(a, b)

    def samples(self, name: str, pipeline: DiffusionPipeline, count: int) -> np.ndarray:
        """The first of the samples that `measures` judges, uint8 ``(count, H, W, C)``."""
        return next(iter(self._made(name, pipeline).batches()))[:count]

    def _made(self, name: str, pipeline: DiffusionPipeline) -> Collected:
        samples = Generated(name, pipeline, self.count, self.steps, "dpm++", seed=0)
        return collect(samples, self.folder, self._extractor, Display())

    def _given(self, name: str, images: np.ndarray) -> Collected:
        data = prepare_images(open_source(images), Decoder(images.shape[1], images.shape[3]))
        return collect(Given(name, data), self.folder, self._extractor, Display())

    def _compared(self, found: Collected, real: Collected) -> Measures:
        features, reference = found.features(), real.features()
        none = draw(len(found), len(real), replicates=1)  # the ablation's intervals come from the seeds
        spectral = spectral_metrics(spectra(found.batches()), spectra(real.batches()), none)
        sliced = sliced_wasserstein(patches(found.batches()), patches(real.batches()), none)
        return {
            "kernel distance": distances.kernel_distance(features, reference).value,
            "Fréchet distance": distances.frechet_distance(distances.moments(reference), distances.moments(features)),
            **{metric: measured.value for metric, measured in {**spectral, **sliced}.items()},
        }

    @cached_property
    def _extractor(self) -> Extractor:
        return load_extractor(EXTRACTOR)

    @cached_property
    def _real(self) -> Collected:
        return self._given("real", self.images)


def mean_error(measures: Mapping[str, float], baseline: Mapping[str, float], what: str = "overall") -> float:
    """The error over a baseline's, averaged over the timesteps: they differ by orders of magnitude."""
    keys = [key for key in measures if key.startswith(f"{what} error t=")]
    return float(np.mean([measures[key] / baseline[key] for key in keys]))
