"""Images of models and data sets, and their features, made once and kept in shards.

A shard is a fixed range of image numbers. Processes share the shards among them; what is on the disk is not made again,
so a kill costs one shard. One that is not what was written is made again. One shard is in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from diffusers import DiffusionPipeline

from slimdpm.conditioning import Request
from slimdpm.data.dataset import Images
from slimdpm.metrics.extractors import Extractor
from slimdpm.pipelines.sampling import make_scheduler, sample_batches
from slimdpm.pipelines.shell import network_of, shell_of
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import atomic_file, read_sealed, remove_leftovers, write_json, write_sealed
from slimdpm.system.hashing import content_of, fingerprint, settings_of
from slimdpm.system.processes import processes
from slimdpm.system.progress import Display

SHARD = 64  # images


class ImageSet(Protocol):
    """Numbered images of one size.

    Attributes:
        name: for people.
        key: a short name for files; another key means other images.
        stored: the images lie on the disk already.
    """

    name: str
    key: str
    stored: bool

    def __len__(self) -> int: ...

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
        self.key = _short(([fingerprint(model) for model in models], sampler, *shown))

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

    def __post_init__(self) -> None:
        self.order = np.random.default_rng(self.seed).permutation(len(self.data))[: self.most]
        self.key = _short(
            (content_of(self.data.source, self.data.memory), repr(self.data.decoder), self.most, self.seed, SHARD)
        )

    def __len__(self) -> int:
        return len(self.order)

    def images(self, first: int, last: int) -> np.ndarray:
        return np.stack([self.data.square(int(i)) for i in self.order[first:last]])


@dataclass(frozen=True)
class Collected:
    """A set of images with its features on the disk."""

    images: ImageSet
    folder: Path
    extractor: Extractor

    @property
    def name(self) -> str:
        return self.images.name

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[np.ndarray]:
        """uint8 ``(B, H, W, C)``, shard by shard."""
        for first, last in _ranges(len(self.images)):
            if self.images.stored:
                yield self.images.images(first, last)
            else:
                yield np.load(_images_file(self.folder, first))[: last - first]

    def features(self) -> np.ndarray:
        """float32 ``(N, D)``."""
        return self._gather("features")

    def logits(self) -> np.ndarray | None:
        """float32 ``(N, classes)``, or None if the extractor has none."""
        with np.load(self._file(0)) as first:
            return self._gather("logits") if "logits" in first.files else None

    def _file(self, first: int) -> Path:
        return _features_file(self.folder, self.extractor, first)

    def _gather(self, what: str) -> np.ndarray:
        result: np.ndarray | None = None
        for first, last in _ranges(len(self.images)):
            with np.load(self._file(first)) as shard:
                part = shard[what]
            if result is None:
                result = np.empty((len(self.images), part.shape[1]), np.float32)
            result[first:last] = part[: last - first]
        assert result is not None
        return result


def collect(images: ImageSet, root: Path, extractor: Extractor, display: Display) -> Collected:
    """Make what is missing of a set's images and features; all processes share the work, and all wait for it.

    Args:
        images: the set.
        root: below it each set has a folder of its own.
        extractor: of the features.
        display: where progress is shown.

    Raises:
        SlimdpmError: if the disk is full.
    """
    state = processes()
    folder = root / f"{_slug(images.name)}-{images.key}"
    collected = Collected(images, folder, extractor)
    if state.is_main_process:
        (folder / _extractor_folder(extractor)).mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / _extractor_folder(extractor)):
            remove_leftovers(place)
        write_json(folder / "images.json", {"name": images.name, "count": len(images), "key": images.key})
    state.wait_for_everyone()
    mine = list(_ranges(len(images)))[state.process_index :: state.num_processes]
    missing = [r for r in mine if not _done(images, folder, extractor, r, display)]
    total = sum(last - first for first, last in mine)
    left = sum(last - first for first, last in missing)
    with display.task(f"images and features of {images.name}", total, done=total - left, unit="images") as task:
        for first, last in missing:
            made = _make_images(images, folder, first, last, display)
            features, logits = extractor(made)
            arrays: dict[str, Any] = (
                {"features": features} if logits is None else {"features": features, "logits": logits}
            )
            file = _features_file(folder, extractor, first)
            _write(file, partial(np.savez, **arrays), f"{images.key} {extractor.key}", len(made))
            task.advance(last - first)
    state.wait_for_everyone()
    return collected


def _done(images: ImageSet, folder: Path, extractor: Extractor, shard: tuple[int, int], display: Display) -> bool:
    """Whether a shard's files are there, as they were written, and hold as many images as wanted."""
    count, file = shard[1] - shard[0], _features_file(folder, extractor, shard[0])
    if not _intact(file, f"{images.key} {extractor.key}", count, display):
        return False
    return images.stored or _intact(_images_file(folder, shard[0]), images.key, count, display)


def _make_images(images: ImageSet, folder: Path, first: int, last: int, display: Display) -> np.ndarray:
    if images.stored:
        return images.images(first, last)
    file = _images_file(folder, first)
    if _intact(file, images.key, last - first, display):
        return np.load(file)
    made = images.images(first, last)
    _write(file, lambda stream: np.save(stream, made), images.key, len(made))
    return made


def _intact(file: Path, content: str, count: int, display: Display) -> bool:
    """Whether a file is there and what was written, for so many images: a smaller set's last shard is shorter."""
    if not file.exists():
        return False
    try:
        about = read_sealed(file.with_suffix(".json"))
        if about["content"] != content:
            raise SlimdpmError(f"{file} is of other images or features")
        return about["count"] >= count
    except SlimdpmError as error:
        file.unlink()
        display.say(f"{error}: {file.name} is made again")
        return False


def _write(path: Path, save: Callable[[Any], None], content: str, count: int) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        save(stream)
    write_sealed(path.with_suffix(".json"), {"content": content, "count": count}, [path])


def _ranges(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, SHARD):
        yield first, min(first + SHARD, count)


def _images_file(folder: Path, first: int) -> Path:
    return folder / f"{first:07d}.npy"


def _extractor_folder(extractor: Extractor) -> str:
    return _slug(f"{extractor.name}-{extractor.key}" if extractor.key != extractor.name else extractor.name)


def _features_file(folder: Path, extractor: Extractor, first: int) -> Path:
    return folder / _extractor_folder(extractor) / f"{first:07d}.npz"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")[-60:]


def _short(parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
