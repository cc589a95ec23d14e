"""What files beside images say of them.

``metadata.jsonl``, ``.csv`` and ``.parquet`` are the `imagefolder` convention of the `datasets` library: each line has
``file_name``, a path from the metadata's own folder, and what is known of that image. ``dataset.json`` is that of the
data tools of StyleGAN and EDM: ``{"labels": [["00000/img00000000.png", 6], ...]}``, or null for images without classes,
whose folders mean nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from slimdpm.system.documents import parse_json, read_json, read_text
from slimdpm.system.errors import SlimdpmError, blamed

FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_LARGEST = 2**29  # bytes of a metadata file: millions of captions


@dataclass
class Metadata:
    """What metadata files say.

    Attributes:
        rows: of each image its values by column.
        columns: all that are there.
        unlabelled: a ``dataset.json`` says that the images have no classes.
        remarks: what a user should know of the files.
    """

    rows: list[dict[str, Any]]
    columns: set[str] = field(default_factory=set)
    unlabelled: bool = False
    remarks: list[str] = field(default_factory=list)

    def add(self, file: Path, numbers: dict[str, int], lines: Iterator[tuple[str, dict[str, Any]]]) -> None:
        """Add a file's lines, (path of the image, values), for the images of these numbers by path.

        Raises:
            SlimdpmError: if no line is of any image.
        """
        count, unknown, stranger = 0, 0, ""
        for name, values in lines:
            count += 1
            number = numbers.get(name.replace("\\", "/"))
            if number is None:
                unknown, stranger = unknown + 1, stranger or name
            else:
                self.rows[number] |= values
                self.columns |= values.keys()
        if unknown:
            told = f"{unknown} of the {count} lines of {file} name no image, the first one {stranger}"
            if unknown == count:
                raise SlimdpmError(f"{told}; a file_name is a path from the folder of its metadata")
            self.remarks.append(f"warning: {told}")


def read_metadata(root: Path, files: Sequence[Path], images: Sequence[str]) -> Metadata:
    """What the metadata among some files says of images.

    Args:
        root: the folder that they all lie below.
        files: that may be metadata.
        images: paths from `root`, with slashes.

    Raises:
        SlimdpmError: for a line that cannot be read or names no file, or if a file is of no image at all; the message
            says which.
    """
    found = Metadata([{} for _ in images])
    numbers = {name.replace("\\", "/"): number for number, name in enumerate(images)}
    tool = root / "dataset.json"
    labels = read_json(tool) if tool in files else None
    if isinstance(labels, dict) and "labels" in labels:
        found.unlabelled = labels["labels"] is None
        found.add(tool, numbers, _of_tool(tool, labels["labels"] or ()))
    for file in (file for file in files if file.name in FILES):
        found.add(file, numbers, _named(file, PurePosixPath(file.parent.relative_to(root).as_posix())))
    return found


def _of_tool(file: Path, labels: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in labels if isinstance(labels, (list, tuple)) else [labels]:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise SlimdpmError(f"{file}: labels must be null or a list of [path, number], not of {entry!r}")
        yield entry[0], {"file_name": entry[0], "label": entry[1]}


def _named(file: Path, folder: PurePosixPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a metadata file with the paths of their images from the folder of all."""
    for number, values in _lines(file):
        name = values.get("file_name")
        if not isinstance(name, str) or not name:
            raise SlimdpmError(f"{file}: line {number} has no file_name")
        yield str(folder / name.replace("\\", "/")), values


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line, its values)."""
    if file.suffix == ".parquet":
        yield from enumerate(_parquet(file), start=1)
        return
    text = read_text(file, _LARGEST)
    if file.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            for row in reader:
                if None in row:
                    raise SlimdpmError(f"{file}: line {reader.line_num} has more values than the first line has names")
                yield reader.line_num, row
        except csv.Error as error:
            raise SlimdpmError(f"{file}: line {reader.line_num} is no CSV: {error}") from None
        return
    # Not splitlines: a caption may hold one of the other characters that end a line for it.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = parse_json(line, "a line")
        except SlimdpmError:
            values = None
        if not isinstance(values, dict):
            raise SlimdpmError(f"{file}: line {number} is no JSON object")
        yield number, values


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise SlimdpmError(f"{file} needs the package pyarrow to be read: pip install slimdpm[datasets]") from None
    with blamed(f"{file} cannot be read"), parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(1024):
            yield from batch.to_pylist()
