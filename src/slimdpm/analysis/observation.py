"""A network under observation: which frequencies its x̂_0 holds at each noise level, and what its gates do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from slimdpm.method.forward_process import Process
from slimdpm.metrics.denoising import predictions
from slimdpm.metrics.spectrum import ring_powers
from slimdpm.wavelet import record_gates


@dataclass(frozen=True)
class Observation:
    """What was seen over the noise levels.

    Attributes:
        timesteps: ``(T,)``, growing.
        power: radial power spectrum of x̂_0 ``(T, rings)``.
        gates: of each resampler, the mean gate of each of `slimdpm.wavelet.SUBBANDS` ``(T, 4)``; empty for a network
            without gates.
    """

    timesteps: np.ndarray
    power: np.ndarray
    gates: dict[str, np.ndarray]


def observe(
    unet: nn.Module, process: Process, samples: Tensor, timesteps: Sequence[int], **options: Any
) -> Observation:
    """Denoise real samples at given noise levels in one step each; arguments and options as of `predictions`."""
    power: Any = [0.0] * len(timesteps)
    gates: dict[str, Any] = {}
    with record_gates(unet) as recorded:
        for level, _, restored in predictions(unet, process, samples, timesteps, "sample", **options):
            power[level] += ring_powers(restored.permute(0, 2, 3, 1).cpu().numpy()).sum(axis=0)
            for name, gate in recorded.items():  # (B, 4, C)
                opened = gates.setdefault(name, np.zeros((len(timesteps), 4)))
                opened[level] += gate.float().mean(dim=2).sum(dim=0).cpu().numpy()
    shares = {name: opened / len(samples) for name, opened in gates.items()}
    return Observation(np.asarray(timesteps), np.stack(power) / len(samples), shares)
