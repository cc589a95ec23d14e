"""What the garments' teacher and its students are measured by: photographs that nothing is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slimdpm.conditioning import Request
from slimdpm.data.folder import Folder
from slimdpm.demo.judge import Photographs
from slimdpm.metrics.classifier import Classifier
from slimdpm.metrics.collect import Generated, collect
from slimdpm.metrics.distances import kernel_distance, kernel_means
from slimdpm.metrics.extractors import load_extractor
from slimdpm.system.packaged import ASSETS
from slimdpm.system.progress import Display

CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
EACH = 30  # samples of a class
SCHEDULER, STEPS = "dpm++", 25
SAMPLES = f"{EACH} of each class, {SCHEDULER}, {STEPS} steps, seed 0"


class Judge:
    """Sets samples beside the photographs of ``validation/`` and ``test/``.

    Args:
        photographs: the folder with these and ``train/``.
        work: where features and samples are kept.
        more: parts that are wanted besides, ``"train"``.
        unseen: the parts to judge by; choices are made on ``validation/`` alone.
    """

    def __init__(
        self,
        photographs: Path,
        work: Path,
        display: Display,
        more: tuple[str, ...] = (),
        unseen: tuple[str, ...] = ("validation", "test"),
    ):
        self.work, self.display = work, display
        self.extractor = load_extractor("efficientnet-lite0")
        self.classifier = Classifier.load(ASSETS / "garments/classifier.safetensors")
        self.parts = {
            name: Photographs(name, Folder(photographs / name), work, self.extractor, display)
            for name in (*more, *unseen)
        }
        judges = [self.parts[name] for name in unseen]
        self.real, self.labels = (np.concatenate([getattr(p, what) for p in judges]) for what in ("features", "labels"))
        self.within = kernel_means(self.real)

    @property
    def named(self) -> float:
        """Part of the photographs whose class the classifier names."""
        return self.classifier.accuracy(self.real, self.labels)

    def samples(self, name: str, pipeline: Any, guidance: float) -> tuple[np.ndarray, np.ndarray]:
        """Images, of the classes in turn, and their features."""
        request = Request(classes=CLASSES, guidance=guidance)
        made = Generated(name, pipeline, EACH * len(CLASSES), STEPS, SCHEDULER, request=request)
        found = collect(made, self.work, self.extractor, self.display)
        return np.concatenate(list(found.batches())), found.features()

    def verdict(self, features: np.ndarray) -> dict[str, Any]:
        """On samples of the classes in turn."""
        asked = np.arange(len(features)) % len(CLASSES)
        distance = kernel_distance(features, self.real, within=self.within)
        return {
            "kernel distance": distance.value,
            "its standard error": float(distance.influence.std() / np.sqrt(len(features))),
            "named": self.classifier.accuracy(features, asked),
            "named, by class": {
                name: self.classifier.accuracy(features[asked == i], asked[asked == i])
                for i, name in enumerate(CLASSES)
            },
        }
