"""Feature pairs of a student and a teacher: where they are tapped and how they are matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimdpm.method.networks import example_inputs, once_per_config, outline
from slimdpm.method.shapes import ShapesAlone
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import Size


@dataclass(frozen=True)
class TapShape:
    """What a tapped block puts out for an input of the network's own size."""

    name: str  # "down_blocks.0", "mid_block", "up_blocks.2"
    channels: int
    height: int
    width: int
    scale: int  # input height over output height: 1 is full resolution

    @property
    def stage(self) -> str:
        """Where in the U-Net it is: ``down``, ``mid`` or ``up``."""
        return self.name.partition("_")[0]


@dataclass(frozen=True)
class FeaturePair:
    """A block of the student and the block of the teacher whose features it learns to match."""

    student: TapShape
    teacher: TapShape

    def __str__(self) -> str:
        s, t = self.student, self.teacher
        return f"{s.name} ({s.channels}x{s.height}x{s.width}) -> {t.name} ({t.channels}x{t.height}x{t.width})"


class FeatureTaps:
    """Collects the outputs of named blocks while a network runs.

    A tap belongs to one network: a copy of the network (for EMA, say) must be made before tapping it, else both
    would write into one place. `take` hands the features over and forgets them, so that none outlives its step.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]):
        self.names = list(names)
        self._features: dict[str, Tensor] = {}
        for name in dict.fromkeys(names):
            network.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str):
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            self._features[name] = output[0] if isinstance(output, tuple) else output

        return keep

    def take(self) -> list[Tensor]:
        """The features of the last forward pass, in the order of the names."""
        features = [self._features[name] for name in self.names]
        self._features.clear()
        return features


def block_names(network: Any) -> list[str]:
    """The blocks of a diffusers U-Net, in the order in which they run."""
    downs = [f"down_blocks.{i}" for i in range(len(network.down_blocks))]
    ups = [f"up_blocks.{i}" for i in range(len(network.up_blocks))]
    return downs + (["mid_block"] if network.mid_block is not None else []) + ups


@once_per_config
def tap_shapes(config: Mapping[str, Any], *, size: Size | None = None) -> list[TapShape]:
    """The shapes at each block of a U-Net, found by running it on the meta device."""
    network = outline(config)
    inputs = example_inputs(config, size=size, device="meta")
    names = block_names(network)
    taps = FeatureTaps(network, names)
    with torch.no_grad(), ShapesAlone():
        network(**inputs)
    full = inputs["sample"].shape[-2]
    return [
        TapShape(name, f.shape[1], f.shape[2], f.shape[3], round(full / f.shape[2]))
        for name, f in zip(names, taps.take(), strict=True)
    ]


def match_features(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    *,
    pairs: Sequence[str] | str = "auto",
    levels: Sequence[int] | str = "all",
    size: Size | None = None,
) -> list[FeaturePair]:
    """Pair the student's blocks with the teacher's by stage and scale.

    Several blocks of one stage at one scale are paired from the innermost outwards. Networks of different depth are
    paired where they meet; a block without a counterpart is left out.

    Args:
        pairs: ``"auto"``, ``"none"`` (outputs only), or a list of ``"block"`` or ``"student_block:teacher_block"``.
        levels: ``"all"`` or the scales that take part, 1 being full resolution, 2 half of it.
        size: input size if the configs have none.

    Raises:
        SlimdpmError: for a block that does not exist, or a pair of different sizes.
    """
    if pairs == "none":
        return []
    ours = {tap.name: tap for tap in tap_shapes(student, size=size)}
    theirs = {tap.name: tap for tap in tap_shapes(teacher, size=size)}
    matched = _match_by_scale(ours, theirs) if pairs == "auto" else [_parse_pair(p, ours, theirs) for p in pairs]
    return [p for p in matched if levels == "all" or p.student.scale in levels]


def _match_by_scale(ours: Mapping[str, TapShape], theirs: Mapping[str, TapShape]) -> list[FeaturePair]:
    def grouped(taps: Mapping[str, TapShape]) -> dict[tuple[str, int, int], list[TapShape]]:
        groups: dict[tuple[str, int, int], list[TapShape]] = {}
        for tap in taps.values():
            groups.setdefault((tap.stage, tap.height, tap.width), []).append(tap)
        # The innermost first: the end of the way down, the start of the way up.
        return {key: group[::-1] if key[0] == "down" else group for key, group in groups.items()}

    mine, other = grouped(ours), grouped(theirs)
    pairs = [FeaturePair(s, t) for key in mine for s, t in zip(mine[key], other.get(key, []), strict=False)]
    order = list(ours)
    return sorted(pairs, key=lambda pair: order.index(pair.student.name))


def _parse_pair(text: str, ours: Mapping[str, TapShape], theirs: Mapping[str, TapShape]) -> FeaturePair:
    name, _, counterpart = text.partition(":")
    counterpart = counterpart or name
    for wanted, there, whose in ((name, ours, "student"), (counterpart, theirs, "teacher")):
        if wanted not in there:
            raise SlimdpmError(f"distill.pairs: the {whose} has no block {wanted!r}; it has {', '.join(there)}")
    pair = FeaturePair(ours[name], theirs[counterpart])
    if (pair.student.height, pair.student.width) != (pair.teacher.height, pair.teacher.width):
        raise SlimdpmError(f"distill.pairs: {pair} are of different sizes; pair blocks of one scale")
    return pair
