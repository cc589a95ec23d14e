"""Digests: what data and networks are, by their content. Under other names, or with another date, they are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimdpm.system.documents import regular


def digest(parts: Iterable[Any], size: int = 16) -> str:
    """BLAKE2b of bytes and arrays, one after the other: `size` bytes in hexadecimal."""
    found = hashlib.blake2b(digest_size=size)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def short(*texts: str) -> str:
    """A short name for these texts."""
    return digest(["\0".join(texts).encode()], 8)


def file_digest(file: Path, kind: str = "blake2b") -> str:
    """Of a file's content, whole. Raises `SlimdpmError` as `slimdpm.system.documents.regular`."""
    with regular(file) as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


def file_digests(files: Sequence[Path]) -> list[str]:
    """`file_digest` of each."""
    with ThreadPoolExecutor() as pool:  # hashing and reading leave the interpreter free
        return list(pool.map(file_digest, files))


def digest_files(files: Sequence[Path]) -> str:
    """Of the contents of files, in this order."""
    return digest(map(bytes.fromhex, file_digests(files)))


def bytes_of(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor in memory."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def fingerprint(model: nn.Module) -> str:
    """A short name for a network's weights: it changes when any of them does."""
    return digest((part for name, t in model.state_dict().items() for part in (name.encode(), bytes_of(t))), 6)


def name_of(network: Any) -> str:
    """A short name for what a diffusers network computes: its weights and its config."""
    return short(fingerprint(network), settings_of(network.config))


def settings_of(config: Mapping[str, Any]) -> str:
    """A config of diffusers as text, without what it says of itself: whence it was loaded, by which version."""

    def bare(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: bare(inner) for key, inner in value.items() if not key.startswith("_")}

    return json.dumps(bare(config), sort_keys=True, default=str)
