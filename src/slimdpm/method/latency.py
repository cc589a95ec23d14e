"""What a network takes in seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from slimdpm.method.networks import example_inputs


def latencies(networks: Mapping[str, Any], *, rounds: int = 20, batch: int = 1) -> dict[str, float]:
    """Seconds of one forward pass of each network: the median over the rounds.

    The networks take turns, so that whatever else the machine does falls on all of them alike: the ratios are what
    counts.

    Args:
        networks: U-Nets by name, on their device.
        rounds: passes of each, after one that is not counted.
        batch: of the input.
    """
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, network in networks.items():
                device = next(network.parameters()).device
                inputs = example_inputs(network.config, batch=batch, device=str(device))
                synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
                synchronize()
                start = time.perf_counter()
                network(**inputs)
                synchronize()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
