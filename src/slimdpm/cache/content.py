"""What data is, by its content: the same images under other names, or with another date, are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from slimdpm.files import write_text


def content_of(source: Any, memory: Path) -> str:
    """A short name for the images of a source, in their order.

    Reading all of them takes a while, so the answer is remembered for as long as the files keep size and date.

    Args:
        source: see `slimdpm.sources.Source`. One that cannot tell its content is known by its identity.
        memory: the folder that remembers.
    """
    identity = source.identity()
    if not hasattr(source, "content"):
        return short(identity)
    file = memory / f"content-{short(identity)}.txt"
    if not file.exists():
        write_text(file, source.content())
    return file.read_text(encoding="utf-8")


def short(*parts: str) -> str:
    """A short name for these texts."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
