"""From a teacher's config and one budget, a student's config.

The student keeps the teacher's topology (levels, blocks per level, attention) and scales its widths. A width is legal
if the normalisation's groups, the attention heads and, for wavelet gating, the four sub-bands divide it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from slimdpm.method.cost import Cost, WidthCounter, measure
from slimdpm.method.networks import once_per_config
from slimdpm.method.widths import (
    Grain,
    config_of_width,
    granularities,
    kept_shares,
    ladder,
    one_level_wider,
    proportional,
    rung_of_width,
    with_widths,
)
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
    kind: str = "plain",
    overrides: Mapping[str, Any] | None = None,
    size: Size | None = None,
    tokens: int = 77,
    reference: Cost | None = None,
    layout: str | None = None,
) -> Plan:
    """The widest student of the teacher's topology that fits a budget.

    Args:
        teacher: a diffusers U-Net config with its ``_class_name``.
        kind: the teacher's own resampling, ``"plain"`` or ``"lite"``, or wavelet-gated, ``"spectral"``.
        overrides: config values that the student takes instead of the teacher's, for example ``layers_per_block``.
        size: input size in latent pixels if the config has no ``sample_size``.
        tokens: length of the conditioning sequence, for the count.
        reference: the cost that the student is compared with, if it is not that of this config.
        layout: ``"sd"`` takes a width from `slimdpm.method.widths.proportional` alone.

    Raises:
        SlimdpmError: if the budget cannot be met; the message names the nearest that can.
    """
    teacher_cost = reference or measure(teacher, size=size, tokens=tokens)
    base = student_base(teacher, kind, overrides or {})
    if "block_out_channels" in (overrides or {}):
        return Plan(base, measure(base, size=size, tokens=tokens), teacher_cost)
    rungs = proportional(base) if layout == "sd" else []
    if budget.width is not None:
        config = rung_of_width(rungs, budget.width) if rungs else config_of_width(base, budget.width)
        return Plan(config, measure(config, size=size, tokens=tokens), teacher_cost)

    cost_of = _counter(base, size=size, tokens=tokens).measure
    limit, spent = _limit(budget, teacher_cost)
    best: tuple[dict[str, Any], Cost] | None = None
    if rungs:
        fitting = bisect_right(rungs, limit, key=lambda config: spent(cost_of(config)))
        best = (rungs[fitting - 1], cost_of(rungs[fitting - 1])) if fitting else None
    else:
        best = _widest(base, limit, spent, cost_of)
    if best is None:
        slimmest = cost_of(rungs[0]) if rungs else _slimmest(base, cost_of)
        raise SlimdpmError(_nearest(budget, teacher_cost, slimmest))
    return Plan(best[0], best[1], teacher_cost)


@once_per_config
def _counter(base: Mapping[str, Any], *, size: Size | None, tokens: int) -> WidthCounter:
    """One for all budgets of a teacher: ``slimdpm profile --ratio 4,8,12`` plans several students."""
    return WidthCounter(size=size, tokens=tokens)


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


def _widest(base, limit: float, spent, cost_of) -> tuple[dict[str, Any], Cost] | None:
    """The widest config whose cost stays within the limit, of the coarsest grain that comes close to it."""
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
    return best


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
    most = lopsided * max(kept_shares(base, config["block_out_channels"]))
    while spent(best[1]) < CLOSE_ENOUGH * limit:
        wider = [(c, cost_of(c)) for c in one_level_wider(base, grain, best[0]["block_out_channels"], most)]
        fitting = [found for found in wider if spent(found[1]) <= limit]
        if not fitting:
            break
        best = max(fitting, key=lambda found: spent(found[1]))
    return best


def _slimmest(base, cost_of) -> Cost:
    """What the slimmest student costs."""
    ladders = {grain: ladder(base, grain, MIN_CHANNELS[-1]) for grain in granularities(base)}
    return min(
        (cost_of(with_widths(base, rungs[0], grain)) for grain, rungs in ladders.items() if rungs),
        key=lambda cost: cost.macs,
    )


def _nearest(budget: Budget, teacher_cost: Cost, slimmest: Cost) -> str:
    """Why the budget cannot be met, and the nearest that can."""
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
