"""Which source of images a recipe names, or a Python object is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slimdpm.data.arrays import Arrays, load_arrays
from slimdpm.data.folder import Folder, image_files
from slimdpm.data.hugging_face import HuggingFace, load_hugging_face
from slimdpm.data.shards import Shards
from slimdpm.data.sources import Source
from slimdpm.recipe import DataRecipe
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.packaged import packaged_data


def open_source(data: DataRecipe | Any) -> Source:
    """The images that a recipe's `data` section names, or that a Python object holds.

    Args:
        data: a `DataRecipe`; or a path, a uint8 array, a `datasets.Dataset`, or anything with the methods of `Source`.

    Raises:
        SlimdpmError: if it is missing, empty, or not one of these.
    """
    if not isinstance(data, DataRecipe):
        return _source_of_object(data)
    with blamed(f"data {data.path} cannot be opened"):
        return _source_of_recipe(data)


def _source_of_recipe(data: DataRecipe) -> Source:
    if data.path.startswith("hf:"):
        return load_hugging_face(data)
    if data.path.startswith("demo:"):
        from slimdpm.data.demo_photographs import demo_source

        return demo_source(data.path.removeprefix("demo:"))
    path = packaged_data(data.path) or Path(data.path).expanduser()
    if not path.exists():
        raise SlimdpmError(f"data {path} does not exist (a data set of the Hugging Face hub is written hf:NAME)")
    extensions = {"labels": data.label_column, "texts": data.text_column}
    if path.is_file() and path.suffix in (".npz", ".npy"):
        return load_arrays(path, data.label_column or "labels", data.text_column or "captions")
    if path.is_file() and path.suffix == ".tar":
        return Shards([path], **extensions)
    if not path.is_dir():
        kind = "a file" if path.is_file() else "neither file nor folder"
        raise SlimdpmError(
            f"data {path} is {kind}; give a folder of images, an .npz or .npy of uint8 images, a .tar, or hf:NAME"
        )
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return load_hugging_face(data)
    shards = sorted(file for file in path.glob("[!.]*.tar") if file.is_file())
    if shards and not image_files(path):
        return Shards(shards, **extensions)
    return Folder(path, labels=data.label_column, texts=data.text_column)


def _source_of_object(data: Any) -> Source:
    if isinstance(data, (str, Path)):
        return open_source(DataRecipe.model_construct(path=str(data)))
    if isinstance(data, np.ndarray):
        return Arrays(data)
    if hasattr(data, "features"):
        return HuggingFace(data)
    if all(hasattr(data, method) for method in ("__len__", "image", "name", "identity")):
        return data
    raise SlimdpmError(
        f"data of type {type(data).__name__} is not understood: give a path, a uint8 array or a data set"
    )
