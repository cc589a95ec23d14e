"""What data and networks are, by their content: under other names, or with another date, they are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from slimdpm.system.documents import read_text
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.files import write_text


def fingerprint(model: nn.Module) -> str:
    """A short name for a network's weights: it changes when any of them does."""
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def content_of(source: Any, memory: Path | None) -> str:
    """A short name for the images of a source, in their order.

    Reading all of them takes a while, so the answer is remembered for as long as the files keep size and date.

    Args:
        source: see `slimdpm.data.sources.Source`. One that cannot tell its content is known by its identity.
        memory: the folder that remembers; it exists. None remembers nothing.

    Raises:
        SlimdpmError: if an image is gone, or cannot be read.
    """
    with blamed("the images cannot be read"):
        identity = source.identity()
        if not hasattr(source, "content"):
            return short(identity)
        if memory is None:
            return source.content()
    file = memory / f"content-{short(identity)}.txt"
    with FileLock(memory / "content.lock"):  # of several processes one reads
        content = _remembered(file)
        if not content.isalnum():
            with blamed("the images cannot be read"):
                content = source.content()
            write_text(file, content)
    return content


def _remembered(file: Path) -> str:
    """What this small file says; nothing if it is not there, or no such file."""
    try:
        return read_text(file, 2**10)
    except SlimdpmError:
        return ""


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


def short(*parts: str) -> str:
    """A short name for these texts."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
