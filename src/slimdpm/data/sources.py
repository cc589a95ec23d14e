"""What a source of images is."""

from __future__ import annotations

from typing import Protocol

from PIL import Image


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
