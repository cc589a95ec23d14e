"""What a source of images is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from PIL import Image

from slimdpm.system.documents import read_text
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.files import write_text
from slimdpm.system.hashing import short


class Source(Protocol):
    """Images by number, for several threads at once. Reading one may raise whatever its decoder raises: it is then
    counted as broken.

    A source that knows more of its images than these methods tell has `labels` or `captions`, too: see
    `slimdpm.data.labels`. One whose files may move has `content`, a digest of the images in their order. In `remarks`
    it may collect what the start of a run should tell.
    """

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str: ...

    def identity(self) -> str:
        """Changes when the images do, as far as can be told without reading them; `content` is remembered under it."""


def content_of(source: Any, memory: Path | None) -> str:
    """A short name for the images of a source, in their order.

    Reading all of them takes a while, so the answer is remembered for as long as the files keep size and date.

    Args:
        source: see `Source`. One that cannot tell its content is known by its identity.
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
