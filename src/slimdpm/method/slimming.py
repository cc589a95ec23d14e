"""From a teacher's config and one budget, a student's config.

The student keeps the teacher's topology (levels, blocks per level, attention) and scales its widths. A width is legal
if the normalisation's groups, the attention heads and, for wavelet gating, the four sub-bands divide it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from slimdpm.method.cost import Cost, WidthCounter, measure
from slimdpm.method.networks import once_per_config
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import Size

SPECTRAL_CLASS = {
    "UNet2DModel": "SpectralUNet2DModel",
    "UNet2DConditionModel": "SpectralUNet2DConditionModel",
}
PLAIN_CLASS = {spectral: plain for plain, spectral in SPECTRAL_CLASS.items()}
# Of a level, the first that the budget allows: full resolution needs them (docs/method.md).
MIN_CHANNELS = (16, 12, 8)
# Those of NCSN++ and of the k-diffusion networks bind their widths and groups in other ways.
_BLOCKS = {f"{kind}{way}Block2D" for kind in ("", "Attn", "CrossAttn") for way in ("Down", "Up")} | {
    "ResnetDownsampleBlock2D",
    "ResnetUpsampleBlock2D",
}
GROUP = 4  # channels in a norm group at least: with 2, the demo's students were a tenth worse in the upper half
LOPSIDED = (1.15, 1.3)  # how far one level may outgrow the others to use up the budget: little, if that is enough
CLOSE_ENOUGH = 0.97  # of the budget; below it, finer widths are tried at the price of fewer norm groups


@dataclass(frozen=True)
class Budget:
    """What the student may cost. One of the four is given, the others are None.

    Attributes:
        width: base channels; the other levels keep the teacher's proportions.
        ratio: the student has at least this many times fewer conv+linear MACs than the teacher.
        max_macs: conv+linear MACs of one forward pass, batch 1.
    """

    width: int | None = None
    ratio: float | None = None
    max_macs: float | None = None
    max_params: float | None = None


@dataclass(frozen=True)
class Plan:
    """A student before it is built."""

    config: dict[str, Any]
    cost: Cost
    teacher_cost: Cost

    @property
    def ratio(self) -> float:
        """Teacher's conv+linear MACs over the student's."""
        return self.teacher_cost.macs / self.cost.macs


@once_per_config
def plan_student(
    teacher: Mapping[str, Any],
    budget: Budget,
    *,
    kind: str = "spectral",
    overrides: Mapping[str, Any] | None = None,
    size: Size | None = None,
    tokens: int = 77,
    reference: Cost | None = None,
) -> Plan:
    """The widest student of the teacher's topology that fits a budget.

    Args:
        teacher: a diffusers U-Net config with its ``_class_name``.
        kind: ``"spectral"`` (wavelet-gated resampling), or the teacher's own resampling: ``"plain"``, ``"lite"``.
        overrides: config values that the student takes instead of the teacher's, for example ``layers_per_block``.
        size: input size in latent pixels if the config has no ``sample_size``.
        tokens: length of the conditioning sequence, for the count.
        reference: the cost that the student is compared with, if it is not that of this config.

    Raises:
        SlimdpmError: if the budget cannot be met; the message names the nearest that can.
    """
    teacher_cost = reference or measure(teacher, size=size, tokens=tokens)
    base = student_base(teacher, kind, overrides or {})
    if "block_out_channels" in (overrides or {}):
        return Plan(base, measure(base, size=size, tokens=tokens), teacher_cost)
    if budget.width is not None:
        config = _config_of_width(base, budget.width)
        return Plan(config, measure(config, size=size, tokens=tokens), teacher_cost)

    counter = WidthCounter(size=size, tokens=tokens)
    costs: dict[tuple[int, ...], Cost] = {}  # groups and heads change nothing in the count: only the widths do

    def cost_of(config: Mapping[str, Any]) -> Cost:
        key = tuple(config["block_out_channels"])
        if key not in costs:
            costs[key] = counter.measure(config)
        return costs[key]

    limit, spent = _limit(budget, teacher_cost)
    best: tuple[dict[str, Any], Cost] | None = None
    for least in MIN_CHANNELS:
        for lopsided, grain in product(LOPSIDED, granularities(base)):
            found = _widest_within(base, grain, least, lopsided, limit, spent, cost_of)
            if found and (best is None or spent(found[1]) > spent(best[1])):
                best = found
            if best and spent(best[1]) >= CLOSE_ENOUGH * limit:
                break
        if best:
            break
    if best is None:
        raise SlimdpmError(_nearest(base, budget, teacher_cost, cost_of))
    return Plan(best[0], best[1], teacher_cost)


def student_base(teacher: Mapping[str, Any], kind: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's config with the student's class and overrides, its widths still to be set."""
    name = teacher.get("_class_name", "")
    plain = PLAIN_CLASS.get(name, name)
    config = {k: v for k, v in teacher.items() if not k.startswith("_")}
    if plain == "FixedHeadsUNet2DModel":  # its students have heads of one size
        plain = "UNet2DModel"
        del config["num_attention_heads"]
    if plain not in SPECTRAL_CLASS:
        raise SlimdpmError(f"a {name or 'network without a class name'} cannot be slimmed: slimdpm slims U-Nets")
    strange = sorted({*config["down_block_types"], *config["up_block_types"]} - _BLOCKS)
    if config.get("time_embedding_type", "positional") != "positional":
        strange.append(f"a {config['time_embedding_type']} time embedding")
    if strange:
        raise SlimdpmError(f"a {name} with {', '.join(strange)} cannot be slimmed: slimdpm plans no widths for it")
    if kind != "spectral":
        config = {k: v for k, v in config.items() if not k.startswith("wavelet_")}
    return {**config, **overrides, "_class_name": SPECTRAL_CLASS[plain] if kind == "spectral" else plain}


def _limit(budget: Budget, teacher: Cost):
    """The number that may not be exceeded, and the function of a cost that it limits."""
    if budget.max_params is not None:
        return budget.max_params, lambda cost: cost.params
    limit = budget.max_macs if budget.max_macs is not None else teacher.macs / (budget.ratio or 1.0)
    return limit, lambda cost: cost.macs


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


def _config_of_width(base: Mapping[str, Any], width: int) -> dict[str, Any]:
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


def _legal(base: Mapping[str, Any], grain: Grain, channels: list[int]) -> bool:
    """Groups of some channels, and about the teacher's proportions."""
    shares = _shares(base, channels)
    return min(channels) >= GROUP * grain.groups and max(shares) <= min(2 * min(shares), 1.0)


def _shares(base: Mapping[str, Any], channels: list[int]) -> list[float]:
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


def _widest_within(
    base, grain: Grain, least: int, lopsided: float, limit: float, spent, cost_of
) -> tuple[dict[str, Any], Cost] | None:
    """The widest config of this grain whose cost stays within the limit.

    Bisection along the ladder, where cost grows; then single levels take what is left, from the widest rung that fits
    and from those just below it.
    """
    rungs = [with_widths(base, channels, grain) for channels in ladder(base, grain, least)]
    fitting = bisect_right(rungs, limit, key=lambda config: spent(cost_of(config)))
    starts = reversed(rungs[max(0, fitting - 3) : fitting])
    filled = [_filled(base, grain, config, lopsided, limit, spent, cost_of) for config in starts]
    return max(filled, key=lambda found: spent(found[1]), default=None)


def _filled(base, grain: Grain, config, lopsided: float, limit: float, spent, cost_of) -> tuple[dict[str, Any], Cost]:
    """The config with single levels widened, as long as that fits the limit."""
    best = config, cost_of(config)
    most = lopsided * max(_shares(base, config["block_out_channels"]))
    while spent(best[1]) < CLOSE_ENOUGH * limit:
        wider = [(c, cost_of(c)) for c in _one_level_wider(base, grain, best[0]["block_out_channels"], most)]
        fitting = [found for found in wider if spent(found[1]) <= limit]
        if not fitting:
            break
        best = max(fitting, key=lambda found: spent(found[1]))
    return best


def _one_level_wider(
    base: Mapping[str, Any], grain: Grain, channels: list[int], most: float
) -> Iterator[dict[str, Any]]:
    """The configs with one level a step wider."""
    steps = grain.steps(base)
    for level in range(len(steps)):
        wider = [c + steps[i] * (i == level) for i, c in enumerate(channels)]
        if _legal(base, grain, wider) and max(_shares(base, wider)) <= most:
            yield with_widths(base, wider, grain)


def _nearest(base, budget: Budget, teacher_cost: Cost, cost_of) -> str:
    """Why the budget cannot be met, and the nearest that can."""
    ladders = {grain: ladder(base, grain, MIN_CHANNELS[-1]) for grain in granularities(base)}
    slimmest = min(
        (cost_of(with_widths(base, rungs[0], grain)) for grain, rungs in ladders.items() if rungs),
        key=lambda cost: cost.macs,
    )
    if budget.ratio is not None:
        return (
            f"a ratio of {budget.ratio:g} cannot be met: the slimmest student of this teacher has "
            f"{teacher_cost.macs / slimmest.macs:.1f} times fewer MACs; ask for that or less"
        )
    if budget.max_params is not None:
        return (
            f"{budget.max_params:,.0f} parameters cannot be met: the slimmest student of this teacher has "
            f"{slimmest.params:,}; allow that or more"
        )
    return (
        f"{budget.max_macs:,.0f} MACs cannot be met: the slimmest student of this teacher takes "
        f"{slimmest.macs:,}; allow that or more"
    )
