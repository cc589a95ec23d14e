"""Images of models and data sets, and their features, made once and kept; one shard is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline

from slimdpm.conditioning import Request
from slimdpm.data.dataset import Images
from slimdpm.data.sources import content_of
from slimdpm.metrics.extractors import Extractor
from slimdpm.pipelines.sampling import make_scheduler, sample_batches
from slimdpm.pipelines.shell import network_of, shell_of
from slimdpm.system.hashing import fingerprint, settings_of, short
from slimdpm.system.progress import Display
from slimdpm.system.sizes import sides
from slimdpm.system.tensor_store import Layout, Notes, Rows, Store

SHARD = 64  # images


class ImageSet(Protocol):
    """Numbered images of one size.

    Attributes:
        key: a short name for files; another key means other images.
        shape: of an image ``(H, W, C)``.
        stored: the images lie on the disk already.
    """

    name: str
    key: str
    shape: tuple[int, int, int]
    stored: bool

    def __len__(self) -> int: ...

    @property
    def start(self) -> str | None:
        """What samples are made of: another noise or condition is another start. None of what was not sampled here."""

    def images(self, first: int, last: int) -> np.ndarray:
        """uint8 ``(last − first, H, W, C)``."""


@dataclass
class Generated:
    """The first images of a pipeline's samples, see `slimdpm.pipelines.sampling.sample_batches`."""

    name: str
    pipeline: DiffusionPipeline
    count: int
    steps: int = 50
    scheduler: str | None = None
    seed: int = 0
    request: Request = field(default_factory=Request)
    stored: bool = False

    def __post_init__(self) -> None:
        scheduler = make_scheduler(self.pipeline, self.scheduler)
        shell = shell_of(self.pipeline)
        models = [network_of(self.pipeline), *shell.frozen]
        shown = sorted(shell.conditioning.facts(self.request).items())
        sampler = (type(scheduler).__name__, settings_of(scheduler.config), self.steps, self.seed, SHARD)
        self.key = short(repr(([fingerprint(model) for model in models], sampler, *shown)))
        asked = [(name, value) for name, value in shown if "guidance" not in name]  # which each follows in its own way
        self.start = short(repr((shell.shape, self.count, self.seed, *asked)))
        self.shape = (*sides(shell.image_size), shell.image_channels)

    def __len__(self) -> int:
        return self.count

    def images(self, first: int, last: int) -> np.ndarray:
        options: dict[str, Any] = {"steps": self.steps, "scheduler": self.scheduler, "seed": self.seed}
        options["request"] = self.request
        batches = sample_batches(self.pipeline, range(first, last), batch_size=SHARD, **options)
        return np.concatenate(list(batches))


@dataclass
class Given:
    """Images of a data set, in an order that the seed draws; all of them, or the first `most`."""

    name: str
    data: Images
    most: int | None = None
    seed: int = 0
    stored: bool = True
    start: str | None = None

    def __post_init__(self) -> None:
        self.order = np.random.default_rng(self.seed).permutation(len(self.data))[: self.most]
        settings = (self.data.decoder, self.most, self.seed, SHARD)
        self.key = short(content_of(self.data.source, self.data.memory), repr(settings))
        self.shape = self.data.decoder.shape

    def __len__(self) -> int:
        return len(self.order)

    def images(self, first: int, last: int) -> np.ndarray:
        return np.stack([self.data.square(int(i)) for i in self.order[first:last]])


@dataclass(frozen=True)
class Collected:
    """A set of images with its features on the disk: `pictures` are None where the images lie there already."""

    images: ImageSet
    extractor: Extractor
    pictures: Store | None
    found: Store

    @property
    def name(self) -> str:
        return self.images.name

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[np.ndarray]:
        """uint8 ``(B, H, W, C)``, shard by shard."""
        if self.pictures is None:
            return (self.images.images(*shard) for shard in self.found.layout.ranges())
        return (rows.numpy() for rows in self.pictures.batches("image"))

    def features(self) -> np.ndarray:
        """float32 ``(N, D)``."""
        return torch.cat(list(self.found.batches("features"))).numpy()

    def logits(self) -> np.ndarray | None:
        """float32 ``(N, classes)``, or None if the extractor has none."""
        return torch.cat(list(self.found.batches("logits"))).numpy() if "logits" in self.found.layout.parts else None


def collect(images: ImageSet, root: Path, extractor: Extractor, display: Display) -> Collected:
    """Make what is missing of a set's images and features; all processes share the work, and all wait for it.

    Args:
        root: below it each set has a folder of its own.
    """

    def make_features(numbers: range, notes: Notes) -> Iterator[Rows]:
        if pictures is None:
            yield _measured(extractor, images.images(numbers.start, numbers.stop))
        else:
            yield _measured(extractor, pictures.shard(numbers.start)["image"][: len(numbers)].numpy())

    pictures = None if images.stored else pictures_of(images, root, display)
    one = _measured(extractor, np.full((1, *images.shape), 128, np.uint8))
    layout = Layout(len(images), {part: tuple(rows.shape[1:]) for part, rows in one.items()}, shard=SHARD)
    kind = extractor.name if extractor.key == extractor.name else f"{extractor.name}-{extractor.key}"
    store = Store(_folder_of(images, root) / _slug(kind), layout)
    return Collected(images, extractor, pictures, store.build(make_features, f"features of {images.name}", display))


def pictures_of(images: ImageSet, root: Path, display: Display) -> Store:
    """The images of a set that is not stored elsewhere; what is missing is made, see `collect`."""

    def make(numbers: range, notes: Notes) -> Iterator[Rows]:
        yield {"image": torch.from_numpy(images.images(numbers.start, numbers.stop))}

    layout = Layout(len(images), {"image": images.shape}, torch.uint8, SHARD)
    return Store(_folder_of(images, root), layout).build(make, f"images of {images.name}", display)


def _folder_of(images: ImageSet, root: Path) -> Path:
    return root / _slug(f"{images.name}-{images.key}")


def _measured(extractor: Extractor, images: np.ndarray) -> Rows:
    features, logits = extractor(images)
    found = {"features": features} if logits is None else {"features": features, "logits": logits}
    return {part: torch.from_numpy(rows) for part, rows in found.items()}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")[-60:]
