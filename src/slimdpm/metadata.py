"""``metadata.jsonl`` and ``metadata.csv`` beside images: the `imagefolder` convention of the `datasets` library.

Each line has ``file_name``, a path from the metadata's own folder, and what is known of that image.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from slimdpm.documents import decoded
from slimdpm.errors import SlimdpmError

FILES = ("metadata.jsonl", "metadata.csv")


def read_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """What the metadata files at any depth say of each image, by its path from `root`.

    Raises:
        SlimdpmError: for a line that cannot be read or names no file; the message says which.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(file for name in FILES for file in root.rglob(name)):
        folder = PurePosixPath(file.parent.relative_to(root).as_posix())
        for number, values in _lines(file):
            name = values.get("file_name")
            if not isinstance(name, str) or not name:
                raise SlimdpmError(f"{file}: line {number} has no file_name")
            found[str(folder / name)] = values
    return found


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line, its values)."""
    text = decoded(file.read_bytes(), str(file))
    if file.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            yield from ((reader.line_num, values) for values in reader)
        except csv.Error as error:
            raise SlimdpmError(f"{file}: line {reader.line_num} is no CSV: {error}") from None
        return
    # Not splitlines: a caption may hold one of the other characters that end a line for it.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise SlimdpmError(f"{file}: line {number} is no JSON object")
        yield number, values
