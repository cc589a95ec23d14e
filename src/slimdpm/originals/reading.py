"""The tensors of a checkpoint that someone else made, without running anything that it names.

A ``.ckpt`` is a pickle, and a pickle may name any function and ask for it to be called. PyTorch's own restricted
unpickler (``weights_only=True``) calls nothing but its rebuilding of tensors. The published CompVis checkpoints ask for
more: beside the weights they hold what PyTorch Lightning wrote down of its training, for example the class
``ModelCheckpoint`` as a key of the callbacks' states. None of that is needed here, so those names are given to the
unpickler as `_Inert`: a class of ours that takes any arguments and keeps nothing. Nothing is imported for it, and every
other name is refused.
"""

from __future__ import annotations

import re
import tarfile
import warnings
import zipfile
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.files import load_tensors

# Whose names a training loop leaves beside the weights: callbacks' states, hyperparameters, best scores, paths.
INERT_PACKAGES = frozenset(
    {"pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf", "numpy", "pathlib"}
)

_NAMES = 16 * 2**20  # bytes of the pickle that names the tensors; published files have less than one
_UNPACKED = (
    64 * 2**20
)  # bytes that any zip may unpack to, and a larger file to 20 times its size: weights hardly shrink


class _Inert:
    """What stands in a checkpoint for an object of a class that is not ours to make: it keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a ``.safetensors`` or ``.ckpt`` file, on the CPU; of a training's, its ``state_dict``.

    A zipped ``.ckpt`` (PyTorch 1.6 and later) is mapped into memory, so that optimizer states cost nothing. One that is
    compressed cannot be mapped and is read whole. Checksums are verified.

    Raises:
        SlimdpmError: if it is missing, damaged, no checkpoint, or wants more than tensors; nothing of it was run.
    """
    with blamed(f"{path} cannot be read"):
        if not path.is_file():
            raise SlimdpmError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
        with path.open("rb") as file:
            start = file.read(tarfile.BLOCKSIZE)
        zipped = zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if _is_tar(start):
        raise SlimdpmError(f"{path} is a tar of the days before PyTorch 1.0 and is not read")
    records = _verified(path) if zipped else []
    saved = _unpickle(path, mmap=bool(records) and all(r.compress_type == zipfile.ZIP_STORED for r in records))
    tensors = saved.get("state_dict", saved) if isinstance(saved, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise SlimdpmError(f"{path} holds no state_dict")
    others = [str(name) for name, value in tensors.items() if not _holds_numbers(value)]
    if others:
        raise SlimdpmError(f"{path} is no checkpoint of a network: {others[0]} is no tensor")
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors.values())}
    # Mapped memory has no borders: a storage that is longer than its record would go on in the next one.
    if records and Counter(filter(None, storages.values())) - Counter(record.file_size for record in records):
        raise SlimdpmError(f"{path} is damaged: its tensors are not of the sizes of its records")
    return {str(name): tensor for name, tensor in tensors.items()}


def inert_globals(path: Path) -> AbstractContextManager:
    """While it is open, the names in this file that a training leaves behind mean `_Inert` to PyTorch's unpickler.

    Raises:
        SlimdpmError: if it names anything else.
    """
    if not zipfile.is_zipfile(path):  # safetensors, and a .ckpt older than PyTorch 1.6, whose names cannot be listed
        return nullcontext()
    names = get_unsafe_globals_in_checkpoint(path)
    refused = sorted(name for name in names if name.partition(".")[0] not in INERT_PACKAGES)
    if refused:
        raise SlimdpmError(_refusal(path, ", ".join(refused[:5])))
    return safe_globals([_stand_in(name) for name in names])


def _holds_numbers(value: Any) -> bool:
    """Whether it is a tensor in memory, and not sparse, quantised or without numbers."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and not value.is_quantized


def _is_tar(start: bytes) -> bool:
    """PyTorch would unpack it to the disk, with whatever links and pipes are in it."""
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _verified(path: Path) -> list[zipfile.ZipInfo]:
    """The records of a zip whose checksums are right: PyTorch looks at none.

    Raises:
        SlimdpmError: if one is wrong, or if they would fill the memory.
    """
    with blamed(f"{path} is damaged"), zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > max(_UNPACKED, 20 * path.stat().st_size):
            raise SlimdpmError(f"{path} is refused: it would unpack to more than 20 times its size")
        for record in records:
            if record.filename.endswith("data.pkl") and record.file_size > _NAMES:
                raise SlimdpmError(f"{path} is refused: its {record.filename} has {record.file_size:,} bytes")
            with archive.open(record) as stream:
                while stream.read(2**24):
                    pass
    return records


def _unpickle(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings(), inert_globals(path):
            warnings.simplefilter("ignore")  # about the pickle's protocol: the error says enough
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except SlimdpmError:
        raise
    except Exception as error:  # a damaged file fails in the archive, the unpickler or the storages
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise SlimdpmError(_refusal(path, name[1])) from None
        raise SlimdpmError(
            f"{path} is no checkpoint of PyTorch that holds tensors, or it is cut short; nothing of it was run"
        ) from None


def _refusal(path: Path, names: str) -> str:
    return f"{path} is refused: it asks for more than tensors ({names}); nothing of it was run"


def _stand_in(name: str) -> type[_Inert]:
    """A class of its own for each name, because the unpickler looks it up by the name that it carries."""
    module, _, qualname = name.rpartition(".")
    return type(qualname, (_Inert,), {"__module__": module, "__qualname__": qualname})
