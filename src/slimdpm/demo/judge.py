"""What the demo's networks are worth: errors on photographs of the test, and samples of each class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from slimdpm.conditioning import Request
from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.images import to_model_range
from slimdpm.data.labels import labels_of
from slimdpm.data.open_source import open_source
from slimdpm.data.sources import Source
from slimdpm.metrics.classifier import Classifier
from slimdpm.metrics.collect import Generated, Given, collect
from slimdpm.metrics.denoising import TIMESTEPS, DenoisingErrors, denoising_errors
from slimdpm.metrics.distances import kernel_distance, kernel_means
from slimdpm.metrics.extractors import Extractor, load_extractor
from slimdpm.metrics.pairs import pixels_apart
from slimdpm.pipelines.shell import network_of, shell_of
from slimdpm.system.packaged import ASSETS
from slimdpm.system.progress import Display

PHOTOGRAPHS = "slimdpm:garments-test"
SIZE = 32  # pixels
EACH = 12  # samples of a class
STEPS = 20
SCHEDULER = "dpm++"
GUIDANCE = 2.0


@dataclass(frozen=True)
class Verdict:
    """On one network.

    Attributes:
        errors: of ε on the photographs.
        samples: uint8 ``(N, H, W, C)``, image i of class i modulo their number.
        distance: the samples' kernel distance to the photographs.
        deviation: its standard error, of the choice of samples.
        named: part of the samples whose class the classifier names.
    """

    errors: DenoisingErrors
    samples: np.ndarray
    distance: float
    deviation: float
    named: float

    def figures(self) -> dict[str, float]:
        """By their names in results; errors are means over the noise levels."""
        return {
            "error": float(np.mean(self.errors.overall)),
            "upper half": float(np.mean(self.errors.upper)),
            "kernel distance": self.distance,
            "its standard error": self.deviation,
            "named": self.named,
        }

    def apart(self, other: Verdict) -> float:
        """How far the samples are from another network's of the same noise: the mean of `pixels_apart`."""
        return float(pixels_apart(self.samples, other.samples).mean())


class Photographs:
    """Photographs of garments, in the order of their source.

    Attributes:
        classes: the names of the classes.
        labels: the class of each, by number.
        images: uint8 ``(N, H, W, C)``.

    Args:
        name: of their features.
        source: with a class for each image.
        folder: where features are kept.
        extractor: of them.
        display: where progress is shown.
    """

    def __init__(self, name: str, source: Source, folder: Path, extractor: Extractor, display: Display):
        self.folder, self.extractor, self.display = folder, extractor, display
        labels = labels_of(source)
        assert labels is not None and labels.names is not None
        self.classes, self.labels = labels.names, labels.numbers
        self._given = Given(name, prepare_images(source, Decoder(SIZE)))
        self.images = np.stack([self._given.data.square(number) for number in range(len(source))])

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def features(self) -> np.ndarray:
        """Of each photograph ``(N, D)``."""
        found = collect(self._given, self.folder, self.extractor, self.display).features()
        return found[np.argsort(self._given.order)]

    def shown(self, rows: int) -> np.ndarray:
        """The first ones of each class, as rows of samples are: uint8 ``(rows × classes, H, W, C)``."""
        of_class = [self.images[self.labels == number][:rows] for number in range(len(self.classes))]
        return np.stack(of_class, axis=1).reshape(-1, *self.images.shape[1:])


class Judge:
    """Photographs that nothing is trained on, and a classifier that was fitted to the training ones.

    Args:
        folder: where samples and features are kept.
        display: where progress is shown.
        photographs: any of garments, by default those of the test.

    Raises:
        SlimdpmError: if the packages of the extractor are not installed.
    """

    def __init__(self, folder: Path, display: Display, photographs: str = PHOTOGRAPHS):
        self.folder, self.display = folder, display
        self.extractor = load_extractor("efficientnet-lite0")
        self.classifier = Classifier.load(ASSETS / "garments/classifier.safetensors")
        self.photographs = Photographs("photographs", open_source(photographs), folder, self.extractor, display)

    @cached_property
    def named(self) -> float:
        """Part of the photographs whose class the classifier names."""
        return self.classifier.accuracy(self.photographs.features, self.photographs.labels)

    @cached_property
    def _within(self) -> np.ndarray:
        return kernel_means(self.photographs.features)

    def verdict(
        self, name: str, pipeline: DiffusionPipeline, guidance: float = GUIDANCE, each: int | None = None
    ) -> Verdict:
        """Of a class as many samples as `each`, by default `EACH`."""
        errors = self._errors(name, pipeline)
        photographs, classes = self.photographs, self.photographs.classes
        request = Request(classes=classes, guidance=guidance)
        made = Generated(name, pipeline, (each or EACH) * len(classes), STEPS, SCHEDULER, request=request)
        samples = collect(made, self.folder, self.extractor, self.display)
        features = samples.features()
        distance = kernel_distance(features, photographs.features, within=self._within)
        return Verdict(
            errors,
            np.concatenate(list(samples.batches())),
            distance.value,
            float(distance.influence.std() / np.sqrt(len(features))),
            self.classifier.accuracy(features, np.arange(len(features)) % len(classes)),
        )

    def _errors(self, name: str, pipeline: DiffusionPipeline) -> DenoisingErrors:
        shell, labels = shell_of(pipeline), torch.from_numpy(self.photographs.labels)

        def inputs(batch: slice) -> dict[str, Tensor]:
            return dict(shell.conditioning.training_inputs({"conditions": labels[batch]}))

        x = to_model_range(torch.from_numpy(self.photographs.images).permute(0, 3, 1, 2))
        with self.display.task(f"error of {name}", len(TIMESTEPS) * len(x), unit="photographs") as task:
            return denoising_errors(network_of(pipeline), shell.process, x, inputs=inputs, progress=task.advance)
