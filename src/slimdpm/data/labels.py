"""What a data set says about its images: the number of a class, or a caption.

Numbers are kept, and names are numbered in their sorted order, as class folders are everywhere. Whatever is missing or
cannot be read is named in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimdpm.system.errors import SlimdpmError

TEXT_COLUMNS = ("text", "caption", "prompt", "additional_feature")  # where captions are looked for
MOST_TEXT = 2**16  # bytes of a caption: a hundred times what a text encoder sees
MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Labels:
    """The classes of a data set's images.

    Attributes:
        numbers: of each image, int64 ``(N,)``.
        names: of the classes, in the order of their numbers; None if the data has numbers only.
    """

    numbers: np.ndarray
    names: tuple[str, ...] | None = None


def labels_of(source: Any) -> Labels | None:
    """The labels of a source, None if it knows none; a source of a user's own need not know of labels at all."""
    return source.labels() if hasattr(source, "labels") else None


def captions_of(source: Any) -> Sequence[str] | None:
    """The captions of a source, None if it knows none. Of several captions of one image it is the first.

    Raises:
        SlimdpmError: if one is missing, no text, or beyond all measure.
    """
    captions = source.captions() if hasattr(source, "captions") else None
    return None if captions is None else [_caption(value, source, index) for index, value in enumerate(captions)]


def _caption(value: Any, source: Any, index: int) -> str:
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    if not isinstance(value, str) and value not in (None, [], ()):
        raise SlimdpmError(f"{source.name(index)} has no caption, but a value of the type {type(value).__name__}")
    if not value or not value.strip():
        raise SlimdpmError(f"{source.name(index)} has no caption")
    if len(value) > MOST_TEXT:
        raise SlimdpmError(f"the caption of {source.name(index)} has {len(value):,} characters, {MOST_TEXT:,} at most")
    return value


def folder_labels(places: Sequence[tuple[str, ...]], name: Callable[[int], str], root: object) -> Labels | None:
    """Labels from the folders in which images lie, numbered by `number_labels`; None if all lie in none.

    Args:
        places: the parts of each image's path below the root.
        name: of an image by its number, for the message.
        root: what holds the images, for the message.

    Raises:
        SlimdpmError: if some lie in a folder and some do not.
    """
    if all(len(parts) == 1 for parts in places):
        return None
    loose = next((i for i, parts in enumerate(places) if len(parts) == 1), None)
    if loose is not None:
        raise SlimdpmError(f"{name(loose)} of {root} has no label: it lies in no class folder")
    return number_labels([parts[0] for parts in places], name)


def number_labels(values: Sequence[Any], name: Callable[[int], str]) -> Labels:
    """Labels from numbers or names. Text that is a whole number everywhere means that number.

    Args:
        values: one for each image, whole numbers or text.
        name: of an image by its number, for the message.

    Raises:
        SlimdpmError: for a label that is missing or neither a whole number nor text, for both kinds together, for two
            texts of one number, or for a number that no class has.
    """
    for index, value in enumerate(values):
        if value is None or value == "":
            raise SlimdpmError(f"{name(index)} has no label")
        if isinstance(value, bool) or not isinstance(value, (int, np.integer, str)):
            raise SlimdpmError(f"the label of {name(index)} is neither a whole number nor a name: {value!r}")
    texts = [isinstance(value, str) for value in values]
    if any(texts) and not all(texts):
        raise SlimdpmError(f"{name(texts.index(False))} has a number for its label, {name(texts.index(True))} a name")
    classes = sorted(set(values))
    if all(texts) and not all(value.isdecimal() for value in classes):
        numbers = {label: number for number, label in enumerate(classes)}
        return Labels(np.array([numbers[value] for value in values], np.int64), tuple(classes))
    known: dict[int, Any] = {}
    for value in classes:
        number = MOST_CLASSES if isinstance(value, str) and len(value) > 20 else int(value)
        if abs(number) >= MOST_CLASSES:
            first = name(values.index(value))
            raise SlimdpmError(
                f"the label of {first} is {str(value)[:20]}: classes are numbered from 0 to {MOST_CLASSES - 1:,}"
            )
        if known.setdefault(number, value) != value:
            raise SlimdpmError(f"{known[number]!r} and {value!r} are one number, but two labels")
    return Labels(np.array([int(value) for value in values], np.int64))
