"""Where images come from, and what is known of them: a folder, arrays, a Hugging Face data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from slimdpm.annotations import Labels, number_labels
from slimdpm.errors import SlimdpmError
from slimdpm.files import digest_files
from slimdpm.images import EXTENSIONS
from slimdpm.metadata import read_metadata
from slimdpm.recipe import DataRecipe
from slimdpm.shards import Shards

TEXT_COLUMNS = ("text", "caption")  # where captions are looked for if no column is named


class Source(Protocol):
    """Images by number, for several threads at once. Reading one may raise whatever its decoder raises: it is then
    counted as broken.

    A source that knows more of its images than these methods tell has `labels` or `captions`, too: see
    `slimdpm.annotations`. One whose files may move has `content`, a digest of the images in their order.
    """

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str: ...

    def identity(self) -> str:
        """Changes when the images do: what a cache of them is kept under."""


class Folder:
    """The image files below a folder, in the order of their paths.

    Classes and captions are those of metadata files beside the images. Without these, folders are classes.

    Args:
        root: the folder.
        labels: the metadata's column of classes, by default ``"label"``.
        texts: the column of captions, by default ``"text"`` or ``"caption"``.
    """

    def __init__(self, root: Path, *, labels: str | None = None, texts: str | None = None):
        self.root, self.label_column, self.text_column = root, labels, texts
        self.files = image_files(root)
        if not self.files:
            raise SlimdpmError(f"{root} holds no images ({', '.join(sorted(_COMMON))} and others are looked for)")

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        with Image.open(self.files[index]) as image:
            image.load()
            return image

    def name(self, index: int) -> str:
        return str(self.files[index].relative_to(self.root))

    def labels(self) -> Labels | None:
        """Of the metadata; or of class folders, numbered in the order of their names as torchvision's `ImageFolder`."""
        values = self._column(self.label_column, ("label",))
        if values is not None:
            return number_labels(values, self.name)
        places = [file.relative_to(self.root).parts for file in self.files]
        if all(len(parts) == 1 for parts in places):
            return None
        loose = next((i for i, parts in enumerate(places) if len(parts) == 1), None)
        if loose is not None:
            raise SlimdpmError(f"{self.name(loose)} of {self.root} has no label: it lies in no class folder")
        return number_labels([parts[0] for parts in places], self.name, digits=False)

    def captions(self) -> list[Any] | None:
        return self._column(self.text_column, TEXT_COLUMNS)

    @cached_property
    def metadata(self) -> dict[str, dict[str, Any]]:
        return read_metadata(self.root)

    def _column(self, named: str | None, usual: Sequence[str]) -> list[Any] | None:
        """A column of the metadata: the one that is named, or the first of the usual ones that is there."""
        there = {column for values in self.metadata.values() for column in values}
        if named is not None and named not in there:
            columns = ", ".join(sorted(there)) or "nothing"
            raise SlimdpmError(f"the metadata in {self.root} has no {named!r}, only {columns}")
        column = named or next((column for column in usual if column in there), None)
        if column is None:
            return None
        names = [file.relative_to(self.root).as_posix() for file in self.files]
        return [self.metadata.get(name, {}).get(column) for name in names]

    def identity(self) -> str:
        stats = [(self.name(i), f.stat().st_size, f.stat().st_mtime_ns) for i, f in enumerate(self.files)]
        return repr((str(self.root.resolve()), stats))

    def content(self) -> str:
        return digest_files(self.files)


class Arrays:
    """uint8 images ``(N, H, W, 3)``, ``(N, H, W, 1)`` or ``(N, H, W)``; their classes and captions, each ``(N,)``."""

    def __init__(
        self,
        images: np.ndarray,
        label: str = "array",
        classes: np.ndarray | None = None,
        texts: np.ndarray | None = None,
    ):
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8 or not len(images):
            raise SlimdpmError(
                f"{label}: expected uint8 images of shape (N, H, W, 3) or (N, H, W), got {images.dtype} "
                f"of shape {tuple(images.shape)}"
            )
        self.images, self.label, self.classes, self.texts = images, label, classes, texts

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        array = self.images[index]
        return Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def identity(self) -> str:
        sample = self.images[:: max(1, len(self.images) // 64)]
        told = [column.tobytes() for column in (self.classes, self.texts) if column is not None]
        return repr((self.label, self.images.shape, sample.tobytes(), *told))

    def content(self) -> str:
        digest = hashlib.blake2b(repr(self.images.shape).encode(), digest_size=16)
        for image in self.images:
            digest.update(image.tobytes())
        return digest.hexdigest()

    def labels(self) -> Labels | None:
        labels = self._column(self.classes, "labels")
        return None if labels is None else number_labels(labels, self.name)

    def captions(self) -> list[str] | None:
        return self._column(self.texts, "captions")

    def _column(self, values: np.ndarray | None, what: str) -> list | None:
        if values is not None and values.shape != (len(self),):
            raise SlimdpmError(f"{self.label}: {len(self)} images, but {what} of shape {values.shape}")
        return None if values is None else values.tolist()


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

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Image.Image:
        value = self.dataset[index][self.column]
        return value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value, np.uint8))

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def identity(self) -> str:
        return repr((self.label, self.column, len(self), getattr(self.dataset, "_fingerprint", "")))

    def labels(self) -> Labels | None:
        """Of the column with the classes; a `datasets.ClassLabel` brings names in an order of its own."""
        if self.label_column is None:
            return None
        labels = number_labels(list(self.dataset[self.label_column]), self.name)
        names = getattr(self.dataset.features[self.label_column], "names", None)
        return Labels(labels.numbers, tuple(names)) if names else labels

    def captions(self) -> list[str] | None:
        return None if self.text_column is None else list(self.dataset[self.text_column])


def _label_column(features: Mapping[str, Any]) -> str | None:
    typed = next((name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"), None)
    return typed or ("label" if "label" in features else None)


_COMMON = {".jpg", ".png", ".webp"}


def image_files(root: Path) -> list[Path]:
    """The image files below a folder, sorted."""
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())


def open_source(data: DataRecipe | Any) -> Source:
    """The images that a recipe's `data` section names, or that a Python object holds.

    Args:
        data: a `DataRecipe`; or a path, a uint8 array, a `datasets.Dataset`, or anything with the methods of `Source`.

    Raises:
        SlimdpmError: if it is missing, empty, or not one of these.
    """
    if not isinstance(data, DataRecipe):
        return _source_of_object(data)
    if data.path.startswith("hf:"):
        return _open_hugging_face(data)
    if data.path.startswith("demo:"):
        from slimdpm.demo_data import demo_source

        return demo_source(data.path.removeprefix("demo:"))
    path = Path(data.path).expanduser()
    if not path.exists():
        raise SlimdpmError(f"data {path} does not exist (a data set of the Hugging Face hub is written hf:NAME)")
    if path.suffix in (".npz", ".npy"):
        return _load_arrays(path, data)
    extensions = {"labels": data.label_column or "cls", "texts": data.text_column or "txt"}
    if path.suffix == ".tar":
        return Shards([path], **extensions)
    if path.is_file():
        raise SlimdpmError(
            f"data {path} is a file; give a folder of images, an .npz or .npy of uint8 images, a .tar, or hf:NAME"
        )
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _open_hugging_face(data)
    shards = sorted(path.glob("*.tar"))
    if shards and not image_files(path):
        return Shards(shards, **extensions)
    return Folder(path, labels=data.label_column, texts=data.text_column)


def _source_of_object(data: Any) -> Source:
    if isinstance(data, (str, Path)):
        return open_source(DataRecipe(path=str(data)))
    if isinstance(data, np.ndarray):
        return Arrays(data)
    if hasattr(data, "features"):
        return HuggingFace(data)
    if all(hasattr(data, method) for method in ("__len__", "image", "name", "identity")):
        return data
    raise SlimdpmError(
        f"data of type {type(data).__name__} is not understood: give a path, a uint8 array or a data set"
    )


def _load_arrays(path: Path, data: DataRecipe) -> Arrays:
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Arrays(loaded, path.name)
        with loaded as archive:
            # One array by convention: "images", numpy's own "arr_0", or the first that looks like images.
            names = [n for n in ("images", "arr_0") if n in archive.files] + archive.files
            for name in dict.fromkeys(names):
                array = archive[name]
                if array.dtype == np.uint8 and array.ndim in (3, 4):
                    columns = [data.label_column or "labels", data.text_column or "captions"]
                    told = [archive[column] if column in archive.files else None for column in columns]
                    return Arrays(array, path.name, *told)
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise SlimdpmError(f"data {path} cannot be read as an array: {error}") from None
    raise SlimdpmError(f"data {path} holds no uint8 array of images, only {', '.join(archive.files) or 'nothing'}")


def _open_hugging_face(data: DataRecipe) -> Source:
    try:
        import datasets
    except ImportError:
        raise SlimdpmError("Hugging Face data sets need the package datasets: pip install slimdpm[datasets]") from None
    name = data.path.removeprefix("hf:")
    try:
        if Path(name).is_dir():
            loaded = datasets.load_from_disk(name)
            loaded = loaded[data.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(name, split=data.split)
    except KeyError:
        raise SlimdpmError(f"{name} has no split {data.split!r}; set data.split") from None
    except (OSError, ValueError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SlimdpmError(f"the data set {name} cannot be loaded: {reason}") from None
    return HuggingFace(loaded, data.column, name, labels=data.label_column, texts=data.text_column)
