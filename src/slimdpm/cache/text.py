"""Captions as a text encoder leaves them, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from slimdpm.cache.content import short
from slimdpm.cache.store import Layout, Store
from slimdpm.display import Display

_BATCH = 16  # texts that are encoded at once: a part of what is computed, so always the same

Encode = Callable[[Sequence[str]], Mapping[str, Tensor]]


class Embeddings:
    """Encoded texts by the texts themselves.

    Args:
        store: with a row for each text.
        texts: in the order of the rows.
    """

    def __init__(self, store: Store, texts: Sequence[str]):
        self.store, self.rows = store, {text: row for row, text in enumerate(texts)}

    def know(self, texts: Sequence[str]) -> bool:
        """Whether all of these are kept."""
        return all(text in self.rows for text in texts)

    def of(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``(N, ...)`` of each part of the store, float32."""
        rows = [self.store.row(self.rows[text]) for text in texts]
        return {part: torch.stack([row[part] for row in rows]).float() for part in self.store.layout.parts}


def prepare_embeddings(
    texts: Sequence[str], encode: Encode, encoder: str, root: Path, *, dtype: torch.dtype, display: Display
) -> Embeddings:
    """The embeddings of different texts, encoded now if they are not kept from before.

    Args:
        texts: each once.
        encode: some of them to ``(N, ...)`` of each part.
        encoder: a name for what encodes, another one if it encodes differently.
        root: the embeddings are kept in a folder of it that is named by what they depend on.
        dtype: to keep them in.
        display: where progress is shown.

    Raises:
        SlimdpmError: if the cache does not fit on the disk.
    """
    shapes = {part: tuple(rows.shape[1:]) for part, rows in encode(texts[:1]).items()}
    store = Store(root / f"text-{short(encoder, str(dtype), str(_BATCH), *texts)}", Layout(len(texts), shapes, dtype))

    def make(first: int, last: int) -> tuple[dict[str, Tensor], dict]:
        parts = [encode(texts[i : min(i + _BATCH, last)]) for i in range(first, last, _BATCH)]
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in shapes}, {}

    return Embeddings(store.build(make, f"embeddings of {len(texts)} captions", display), texts)
