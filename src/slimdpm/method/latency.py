"""What a network takes in seconds, and which of its layers take them. Random weights tell as much as trained ones."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from slimdpm.method.networks import call, example_inputs, outline
from slimdpm.system.devices import synchronize
from slimdpm.system.sizes import Size
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Of a layer in several kinds the outermost counts: a convolution inside a resampler is resampling.
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "resampling": (Downsample2D, Upsample2D, WaveletGatingDown, WaveletGatingUp),
    "attention": (Attention,),
    "convolution": (nn.Conv2d,),
    "norm": (nn.GroupNorm, nn.LayerNorm),
    "linear": (nn.Linear,),
}


@dataclass(frozen=True)
class Latency:
    """Seconds of one call: the median over the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)


def timings(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = 20,
    clock: Callable[[], float] = time.perf_counter,
    gradients: bool = False,
) -> dict[str, Latency]:
    """Seconds of each call.

    They take turns, so that whatever else the machine does falls on all of them alike: the ratios are what counts.

    Args:
        calls: by name.
        device: that is waited for.
        rounds: of each, after one that is not counted.
        clock: `time.process_time` is the processor's time of all threads: with one thread it repeats best, since it
            stands still while other work has the processor.
        gradients: whether the calls need them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode(not gradients):
        for turn in range(rounds + 1):
            for name, call in calls.items():
                synchronize(device)
                start = clock()
                call()
                synchronize(device)
                if turn:
                    seconds[name].append(clock() - start)
    return {name: Latency.of(values) for name, values in seconds.items()}


def step_seconds(
    walks: Mapping[str, Iterator[object]],
    device: torch.device,
    *,
    group: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of a training step, see `timings`.

    Args:
        walks: by name, a step for each `next`.
        device, rounds, clock: as in `timings`.
        group: steps in a round, such as those that one answer of a teacher serves.
    """
    calls = {name: lambda walk=walk: deque(islice(walk, group), 0) for name, walk in walks.items()}
    found = timings(calls, device, rounds=rounds, clock=clock, gradients=True)
    return {name: latency.median / group for name, latency in found.items()}


def latencies(
    networks: Mapping[str, Any],
    *,
    rounds: int = 20,
    batch: int = 1,
    tokens: int = 77,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of one forward pass of each network, see `timings`.

    Args:
        networks: U-Nets by name, on one device.
        rounds: passes of each, after one that is not counted.
        batch: of the input.
        tokens: length of the conditioning sequence of a cross-attention U-Net.
        clock: as in `timings`.
    """
    device = next(next(iter(networks.values())).parameters()).device
    calls = {name: _call(network, batch, tokens, device) for name, network in networks.items()}
    return {name: found.median for name, found in timings(calls, device, rounds=rounds, clock=clock).items()}


def best_latencies(
    networks: Mapping[str, Any],
    *,
    rounds: int = 20,
    batch: int = 1,
    tokens: Mapping[str, int] | None = None,
    size: Size | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[Latency, str]]:
    """Of one forward pass of each network in the memory format in which it is faster, and which one that is.

    The arguments are those of `latencies`, `tokens` by the network's name; `size` is the input's, by default that of
    each config. The networks are contiguous afterwards.
    """
    device = next(next(iter(networks.values())).parameters()).device
    found: dict[str, tuple[Latency, str]] = {}
    for layout, form in FORMATS.items():
        calls = {
            name: _call(network.to(memory_format=form), batch, (tokens or {}).get(name, 77), device, form, size)
            for name, network in networks.items()
        }
        for name, latency in timings(calls, device, rounds=rounds, clock=clock).items():
            if name not in found or latency.median < found[name][0].median:
                found[name] = latency, layout
    for network in networks.values():
        network.to(memory_format=torch.contiguous_format)
    return found


def brief_latencies(networks: Mapping[str, Any], *, seconds: float = 6.0, **options: Any) -> dict[str, float]:
    """Median seconds of one forward pass of each network, from about so many seconds of measuring.

    A single round counts if one takes longer than that. The options are those of `best_latencies`.
    """

    def measured(rounds: int) -> dict[str, Latency]:
        return {name: found for name, (found, _) in best_latencies(networks, rounds=rounds, **options).items()}

    return briefly(measured, seconds / 2)  # in two memory formats


def briefly(measured: Callable[[int], Mapping[str, Latency]], seconds: float) -> dict[str, float]:
    """Medians of as many rounds as make up about so many seconds, 60 at most; one counts if it takes longer."""
    first = measured(1)
    rounds = int(seconds / sum(latency.median for latency in first.values()))
    found = measured(min(rounds, 60)) if rounds > 1 else first
    return {name: latency.median for name, latency in found.items()}


def layer_seconds(network: Any, *, rounds: int = 5, batch: int = 1, tokens: int = 77) -> dict[str, float]:
    """Mean seconds of a forward pass by kind of layer, see `KINDS`; ``"rest"`` is what lies between them."""
    device = next(network.parameters()).device
    spent: dict[str, float] = defaultdict(float)
    inside: list[tuple[Any, float]] = []

    def enter(module: nn.Module, *_: Any) -> None:
        if not inside:
            synchronize(device)
            inside.append((module, time.perf_counter()))

    def leave(module: nn.Module, *_: Any) -> None:
        if inside[0][0] is module:
            synchronize(device)
            kind = next(kind for kind, classes in KINDS.items() if isinstance(module, classes))
            spent[kind] += time.perf_counter() - inside.pop()[1]

    with ExitStack() as hooks, torch.inference_mode():
        call = _call(network, batch, tokens, device)
        call()  # not counted
        layers = [m for m in network.modules() if isinstance(m, sum(KINDS.values(), ()))]
        for module in layers:
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        synchronize(device)
        whole = time.perf_counter() - start
    return {kind: spent[kind] / rounds for kind in KINDS} | {"rest": (whole - sum(spent.values())) / rounds}


def random_network(config: Mapping[str, Any], device: torch.device) -> Any:
    """A network of this config to be timed: quickly made, with weights of no meaning and no extreme size."""
    network = outline(config).to_empty(device=device).eval()
    for parameter in network.parameters():
        parameter.data.normal_(std=0.02) if parameter.ndim > 1 else parameter.data.fill_(1)
    return network


def _call(
    network: Any,
    batch: int,
    tokens: int,
    device: torch.device,
    layout: torch.memory_format = torch.contiguous_format,
    size: Size | None = None,
) -> Callable[[], object]:
    inputs = example_inputs(network.config, batch=batch, size=size, tokens=tokens, device=str(device))
    sample, t = inputs.pop("sample").to(memory_format=layout), inputs.pop("timestep")
    return lambda: call(network, sample, t, inputs)
