"""Items of a data set, made by processes of their own, and what goes wrong in these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.stop_signals import leave_to_parent


class Loader(DataLoader):
    """A DataLoader that leaves the global random state alone: nothing here draws from a loader's generator.

    What the data set gives comes as it is; one that gives whole batches has a `sampler` of their numbers. A
    `SlimdpmError` comes out of its processes as it was raised, without their tracebacks.
    """

    def __init__(self, dataset: Dataset, **options: Any):
        options |= {"batch_size": None, "collate_fn": _as_is, "worker_init_fn": leave_to_parent}
        super().__init__(_Caught(dataset), generator=torch.Generator(), **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with blamed("the processes that read images fail (data.workers=0 does without)"):
            for item in super().__iter__():
                if isinstance(item, SlimdpmError):
                    raise item
                yield item


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


def _as_is(item: Any) -> Any:
    return item
