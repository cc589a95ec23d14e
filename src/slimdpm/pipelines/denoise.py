"""The reverse process: from noise to clean samples, with any scheduler of diffusers."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator for each image. Noise made on a CPU is the same on every device."""
    states = (np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] for i in indices)
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]


def takes_generator(scheduler: Any) -> bool:
    """Whether a scheduler's step may draw noise."""
    return "generator" in inspect.signature(scheduler.step).parameters


def trajectory(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: Any,
    noise: torch.Tensor,
    steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    track: Callable[[Iterable[torch.Tensor]], Iterable[torch.Tensor]] = iter,
) -> Iterator[torch.Tensor]:
    """From noise ``(B, C, H, W)`` of unit variance to clean samples: the samples after each step, the clean ones last.

    Args:
        predict: the network at noisy samples and a timestep.
        scheduler: of diffusers; `slimdpm.pipelines.sampling.probe` tells what it cannot do.
        noise: to start from.
        steps: of the scheduler.
        generator: of the noise that a scheduler adds, one or one for each image.
        track: wraps the timesteps, for a progress bar.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    # randn_tensor treats a list of one as a single generator; so do the schedulers.
    extra = {"generator": generator} if takes_generator(scheduler) else {}
    sample = noise * scheduler.init_noise_sigma
    for t in track(scheduler.timesteps):
        prediction = predict(scheduler.scale_model_input(sample, t), t)
        sample = scheduler.step(prediction, t, sample, **extra, return_dict=False)[0]
        yield sample


def denoise(*arguments: Any) -> torch.Tensor:
    """Clean samples: the end of the `trajectory` of these arguments."""
    return deque(trajectory(*arguments), maxlen=1).pop()
