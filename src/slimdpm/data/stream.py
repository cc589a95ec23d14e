"""The endless shuffled stream of training batches, a function of the seed and a position in it.

A run that resumes asks for the positions that it has not seen, so nothing of a data loader's state needs saving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from slimdpm.data.dataset import Images
from slimdpm.data.images import to_model_range
from slimdpm.data.loader import Loader


class TrainingStream(Dataset):
    """An endless shuffled stream: place `p` has the `p`-th sample that training sees.

    Each pass over the images is a fresh permutation. Permutation, crop and flip follow from the seed and `p` alone.

    Args:
        flip: mirror each with probability one half.
        seed: of the order and the augmentation.
    """

    def __init__(self, images: Images, *, flip: bool = False, seed: int = 0):
        self.images, self.flip, self.seed = images, flip, seed
        self._epoch = -1
        self._order = np.arange(0)

    def __getitem__(self, positions: Sequence[int]) -> dict[str, Any]:
        """The batch of B positions: ``"images"``, pixels in [−1, 1], float32 ``(B, C, H, W)``, or ``"latents"`` if they
        are kept, see `Images.moments`; ``"conditions"`` if they are known, a tensor ``(B,)`` or a list of B;
        ``"draws"``, int64 ``(B,)``, seeds for what else is random."""
        numbers = [self._number(position) for position in positions]
        rngs: list[Any] = [None] * len(numbers)
        if self.flip or self.images.squares is None:  # else nothing is drawn here, and a generator takes 20 µs to make
            rngs = [np.random.default_rng([self.seed, 1, position]) for position in positions]
        mirrored = np.array([self.flip and rng.random() < 0.5 for rng in rngs])
        draws = [np.random.SeedSequence([self.seed, 3, position]).generate_state(1)[0] for position in positions]
        known = {"draws": torch.from_numpy(np.array(draws, np.int64))}
        if self.images.conditions is not None:
            known["conditions"] = default_collate([self.images.condition(number) for number in numbers])
        if self.images.latents is not None:
            rows = zip(numbers, mirrored, strict=True)
            return {"latents": default_collate([self.images.moments(n, flipped) for n, flipped in rows]), **known}
        squares = np.stack([self.images.square(number, rng) for number, rng in zip(numbers, rngs, strict=True)])
        squares[mirrored] = squares[mirrored, :, ::-1]
        return {"images": to_model_range(torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()), **known}

    def _number(self, position: int) -> int:
        """Of the image at a place of the stream."""
        epoch, offset = divmod(position, len(self.images))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.images))
            self._epoch = epoch
        return int(self._order[offset])


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
    """Batches of the stream.

    `workers` decode the images. What is cached is read here, which is faster than passing it on; a GPU would wait for
    it, so for one (`pin`) they read that, too.
    """
    if not pin and (stream.images.squares is not None or stream.images.latents is not None):
        workers = 0
    return Loader(stream, sampler=batches, num_workers=workers, pin_memory=pin)
