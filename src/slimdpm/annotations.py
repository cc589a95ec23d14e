"""What a data set says about its images: the number of a class, or a caption.

Numbers are kept, and names are numbered in their sorted order, as class folders are everywhere. Whatever is missing or
cannot be read is named in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimdpm.errors import SlimdpmError


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
    """The captions of a source, None if it knows none.

    Raises:
        SlimdpmError: if one is missing.
    """
    captions = source.captions() if hasattr(source, "captions") else None
    for index, caption in enumerate(captions or ()):
        if not isinstance(caption, str) or not caption.strip():
            raise SlimdpmError(f"{source.name(index)} has no caption")
    return captions


def number_labels(values: Sequence[Any], name: Callable[[int], str], *, digits: bool = True) -> Labels:
    """Labels from numbers or names.

    Args:
        values: one for each image, whole numbers or text.
        name: of an image by its number, for the message.
        digits: text that is a whole number everywhere means that number (a CSV file knows nothing else).

    Raises:
        SlimdpmError: for a label that is missing or neither a whole number nor text, or for both kinds together.
    """
    for index, value in enumerate(values):
        if value is None or value == "":
            raise SlimdpmError(f"{name(index)} has no label")
        if isinstance(value, bool) or not isinstance(value, (int, np.integer, str)):
            raise SlimdpmError(f"the label of {name(index)} is neither a whole number nor a name: {value!r}")
    texts = [isinstance(value, str) for value in values]
    if digits and all(texts) and all(value.isdecimal() for value in values):
        return Labels(np.array([int(value) for value in values], np.int64))
    if not any(texts):
        return Labels(np.asarray(values, np.int64))
    if not all(texts):
        raise SlimdpmError(f"{name(texts.index(False))} has a number for its label, {name(texts.index(True))} a name")
    names = sorted(set(values))
    numbers = {label: number for number, label in enumerate(names)}
    return Labels(np.array([numbers[value] for value in values], np.int64), tuple(names))
