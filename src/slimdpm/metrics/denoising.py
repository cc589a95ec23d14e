"""The error of a denoiser on images that it has not seen, by noise level, overall and in the high frequencies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimdpm.method.forward_process import Process

TIMESTEPS = (50, 150, 300, 500, 700)  # of 1000: from nearly clean to mostly noise


@dataclass(frozen=True)
class DenoisingErrors:
    """Mean squared errors of ε, one for each timestep.

    Attributes:
        timesteps: where the error is measured.
        overall: over all frequencies.
        upper: over the upper half of the frequencies, those beyond half of Nyquist (0.25 cycles per pixel), for each
            coefficient of the orthonormal DFT; 1 is the error of predicting nothing.
    """

    timesteps: tuple[int, ...]
    overall: list[float]
    upper: list[float]


@torch.inference_mode()
def denoising_errors(
    unet: nn.Module,
    process: Process,
    samples: Tensor,
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda count: None,
) -> DenoisingErrors:
    """Errors of a network's ε on given clean samples. The noise depends on the seed alone: all networks get the same.

    Args:
        unet: the network, on its device.
        process: the forward process; its `prediction` says what the network predicts.
        samples: clean samples ``(N, C, H, W)`` in the range of training.
        timesteps: where to measure.
        seed: of the noise.
        batch_size: of the forward passes.
        progress: called with the number of samples done.
    """
    device = next(unet.parameters()).device
    process = process.to(device)
    high = upper_half(*samples.shape[-2:]).to(device)
    training = unet.training
    unet.eval()
    overall, upper = [], []
    for timestep in timesteps:
        noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed * 100_003 + timestep))
        sums = [0.0, 0.0]
        for x0, epsilon in zip(samples.split(batch_size), noise.split(batch_size), strict=True):
            x0, epsilon = x0.to(device), epsilon.to(device)
            t = torch.full((len(x0),), timestep, device=device)
            x_t = process.add_noise(x0, epsilon, t)
            output = unet(x_t, t, return_dict=False)[0]
            error = process.convert(output.float(), x_t, t, process.prediction, "epsilon") - epsilon  # (B, C, H, W)
            power = torch.fft.fft2(error, norm="ortho").abs().square()  # (B, C, H, W)
            sums[0] += power.mean(dim=(1, 2, 3)).sum().item()
            sums[1] += power[..., high].mean(dim=(1, 2)).sum().item()
            progress(len(x0))
        overall.append(sums[0] / len(samples))
        upper.append(sums[1] / len(samples))
    unet.train(training)
    return DenoisingErrors(tuple(timesteps), overall, upper)


def upper_half(height: int, width: int) -> Tensor:
    """The coefficients of an ``fft2`` beyond half of Nyquist, radially: bool ``(height, width)``."""
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :]
    return (fy.square() + fx.square()).sqrt() >= 0.25
