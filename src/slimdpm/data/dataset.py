"""Training data: every image checked once, its square cached."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from slimdpm.data.arrays import Arrays
from slimdpm.data.images import pixels, square, upright
from slimdpm.data.loader import Loader
from slimdpm.data.sources import Source, content_of
from slimdpm.system.amounts import storage
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.files import atomic_file, read_sealed, write_sealed
from slimdpm.system.hashing import short
from slimdpm.system.progress import Display
from slimdpm.system.sizes import Size, sides
from slimdpm.system.tensor_store import Store

_LISTED = 5  # broken files named in full
_HELD_OUT = 4  # beside the numbers that `TrainingStream` seeds order and augmentation with
# Why an image cannot be read through no fault of its own: handles or memory used up, a mount that is gone.
_SYSTEMS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOTCONN}


@dataclass(frozen=True)
class Decoder:
    """From a source's image to the square that the network sees, or to the rectangle.

    Attributes:
        size: of the square in pixels, or ``(height, width)``.
        channels: see `slimdpm.data.images.MODES`.
        crop: ``"center"`` or ``"random"``.
        interpolation: of the resize.
    """

    size: Size
    channels: int = 3
    crop: str = "center"
    interpolation: str = "bilinear"

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)`` of the squares."""
        return (*sides(self.size), self.channels)

    def __call__(self, source: Source, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """The square ``(H, W, C)`` uint8."""
        image = upright(source.image(index), self.channels)
        return pixels(square(image, self.size, crop=self.crop, interpolation=self.interpolation, rng=rng))

    def attempt(self, source: Source, index: int) -> tuple[np.ndarray | None, str | None]:
        """The square, or the reason why the image is broken.

        Raises:
            SlimdpmError: if it is not the image that is, but the system.
        """
        try:
            return self(source, index), None
        except Exception as error:  # decoders raise anything at all on a broken file
            if isinstance(error, OSError) and error.errno in _SYSTEMS:
                raise SlimdpmError(f"the image {source.name(index)} cannot be read: {error.strerror}") from None
            return None, f"{type(error).__name__}: {error}".splitlines()[0][:120]


@dataclass(frozen=True)
class Images:
    """Images that are known to be readable.

    Attributes:
        good: the source's numbers of the readable ones.
        broken: the names of those that are not, with the reason.
        squares: all squares ``(len(source), H, W, C)`` if they are cached, else None.
        conditions: what is known of each of the source's images (a class, a caption), None if it is of no account.
        latents: the clean samples of all of the source's images, if they are kept: a store with the parts of
            `slimdpm.pipelines.shell.Shell.moments`, each as it is and mirrored, or once if mirroring is flipping it.
        memory: a folder that remembers what the images are, see `slimdpm.data.sources.content_of`.
    """

    source: Source
    decoder: Decoder
    good: np.ndarray
    broken: list[tuple[str, str]]
    squares: np.ndarray | None
    conditions: Sequence | None = None
    latents: Store | None = None
    memory: Path | None = None

    def __len__(self) -> int:
        return len(self.good)

    def square(self, number: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """The square of the `number`-th good image, uint8 ``(H, W, C)``."""
        index = int(self.good[number])
        if self.squares is not None:
            return self.squares[index]
        with blamed(f"the image {self.source.name(index)} cannot be read any more"):
            return self.decoder(self.source, index, rng)

    def moments(self, number: int, mirrored: bool) -> dict[str, Tensor]:
        """What is kept of the clean sample of the `number`-th good image, float32 ``(C, h, w)`` each."""
        assert self.latents is not None
        row = self.latents.row(int(self.good[number]))  # (variants, C, h, w) of each part
        chosen = {part: variants[int(mirrored) % len(variants)].float() for part, variants in row.items()}
        return {part: rows.flip(-1) if mirrored and len(row[part]) == 1 else rows for part, rows in chosen.items()}

    def condition(self, number: int) -> Any:
        """What is known of the `number`-th good image."""
        assert self.conditions is not None
        return self.conditions[int(self.good[number])]

    def parted(self, count: int, seed: int) -> tuple[Images, Images]:
        """All but `count` of them, and these: the seed draws which."""
        drawn = np.random.default_rng([seed, _HELD_OUT]).permutation(len(self))
        rest, held_out = (np.sort(self.good[numbers]) for numbers in (drawn[count:], drawn[:count]))
        return replace(self, good=rest), replace(self, good=held_out)

    def report_broken(self) -> str | None:
        """One line about what was skipped, or None."""
        if not self.broken:
            return None
        named = "; ".join(f"{name} ({reason})" for name, reason in self.broken[:_LISTED])
        more = f"; and {len(self.broken) - _LISTED} more" if len(self.broken) > _LISTED else ""
        return f"{len(self.broken)} of {len(self.source)} images cannot be read and are skipped: {named}{more}"


def prepare_images(
    source: Source,
    decoder: Decoder,
    *,
    cache: Path | None = None,
    workers: int = 0,
    display: Display | None = None,
) -> Images:
    """Decode every image once: the broken ones are found before training, the squares are kept if they can be.

    Args:
        cache: a folder for the squares (center crops) and for the list of broken images; None keeps nothing.

    Raises:
        SlimdpmError: if no image can be read, or the cache does not fit on the disk.
    """
    display = display or Display()
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Arrays) and source.images.shape[1:] == decoder.shape:
        return Images(source, decoder, np.arange(len(source)), [], source.images, memory=cache)
    if cache is not None:
        fresh = not any(cache.glob("images-*.json"))
        if fresh and all(decoder.attempt(source, i)[1] for i in range(len(source))):
            cache = None  # none can be read, as is said below: there is nothing to keep
    keep_squares = cache is not None and decoder.crop == "center"
    key = short(content_of(source, cache), repr(decoder)) if cache else ""
    index_file = cache / f"images-{key}.json" if cache else None
    squares_file = cache / f"images-{key}.npy" if cache and keep_squares else None
    broken = None if index_file is None else _kept(index_file, display)
    if broken is None:
        broken = _decode_all(source, decoder, squares_file, workers, display)
        check_readable(source, broken)
        if index_file is not None:
            listed = [[i, name, reason] for i, (name, reason) in broken.items()]
            write_sealed(index_file, {"broken": listed}, [squares_file] if squares_file else [])
    good = np.array([i for i in range(len(source)) if i not in broken])
    squares = np.load(squares_file, mmap_mode="r") if squares_file else None
    return Images(source, decoder, good, list(broken.values()), squares, memory=cache)


def _kept(index_file: Path, display: Display) -> dict[int, tuple[str, str]] | None:
    """The broken images of a cache that is as it was written; None if there is none."""
    if not index_file.exists():
        return None
    try:
        return {i: (name, reason) for i, name, reason in read_sealed(index_file)["broken"]}
    except SlimdpmError as error:
        display.say(f"{error}; the images are decoded again")
        return None


def check_readable(source: Source, broken: Mapping[int, tuple[str, str]]) -> None:
    """Raise a `SlimdpmError` if all of a source's images are among the broken ones: number to (name, reason)."""
    if len(broken) == len(source):
        name, reason = next(iter(broken.values()))
        raise SlimdpmError(f"none of the {len(source)} images can be read; the first is {name} ({reason})")


def _decode_all(
    source, decoder, squares_file: Path | None, workers: int, display: Display
) -> dict[int, tuple[str, str]]:
    """Decode every image, into the cache if there is one. Returns the broken ones: number to (name, reason)."""
    broken: dict[int, tuple[str, str]] = {}
    loader = Loader(_Attempts(source, decoder), num_workers=workers)
    results = display.track(loader, len(source), "reading images", "images")
    if squares_file is None:
        broken.update({i: (source.name(i), reason) for i, _, reason in results if reason})
        return broken
    shape = (len(source), *decoder.shape)
    with atomic_file(squares_file) as temporary:
        squares = _reserve(temporary, shape)
        for i, array, reason in results:
            if reason:
                broken[i] = (source.name(i), reason)
            else:
                squares[i] = array
        squares.flush()
    return broken


class _Attempts(Dataset):
    """Each image decoded, or the reason why it cannot be: (number, square or None, reason or None)."""

    def __init__(self, source: Source, decoder: Decoder):
        self.source, self.decoder = source, decoder

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | None, str | None]:
        return index, *self.decoder.attempt(self.source, index)


def _reserve(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """A writable memory map whose space is taken from the disk now: a full disk is an error here, not a crash later."""
    squares = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    needed, free = squares.nbytes, shutil.disk_usage(file.parent).free
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, handle.seek(0, os.SEEK_END))
    elif needed > free:
        raise SlimdpmError(f"the squares need {storage(needed)}, {storage(free)} are free; set data.cache=false")
    return squares
