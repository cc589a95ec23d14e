"""From original names to diffusers': which module of ours takes its weights from which of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import check_weights


@dataclass(frozen=True)
class Fused:
    """One of the three parts of a layer that computes queries, keys and values at once.

    Attributes:
        name: the original layer, with ``3 C`` rows.
        part: 0, 1, 2 for queries, keys, values.
        heads: the rows are grouped by head first (``H x 3 x C/H``); 1 if they are grouped by part.
    """

    name: str
    part: int
    heads: int

    def rows_of(self, tensor: Tensor) -> Tensor:
        """``(3 C, ...)`` to ``(C, ...)``."""
        parts = tensor.unflatten(0, (self.heads, 3, -1))  # (H, 3, C/H, ...)
        return parts[:, self.part].flatten(0, 1)


# Module of ours to module of theirs; what a network does not have (a shortcut, a bias) is simply never asked for.
Sources = dict[str, str | Fused]


class Weights:
    """A checkpoint's tensors, and which of them have found their place.

    Attributes:
        tensors: by original name.
        left: names that nothing has asked for yet.
        missing: names that were asked for and are not there.
        misshapen: names whose tensors fit no parameter of ours, with both shapes.
    """

    def __init__(self, source: object, tensors: Mapping[str, Tensor]):
        self.source = source
        self.tensors = tensors
        self.left = dict.fromkeys(tensors)
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def fill(self, model: nn.Module, sources: Sources, prefix: str, *, ema: bool = False) -> None:
        """Give a network on the meta device its weights in float32, those under `prefix`, or their running averages.

        Raises:
            SlimdpmError: for a tensor of the right shape that holds something else than finite weights.
        """
        filled = {}
        for name, parameter in model.state_dict().items():
            module, _, leaf = name.rpartition(".")
            source = sources[module]
            original = f"{source if isinstance(source, str) else source.name}.{leaf}"
            tensor = self._take(prefix + original, ema)
            if tensor is None:
                continue
            if isinstance(source, Fused) and tensor.ndim and len(tensor) % (3 * source.heads) == 0:
                tensor = source.rows_of(tensor)
            if _without_ones(tensor.shape) != _without_ones(parameter.shape):  # a 1x1 convolution is a linear layer
                self.misshapen.append(f"{prefix}{original} {tuple(tensor.shape)} for {tuple(parameter.shape)}")
                continue
            check_weights(self.source, {prefix + original: tensor})
            filled[name] = tensor.reshape(parameter.shape).to(torch.float32, copy=True)
        if len(filled) == len(model.state_dict()):
            model.load_state_dict(filled, assign=True)

    def take(self, name: str) -> Tensor | None:
        """A single tensor."""
        return self._take(name, ema=False)

    def _take(self, name: str, ema: bool) -> Tensor | None:
        key = ema_name(name) if ema else name
        self.left.pop(key, None)
        if ema:  # the raw weights are known too, and not wanted
            self.left.pop(name, None)
        if key not in self.tensors:
            self.missing.append(key)
        return self.tensors.get(key)

    def check(self, ignored: tuple[str, ...], complaint: str) -> None:
        """Raise `SlimdpmError` unless every tensor has found its place or begins like one that is of no use here."""
        left = [name for name in self.left if not name.startswith(ignored)]
        kinds = {"missing": self.missing, "of another shape": self.misshapen, "unknown": left}
        found = {what: list(dict.fromkeys(names)) for what, names in kinds.items()}  # three parts ask for a fused layer
        problems = [f"{len(names)} {what}: {_listed(names)}" for what, names in found.items() if names]
        if problems:
            raise SlimdpmError(f"{complaint}: {'; '.join(problems)}")


def original_tensors(model: nn.Module, sources: Sources, prefix: str) -> dict[str, Tensor]:
    """A network's weights under their original names: what `Weights.fill` reads, written.

    Args:
        sources: without fused layers.

    Raises:
        SlimdpmError: for a module that has no original name.
    """
    found = {}
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module not in sources:
            raise SlimdpmError(f"its {type(model).__name__} has a {module}, for which the original has no name")
        found[f"{prefix}{sources[module]}.{leaf}"] = tensor
    return found


def ema_name(name: str) -> str:
    """Where the running average of a weight lies: a buffer's name may have no dots, so LitEma leaves them out."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def _without_ones(shape: torch.Size) -> list[int]:
    return [n for n in shape if n != 1]


def _listed(names: list[str], most: int = 8) -> str:
    """All names if they are few: a wrong architecture has hundreds."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
