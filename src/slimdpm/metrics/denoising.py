"""Real samples noised to given levels: what a network predicts of them, and how far it errs, by frequency."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimdpm.conditioning import Guidance
from slimdpm.method.forward_process import Process
from slimdpm.method.networks import Inputs

TIMESTEPS = (50, 150, 300, 500, 700)  # of 1000: from nearly clean to mostly noise
HELD_OUT, HELD_OUT_TEACHER = "held_out", "held_out_teacher"  # errors in a run's log


@dataclass(frozen=True)
class DenoisingErrors:
    """Mean squared errors of ε, one for each timestep.

    Attributes:
        overall: over all frequencies.
        upper: over the upper half of the frequencies, those beyond half of Nyquist (0.25 cycles per pixel), for each
            coefficient of the orthonormal DFT; 1 is the error of predicting nothing.
    """

    timesteps: tuple[int, ...]
    overall: list[float]
    upper: list[float]


@torch.inference_mode()
def predictions(
    unet: nn.Module,
    process: Process,
    samples: Tensor,
    timesteps: Sequence[int],
    kind: str,
    *,
    seed: int = 0,
    batch_size: int = 64,
    inputs: Callable[[slice], Inputs] = lambda numbers: {},
    null: Callable[[slice], Inputs] | None = None,
    guidance: float = 1.0,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Noise real samples to given levels, and let a network predict. The noise depends on the seed alone.

    Args:
        unet: the network, on its device.
        process: the forward process; its `prediction` says what the network predicts.
        samples: clean samples ``(N, C, H, W)`` in the range of training.
        kind: what the network's output is turned into, see `Process.convert`.
        inputs: what the network is given beside the samples of these numbers.
        null: the same of the null condition, for predictions with guidance.
        guidance: its scale.
        progress: called with the number of samples done.

    Yields:
        of each batch at each level: the level's number, the noise and the prediction, both ``(B, C, H, W)``.
    """
    device = next(unet.parameters()).device
    process = process.to(device)
    training = unet.training
    unet.eval()
    for level, timestep in enumerate(timesteps):
        noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed * 100_003 + timestep))
        for first in range(0, len(samples), batch_size):
            batch = slice(first, first + batch_size)
            x0, epsilon = samples[batch].to(device), noise[batch].to(device)
            t = torch.full((len(x0),), timestep, device=device)
            x_t = process.add_noise(x0, epsilon, t)
            asked = Guidance(inputs(batch), null(batch) if null else None, guidance)
            output = asked.predict(unet, x_t, t).float()
            yield level, epsilon, process.convert(output, x_t, t, process.prediction, kind)
            progress(len(x0))
    unet.train(training)


def denoising_errors(
    unet: nn.Module, process: Process, samples: Tensor, *, timesteps: Sequence[int] = TIMESTEPS, **options: Any
) -> DenoisingErrors:
    """Errors of a network's ε on given clean samples; arguments and options as of `predictions`."""
    errors = np.zeros((2, len(timesteps)))
    for level, noise, prediction in predictions(unet, process, samples, timesteps, "epsilon", **options):
        power = torch.fft.fft2(prediction - noise, norm="ortho").abs().square()  # (B, C, H, W)
        high = upper_half(*power.shape[-2:]).to(power.device)
        errors[0, level] += power.mean(dim=(1, 2, 3)).sum().item()
        errors[1, level] += power[..., high].mean(dim=(1, 2)).sum().item()
    overall, upper = (errors / len(samples)).tolist()
    return DenoisingErrors(tuple(timesteps), overall, upper)


def times_the_teachers(line: Mapping[str, float]) -> float:
    """The student's held-out error over its teacher's, of a line of a run's log; infinite if it has none."""
    teachers = line.get(HELD_OUT_TEACHER)
    return line[HELD_OUT] / teachers if teachers and HELD_OUT in line else math.inf


def described_error(line: Mapping[str, float]) -> str:
    """The held-out error of a line of a run's log, beside its teacher's if it has one, for people."""
    ratio = times_the_teachers(line)
    beside = f", {ratio:.3f} times the teacher's {line[HELD_OUT_TEACHER]:.4f}" if math.isfinite(ratio) else ""
    return f"{line[HELD_OUT]:.4f}{beside}"


def upper_half(height: int, width: int) -> Tensor:
    """The coefficients of an ``fft2`` beyond half of Nyquist, radially: bool ``(height, width)``."""
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :]
    return (fy.square() + fx.square()).sqrt() >= 0.25
