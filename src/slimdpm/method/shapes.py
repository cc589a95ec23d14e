"""Forward passes on the meta device of which only the shapes matter, and the MACs that follow from them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Shape = tuple[int, ...]


class ShapesAlone(TorchFunctionMode):
    """Forward passes on the meta device within it take a fraction of their time.

    Norms and activations, which change no shape, are left out; of a convolution, a linear layer and an attention the
    result is made from its shape: what PyTorch does for them there, in Python, takes longer than all the rest. What
    does not fit is handed to PyTorch, whose complaint it is.
    """

    _shapeless = frozenset(
        getattr(functional, name) for name in ("group_norm", "layer_norm", "silu", "gelu", "dropout")
    )

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        if function in self._shapeless:
            return given[0]
        if rule := _RULES.get(function):
            shape, macs = rule(*args, **(kwargs or {}))
            if shape is not None and given[0].is_meta:
                self.count(function, given[1], macs)
                return given[0].new_empty(shape)
        return function(*args, **(kwargs or {}))

    def count(self, function: Any, second: Tensor, macs: int) -> None:
        """What is done with the MACs of a call; here nothing."""


class MacCounter(ShapesAlone):
    """Counts the MACs of a network's forward pass of meta tensors, by layer.

    Args:
        model: whose convolutions and linear layers are known by their weights.
        kinds: layers that compute themselves: what is counted in them, but by no weight of those, is theirs.

    Attributes:
        layers: MACs of convolutions and linear layers, by name.
        products: of attention's products, by name. ``""`` is what is in no layer.
    """

    def __init__(self, model: nn.Module, kinds: tuple[type[nn.Module], ...]):
        super().__init__()
        named = list(model.named_modules())
        self._names = {id(m.weight): name for name, m in named if isinstance(m, (nn.Conv2d, nn.Linear))}
        self._owners = [(name, module) for name, module in named if isinstance(module, kinds)]
        self._inside = [""]
        self.layers: dict[str, int] = defaultdict(int)
        self.products: dict[str, int] = defaultdict(int)

    def __enter__(self) -> MacCounter:
        self._hooks = ExitStack()
        for name, module in self._owners:
            enter = module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name))
            leave = module.register_forward_hook(lambda *_: self._leave())
            self._hooks.callback(enter.remove)
            self._hooks.callback(leave.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def _leave(self) -> None:  # what a hook gives back would take the output's place
        self._inside.pop()

    def count(self, function: Any, second: Tensor, macs: int) -> None:
        if function in _LAYERS:  # whose second argument is their weight
            self.layers[self._names.get(id(second), self._inside[-1])] += macs
        else:
            self.products[self._inside[-1]] += macs


_LAYERS = (functional.conv2d, functional.conv_transpose2d, functional.linear)

# Each takes a function's arguments, called as PyTorch calls them, and gives the shape of its result with its MACs; None
# is for PyTorch to refuse.
Rule = Callable[..., tuple[Shape | None, int]]
_MISFIT = (None, 0)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Shape | None, int]:
    x = input
    if x.ndim != 4 or isinstance(padding, str) or x.shape[1] != weight.shape[1] * groups or x.dtype != weight.dtype:
        return _MISFIT
    steps, pads, gaps = map(_pair, (stride, padding, dilation))
    sides = tuple(
        (side + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for side, kernel, step, pad, gap in zip(x.shape[2:], weight.shape[2:], steps, pads, gaps, strict=True)
    )
    if min(sides) < 1:
        return _MISFIT
    shape = (x.shape[0], weight.shape[0], *sides)
    return shape, math.prod(shape) * weight[0].numel()


def _conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Shape | None, int]:
    if input.ndim != 4 or input.shape[1] != weight.shape[0] or input.dtype != weight.dtype:
        return _MISFIT
    steps, pads, more, gaps = map(_pair, (stride, padding, output_padding, dilation))
    sides = tuple(
        (side - 1) * step - 2 * pad + gap * (kernel - 1) + extra + 1
        for side, kernel, step, pad, extra, gap in zip(
            input.shape[2:], weight.shape[2:], steps, pads, more, gaps, strict=True
        )
    )
    if min(sides) < 1:
        return _MISFIT
    return (input.shape[0], weight.shape[1] * groups, *sides), input.numel() * weight[0].numel()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Shape | None, int]:
    if input.shape[-1] != weight.shape[1] or input.dtype != weight.dtype:
        return _MISFIT
    return (*input.shape[:-1], weight.shape[0]), input.numel() * weight.shape[0]


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Shape | None, int]:
    if query.shape[-1] != key.shape[-1] or key.shape[:-1] != value.shape[:-1] or query.shape[:-2] != key.shape[:-2]:
        return _MISFIT
    shape = (*query.shape[:-1], value.shape[-1])
    return shape, query.numel() * key.shape[-2] + math.prod(shape) * key.shape[-2]


def _bmm(input: Tensor, mat2: Tensor) -> tuple[Shape | None, int]:
    return _product(input, mat2)


def _matmul(input: Tensor, other: Tensor) -> tuple[Shape | None, int]:
    return _product(input, other)


def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, **_: Any) -> tuple[Shape | None, int]:
    return _product(batch1, batch2)


def _product(first: Tensor, second: Tensor) -> tuple[Shape | None, int]:
    if first.ndim < 3 or first.shape[:-2] != second.shape[:-2] or first.shape[-1] != second.shape[-2]:
        return _MISFIT
    return (*first.shape[:-1], second.shape[-1]), first.numel() * second.shape[-1]


def _pair(value: int | Iterable[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


_RULES: dict[Any, Rule] = {
    functional.conv2d: _conv2d,
    functional.conv_transpose2d: _conv_transpose2d,
    functional.linear: _linear,
    functional.scaled_dot_product_attention: _attention,
    torch.bmm: _bmm,
    torch.matmul: _matmul,
    torch.baddbmm: _baddbmm,
}
