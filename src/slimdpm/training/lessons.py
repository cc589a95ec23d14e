"""What each step is taught: clean samples, noise, timesteps, conditions, and what the teacher says of them.

The teacher's pass is the dearest part of a distillation step, and what it says is worth more than one step. With
``distill.reuse`` R one step in R has a fresh batch; the others take one that is kept from before. Which one follows
from the step alone (`kept_batch`), and batch n from the seed and n: a run that was stopped makes the batches that it
still needs again, bit for bit, and a batch is the same however many processes share it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from slimdpm.data.dataset import Images
from slimdpm.data.stream import StreamBatches, TrainingStream, training_loader
from slimdpm.method.distiller import Distiller, Taught
from slimdpm.method.networks import Inputs
from slimdpm.training.accelerator import split_batch
from slimdpm.training.job import Job

SPREAD = 8  # fresh batches between two uses of a batch

_DROPPING = 2  # beside the numbers that `TrainingStream` seeds order and augmentation with


@dataclass(frozen=True)
class Lesson:
    """A micro-batch as `Distiller.losses` takes it; `taught` is None without a teacher."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    conditions: Mapping[str, Any]
    taught: Taught | None


def kept_batch(step: int, reuse: int) -> int:
    """The number of the batch of a step: fresh ones are counted, each is used `reuse` times in the long run.

    Of the R steps of group g the first takes the fresh batch g, the i-th after it the batch g − i `SPREAD`; at the
    start of a run, where there are none so old, those that there are lie closer together.
    """
    group, place = divmod(step, reuse)
    return group - min(place * SPREAD, place * group // max(reuse - 1, 1))


def batches_kept(reuse: int) -> int:
    """How many batches are alive at once."""
    return (reuse - 1) * SPREAD + 1


class Lessons:
    """The lessons of one process, from a step on.

    Args:
        job: of the run.
        images: the training images.
        distiller: its losses, on the device.
        accelerator: of the run.
        start: the first step.
    """

    def __init__(self, job: Job, images: Images, distiller: Distiller, accelerator: Accelerator, start: int):
        self.job, self.distiller, self.accelerator = job, distiller, accelerator
        self.micro_batch, self.accumulation = split_batch(job.recipe, accelerator.num_processes)
        self.reuse, self.guided = job.uses, distiller.teaches and job.recipe.distill.guides
        # The oldest batch that a step from `start` on may take, and the newest one.
        self._next = max(0, start // self.reuse + 1 - batches_kept(self.reuse))
        self._kept: deque[list[Lesson]] = deque(maxlen=batches_kept(self.reuse))
        self._data = self._loaded(images, self._next, (job.recipe.train.steps - 1) // self.reuse + 1)

    def _loaded(self, images: Images, first: int, stop: int) -> Iterator[dict[str, Any]]:
        recipe, a = self.job.recipe, self.accelerator
        stream = TrainingStream(images, flip=recipe.data.flip, seed=recipe.train.seed)
        span = [number * self.accumulation for number in (first, stop)]
        batches = StreamBatches(self.micro_batch, *span, rank=a.process_index, world_size=a.num_processes)
        return iter(training_loader(stream, batches, workers=recipe.data.workers, pin=a.device.type == "cuda"))

    def of(self, step: int) -> Iterator[Lesson]:
        """A step's lessons, one for each micro-batch. The global random generator is seeded for each."""
        number, fresh = kept_batch(step, self.reuse), step % self.reuse == 0
        while self._next < number + (not fresh):  # a run that goes on has none yet
            deque(self._made(), 0)
        if fresh:
            yield from self._made()
            return
        for micro, lesson in enumerate(self._kept[number - self._next]):
            self._seed(step, 1 + self._place(micro))  # the student's dropout
            yield lesson

    def _made(self) -> Iterator[Lesson]:
        """The lessons of the next fresh batch; it is kept when all were taken, if it serves other steps."""
        number, lessons = self._next, []
        timesteps, noise, dropped = self._draw(number)
        for micro in range(self.accumulation):
            place = self._place(micro)
            share = slice(place * self.micro_batch, (place + 1) * self.micro_batch)
            batch = next(self._data)
            self._seed(number, 1 + place)  # a KL autoencoder's draw, the student's dropout
            # The data is the same in any precision, as what is kept of it is.
            x0 = self.job.shell.clean_samples(batch, self.accelerator.device)
            conditions = self.job.shell.conditioning.training_inputs(batch, dropped[share])
            null = None
            if self.guided:
                null = self.job.shell.conditioning.training_inputs(batch, torch.ones_like(dropped[share]))
            lesson = self._taught(Lesson(x0, noise[share], timesteps[share], conditions, None), null)
            if self.reuse > 1:  # else its features would outlive their step
                lessons.append(lesson)
            yield lesson
        self._kept.append(lessons)
        self._next += 1

    def _taught(self, lesson: Lesson, null: Inputs | None) -> Lesson:
        if not self.distiller.teaches:
            return lesson
        x_t = self.distiller.process.add_noise(lesson.x0, lesson.noise, lesson.t)
        with self.accelerator.autocast():
            taught = self.distiller.teach(x_t, lesson.t, lesson.conditions, null)
        return replace(lesson, taught=taught)

    def _place(self, micro: int) -> int:
        """Of a micro-batch in the whole batch."""
        return micro * self.accelerator.num_processes + self.accelerator.process_index

    def _draw(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a whole batch, the same in every process: timesteps, noise, and whose condition is dropped.

        ``(B,)``, ``(B, C, H, W)``, and bool ``(B,)``.
        """
        recipe, device = self.job.recipe, self.accelerator.device
        size = recipe.train.batch_size
        self._seed(number, 0)
        timesteps = torch.randint(len(self.distiller.process), (size,), device=device)
        noise = torch.randn((size, *self.job.shell.shape), device=device)
        # A generator of its own: a run without conditions draws what it always drew.
        chances = np.random.default_rng([recipe.train.seed, _DROPPING, number]).random(size)
        return timesteps, noise, torch.from_numpy(chances < recipe.conditioning.drop).to(device)

    def _seed(self, *entropy: int) -> None:
        words = np.random.SeedSequence([self.job.recipe.train.seed, *entropy]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> np.uint64(1)))
