"""Images in a folder, and what lies beside them: metadata, captions, folders that are classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from slimdpm.data.images import EXTENSIONS, open_image
from slimdpm.data.labels import MOST_TEXT, TEXT_COLUMNS, Labels, folder_labels, number_labels
from slimdpm.data.metadata_files import Metadata, read_metadata
from slimdpm.system.documents import read_text
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.hashing import digest_files

_COMMON = {".jpg", ".png", ".webp"}


class Folder:
    """The image files below a folder, in the order of their paths.

    Classes and captions are those of metadata files beside the images. Without these, folders are classes, and
    ``a.txt`` is the caption of ``a.jpg``.

    Args:
        labels: the metadata's column of classes, by default ``"label"``.
        texts: the column of captions, by default the first of `slimdpm.data.labels.TEXT_COLUMNS` that is there; or the
            extension of the files that have them, by default ``"txt"``.
    """

    def __init__(self, root: Path, *, labels: str | None = None, texts: str | None = None):
        self.root, self.label_column, self.text_column = root, labels, texts
        self.remarks: list[str] = []
        below = files_below(root)
        self.files = _images(below)
        self.beside = set(below) - set(self.files)
        if not self.files:
            raise SlimdpmError(f"{root} holds no images ({', '.join(sorted(_COMMON))} and others are looked for)")

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        return open_image(self.files[index])

    def name(self, index: int) -> str:
        return str(self.files[index].relative_to(self.root))

    def labels(self) -> Labels | None:
        """Of the metadata; or of class folders, whose names are numbers or are numbered as torchvision does."""
        values = self._column(self.label_column, ("label",))
        if values is not None:
            return number_labels(values, self.name)
        if self.label_column is not None:
            raise self._lacks(self.label_column)
        if self.metadata.unlabelled:
            return None
        return folder_labels([file.relative_to(self.root).parts for file in self.files], self.name, self.root)

    def captions(self) -> list[Any] | None:
        values = self._column(self.text_column, TEXT_COLUMNS)
        if values is None:
            values = self._beside(f".{self.text_column or 'txt'}")
        if values is None and self.text_column is not None:
            raise self._lacks(self.text_column)
        return values

    @cached_property
    def metadata(self) -> Metadata:
        names = [file.relative_to(self.root).as_posix() for file in self.files]
        found = read_metadata(self.root, sorted(self.beside), names)
        self.remarks += found.remarks
        return found

    def _column(self, named: str | None, usual: Sequence[str]) -> list[Any] | None:
        """A column of the metadata: the one that is named, or the first of the usual ones that is there."""
        wanted = usual if named is None else (named,)
        column = next((column for column in wanted if column in self.metadata.columns), None)
        return None if column is None else [values.get(column) for values in self.metadata.rows]

    def _lacks(self, column: str) -> SlimdpmError:
        columns = ", ".join(sorted(self.metadata.columns)) or "nothing"
        return SlimdpmError(f"the metadata in {self.root} has no {column!r}, only {columns}")

    def _beside(self, extension: str) -> list[str | None] | None:
        """The text beside each image, None if there is none beside any."""
        files = [file.parent / f"{file.stem}{extension}" for file in self.files]
        if self.beside.isdisjoint(files):
            return None
        return [read_text(file, MOST_TEXT).strip() if file in self.beside else None for file in files]

    def identity(self) -> str:
        stats = [(self.name(i), f.stat().st_size, f.stat().st_mtime_ns) for i, f in enumerate(self.files)]
        return repr((str(self.root.resolve()), stats))

    def content(self) -> str:
        return digest_files(self.files)


def image_files(root: Path) -> list[Path]:
    """The image files below a folder, sorted."""
    return _images(files_below(root))


def files_below(root: Path) -> list[Path]:
    """All files below a folder, sorted, without what is hidden.

    Links are followed. Each folder is entered once, and under its own name if that lies below `root`, too: links may
    lead round in a circle.

    Raises:
        SlimdpmError: for a folder that cannot be read.
    """
    found, folders, linked, entered = [], [root], list[Path](), set()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop()
        with blamed(f"the folder {folder} cannot be read"):
            about = folder.stat()
            if (about.st_dev, about.st_ino) in entered:
                continue
            entered.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as entries:
                visible = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
            for entry in visible:
                path = folder / entry.name
                if entry.is_file(follow_symlinks=False) or os.path.isfile(path):
                    found.append(path)
                elif os.path.isdir(path):
                    (linked if entry.is_symlink() else folders).append(path)
            linked.sort(key=lambda link: (len(link.parts), link), reverse=True)  # the last one is the next
    return sorted(found)


def _images(files: Sequence[Path]) -> list[Path]:
    """Those that are images; the overview beside samples of `slimdpm sample` is none of them."""
    overviews = {file.with_name("grid.png") for file in files if file.name == "samples.json"}
    return [file for file in files if file.suffix.lower() in EXTENSIONS and file not in overviews]
