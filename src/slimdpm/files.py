"""Files that are either whole or absent: everything is written under a temporary name and renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimdpm.errors import SlimdpmError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write to the path that this yields; it becomes `path` on success and vanishes on failure.

    Raises:
        SlimdpmError: if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """`atomic_file` for a folder that does not exist yet."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with _explained(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what a killed process left half-written in a folder, of one file or of all."""
    for leftover in folder.glob(f".{name}.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def digest_files(paths: Sequence[Path]) -> str:
    """Of the contents of files, in this order."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()

    with ThreadPoolExecutor() as pool:  # hashing and reading leave the interpreter free
        return hashlib.blake2b(b"".join(pool.map(digest, paths)), digest_size=16).hexdigest()


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str) -> None:
    """One more line at the end of a log. A kill may cut it short: readers leave such a line out."""
    with _explained(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors as a safetensors file."""
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt", **(metadata or {})})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        SlimdpmError: if it is missing, cut short or no safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise SlimdpmError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise SlimdpmError(f"{path} is damaged or no safetensors file ({error})") from None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the ways in which a disk refuses into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise SlimdpmError(f"no space left on the disk for {path}; nothing was half-written") from error
        if isinstance(error, (PermissionError, NotADirectoryError)) or error.errno == errno.EROFS:
            raise SlimdpmError(f"{path} cannot be written: {error.strerror}") from error
        raise
    except SafetensorError as error:
        # The writer of safetensors reports the system's refusal as text.
        raise SlimdpmError(
            f"{path} cannot be written, is the disk full? ({error}); nothing was half-written"
        ) from error


def _sync(path: Path) -> None:
    """Flush to the disk, so that the rename never overtakes the content."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
