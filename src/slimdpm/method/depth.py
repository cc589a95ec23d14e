"""Depth: the shallower networks that a student may be, and which of its teacher's layers such a student keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from slimdpm.method.networks import completed, outline

DEPTH = ("layers_per_block", "down_block_types", "up_block_types", "add_attention", "mid_block_type")


def depth_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config is its depth, to be overrides of another."""
    return {key: config[key] for key in DEPTH if key in config}


def depths(base: Mapping[str, Any], fixed: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """The configs with fewer layers in a block, less attention and less of a middle block, the deepest first.

    Attention goes from the finest level that has it, where it costs most; then that of the middle block, then the
    middle block. A network that is conditioned by cross-attention keeps it in its coarsest level.

    Args:
        base: a student's config, of any widths.
        fixed: the keys among `DEPTH` that stay as they are.
    """
    config = completed(base)
    trims: list[dict[str, Any]] = [{}]
    for changes in (*_less_attention(config, fixed), *_less_middle(config, fixed)):
        trims.append({**trims[-1], **changes})
    layers = [config["layers_per_block"]] if "layers_per_block" in fixed else _fewer_layers(config)
    return [{**base, "layers_per_block": each, **trim} for each in layers for trim in trims]


def _fewer_layers(config: Mapping[str, Any]) -> list[Any]:
    """The values of ``layers_per_block``: the network's own, then one less on the levels that have most of them."""
    layers = config["layers_per_block"]
    if isinstance(layers, int):
        return list(range(layers, 0, -1))
    return [[min(count, most) for count in layers] for most in range(max(layers), 0, -1)]


def _less_attention(config: Mapping[str, Any], fixed: frozenset[str]) -> Iterator[dict[str, Any]]:
    """One level less with attention, from the finest on."""
    downs, ups = list(config["down_block_types"]), list(config["up_block_types"])
    have = [level for level, kinds in enumerate(zip(downs, reversed(ups), strict=True)) if "Attn" in "".join(kinds)]
    if fixed & {"down_block_types", "up_block_types"}:
        return
    for level in have[:-1] if config.get("cross_attention_dim") is not None else have:
        downs[level] = _without_attention(downs[level], config.get("downsample_type"))
        ups[-1 - level] = _without_attention(ups[-1 - level], config.get("upsample_type"))
        yield {"down_block_types": [*downs], "up_block_types": [*ups]}


def _without_attention(kind: str, resampler: str | None) -> str:
    """The kind of block that is the same but for its attention."""
    if kind in ("AttnDownBlock2D", "AttnUpBlock2D") and resampler == "resnet":
        return kind.replace("AttnDown", "ResnetDownsample").replace("AttnUp", "ResnetUpsample")
    return kind.replace("CrossAttn", "").replace("Attn", "")


def _less_middle(config: Mapping[str, Any], fixed: frozenset[str]) -> Iterator[dict[str, Any]]:
    """The middle block without its attention, then none at all."""
    middle = config["mid_block_type"]
    if middle is None:
        return
    if middle == "UNetMidBlock2D" and config.get("add_attention") and "add_attention" not in fixed:
        yield {"add_attention": False}
    if "mid_block_type" not in fixed:
        yield {"mid_block_type": None}


def shared_depth(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, Any]:
    """What of a teacher's depth its student has, as values of a config: nothing, if it is as deep or deeper."""
    theirs, ours = completed(teacher), completed(student)
    if len(theirs["block_out_channels"]) != len(ours["block_out_channels"]):
        return {}
    values: dict[str, Any] = {}
    layers, fewer = theirs["layers_per_block"], ours["layers_per_block"]
    if isinstance(layers, int) and isinstance(fewer, int):
        values["layers_per_block"] = min(layers, fewer)
    else:
        each = [n if isinstance(n, (list, tuple)) else [n] * len(theirs["block_out_channels"]) for n in (layers, fewer)]
        values["layers_per_block"] = [min(pair) for pair in zip(*each, strict=True)]
    for key in ("down_block_types", "up_block_types"):
        pairs = zip(theirs[key], ours[key], strict=True)
        values[key] = [own if "Attn" in kind and "Attn" not in own else kind for kind, own in pairs]
    values["add_attention"] = bool(theirs.get("add_attention") and ours.get("add_attention"))
    values["mid_block_type"] = theirs["mid_block_type"] if ours["mid_block_type"] else None
    return {key: value for key, value in values.items() if key in theirs and _plain(theirs[key]) != value}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def shortened(teacher: Any, student: Any) -> Any:
    """A teacher cut to the depth of its student, its widths as they are; itself, if the student is as deep.

    Of a block's n layers a student of m keeps the first, whose input no other one can read, and the last m - 1; on the
    way up, where layer j reads what layer n - 1 - j wrote on the way down, those that read what was kept: the first m,
    and the last. A layer that goes leaves its shortcut: the identity on the way down, and on the way up a 1x1
    convolution, which the layer before it takes over. So a student of full widths computes what its teacher computes
    whose other layers add nothing to their shortcuts.
    """
    changes = shared_depth(teacher.config, student.config)
    if not changes:
        return teacher
    network = outline({**teacher.config, **changes, "_class_name": type(teacher).__name__})
    tensors = teacher.state_dict()
    origin: dict[str, str] = {}  # of what lies in a layer, by the layer's name
    for way in ("down_blocks", "up_blocks"):
        for number, (theirs, ours) in enumerate(zip(getattr(teacher, way), getattr(network, way), strict=True)):
            block = f"{way}.{number}"
            for layer, run in enumerate(_runs(len(theirs.resnets), len(ours.resnets), up=way == "up_blocks")):
                origin[f"{block}.resnets.{layer}"] = f"{block}.resnets.{run[0]}"
                attention = run[-1] if way == "up_blocks" else run[0]  # that which reads what the layer then writes
                origin[f"{block}.attentions.{layer}"] = f"{block}.attentions.{attention}"
                for gone in run[1:]:
                    _leave_shortcut(tensors, f"{block}.resnets.{run[0]}", f"{block}.resnets.{gone}")
    taken = {}
    for name in network.state_dict():
        place = ".".join(name.split(".")[:4])
        taken[name] = tensors[origin.get(place, place) + name.removeprefix(place)]
    network.load_state_dict(taken, assign=True)
    return network


def left_out(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> list[str]:
    """What a student of this config does not have of its teacher's depth, and which layers it keeps, for people."""
    changes, theirs = shared_depth(teacher, student), completed(teacher)
    told = []
    if "layers_per_block" in changes:
        pairs = [changes["layers_per_block"], theirs["layers_per_block"]]
        ours, all_of = ("-".join(map(str, n)) if isinstance(n, (list, tuple)) else str(n) for n in pairs)
        told.append(f"{ours} of {all_of} layers in a block (the first and the last ones; on the way up their readers)")
    kinds = changes.get("down_block_types", theirs["down_block_types"])
    gone = [
        str(n) for n, pair in enumerate(zip(theirs["down_block_types"], kinds, strict=True), 1) if len(set(pair)) > 1
    ]
    if gone:
        told.append(f"no attention on level {', '.join(gone)}")
    if "mid_block_type" in changes:
        told.append("no middle block")
    elif "add_attention" in changes:
        told.append("no attention in the middle block")
    return told


def _runs(layers: int, kept: int, *, up: bool) -> list[range]:
    """The layers of a block, consecutive ones together of which the first is kept."""
    first = kept - 2 if up else 0  # the layer of the student in which several of the teacher's end
    starts = [layer if layer <= first else layer + layers - kept for layer in range(kept)]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], layers], strict=True)]


def _leave_shortcut(tensors: dict[str, Tensor], kept: str, gone: str) -> None:
    """Put the shortcut convolution of a layer that goes behind the layer that is kept.

    ``W [h; s] + b`` of the kept layer's output ``h = conv2(...) + S [x; s'] + c`` is the kept layer with ``W_h conv2``
    and ``W_h S + [0, W_s]``: both skips ``s`` come from one residual stream.
    """
    if f"{gone}.conv_shortcut.weight" not in tensors:
        return
    weight, bias = (tensors[f"{gone}.conv_shortcut.{kind}"].double() for kind in ("weight", "bias"))
    width = len(weight)
    for name in (f"{kept}.conv2", f"{kept}.conv_shortcut"):
        for kind in ("weight", "bias"):
            old = tensors[f"{name}.{kind}"]
            tensors[f"{name}.{kind}"] = torch.einsum("oh,h...->o...", weight[:, :width, 0, 0], old.double())
    tensors[f"{kept}.conv_shortcut.weight"][:, width - weight.shape[1] :] += weight[:, width:]  # the skip's columns
    tensors[f"{kept}.conv_shortcut.bias"] += bias
