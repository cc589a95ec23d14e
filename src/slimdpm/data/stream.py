"""The endless shuffled stream of training batches, a function of the seed and a position in it.

A run that resumes asks for the positions that it has not seen, so nothing of a data loader's state needs saving.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from slimdpm.data.dataset import Images
from slimdpm.data.images import to_model_range
from slimdpm.data.loader import Loader


class TrainingStream(Dataset):
    """An endless shuffled stream: item `p` is the `p`-th sample that training sees.

    Each pass over the images is a fresh permutation. Permutation, crop and flip follow from the seed and `p` alone.

    Args:
        flip: mirror each with probability one half.
        seed: of the order and the augmentation.
    """

    def __init__(self, images: Images, *, flip: bool = False, seed: int = 0):
        self.images, self.flip, self.seed = images, flip, seed
        self._epoch = -1
        self._order = np.arange(0)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """``"images"``, pixels in [−1, 1], float32 ``(C, H, W)``, or ``"latents"`` if they are kept, see
        `Images.moments`; ``"conditions"`` if they are known; ``"draws"``, a seed for what else is random."""
        epoch, offset = divmod(position, len(self.images))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.images))
            self._epoch = epoch
        rng = np.random.default_rng([self.seed, 1, position])
        mirrored = self.flip and rng.random() < 0.5
        number = int(self._order[offset])
        known = {"draws": int(np.random.SeedSequence([self.seed, 3, position]).generate_state(1)[0])}
        if self.images.conditions is not None:
            known["conditions"] = self.images.condition(number)
        if self.images.latents is not None:
            return {"latents": self.images.moments(number, mirrored), **known}
        array = self.images.square(number, rng)
        if mirrored:
            array = array[:, ::-1]
        pixels = to_model_range(torch.from_numpy(array.copy()).permute(2, 0, 1))  # the cache is read-only
        return {"images": pixels, **known}


class StreamBatches(Sampler[list[int]]):
    """The positions of one process's batches, from one micro-step to another.

    All processes together take a contiguous stretch of the stream at each micro-step, so the images of a step do not
    depend on how many processes share it.

    Args:
        batch_size: of this process.
        start: the first micro-step.
        stop: one past the last.
    """

    def __init__(self, batch_size: int, start: int, stop: int, *, rank: int = 0, world_size: int = 1):
        self.batch_size, self.start, self.stop = batch_size, start, stop
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


def training_loader(
    stream: TrainingStream, batches: StreamBatches, *, workers: int = 0, pin: bool = False
) -> DataLoader:
    """Batches: ``"images"`` ``(B, C, H, W)`` float32 in [−1, 1] or ``"latents"``, ``"conditions"`` a tensor ``(B,)`` or
    a list of B.

    `workers` decode the images. What is cached is read here, which is faster than passing it on; a GPU would wait for
    it, so for one (`pin`) they read that, too.
    """
    if not pin and (stream.images.squares is not None or stream.images.latents is not None):
        workers = 0
    return Loader(stream, batch_sampler=batches, num_workers=workers, pin_memory=pin)
