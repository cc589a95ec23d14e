"""Where networks are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked to; a CPU has. For clocks."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def cuda_devices(device: torch.device) -> list[int]:
    """Those whose random state `torch.random.fork_rng` has to keep beside the CPU's."""
    return [device.index or 0] if device.type == "cuda" else []


@contextmanager
def resident(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Frozen networks on a device while the context is open, then where they were: training may do without them."""
    places = [next(module.parameters()).device for module in modules]
    for module in modules:
        module.requires_grad_(False).eval().to(device)
    try:
        yield
    finally:
        for module, place in zip(modules, places, strict=True):
            module.to(place)
