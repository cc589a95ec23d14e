"""The ablation's images: for training, for choices, and for evaluation alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slimdpm.data.arrays import Arrays
from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.open_source import open_source
from slimdpm.data.sources import Source
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import atomic_file
from slimdpm.system.progress import Display

PARTS = ("train", "tune", "evaluation")
TUNING = 10  # one in so many training images is held out for choices


def prepare_parts(data: str, folder: Path, pixels: int, display: Display) -> dict[str, np.ndarray]:
    """The three parts as uint8 ``(N, pixels, pixels, 3)``, kept in the folder as .npy.

    Images whose names begin with ``train/`` are for training, one in ten of them for choices; all others are for
    evaluation. Squares are cut from the centre and shrunk with a Lanczos filter.

    Raises:
        SlimdpmError: if the names do not say which images are for training.
    """
    files = {part: folder / f"{part}.npy" for part in PARTS}
    if not all(file.exists() for file in files.values()):
        source = open_source(data)
        names = np.array(_names(data, source))
        train = np.flatnonzero(np.char.startswith(names, "train/"))
        rest = np.flatnonzero(~np.char.startswith(names, "train/"))
        if not len(train) or not len(rest):
            raise SlimdpmError(
                f"{data} must hold images below train/ and others (test/, validation/) that are for evaluation alone"
            )
        held_out = np.arange(len(train)) % TUNING == TUNING - 1
        images = prepare_images(
            source,
            Decoder(pixels, 3, "center", "lanczos"),
            cache=folder,
            workers=2,
            display=display,
        )
        if images.broken:
            raise SlimdpmError(f"{data}: {images.report_broken()}")
        assert images.squares is not None
        for part, numbers in (("train", train[~held_out]), ("tune", train[held_out]), ("evaluation", rest)):
            with atomic_file(files[part]) as temporary, temporary.open("wb") as stream:
                np.save(stream, images.squares[numbers])
    return {part: np.load(file) for part, file in files.items()}


def _names(data: str, source: Source) -> list[str]:
    """The images' names; an .npz may bring its own as ``names``."""
    if isinstance(source, Arrays) and data.endswith(".npz"):
        with np.load(data) as arrays:
            if "names" in arrays.files:
                return [str(name) for name in arrays["names"]]
    return [source.name(i) for i in range(len(source))]
