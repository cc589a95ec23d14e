"""From a teacher's config and a budget in time, a student's config: candidates are measured where they shall run.

In small networks time goes into calls and not into arithmetic, so depth is chosen along with the widths.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

import torch

from slimdpm.method.cost import Cost, measure
from slimdpm.method.depth import DEPTH, depths
from slimdpm.method.latency import brief_latencies, briefly, random_network
from slimdpm.method.runtimes import PYTORCH, exported_call, exported_latencies
from slimdpm.method.slimming import MIN_CHANNELS, student_base
from slimdpm.method.widths import (
    VECTOR,
    Grain,
    granularities,
    in_vectors,
    ladder,
    one_level_wider,
    proportional,
    with_widths,
)
from slimdpm.system.errors import SlimdpmError

Config = Mapping[str, Any]
SECONDS = 20.0  # that measuring takes, about, if all candidates take their turns in less than a second
_STAGES = 7  # of a search, about: each halves what is left of the widths
_FAR = 1.35  # times as many: then widths between are measured, even such as waste time
_APART = 0.1  # of their MACs: widths closer than that differ in time by less than measurements do
TEACHER = "teacher"


@dataclass(frozen=True)
class TimeBudget:
    """What one call of the student may take, batch 1. One of the two is given.

    Attributes:
        speedup: times faster than the teacher.
        max_ms: milliseconds.
    """

    speedup: float | None = None
    max_ms: float | None = None

    def limit(self, teacher: float) -> float:
        """The seconds that a student may take whose teacher takes so many."""
        return self.max_ms / 1e3 if self.max_ms is not None else teacher / (self.speedup or 1.0)


@dataclass(frozen=True)
class TimedPlan:
    """A student before it is built, with the seconds of one call of both networks, measured in turns."""

    config: Config
    teacher_seconds: float
    student_seconds: float


class Stopwatch:
    """Measures networks of random weights: one call, batch 1, each in the memory format in which it is faster.

    Args:
        teacher: the config of the network that every measurement includes.
        device: to measure on.
        tokens: length of the conditioning sequence.
        clock: see `slimdpm.method.latency.timings`.
        runtime: one of `slimdpm.method.runtimes.RUNTIMES`; those that are not PyTorch want a CPU.
    """

    def __init__(
        self,
        teacher: Config,
        device: torch.device,
        *,
        tokens: int = 77,
        clock: Callable[[], float] = time.perf_counter,
        runtime: str = PYTORCH,
    ):
        self.device, self.tokens, self.clock, self.runtime = device, tokens, clock, runtime
        self._teacher = self._ready(teacher)

    def __call__(self, configs: Sequence[Config]) -> tuple[float, list[float]]:
        """Median seconds of the teacher, and of each of these networks; they take turns."""
        ready = {TEACHER: self._teacher}
        ready |= {str(number): self._ready(config) for number, config in enumerate(configs)}
        if self.runtime == PYTORCH:
            tokens = dict.fromkeys(ready, self.tokens)
            seconds = brief_latencies(ready, seconds=SECONDS / _STAGES, tokens=tokens, clock=self.clock)
        else:
            seconds = briefly(partial(exported_latencies, ready, clock=self.clock), SECONDS / _STAGES)
        return seconds.pop(TEACHER), list(seconds.values())

    def _ready(self, config: Config) -> Any:
        """A network of this config as its runtime calls it."""
        network = random_network(config, self.device)
        return network if self.runtime == PYTORCH else exported_call(network, self.runtime, tokens=self.tokens)


Measure = Callable[[Sequence[Config]], tuple[float, list[float]]]


def plan_in_time(
    teacher: Config,
    budget: TimeBudget,
    watch: Measure,
    *,
    machine: str = "this machine",
    kind: str = "plain",
    overrides: Config | None = None,
    tokens: int = 77,
    layout: str | None = None,
) -> TimedPlan:
    """The student of the teacher's levels that does most within a time.

    For each depth (`slimdpm.method.depth.depths`) the widest student that is fast enough is found along the planner's
    widths, where time grows; `best` chooses among them. All depths and the teacher take turns in being measured.

    Args:
        teacher: a diffusers U-Net config with its ``_class_name`` and size.
        watch: measures networks beside the teacher: a `Stopwatch`.
        machine: what the message of an error calls the place where that measures.
        kind, overrides, tokens: see `slimdpm.method.slimming.plan_student`; what is overridden of a
            network's depth stays as it is.
        layout: ``"sd"`` keeps the teacher's depth and takes a width from `slimdpm.method.widths.proportional`.

    Raises:
        SlimdpmError: if no student is fast enough; the message says what the fastest takes.
    """
    overrides = overrides or {}
    base = student_base(teacher, kind, overrides)
    if layout == "sd":
        searches = [_Search(proportional(base))]
    else:
        ways = depths(base, frozenset(key for key in DEPTH if key in overrides))
        searches = [_Search(rungs) for config in ways if (rungs := widths(config))]
    theirs, _ = watch([])
    while open_ones := [search for search in searches if search.open]:
        probes = [search.probe(budget.limit(theirs) / theirs) for search in open_ones]
        theirs, ours = watch([search.rungs[rung] for search, rung in zip(open_ones, probes, strict=True)])
        for search, rung, seconds in zip(open_ones, probes, ours, strict=True):
            search.learn(rung, seconds, budget.limit(theirs))
    least = min(search.least for search in searches)
    if fitting := [search for search in searches if search.fits >= 0]:
        costs = [measure(search.rungs[search.fits], tokens=tokens) for search in fitting]
        found = _settled(fitting[best(costs)], budget, watch)
        theirs, least = found.teacher_seconds, found.student_seconds
        if least <= budget.limit(theirs):
            return found
    raise SlimdpmError(_fastest(budget, theirs, least, machine))


def best(costs: Sequence[Cost]) -> int:
    """Which of several students of one speed, of different depths, is taken: the one of most MACs.

    That is mostly the shallowest and widest, and trained it is the best by far (``benchmarks/timed_budget.py``).
    """
    return max(range(len(costs)), key=lambda number: (costs[number].macs, costs[number].params))


def widths(base: Config) -> list[dict[str, Any]]:
    """A student's widths from the slimmest to the teacher's own, with the groups and heads that fit them.

    Each is at least as wide on each level as the one before, so that time grows along them. Of those that differ by
    little the one with more groups is taken, and one with fewer channels on a level than the planner prefers only where
    none of the others is as slim. Channels come in vectors: others take more time than the next vector's end.
    """
    found: list[tuple[list[int], Grain]] = []
    for least in MIN_CHANNELS:
        more: list[tuple[list[int], Grain]] = []
        for grain in granularities(base):
            for channels in ladder(base, grain, least):
                if in_vectors(base, channels) and all(_apart(channels, other) for other, _ in more):
                    more.append((channels, grain))
        more.sort(key=lambda rung: _size(rung[0]))
        found = [rung for rung in more if not found or _below(rung[0], found[0][0])] + found
    rungs: list[dict[str, Any]] = []
    for (channels, grain), above in zip_longest(found, (channels for channels, _ in found[1:])):
        rungs.append(with_widths(base, channels, grain))
        rungs += _between(base, grain, channels, above) if above else []
    return rungs


def _between(base: Config, grain: Grain, lower: list[int], upper: list[int]) -> Iterator[dict[str, Any]]:
    """Those from `lower` to `upper`, neither included, one level after the other a step wider: two shapes of a small
    network lie far apart."""
    channels = last = lower
    while wider := _wider(base, grain, channels, upper):
        # The level that has the longest way to go, and of several the coarsest, which is the cheapest.
        grown = [next(level for level, n in enumerate(_of(config)) if n > channels[level]) for config in wider]
        level = min(grown, key=lambda level: (channels[level] / upper[level], -level))
        config = wider[grown.index(level)]
        channels = _of(config)
        if _apart(channels, last) and _apart(channels, upper):
            yield config
            last = channels


def _wider(base: Config, grain: Grain, channels: list[int], upper: list[int]) -> list[dict[str, Any]]:
    """Those below `upper` with one level a vector wider; a single step of it where what is next lies far off."""
    for multiple in (VECTOR, 1):
        below = [c for c in one_level_wider(base, grain, channels, 1.0, multiple) if _below(_of(c), upper)]
        near = [config for config in below if _size(_of(config)) <= _FAR * _size(channels)]
        if near or (not below and _size(upper) <= _FAR * _size(channels)):
            return near
    return below


def _of(config: Config) -> list[int]:
    return config["block_out_channels"]


def _below(channels: Sequence[int], others: Sequence[int]) -> bool:
    return list(channels) != list(others) and all(n <= other for n, other in zip(channels, others, strict=True))


def _apart(channels: Sequence[int], others: Sequence[int]) -> bool:
    """Whether one is wider than the other, on no level slimmer, and by more than a little."""
    ordered = _below(channels, others) or _below(others, channels)
    return ordered and abs(_size(channels) / _size(others) - 1) > _APART


def _size(channels: Sequence[int]) -> float:
    """In proportion to the MACs of the levels' convolutions: squares of widths, each level at a quarter of the pixels.

    To count them takes a network for each; here only their order matters.
    """
    return sum(width**2 / 4**level for level, width in enumerate(channels))


@dataclass
class _Search:
    """The widest network of one depth that is fast enough, searched along its widths.

    Attributes:
        rungs: the configs, from the slimmest on.
        fits, fails: the widest of which it is known that it is fast enough, and the slimmest that is too slow.
        least: seconds of the fastest that was measured.
    """

    rungs: Sequence[Config]
    fits: int = -1
    fails: int = field(init=False)
    least: float = math.inf

    def __post_init__(self) -> None:
        self.fails = len(self.rungs)

    @property
    def open(self) -> bool:
        return self.fails - self.fits > 1

    def probe(self, share: float) -> int:
        """Which is measured next: the middle of what is open, and twice the size while none was too slow.

        It begins with that whose part of the widest one's size is this share: a network much wider than needed takes
        time and memory.
        """
        sizes = [_size(config["block_out_channels"]) for config in self.rungs]
        if self.fails < len(self.rungs):
            return (self.fits + self.fails) // 2
        wanted = sizes[-1] * share if self.fits < 0 else 2 * sizes[self.fits]
        return min(max(bisect_right(sizes, wanted) - 1, self.fits + 1), self.fails - 1)

    def learn(self, rung: int, seconds: float, limit: float) -> None:
        self.least = min(self.least, seconds)
        if seconds <= limit:
            self.fits = rung
        else:
            self.fails = rung


def _settled(search: _Search, budget: TimeBudget, watch: Measure) -> TimedPlan:
    """The widest that is fast enough, measured once more between its neighbours: it may have met a busy moment.

    The slimmest if even that is too slow this time.
    """
    top = search.fits
    while top >= 0:
        rungs = range(max(top - 1, 0), min(top + 2, len(search.rungs)))
        theirs, ours = watch([search.rungs[rung] for rung in rungs])
        fast = [number for number, seconds in enumerate(ours) if seconds <= budget.limit(theirs)]
        if fast:
            return TimedPlan(search.rungs[rungs[fast[-1]]], theirs, ours[fast[-1]])
        top = rungs[0] - 1
    return TimedPlan(search.rungs[0], theirs, ours[0])


def _fastest(budget: TimeBudget, teacher: float, student: float, machine: str) -> str:
    """Why a budget cannot be met, and what can."""
    wish = f"{budget.max_ms:g} ms" if budget.max_ms is not None else f"a speedup of {budget.speedup:g}"
    advice = "allow more" if budget.max_ms is not None else "ask for less"
    return (
        f"{wish} cannot be met on {machine}: the fastest student of this teacher takes {student * 1e3:.2f} ms a call, "
        f"{teacher / student:.1f} times less than the teacher's {teacher * 1e3:.2f}; {advice}"
    )
