"""Tar files of images: WebDataset shards, in which ``000.jpg``, ``000.cls`` and ``000.txt`` belong together, or folders
for classes.

The shards are indexed once by the offsets in them, so that any image can be read at any time.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from slimdpm.data.images import EXTENSIONS, open_image
from slimdpm.data.labels import MOST_TEXT, Labels, folder_labels, number_labels
from slimdpm.system.documents import decoded
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.hashing import digest_files

_BLOCK = 512  # a tar file is made of these, and ends with two that are zero


@dataclass
class _Sample:
    """One image of a shard, and what lies beside it."""

    shard: Path
    name: str
    offset: int
    size: int
    beside: dict[str, bytes] = field(default_factory=dict)  # by extension


class Shards:
    """The images in tar files, in the order in which they lie there.

    Args:
        files: uncompressed tar files.
        labels: the extension of the files with the classes, by default ``"cls"``; where there are none of these, the
            folders in the tar files are classes.
        texts: the extension of those with the captions, by default ``"txt"``.

    Raises:
        SlimdpmError: for a file that is no tar file or is cut short, or if there are no images.
    """

    def __init__(self, files: Sequence[Path], labels: str | None = None, texts: str | None = None):
        self.files, self.label_extension, self.text_extension = list(files), f".{labels or 'cls'}", f".{texts or 'txt'}"
        self.named = labels is not None
        self.samples = [sample for file in self.files for sample in self._index(file)]
        if not self.samples:
            raise SlimdpmError(f"{self.files[0]} holds no images")

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Image.Image:
        sample = self.samples[index]
        with sample.shard.open("rb") as shard:
            shard.seek(sample.offset)
            data = shard.read(sample.size)
        return open_image(io.BytesIO(data))

    def name(self, index: int) -> str:
        return f"{self.samples[index].shard.name}/{self.samples[index].name}"

    def identity(self) -> str:
        return repr([(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in self.files])

    def content(self) -> str:
        return digest_files(self.files)

    def labels(self) -> Labels | None:
        values = self._beside(self.label_extension)
        if values is not None:
            return number_labels(values, self.name)
        places = [PurePosixPath(sample.name).parts for sample in self.samples]
        return None if self.named else folder_labels(places, self.name, self.files[0])

    def captions(self) -> list[str | None] | None:
        return self._beside(self.text_extension)

    def _beside(self, extension: str) -> list[str | None] | None:
        """The text beside each image, None if there is none beside any."""
        if not any(extension in sample.beside for sample in self.samples):
            return None
        return [
            decoded(sample.beside[extension], f"{extension} of {self.name(i)}").strip()
            if extension in sample.beside
            else None
            for i, sample in enumerate(self.samples)
        ]

    def _index(self, file: Path) -> list[_Sample]:
        """The samples of one shard. What belongs together lies together, and is called alike up to the first dot."""
        samples: dict[str, _Sample] = {}
        beside: dict[str, dict[str, bytes]] = {}
        whole = False
        with blamed(f"{file} cannot be read as a tar file"), file.open("rb") as data:
            try:
                with tarfile.open(file, "r:") as tar:
                    for member in _in_order(tar, file.stat().st_size):
                        path = PurePosixPath(member.name)
                        stem, _, suffix = path.name.partition(".")
                        key, extension = str(path.with_name(stem)) if stem else "", f".{suffix.lower()}"
                        if not member.isfile() or not stem:
                            continue
                        if extension in (self.label_extension, self.text_extension):
                            data.seek(member.offset_data)
                            beside.setdefault(key, {})[extension] = data.read(min(member.size, MOST_TEXT + 1))
                        elif extension in EXTENSIONS and key not in samples:
                            samples[key] = _Sample(file, member.name, member.offset_data, member.size)
                    data.seek(tar.offset)
                    whole = data.read(2 * _BLOCK) == bytes(2 * _BLOCK)
            except tarfile.ReadError:
                if not samples:
                    raise
        if not whole:
            raise SlimdpmError(f"the shard {file} is cut short: it lacks a tar file's end; fetch or write it again")
        for key, sample in samples.items():
            sample.beside = beside.get(key, {})
        return list(samples.values())


def _in_order(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file of so many bytes, each of them behind the one before.

    Raises:
        ValueError: if one is not, which might go on for ever, or has holes.
        tarfile.ReadError: if one is cut short.
    """
    end = 0
    for member in tar:
        if member.size < 0 or member.offset_data < end or member.sparse is not None:
            raise ValueError(f"the header of {member.name} is no plain file's")
        end = member.offset_data + member.size if member.isfile() else member.offset_data
        if end > size:
            raise tarfile.ReadError(f"{member.name} ends behind the end of the file")
        yield member
