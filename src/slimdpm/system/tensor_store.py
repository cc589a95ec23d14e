"""Rows of tensors on the disk, computed once: what a network makes of each image or caption, or by itself.

The rows lie in shards of a fixed length, each a safetensors file with a digest of its content. Processes share the
shards among them, a kill costs the shard in work, and a shard whose content is not what its digest says is made again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slimdpm.system.amounts import storage
from slimdpm.system.documents import regular
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import atomic_file, explained, remove_leftovers
from slimdpm.system.hashing import bytes_of, digest
from slimdpm.system.processes import processes
from slimdpm.system.progress import Display
from slimdpm.system.shared_work import share

_ABOUT = "slimdpm"  # a shard's only metadata: safetensors writes several in an order of its own each time

Notes = dict[int, str]  # what is to be said of a row, by its number
Rows = dict[str, Tensor]  # ``(B, *shape)`` of each part
Make = Callable[[range, Notes], Iterator[Rows]]  # rows of these numbers, batch by batch; what it notes of them it adds


@dataclass(frozen=True)
class Layout:
    """What is stored.

    Attributes:
        parts: the shape of each tensor of a row, by its name.
    """

    rows: int
    parts: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype = torch.float32
    shard: int = 256

    @property
    def key(self) -> str:
        """What tells stores apart whose rows are the same otherwise; a longer one begins like a shorter one."""
        return repr((sorted(self.parts.items()), self.dtype, self.shard))

    @property
    def row_nbytes(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.parts.values()) * self.dtype.itemsize

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and last row, exclusive, of each shard."""
        for first in range(0, self.rows, self.shard):
            yield first, min(first + self.shard, self.rows)


def batches(numbers: range, most: int) -> Iterator[range]:
    """The numbers, at most so many at a time."""
    for first in numbers[::most]:
        yield range(first, min(first + most, numbers.stop))


@dataclass
class Store:
    """A folder of shards, of one layout and one content."""

    folder: Path
    layout: Layout
    _open: dict[int, Rows] = field(default_factory=dict, repr=False)

    def row(self, number: int) -> Rows:
        """The tensors of a row, ``layout.parts`` each, in the stored dtype."""
        first = number // self.layout.shard * self.layout.shard
        return {part: rows[number - first] for part, rows in self.shard(first).items()}

    def shard(self, first: int) -> Rows:
        """Of the shard that begins with this row each part, which may hold more rows than the layout has."""
        if first not in self._open:
            with safe_open(self.file(first), "pt") as shard:  # mapped, not read
                self._open[first] = {part: shard.get_tensor(part) for part in self.layout.parts}
        return self._open[first]

    def batches(self, part: str) -> Iterator[Tensor]:
        """One part of all rows, ``(B, *shape)`` shard by shard."""
        for first, last in self.layout.ranges():
            yield self.shard(first)[part][: last - first]

    def notes(self) -> Notes:
        """What was noted of rows when they were made."""
        found: Notes = {}
        for first, _ in self.layout.ranges():
            with safe_open(self.file(first), "pt") as shard:
                notes = json.loads(json.loads(shard.metadata()[_ABOUT])["notes"])
            found |= {int(number): note for number, note in notes.items()}
        return found

    def build(self, make: Make, label: str, display: Display) -> Store:
        """Make what is missing or damaged. All processes share the work, and all wait for it.

        Args:
            display: where progress is shown, and the size on the disk before anything is written.

        Raises:
            SlimdpmError: if the disk is too small.
        """
        state = processes()
        self._check_disk(label, display)
        state.wait_for_everyone()  # nobody writes before all have looked: they go on, or fail, together
        mine = list(self.layout.ranges())[state.process_index :: state.num_processes]
        with display.task(label, sum(last - first for first, last in mine), unit="rows") as task:

            def do(shard: tuple[int, int]) -> None:
                if self._intact(shard, display):
                    task.advance(shard[1] - shard[0])
                    return
                remove_leftovers(self.folder, self.file(shard[0]).name, locked=True)
                batches: list[Rows] = []
                notes: Notes = {}
                for rows in make(range(*shard), notes):
                    batches.append(rows)
                    task.advance(len(next(iter(rows.values()))))
                self._write(shard, {part: torch.cat([rows[part] for rows in batches]) for part in batches[0]}, notes)

            share(mine, lambda shard: self.folder / "locks" / f"{shard[0]:08d}", do)
        state.wait_for_everyone()
        return self

    def file(self, first: int) -> Path:
        """The shard that begins with this row."""
        return self.folder / f"{first:08d}.safetensors"

    def _check_disk(self, label: str, display: Display) -> None:
        missing = [last - first for first, last in self.layout.ranges() if not self.file(first).exists()]
        if not missing:
            return
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = sum(missing) * self.layout.row_nbytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise SlimdpmError(
                f"{label}: {storage(needed)} are needed in {self.folder}, {storage(free)} are free; name another "
                "folder: data.cache of a run, -o of an evaluation"
            )
        display.say(f"{label}: {storage(needed)} will be kept in {self.folder}")

    def _intact(self, shard: tuple[int, int], display: Display) -> bool:
        """Whether a shard is there and holds what was written; it may be one of a longer store."""
        file = self.file(shard[0])
        if not file.exists():
            return False
        try:
            with regular(file), safe_open(file, "pt") as opened:
                tensors = {part: opened.get_tensor(part) for part in opened.keys()}  # noqa: SIM118 - no dict
                about = json.loads((opened.metadata() or {}).get(_ABOUT, "{}"))
            notes, found = about.get("notes", ""), about.get("digest")
            whole = {part: tuple(rows.shape[1:]) for part, rows in tensors.items()} == dict(self.layout.parts)
            # The shards of earlier versions do not say which rows are theirs.
            if whole and found in (_digest(tensors, notes, shard[0]), _digest(tensors, notes)):
                return all(len(rows) >= shard[1] - shard[0] for rows in tensors.values())
        except (SlimdpmError, SafetensorError, ValueError):
            pass  # not even a file of its kind
        display.say(f"{file} is damaged and is made again")
        return False

    def _write(self, shard: tuple[int, int], tensors: Rows, notes: Notes) -> None:
        kept = {name: tensor.to("cpu", self.layout.dtype).contiguous() for name, tensor in tensors.items()}
        wanted = {name: (shard[1] - shard[0], *shape) for name, shape in self.layout.parts.items()}
        made = {name: tuple(tensor.shape) for name, tensor in kept.items()}
        if made != wanted:
            raise ValueError(f"rows of shapes {made}, not {wanted}")
        text = json.dumps({str(number): note for number, note in sorted(notes.items())})
        about = json.dumps({"notes": text, "digest": _digest(kept, text, shard[0])})
        with atomic_file(self.file(shard[0])) as temporary:
            save_file(kept, temporary, {_ABOUT: about})


def _digest(tensors: Mapping[str, Tensor], notes: str, first: int | None = None) -> str:
    parts: list[bytes | np.ndarray] = [notes.encode() if first is None else f"{first} {notes}".encode()]
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), bytes_of(tensor)]
    return digest(parts)
