"""Networks compiled for sampling: one graph for all timesteps, and for all batches of two and more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slimdpm.method.networks import map_inputs
from slimdpm.system.errors import SlimdpmError, first_line

HINT = (
    "torch.compile fails here. On a CPU it needs a C++ compiler (Debian, Ubuntu: apt install g++), on a GPU triton and "
    "a C compiler; or leave out --compile"
)


class Compiled:
    """What `torch.compile` makes of a network or of a function, which stays as it is.

    Three things would compile it anew: another batch, so the batch is left open in the graph; samples in another order
    of memory, which a scheduler's step may give; and a batch of one, which a compiler takes for a number that never
    changes. After a larger batch one row is therefore called as two.

    Args:
        original: called with samples ``(B, C, H, W)`` and further inputs, all keyword tensors of B rows. Gives tensors
            of B rows, one or a tuple.
        say: told once what compiling took, in a line.
        backend: of `torch.compile`.
    """

    def __init__(self, original: Callable, say: Callable[[str], None], backend: str | Callable = "inductor"):
        self.original, self.say = original, say
        self._graph = torch.compile(original, backend=backend)
        self._warm = self._several = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __call__(self, sample: Tensor, *more: Any, **inputs: Any) -> Any:
        """The original's output.

        Raises:
            SlimdpmError: in the first call, if nothing here compiles.
        """
        sample, count = sample.clone(memory_format=torch.contiguous_format), len(sample)
        self._several |= count > 1
        if self._several:
            (sample, inputs) = _open(sample, inputs)
        if self._warm:
            return _rows(self._graph(sample, *more, **inputs), count)
        start = time.monotonic()
        try:
            output = self._graph(sample, *more, **inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise SlimdpmError(f"{HINT}: {first_line(getattr(error, 'inner_exception', error))}") from error
        self._warm = True
        name = getattr(self.original, "__qualname__", type(self.original).__name__)
        self.say(f"{name} compiled in {time.monotonic() - start:.0f} s")
        return _rows(output, count)


def _open(sample: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The same with at least two rows, their number marked as one that changes."""
    alone = len(sample) == 1

    def opened(tensor: Tensor) -> Tensor:
        tensor = torch.cat([tensor, tensor]) if alone else tensor
        torch._dynamo.mark_dynamic(tensor, 0)
        return tensor

    kept = {name: value for name, value in inputs.items() if not isinstance(value, (Tensor, dict))}
    tensors = {name: value for name, value in inputs.items() if name not in kept}
    return opened(sample), {**kept, **map_inputs(lambda tensor, _: opened(tensor), tensors, tensors)}


def _rows(output: Any, count: int) -> Any:
    return tuple(part[:count] for part in output) if isinstance(output, tuple) else output[:count]
