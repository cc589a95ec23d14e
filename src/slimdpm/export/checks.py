"""Exported graphs beside the networks that they were made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from slimdpm.export.graphs import Graph
from slimdpm.export.runner import Network, networks
from slimdpm.export.storage import Weights
from slimdpm.system.errors import SlimdpmError, blamed

_OTHER_SIZE = (2, 3)  # steps of height and width, for a graph of free size
# The largest difference that is taken for rounding, relative to the largest number: of float32 in another order, and
# of what weights of fewer bits may do to one call.
_LIMITS: dict[Weights, float] = {"float32": 1e-4, "float16": 2e-2, "int8": 0.3}


def check_graph(graph: Graph, file: Path, weights: Weights, batches: Sequence[int] = (1, 3)) -> float:
    """Run a graph and its network on the same numbers: in batches of several sizes and, where the graph takes them, of
    images of another size.

    Returns:
        the largest difference, relative to the largest number of the network's output.

    Raises:
        SlimdpmError: if they disagree.
    """
    with blamed(f"the exported {graph.name} cannot be run"):
        run = networks(file.parent, {"graph": file.name}, None)("graph", *graph.outputs)
        worst = _largest_difference(graph, run, batches)
    if not worst <= _LIMITS[weights]:
        raise SlimdpmError(
            f"the exported {graph.name} disagrees with PyTorch: {worst:.1e} of its largest number, "
            f"{_LIMITS[weights]:.0e} is the limit for {weights}; nothing was written"
        )
    return worst


def _largest_difference(graph: Graph, run: Network, batches: Sequence[int]) -> float:
    worst = 0.0
    for inputs in _inputs(graph, batches):
        with torch.inference_mode():
            told = graph.module(**inputs)
        given = run(**{name: value.numpy() for name, value in inputs.items()})
        for wanted, made in zip((told,) if torch.is_tensor(told) else told, map(torch.from_numpy, given), strict=True):
            if made.shape != wanted.shape:
                raise SlimdpmError(
                    f"the exported {graph.name} gives {tuple(made.shape)} in place of {tuple(wanted.shape)}"
                )
            off = ((made - wanted).abs().max() / wanted.abs().max()).item()
            worst = off if not off <= worst else worst  # nan stays
    return worst


def _inputs(graph: Graph, batches: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
    for batch in batches:
        yield {name: _like(name, example, batch, graph) for name, example in graph.inputs.items()}
    if graph.step is not None:
        sides = [graph.step * steps for steps in _OTHER_SIZE]
        yield {name: _of_sides(example, sides) for name, example in graph.inputs.items()}


def _like(name: str, example: torch.Tensor, batch: int, graph: Graph) -> torch.Tensor:
    """The example's rows, each moved by another number of places, for another batch; whole numbers are repeated."""
    if name in graph.fixed:
        return example
    if not example.is_floating_point():
        return example[:1].repeat(batch, *[1] * (example.ndim - 1))
    return torch.stack([example[row % len(example)].roll(row, -1) for row in range(batch)])


def _of_sides(value: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """Images cut to this height and width, or repeated as far; what is no image stays."""
    if value.ndim != 4:
        return value
    rows, columns = (torch.arange(side) % own for side, own in zip(sides, value.shape[2:], strict=True))
    return value[:, :, rows][..., columns].contiguous()
