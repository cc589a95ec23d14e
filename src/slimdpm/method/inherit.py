"""A student's first weights from its teacher's, chosen along the width: a head start over random ones.

Channels that are added to each other, or that meet one by one, can only be kept together. Such a group is what one
layer writes: conv_in, a residual block with a shortcut convolution, a resampler with a convolution, the inside of a
residual block, of a transformer or of an attention, a time embedding. A residual block without a shortcut and an
attention write into the group that they read, so a level's stream is one group as far as the additions reach.
`slimdpm.method.channel_groups` names them; nothing else depends on the architecture.

Of each group the channels with the largest weights are kept, in the teacher's order. What reads a group is scaled up
so that each of its rows keeps its norm: sums of independent inputs keep their variance. On the demo's task (one seed)
this starts lower than the bare weights and than the square of that scale, and Lite is still ahead after 200 steps.
Which channels are kept mattered less there: after 200 steps a random choice did as well.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from slimdpm.method.channel_groups import Axis, ChannelGroups, mixing_layers
from slimdpm.method.depth import shortened
from slimdpm.system.errors import SlimdpmError
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp

# Gated resamplers that mix all channels, as a teacher's convolutions do, and so can inherit them.
MIXING = {"wavelet_expansion": "dense", "wavelet_down_mix": True}


def inheritable(teacher: Any) -> bool:
    """Whether `inherited_weights` knows all of a U-Net's blocks; its weights may be on the meta device."""
    try:
        ChannelGroups(teacher, mixing_layers(teacher))
    except SlimdpmError:
        return False
    return True


@torch.no_grad()
def inherited_weights(teacher: Any, student: Any) -> dict[str, Tensor]:
    """The weights with which a student starts, from its teacher's.

    Args:
        teacher: a diffusers U-Net, or one of ours.
        student: a U-Net of the same levels, of other widths and of fewer layers or as many, see
            `slimdpm.method.depth.shortened`. What has no counterpart in the teacher, or is wider
            than its counterpart, is left out: wavelet-gated resamplers of a plain teacher, added layers.

    Returns:
        tensors under the student's names, of the student's shapes and dtypes, on the CPU; for ``load_state_dict`` with
        ``strict=False``. They depend on the two networks alone. A student of the teacher's own widths gets exactly
        the teacher's weights.

    Raises:
        SlimdpmError: for a network with blocks of other kinds than residual, attention and transformer blocks.
    """
    teacher = shortened(teacher, student)
    mixing = mixing_layers(teacher) | mixing_layers(student)
    theirs, ours = ChannelGroups(teacher, mixing), ChannelGroups(student, mixing)
    tensors = _restated(teacher, student, theirs, ours)
    importance = _importance(tensors, theirs)
    kept = {
        group: _choose(importance[group], width, theirs.heads.get(group), ours.heads.get(group))
        for group, width in ours.widths.items()
        if group in theirs.widths and width <= theirs.widths[group]
    }
    weights = {}
    for name, own in student.state_dict().items():
        axes = ours.axes.get(name, (None,) * own.ndim)
        if name not in tensors or axes != theirs.axes.get(name, axes):
            continue
        if all(group in kept for axis in axes if axis for group in axis):
            rows = _taken(tensors[name].double(), axes[:1], kept, theirs.widths)
            slim = _taken(rows, (None, *axes[1:]), kept, theirs.widths)
            if slim.shape == own.shape:
                weights[name] = (slim * _gain(rows, slim) if name in ours.reading else slim).to(own.dtype)
    return weights


def _importance(tensors: dict[str, Tensor], walk: ChannelGroups) -> dict[str, Tensor]:
    """For each group ``(C,)``: the sum over the weights along it of the share of their energy that a channel holds."""
    sums = {group: torch.zeros(width, dtype=torch.float64) for group, width in walk.widths.items()}
    for name, axes in walk.axes.items():
        tensor = tensors[name].double()
        for dim, axis in enumerate(axes):
            if axis is None or tensor.ndim == 1:
                continue
            energy = tensor.square().sum([d for d in range(tensor.ndim) if d != dim])
            parts = (energy / energy.sum().clamp_min(1e-30)).split([walk.widths[group] for group in axis])
            for group, part in zip(axis, parts, strict=True):
                sums[group] += part
    return sums


def _choose(importance: Tensor, width: int, heads: int | None, wanted: int | None) -> Tensor:
    """The indices of the most important channels, in the teacher's order.

    Attention keeps whole heads, and within each the same number of channels; if the student has more heads than the
    teacher, or larger ones, channels are chosen as everywhere else.
    """
    if heads is None or wanted is None or wanted > heads or width // wanted > len(importance) // heads:
        return _top(importance, width)
    by_head = importance.unflatten(0, (heads, -1))
    channels = torch.stack([_top(head, width // wanted) for head in by_head])
    best = _top(by_head.gather(1, channels).sum(1), wanted)
    return (channels + by_head.shape[1] * torch.arange(heads)[:, None])[best].flatten()


def _top(importance: Tensor, count: int) -> Tensor:
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def _taken(tensor: Tensor, axes: tuple[Axis, ...], kept: dict[str, Tensor], widths: dict[str, int]) -> Tensor:
    """What is left of a teacher's weight when only the kept channels are taken along its dimensions."""
    for dim, axis in enumerate(axes):
        if axis is not None:
            starts = accumulate((widths[group] for group in axis), initial=0)
            index = torch.cat([kept[group] + start for group, start in zip(axis, starts, strict=False)])
            tensor = tensor.index_select(dim, index)
    return tensor


def _gain(full: Tensor, slim: Tensor) -> Tensor:
    """The norm that each row ``(out, ...)`` of a weight had over the norm that is left without the dropped inputs."""
    ratio = full.flatten(1).norm(dim=1) / slim.flatten(1).norm(dim=1).clamp_min(1e-30)
    return ratio.reshape(-1, *[1] * (full.ndim - 1))


def _restated(teacher: Any, student: Any, theirs: ChannelGroups, ours: ChannelGroups) -> dict[str, Tensor]:
    """The teacher's weights, and what the student states otherwise than by fewer channels."""
    tensors = {name: value.detach().cpu() for name, value in teacher.state_dict().items()}
    _add_identities(tensors, theirs, ours)
    _add_gated(tensors, student)
    for group in ours.heads.keys() & theirs.heads.keys():
        # Attention divides the products of queries and keys by the root of a head's size.
        size, previous = (walk.widths[group] / walk.heads[group] for walk in (ours, theirs))
        for name in (f"{layer}.{kind}" for layer in (group, group[:-1] + "k") for kind in ("weight", "bias")):
            if name in tensors:
                tensors[name] = tensors[name].double() * (size / previous) ** 0.25
    sinusoids = "time_embedding.linear_1.weight"
    if tensors[sinusoids].shape[1] != student.time_embedding.linear_1.in_features:
        tensors[sinusoids] = tensors[sinusoids].double() @ _time_basis(teacher, student)
    return tensors


def _add_identities(tensors: dict[str, Tensor], theirs: ChannelGroups, ours: ChannelGroups) -> None:
    """Where only the student has a shortcut convolution, the teacher's is the identity."""
    for name, axes in ours.axes.items():
        if name.endswith("conv_shortcut.weight") and name not in tensors:
            width = sum(theirs.widths.get(group, 0) for group in axes[0] or ())
            tensors[name] = torch.eye(width)[:, :, None, None]
            tensors[name.replace("weight", "bias")] = torch.zeros(width)


def _add_gated(tensors: dict[str, Tensor], student: nn.Module) -> None:
    """A resampler's convolution as gated resampling with full mixing states it, where the features change slowly.

    There the sum of the taps is all that a convolution does. LL is twice the mean of its block, and the detail bands
    start at nothing.
    """
    for name, module in student.named_modules():
        if f"{name}.conv.weight" not in tensors:
            continue
        taps, bias = tensors[f"{name}.conv.weight"].sum((2, 3), keepdim=True), tensors[f"{name}.conv.bias"]
        if isinstance(module, WaveletGatingDown) and module.mix is not None:
            tensors[f"{name}.mix.weight"], tensors[f"{name}.mix.bias"] = taps / (2 * module.gate.init[0]), bias
        elif isinstance(module, WaveletGatingUp) and module.expand is not None and module.expand.groups == 1:
            for kind, low in (("weight", taps), ("bias", bias)):
                bands = [low * 2 / module.gate.init[0], *[torch.zeros_like(low)] * 3]
                tensors[f"{name}.expand.{kind}"] = torch.cat(bands)


def _time_basis(teacher: Any, student: Any) -> Tensor:
    """The teacher's sinusoids of the timestep as sums of the student's, which have other frequencies: ``(C_T, C_S)``.

    Least squares over all timesteps; the slowest sinusoids are nearly parallel, hence the cut of small singular values.
    """
    steps = torch.arange(teacher.config.get("num_train_timesteps") or 1000)
    theirs, ours = (unet.time_proj(steps.to(unet.device)).cpu().double() for unet in (teacher, student))  # (T, C)
    return torch.linalg.lstsq(ours, theirs, rcond=1e-3, driver="gelsd").solution.T
