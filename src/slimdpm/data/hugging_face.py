"""Images of the data sets of Hugging Face's `datasets`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slimdpm.data.images import open_image
from slimdpm.data.labels import TEXT_COLUMNS, Labels, number_labels
from slimdpm.recipe import DataRecipe
from slimdpm.system.errors import SlimdpmError, blamed


class HuggingFace:
    """A column of a `datasets.Dataset`, and those with classes and captions if there are any."""

    def __init__(
        self,
        dataset: Any,
        column: str | None = None,
        label: str = "data set",
        *,
        labels: str | None = None,
        texts: str | None = None,
    ):
        features = getattr(dataset, "features", None) or {}
        if column is None:
            column = next((n for n, f in features.items() if type(f).__name__ == "Image"), None)
        if column not in features:
            wanted = f"no column {column!r}" if column else "no image column"
            raise SlimdpmError(f"{label} has {wanted}; data.column can be one of {', '.join(features)}")
        if not len(dataset):
            raise SlimdpmError(f"{label} is empty")
        for key, named in (("label_column", labels), ("text_column", texts)):
            if named is not None and named not in features:
                raise SlimdpmError(f"{label} has no column {named!r}; data.{key} can be one of {', '.join(features)}")
        self.dataset, self.column, self.label = dataset, column, label
        self.label_column = labels or _label_column(features)
        self.text_column = texts or next((n for n in TEXT_COLUMNS if n in features), None)
        self.rows = dataset
        if type(features[column]).__name__ == "Image" and dataset.format["type"] != "custom":
            # Undecoded: its own decoding leaves the choice of a program to the file.
            self.rows = dataset.with_format(None).cast_column(column, type(features[column])(decode=False))

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Image.Image:
        value = self.rows[index][self.column]
        if isinstance(value, Mapping):
            return open_image(Path(value["path"]) if value["bytes"] is None else io.BytesIO(value["bytes"]))
        if isinstance(value, Image.Image):
            return value
        array = np.asarray(value)
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise ValueError(f"values of 0 to 255 are needed, not {array.dtype}")
        return Image.fromarray(array.astype(np.uint8))

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def identity(self) -> str:
        first, files = self.rows[0][self.column], []
        if (
            isinstance(first, Mapping) and first["bytes"] is None
        ):  # the images lie in files, of which it knows the paths
            files = [_about(Path(row["path"])) for row in self.rows[self.column] if row and row["path"]]
        return repr((self.label, self.column, len(self), getattr(self.dataset, "_fingerprint", ""), files))

    def labels(self) -> Labels | None:
        """Of the column with the classes; a `datasets.ClassLabel` brings names in an order of its own."""
        if self.label_column is None:
            return None
        labels = number_labels(list(self.dataset[self.label_column]), self.name)
        names = getattr(self.dataset.features[self.label_column], "names", None)
        return Labels(labels.numbers, tuple(names)) if names else labels

    def captions(self) -> list[Any] | None:
        return None if self.text_column is None else list(self.dataset[self.text_column])


def _about(file: Path) -> tuple[str, int, int] | None:
    stats = file.stat() if file.is_file() else None
    return stats and (str(file), stats.st_size, stats.st_mtime_ns)


def load_hugging_face(data: DataRecipe) -> HuggingFace:
    """A data set of the hub, or one that was saved to a folder.

    Raises:
        SlimdpmError: if it cannot be loaded, or has no such split or column.
    """
    try:
        import datasets
    except ImportError:
        raise SlimdpmError("Hugging Face data sets need the package datasets: pip install slimdpm[datasets]") from None
    name = data.path.removeprefix("hf:")
    with blamed(f"the data set {name} cannot be loaded"):
        if Path(name).is_dir():
            loaded = datasets.load_from_disk(name)
            if isinstance(loaded, datasets.DatasetDict):
                if data.split not in loaded:
                    raise SlimdpmError(
                        f"{name} has no split {data.split!r}; set data.split to one of {', '.join(loaded)}"
                    )
                loaded = loaded[data.split]
        else:
            loaded = datasets.load_dataset(name, split=data.split)
        return HuggingFace(loaded, data.column, name, labels=data.label_column, texts=data.text_column)


def _label_column(features: Mapping[str, Any]) -> str | None:
    typed = next((name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"), None)
    return typed or ("label" if "label" in features else None)
