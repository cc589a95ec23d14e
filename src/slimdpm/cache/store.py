"""Rows of tensors on the disk, computed once: what a frozen network makes of each image or caption.

The rows lie in shards of a fixed length, each a safetensors file with a digest of its content. Processes share the
shards among them, a kill costs the shard in work, and a shard whose content is not what its digest says is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slimdpm.display import Display
from slimdpm.errors import SlimdpmError
from slimdpm.files import atomic_file, remove_leftovers
from slimdpm.parallel import processes
from slimdpm.sharing import share

SHARD = 256  # rows
_ABOUT = "slimdpm"  # a shard's only metadata: safetensors writes several in an order of its own each time

Notes = dict[int, list[str]]  # what is to be said of a row, by its number


@dataclass(frozen=True)
class Layout:
    """What is stored.

    Attributes:
        rows: how many.
        parts: the shape of each tensor of a row, by its name.
        dtype: of all of them.
    """

    rows: int
    parts: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        return self.rows * sum(int(np.prod(shape)) for shape in self.parts.values()) * self.dtype.itemsize

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and last row, exclusive, of each shard."""
        for first in range(0, self.rows, SHARD):
            yield first, min(first + SHARD, self.rows)


@dataclass
class Store:
    """A folder of shards.

    Attributes:
        folder: of one layout and one content.
        layout: of the rows.
    """

    folder: Path
    layout: Layout
    _open: dict[int, Any] = field(default_factory=dict, repr=False)

    def row(self, number: int) -> dict[str, Tensor]:
        """The tensors of a row, ``layout.parts`` each, in the stored dtype."""
        first = number // SHARD * SHARD
        if first not in self._open:
            opened = safe_open(self.file(first), "pt")
            self._open[first] = {part: opened.get_slice(part) for part in self.layout.parts}
        return {part: rows[number - first] for part, rows in self._open[first].items()}

    def notes(self) -> Notes:
        """What was noted of rows when they were made."""
        found: Notes = {}
        for first, _ in self.layout.ranges():
            with safe_open(self.file(first), "pt") as shard:
                notes = json.loads(json.loads(shard.metadata()[_ABOUT])["notes"])
            found |= {int(number): note for number, note in notes.items()}
        return found

    def build(self, make: Callable[[int, int], tuple[dict[str, Tensor], Notes]], label: str, display: Display) -> Store:
        """Make what is missing or damaged. All processes share the work, and all wait for it.

        Args:
            make: the rows from one number to another, ``(last − first, *shape)`` each, and notes about them.
            label: of the work, for people.
            display: where progress is shown, and the size on the disk before anything is written.

        Raises:
            SlimdpmError: if the disk is too small.
        """
        state = processes()
        missing = [first for first, _ in self.layout.ranges() if not self.file(first).exists()]
        if missing and state.is_main_process:
            self._announce(label, len(missing), display)
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        mine = list(self.layout.ranges())[state.process_index :: state.num_processes]
        with display.task(label, sum(last - first for first, last in mine), unit="rows") as task:

            def do(shard: tuple[int, int]) -> None:
                if not self._intact(shard, display):
                    remove_leftovers(self.folder, f"{shard[0]:08d}.safetensors")
                    tensors, notes = make(*shard)
                    self._write(shard, tensors, notes)
                task.advance(shard[1] - shard[0])

            share(mine, lambda shard: self.folder / "locks" / f"{shard[0]:08d}", do)
        state.wait_for_everyone()
        return self

    def file(self, first: int) -> Path:
        """The shard that begins with this row."""
        return self.folder / f"{first:08d}.safetensors"

    def _announce(self, label: str, missing: int, display: Display) -> None:
        needed = min(self.layout.nbytes, missing * SHARD * self.layout.nbytes // self.layout.rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise SlimdpmError(
                f"{label}: the cache needs {needed / 1e9:.2f} GB on the disk, {free / 1e9:.2f} GB are free; name "
                "another folder as data.cache, or do without (--no-cache)"
            )
        display.say(f"{label}: {needed / 1e9:.3f} GB will be kept in {self.folder}")

    def _intact(self, shard: tuple[int, int], display: Display) -> bool:
        """Whether a shard is there and holds what was written."""
        file = self.file(shard[0])
        if not file.exists():
            return False
        try:
            with safe_open(file, "pt") as opened:
                tensors = {part: opened.get_tensor(part) for part in opened.keys()}  # noqa: SIM118 - no dict
                about = json.loads((opened.metadata() or {}).get(_ABOUT, "{}"))
            if about.get("digest") == _digest(tensors, about.get("notes", "")):
                return True
        except (SafetensorError, OSError, ValueError):
            pass  # not even a file of its kind
        display.say(f"{file} is damaged and is made again")
        return False

    def _write(self, shard: tuple[int, int], tensors: dict[str, Tensor], notes: Notes) -> None:
        kept = {name: tensor.to("cpu", self.layout.dtype).contiguous() for name, tensor in tensors.items()}
        wanted = {name: (shard[1] - shard[0], *shape) for name, shape in self.layout.parts.items()}
        made = {name: tuple(tensor.shape) for name, tensor in kept.items()}
        if made != wanted:
            raise ValueError(f"rows of shapes {made}, not {wanted}")
        text = json.dumps({str(number): note for number, note in sorted(notes.items())})
        about = json.dumps({"notes": text, "digest": _digest(kept, text)})
        with atomic_file(self.file(shard[0])) as temporary:
            save_file(kept, temporary, {_ABOUT: about})


def _digest(tensors: Mapping[str, Tensor], notes: str) -> str:
    digest = hashlib.blake2b(notes.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
