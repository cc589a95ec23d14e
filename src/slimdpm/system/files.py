"""Files that are either whole or absent: everything is written under a temporary name and renamed.

What is kept to be read again is sealed: a JSON file beside it holds its digest, and `read_sealed` finds any change.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimdpm.system.documents import read_json, regular
from slimdpm.system.errors import SlimdpmError, first_line
from slimdpm.system.hashing import digest, file_digests

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HOST = digest([socket.gethostname().encode()], 3)  # processes are numbered by host
_TEMPORARY = re.compile(rf"\..*\.tmp-(?:{_HOST}-)?(\d+)")  # those of earlier versions name no host
_BUFFERS = ("position_ids", "attn_mask", "num_updates")  # how names end that are no weights
_WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write to the path that this yields; it becomes `path` on success and vanishes on failure.

    Raises:
        SlimdpmError: if the disk is full or the folder cannot be written.
    """
    temporary = _temporary(path)
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """`atomic_file` for a folder that does not exist yet. What dead processes left of it goes, too."""
    temporary = _temporary(path)
    with explained(path):
        remove_leftovers(path.parent, path.name)
        shutil.rmtree(temporary, ignore_errors=True)  # of an earlier process with our number
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_new(path: Path) -> None:
    """Raise `SlimdpmError` if a file or folder of this name is there."""
    with explained(path):
        if path.exists():
            raise SlimdpmError(f"{path} exists already: give another folder or remove it")


def check_writable(file: Path) -> None:
    """Raise `SlimdpmError` if a file could not be written, or replaced; its folder is there afterwards."""
    if file.is_dir():
        raise SlimdpmError(f"{file} is a folder; give a file")
    with explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        _temporary(file).touch()
        _temporary(file).unlink()


def remove_leftovers(folder: Path, name: str = "*", *, locked: bool = False) -> None:
    """Remove what killed processes left half-written in a folder.

    Args:
        name: of the file that they wrote; by default all.
        locked: the caller holds what keeps others from writing it, so nobody is at it; else only leftovers of
            processes of this machine that are dead go.
    """
    for leftover in folder.glob(f".{name}.tmp-*"):
        writer = _TEMPORARY.fullmatch(leftover.name)
        if not locked and (writer is None or psutil.pid_exists(int(writer[1]))):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_sealed(path: Path, values: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
    """JSON with digests of itself and of files that lie, or will lie, beside it under these names."""
    files = sorted(files)
    sealed = {**values, "files": {f.name: found[:32] for f, found in zip(files, file_digests(files), strict=True)}}
    write_json(path, {**sealed, "digest": _seal(path.name, sealed)})


def read_sealed(path: Path, *, unsealed: bool = False) -> dict[str, Any]:
    """What `write_sealed` wrote, ``"files"`` the digests by name.

    Args:
        unsealed: take one of an earlier version, without digests, as it is.

    Raises:
        SlimdpmError: if it, or one of the files beside it, is missing or not what was written.
    """
    values = read_json(path)
    if unsealed and isinstance(values, dict) and not {"files", "digest"} & values.keys():
        return values
    seal = values.pop("digest", None) if isinstance(values, dict) else None
    if seal is None or seal != _seal(path.name, values):
        raise SlimdpmError(f"{path} is damaged or of an earlier version")
    files = [path.with_name(name) for name in values["files"]]
    for file, found in zip(files, file_digests(files), strict=True):
        if found[:32] != values["files"][file.name]:
            raise SlimdpmError(f"{file} is damaged: its content is not what was written")
    return values


def _seal(name: str, values: Mapping[str, Any]) -> str:
    return digest([json.dumps([name, values], sort_keys=True).encode()])


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # paths need not be UTF-8


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    lines = io.StringIO()
    csv.writer(lines).writerows(rows)
    write_text(path, lines.getvalue())


def append_line(path: Path, line: str) -> None:
    """One more line at the end of a log. A kill may cut it short: readers leave such a line out."""
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors as a safetensors file."""
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt", **(metadata or {})})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `SlimdpmError` if it is missing, cut short or no safetensors file."""
    try:
        with regular(path):
            return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SlimdpmError(f"{path} is damaged or no safetensors file ({error})") from None


def check_weights(source: object, tensors: Mapping[str, Tensor]) -> None:
    """Those of a network: floating-point numbers that are finite in single precision.

    Raises:
        SlimdpmError: with the name of the first that is something else.
    """
    most = torch.finfo(torch.float32).max
    for name, tensor in tensors.items():
        if name.endswith(_BUFFERS):
            continue
        if tensor.dtype not in _WEIGHTS:
            raise SlimdpmError(f"{source}: {name} is of {tensor.dtype}, and no weight of the network")
        if tensor.numel() and not tensor.is_meta:
            # Both are nan if one number is. In half precision `most` itself would be infinite.
            least, largest = (bound.double() for bound in tensor.detach().aminmax())
            if not (least >= -most and largest <= most):
                raise SlimdpmError(f"{source}: {name} holds numbers that are not finite")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn all the ways in which a disk refuses to write `path` into one clear line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, reason = getattr(error, "errno", None), first_line(error)
        if number in _FULL:
            raise SlimdpmError(f"no space left on the disk for {path}; nothing was half-written") from error
        if number is None:  # the writers of safetensors and numpy report the system's refusal as text
            reason += ", is the disk full?"
        raise SlimdpmError(f"{path} cannot be written: {reason}; nothing was half-written") from error


def _temporary(path: Path) -> Path:
    """Where a file is written that will be `path`; the name says by whom."""
    return path.with_name(f".{path.name}.tmp-{_HOST}-{os.getpid()}")


def _sync(path: Path) -> None:
    """Flush to the disk, so that the rename never overtakes the content."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
