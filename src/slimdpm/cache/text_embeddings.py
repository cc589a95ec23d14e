"""Captions as a text encoder leaves them, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from slimdpm.system.devices import resident
from slimdpm.system.hashing import short
from slimdpm.system.progress import Display
from slimdpm.system.tensor_store import Layout, Notes, Rows, Store, batches

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
    texts: Sequence[str],
    encode: Encode,
    encoders: Sequence[nn.Module],
    name: str,
    root: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device,
    display: Display,
) -> Embeddings:
    """The embeddings of different texts, encoded now if they are not kept from before.

    Args:
        texts: each once.
        encode: some of them to ``(N, ...)`` of each part.
        encoders: the networks that it runs.
        name: of what encodes, another one if it encodes differently.
        root: the embeddings are kept in a folder below it that is named by what they depend on.
    """
    layout = Layout(len(texts), {part: tuple(rows.shape[1:]) for part, rows in encode(texts[:1]).items()}, dtype)
    store = Store(root / f"text-{short(name, str(_BATCH), layout.key, *texts)}", layout)

    def make(numbers: range, notes: Notes) -> Iterator[Rows]:
        with resident(encoders, device):
            for batch in batches(numbers, _BATCH):
                yield {part: rows.cpu() for part, rows in encode(texts[batch.start : batch.stop]).items()}

    return Embeddings(store.build(make, f"embeddings of {len(texts)} captions", display), texts)
