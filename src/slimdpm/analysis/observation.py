"""A network under observation: which frequencies its x̂_0 holds at each noise level, and what its gates do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimdpm.method.forward_process import Process
from slimdpm.method.networks import call
from slimdpm.metrics.spectrum import ring_powers
from slimdpm.wavelet import record_gates

BANDS = ("LL", "LH", "HL", "HH")


@dataclass(frozen=True)
class Observation:
    """What was seen over the noise levels.

    Attributes:
        timesteps: ``(T,)``, growing.
        power: radial power spectrum of x̂_0 ``(T, rings)``.
        gates: of each resampler, the mean gate of each sub-band ``(T, 4)`` in the order of `BANDS`; empty for a
            network without gates.
    """

    timesteps: np.ndarray
    power: np.ndarray
    gates: dict[str, np.ndarray]


@torch.inference_mode()
def observe(
    unet: nn.Module,
    process: Process,
    samples: Tensor,
    timesteps: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 64,
    inputs: Callable[[slice], Mapping[str, Any]] = lambda numbers: {},
    progress: Callable[[int], None] = lambda count: None,
) -> Observation:
    """Denoise real samples at given noise levels in one step each. The noise depends on the seed alone.

    Args:
        unet: the network, on its device.
        process: the forward process; its `prediction` says what the network predicts.
        samples: clean samples ``(N, C, H, W)`` in the range of training.
        timesteps: where to look, growing.
        seed: of the noise.
        batch_size: of the forward passes.
        inputs: what the network is given beside the samples of these numbers.
        progress: called with the number of samples done.
    """
    device = next(unet.parameters()).device
    process = process.to(device)
    training = unet.training
    unet.eval()
    power, gates = [], []
    with record_gates(unet) as recorded:
        for timestep in timesteps:
            noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed * 100_003 + timestep))
            total: Any = 0.0
            opened: dict[str, Any] = {}
            for first in range(0, len(samples), batch_size):
                batch = slice(first, first + batch_size)
                x0, epsilon = samples[batch].to(device), noise[batch].to(device)
                t = torch.full((len(x0),), timestep, device=device)
                x_t = process.add_noise(x0, epsilon, t)
                output = call(unet, x_t, t, inputs(batch))
                restored = process.convert(output.float(), x_t, t, process.prediction, "sample")
                total = total + ring_powers(restored.permute(0, 2, 3, 1).cpu().numpy()).sum(axis=0)
                for name, gate in recorded.items():  # (B, 4, C)
                    opened[name] = opened.get(name, 0.0) + gate.float().mean(dim=2).sum(dim=0).cpu().numpy()
                progress(len(x0))
            power.append(total / len(samples))
            gates.append({name: value / len(samples) for name, value in opened.items()})
    unet.train(training)
    by_name = {name: np.stack([g[name] for g in gates]) for name in gates[0]}
    return Observation(np.asarray(timesteps), np.stack(power), by_name)
