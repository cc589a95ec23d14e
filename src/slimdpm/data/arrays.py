"""Images in arrays: at hand, or in .npy and .npz files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slimdpm.data.images import picture
from slimdpm.data.labels import Labels, number_labels
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.hashing import digest

_LARGE, _PACKED = 2**30, 200  # bytes of an array that may unpack to any size, and times its packed size beyond that


class Arrays:
    """uint8 images ``(N, H, W, C)``, C 1, 3 or 4, or ``(N, H, W)``; their classes and captions, one for each.

    Args:
        label: what messages call them.
        classes: numbers or names.
        file: what they were read from, if it was a file: as long as that is the same, they are.
    """

    def __init__(
        self,
        images: np.ndarray,
        label: str = "array",
        classes: np.ndarray | Sequence | None = None,
        texts: np.ndarray | Sequence | None = None,
        file: Path | None = None,
    ):
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or images.dtype != np.uint8 or not images.size:
            raise SlimdpmError(
                f"{label}: expected uint8 images of shape (N, H, W, 3) or (N, H, W), got {images.dtype} "
                f"of shape {tuple(images.shape)}"
            )
        self.images, self.label, self.classes, self.texts, self.file = images, label, classes, texts, file

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        return picture(self.images[index])

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def identity(self) -> str:
        if self.file is not None:
            about = self.file.stat()
            return repr((str(self.file.resolve()), about.st_size, about.st_mtime_ns))
        return repr((self.label, self.content(), self.captions(), self._column(self.classes, "labels")))

    def content(self) -> str:
        return digest([repr(self.images.shape).encode(), *map(np.ascontiguousarray, self.images)])

    def labels(self) -> Labels | None:
        labels = self._column(self.classes, "labels")
        return None if labels is None else number_labels(labels, self.name)

    def captions(self) -> list[str] | None:
        return self._column(self.texts, "captions")

    def _column(self, values: np.ndarray | Sequence | None, what: str) -> list | None:
        if values is None:
            return None
        shape = values.shape if isinstance(values, np.ndarray) else (len(values),)
        if shape[:1] != (len(self),) or (len(shape) > 1 and what == "labels"):  # captions may be several for each
            raise SlimdpmError(f"{self.label}: {len(self)} images, but {what} of shape {shape}")
        return values.tolist() if isinstance(values, np.ndarray) else list(values)


def load_arrays(file: Path, labels: str, texts: str) -> Arrays:
    """The images of a .npy, or of the first array of an .npz that looks like images.

    Args:
        file: a .npy is read in place and may be larger than the memory.
        labels: the name of the array of classes in an .npz.
        texts: of that of captions.

    Raises:
        SlimdpmError: if there are none; nothing in the file is run.
    """
    with blamed(f"data {file} cannot be read as an array"):
        loaded = np.load(file, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Arrays(loaded, file.name, file=file)
        with loaded as archive:
            # One array by convention: "images", numpy's own "arr_0", or the first that looks like images.
            names = [n for n in ("images", "arr_0") if n in archive.files] + archive.files
            for name in dict.fromkeys(names):
                shape, dtype = _header(archive, name, file)
                if dtype == np.uint8 and len(shape) in (3, 4):
                    found = {n: archive[n] for n in (labels, texts) if n in archive.files and _header(archive, n, file)}
                    return Arrays(archive[name], file.name, found.get(labels), found.get(texts), file)
    raise SlimdpmError(f"data {file} holds no uint8 array of images, only {', '.join(archive.files) or 'nothing'}")


def _header(archive: Any, name: str, file: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of one of an archive's arrays, which may be read: it is no more than the file can hold."""
    about = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
    with archive.zip.open(about) as member:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](member)
    size = math.prod(shape) * dtype.itemsize
    packed = min(about.compress_size, file.stat().st_size)
    if min(shape, default=0) < 0 or size > about.file_size or size > max(_LARGE, _PACKED * packed):
        raise ValueError(f"{name} claims to be {size:,} bytes, unpacked from {packed:,}")
    return shape, dtype
