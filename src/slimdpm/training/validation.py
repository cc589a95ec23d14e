"""How the student does on images that training never sees, beside its teacher: the error of ε, during the run.

Networks get the same noisy images each time, so what changes is the student. Each image is noised to one of the levels
in turn: as many images at every level would take several times as long and say hardly more of the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from slimdpm.data.dataset import Images
from slimdpm.data.loader import Loader
from slimdpm.data.stream import TrainingStream
from slimdpm.method.forward_process import Process
from slimdpm.method.networks import Inputs
from slimdpm.metrics.denoising import HELD_OUT, HELD_OUT_TEACHER, TIMESTEPS, denoising_errors
from slimdpm.training.accelerator import split_batch
from slimdpm.training.job import Job

_Inputs = Callable[..., Inputs]  # of the images of a slice, all conditions dropped or none


class Validation:
    """Measures averaged weights. The first call reads the images and measures the teacher, which stays as it is.

    Args:
        job: of the run, with the conditioning that it is trained with.
        images: held out.
        accelerator: of the run: its device and precision.
        network: the student with given weights, apart from the one in training.
    """

    def __init__(
        self,
        job: Job,
        images: Images,
        accelerator: Accelerator,
        network: Callable[[Mapping[str, Tensor]], nn.Module],
    ):
        self.job, self.images, self.accelerator, self.network = job, images, accelerator, network
        self.batch_size = split_batch(job.recipe, accelerator.num_processes)[0]  # what a step has room for

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean squared errors of ε, means over the levels, under their names in the run's log."""
        shell = self.job.shell
        ours = self._error(self.network(weights), shell.predicting(self.job.recipe.student.prediction).process)
        return {HELD_OUT: ours} if self.job.teacher is None else {HELD_OUT: ours, HELD_OUT_TEACHER: self.teachers}

    @cached_property
    def teachers(self) -> float:
        """The teacher's error, of its guided output if that is what the student learns."""
        assert self.job.teacher is not None
        scale = self.job.recipe.distill.guidance
        return self._error(self.job.teacher.unet.to(self.accelerator.device), self.job.shell.process, scale)

    def _error(self, network: nn.Module, process: Process, guidance: float = 1.0) -> float:
        options: dict[str, Any] = {"batch_size": self.batch_size, "guidance": guidance}
        found = []
        with self.accelerator.autocast():
            for timestep, samples, inputs in self._shares:
                null = partial(inputs, dropped=True) if guidance > 1 else None
                options |= {"timesteps": [timestep], "inputs": inputs, "null": null}
                found.append(denoising_errors(network, process, samples, **options).overall[0])
        return float(np.mean(found))

    @cached_property
    def _shares(self) -> list[tuple[int, Tensor, _Inputs]]:
        """Each level's timestep, clean samples ``(N, C, H, W)``, and what the networks are given beside them."""
        count, levels, length = len(self.images), len(TIMESTEPS), len(self.job.shell.process)
        numbers = [np.arange(level, max(count, levels), levels) % count for level in range(levels)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.job.recipe.train.seed)  # a KL autoencoder's draws are the same in each sitting
            return [(TIMESTEPS[i] * length // 1000, *self._read(some.tolist())) for i, some in enumerate(numbers)]

    def _read(self, numbers: list[int]) -> tuple[Tensor, _Inputs]:
        shell, device, size = self.job.shell, self.accelerator.device, self.batch_size
        stream = TrainingStream(self.images, seed=self.job.recipe.train.seed)
        parts = [numbers[first : first + size] for first in range(0, len(numbers), size)]
        batches = list(Loader(stream, sampler=parts))
        moments = []
        for batch in batches:  # later uses are for conditions alone: images stay if the network sees any
            known = batch.pop("latents", None) or shell.encode_moments(batch["images"].to(device))
            moments.append({part: rows.cpu() for part, rows in known.items()})
            if not shell.conditioning.extra:
                batch.pop("images", None)
        samples = shell.draw({part: torch.cat([rows[part] for rows in moments]) for part in moments[0]})

        def inputs(chosen: slice, dropped: bool = False) -> Inputs:
            batch = batches[chosen.start // size]
            return shell.conditioning.training_inputs(batch, torch.full((len(batch["draws"]),), dropped, device=device))

        return samples, inputs
