"""Pipelines at another size of images than their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slimdpm.method.networks import keeps_size
from slimdpm.pipelines.shell import Shell
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import Size, briefly, described, nearest, sides


def size_step(shell: Shell, config: Mapping[str, Any]) -> int | None:
    """What the sides of images must be multiples of, in pixels, for a network that knows no size of its own: then each
    of its levels is halved to the end. None for one that takes its own size alone, or sizes by another rule.

    Args:
        shell: of the pipeline.
        config: the network's, with its ``_class_name``.
    """
    if not config.get("block_out_channels"):  # a transformer: its places are of one size
        return None
    step = _halved(shell, config)
    return step if all(side % step == 0 and side >= 2 * step for side in sides(shell.image_size)) else None


def _halved(shell: Shell, *configs: Mapping[str, Any]) -> int:
    """What autoencoder and levels halve to the end, in pixels."""
    levels = max(len(config.get("block_out_channels", ())) for config in configs)
    return int(shell.factor * 2 ** max(levels - 1, 0))


def fitted(shell: Shell, size: Size, networks: Mapping[str, Mapping[str, Any]], setting: str) -> Shell:
    """The shell for images of this size: one that the autoencoder halves and that the networks keep.

    Args:
        shell: of the pipeline.
        size: of the images in pixels.
        networks: configs, each with its ``_class_name``, by what messages call them.
        setting: where the size is from, for the advice.

    Raises:
        SlimdpmError: if it does not fit; the message names the nearest sizes that do.
    """

    def refusing(size: Size) -> str | None:
        resized = shell.sized(size)
        if resized.image_size != size:
            return "autoencoder"
        return next((name for name, config in networks.items() if not keeps_size(config, resized.size)), None)

    if size == shell.image_size or (name := refusing(size)) is None:
        return shell.sized(size)
    why, work = f"the {name} takes none of this shape", [shell.image_size]
    for step in (shell.factor, _halved(shell, *networks.values())):
        near = nearest(size, step)
        if all(other != size and refusing(other) is None for other in near):
            why = f"the {name} halves them to the end only if their size is a multiple of {step}"
            work = near
            break
    advice = " or ".join(map(briefly, work))
    raise SlimdpmError(f"images of {described(size)} do not fit: {why}; set {setting} to {advice}")
