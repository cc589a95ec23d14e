"""Group normalisation as one operator while PyTorch's exporter traces a network.

The exporter traces a network twice, with its shapes as formulas, and takes each normalisation apart into a dozen
operators on the way, before it puts it together again: a fifth of the time that the export of a U-Net takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn


def _computed(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return nn.functional.group_norm(x, groups, weight, bias, eps)


_operator = torch.library.custom_op(
    "slimdpm::group_norm",
    _computed,
    mutates_args=(),
    schema="(Tensor x, int groups, Tensor weight, Tensor bias, float eps) -> Tensor",
)
_operator.register_fake(lambda x, groups, weight, bias, eps: torch.empty_like(x))


def _translated(x: Any, groups: int, weight: Any, bias: Any, eps: float) -> Any:
    """As PyTorch writes it: each group is an instance, and the affine part comes after."""
    from onnxscript import opset18  # here: of an extra

    op: Any = opset18
    grouped = op.Reshape(x, op.Constant(value_ints=[0, groups, -1]))
    ones, zeros = (op.Constant(value_floats=[value] * groups) for value in (1.0, 0.0))
    normal = op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=eps), op.Shape(x), allowzero=True)
    channels = op.Constant(value_ints=[-1] + [1] * (len(x.shape) - 2))
    return op.Add(op.Mul(normal, op.Reshape(weight, channels)), op.Reshape(bias, channels))


@contextmanager
def whole_group_norms() -> Iterator[dict[Callable, Callable]]:
    """Within, a `GroupNorm` is the one operator.

    Yields:
        what `torch.onnx.export` is told of it.
    """
    forward = nn.GroupNorm.forward

    def called(self: nn.GroupNorm, x: Tensor) -> Tensor:
        return _operator(x, self.num_groups, self.weight, self.bias, self.eps) if self.affine else forward(self, x)

    with patch.object(nn.GroupNorm, "forward", called):
        yield {torch.ops.slimdpm.group_norm.default: _translated}
