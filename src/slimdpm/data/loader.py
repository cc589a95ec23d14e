"""Items of a data set, made by processes of their own, and what goes wrong in these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.stop_signals import leave_to_parent


class Loader(DataLoader):
    """A DataLoader that leaves the global random state alone: nothing here draws from a loader's generator.

    A `SlimdpmError` comes out of its processes as it was raised, without their tracebacks.
    """

    def __init__(self, dataset: Dataset, collate_fn: Callable = default_collate, **options: Any):
        collate = partial(_first_error_or, collate_fn)
        super().__init__(
            _Caught(dataset), collate_fn=collate, generator=torch.Generator(), worker_init_fn=leave_to_parent, **options
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with blamed("the processes that read images fail (data.workers=0 does without)"):
            for item in super().__iter__():
                if isinstance(item, SlimdpmError):
                    raise item
                yield item


def batch_loader(dataset: Dataset, batches: Iterable[Sequence[int]], **options: Any) -> Loader:
    """Of a data set whose items are whole batches, each for a sequence of numbers."""
    return Loader(dataset, default_convert, sampler=batches, batch_size=None, **options)


class _Caught(Dataset):
    """A data set whose items may be errors."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except SlimdpmError as error:
            return error


def _first_error_or(collate: Callable, items: Any) -> Any:
    found = items if isinstance(items, list) else [items]
    return next((item for item in found if isinstance(item, SlimdpmError)), None) or collate(items)
