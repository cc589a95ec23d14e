"""The widths that a U-Net can have: those that its norm groups, its attention heads and its gates divide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slimdpm.system.errors import SlimdpmError

# Kernels of ONNX Runtime on a CPU take channels by so many, and others another way, which costs more than the further
# channels would (benchmarks/widths.py).
VECTOR = 4
GROUP = 4  # channels in a norm group at least: with 2, the demo's students were a tenth worse in the upper half


def _attention_levels(config: Mapping[str, Any]) -> list[bool]:
    """Whether each level has attention; the last level's includes the middle block's."""
    downs, ups = config["down_block_types"], config["up_block_types"]
    levels = ["Attn" in d or "Attn" in u for d, u in zip(downs, reversed(ups), strict=True)]
    middle = config.get("mid_block_type", "UNetMidBlock2D") or ""
    levels[-1] |= "CrossAttn" in middle or (middle == "UNetMidBlock2D" and config.get("add_attention", False))
    return levels


@dataclass(frozen=True)
class Grain:
    """What divides the channels: groups of the normalisation, and either the size or the number of attention heads."""

    groups: int
    head_dim: int | None = None
    heads: int | None = None

    def steps(self, config: Mapping[str, Any]) -> list[int]:
        """The divisor of each level's channels."""
        bands = 4 if config.get("wavelet_expansion", "grouped") == "grouped" else 1
        common = math.lcm(self.groups, bands if "Spectral" in config["_class_name"] else 1)
        attention = math.lcm(common, self.head_dim or self.heads or 1)
        return [attention if has else common for has in _attention_levels(config)]


def granularities(config: Mapping[str, Any]) -> Iterator[Grain]:
    """The teacher's own grain first, then ever finer ones: half the groups, and heads that fit them."""
    groups = config.get("norm_num_groups") or 1
    head_dim, heads = _heads(config)
    grain = Grain(groups, head_dim, heads)
    yield grain
    sizes = [head_dim, *(2**k for k in range(8, 2, -1) if 2**k < head_dim)] if head_dim else []
    while True:
        fitting = next((size for size in sizes if size <= max(groups, 8)), head_dim)
        finer = Grain(groups, fitting, heads)
        if finer != grain:
            yield finer
        if groups % 2:
            return
        groups //= 2


def _heads(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(size of a head, number of heads) that the student keeps; at most one is not None.

    In a `UNet2DModel` ``attention_head_dim`` is the size of a head, in a `UNet2DConditionModel` it is the number of
    heads, for each level or for all. Numbers that grow with the channels (SD v2, SDXL) mean heads of one size.
    """
    value = config.get("attention_head_dim")
    if value is None:
        return None, None
    if "Condition" not in config["_class_name"]:
        return value, None
    if isinstance(value, int):
        return None, value
    sizes = {c // n for c, n in zip(config["block_out_channels"], value, strict=True)}
    return (sizes.pop(), None) if len(sizes) == 1 else (None, math.lcm(*value))


def with_widths(base: Mapping[str, Any], channels: list[int], grain: Grain) -> dict[str, Any]:
    config = {**base, "block_out_channels": channels}
    if base.get("norm_num_groups") is not None:
        config["norm_num_groups"] = grain.groups
    if base.get("attn_norm_num_groups") is not None:
        config["attn_norm_num_groups"] = grain.groups
    if base.get("time_embedding_dim") is not None:  # follow the width, as by default
        config["time_embedding_dim"] = None
    if grain.head_dim is not None:
        heads = isinstance(base["attention_head_dim"], (list, tuple))
        config["attention_head_dim"] = [c // grain.head_dim for c in channels] if heads else grain.head_dim
    return config


def config_of_width(base: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The student whose base width is exactly `width`, the other levels in the teacher's proportions."""
    widths = base["block_out_channels"]
    channels = [c * width // widths[0] for c in widths]
    exact = all(c * width % widths[0] == 0 for c in widths)
    for grain in granularities(base):
        legal = all(c % step == 0 for c, step in zip(channels, grain.steps(base), strict=True))
        if exact and legal and channels == list(widths):  # the teacher's own, with its groups and heads
            return {**base, "block_out_channels": channels}
        if exact and legal and min(channels) >= GROUP * grain.groups:
            return with_widths(base, channels, grain)
    step = math.lcm(*next(iter(reversed(list(granularities(base))))).steps(base))
    lower, upper = max(width // step, 1) * step, (width // step + 1) * step
    raise SlimdpmError(f"a width of {width} does not fit this network's heads and groups; try {lower} or {upper}")


def proportional(base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Students in the base's own proportions, with its norm groups and heads, from the slimmest to its own widths.

    The original code of Stable Diffusion can express these alone: one width times (1, 2, 4, 4), 8 heads, 32 groups.
    """
    widths, grain = base["block_out_channels"], next(granularities(base))
    steps, unit = grain.steps(base), math.gcd(*widths)
    shapes = [[c // unit * n for c in widths] for n in range(1, unit + 1)]
    legal = [shape for shape in shapes if all(c % step == 0 for c, step in zip(shape, steps, strict=True))]
    return [with_widths(base, channels, grain) for channels in legal]


def rung_of_width(rungs: list[dict[str, Any]], width: int) -> dict[str, Any]:
    """The one whose base width is exactly that."""
    by_width = {config["block_out_channels"][0]: config for config in rungs}
    if width not in by_width:
        near = " or ".join(map(str, sorted(by_width, key=lambda known: abs(known - width))[:2]))
        raise SlimdpmError(f"a width of {width} does not fit this network's heads and groups in its layout; try {near}")
    return by_width[width]


def _legal(base: Mapping[str, Any], grain: Grain, channels: list[int]) -> bool:
    """Groups of some channels, and about the teacher's proportions."""
    shares = kept_shares(base, channels)
    return min(channels) >= GROUP * grain.groups and max(shares) <= min(2 * min(shares), 1.0)


def kept_shares(base: Mapping[str, Any], channels: list[int]) -> list[float]:
    """How much of the teacher's width each level keeps."""
    return [n / c for n, c in zip(channels, base["block_out_channels"], strict=True)]


def ladder(base: Mapping[str, Any], grain: Grain, least: int) -> list[list[int]]:
    """Widths of this grain from the slimmest to the teacher's own.

    Each rung scales all levels alike and rounds; a level that would fall below `least` channels stays there.
    """
    widths, steps = base["block_out_channels"], grain.steps(base)
    floors = [math.ceil(least / s) for s in steps]
    # Just past each scale at which some level grows by one step.
    scales = {(k + 0.5) * s / c + 1e-9 for c, s in zip(widths, steps, strict=True) for k in range(c // s)}
    rungs = [
        [max(floor, math.floor(scale * c / s + 0.5)) * s for c, s, floor in zip(widths, steps, floors, strict=True)]
        for scale in sorted(scales)
    ]
    return [channels for channels in rungs if _legal(base, grain, channels)]


def one_level_wider(
    base: Mapping[str, Any], grain: Grain, channels: list[int], most: float, multiple: int = 1
) -> Iterator[dict[str, Any]]:
    """The configs with one level a step wider, to a number of channels that `multiple` divides."""
    for level, step in enumerate(math.lcm(step, multiple) for step in grain.steps(base)):
        wider = [(c // step + 1) * step if i == level else c for i, c in enumerate(channels)]
        if _legal(base, grain, wider) and max(kept_shares(base, wider)) <= most:
            yield with_widths(base, wider, grain)


def in_vectors(base: Mapping[str, Any], channels: Sequence[int]) -> bool:
    """Whether `VECTOR` divides the channels of each level, where it divides the base's."""
    return all(not n % VECTOR or c % VECTOR for n, c in zip(channels, base["block_out_channels"], strict=True))
