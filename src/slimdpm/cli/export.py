"""The command that takes a pipeline out of PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display

console = Console()


def export(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, diffusers folder or hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    to: Annotated[Literal["onnx", "openvino"], typer.Option(help="Runtime of the graphs.")] = "onnx",
    steps: Annotated[str, typer.Option(help="Numbers of steps that it shall offer.")] = "4,8,20,50",
    scheduler: Annotated[
        list[str] | None,
        typer.Option(help="Samplers that it shall offer; may be repeated.  [default: the pipeline's and dpm++]"),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Keep weights in 16 bits: half the size, as fast.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Keep weights in 8 bits: less exact.")] = False,
) -> None:
    """Write a pipeline as a folder that makes images without PyTorch: graphs, the sampler as a table, a runner.

    Each graph is compared with the network that it was made of. Needs the extra export, or openvino.

        slimdpm export runs/cat -o cat-onnx

        python cat-onnx/generate.py -n 8 --seed 0 --steps 20 -o images
    """
    from slimdpm.cli.profile import numbers
    from slimdpm.export.folder import Samplers, Weights, export_pipeline

    if half and int8:
        raise SlimdpmError("--half and --int8 exclude each other")
    counts = tuple(numbers(steps, "--steps", int))
    samplers = Samplers(tuple(scheduler), counts) if scheduler else Samplers(steps=counts)
    weights: Weights = "float16" if half else "int8" if int8 else "float32"
    export_pipeline(source, output, to=to, samplers=samplers, weights=weights, display=Display(console))
