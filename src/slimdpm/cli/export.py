"""The command that takes a pipeline to where slimdpm is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from slimdpm.cli.measure import size_option
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display

console = Console()

_GRAPHS = ("onnx", "openvino", "web")


def export(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, diffusers folder or hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder, or the file of single-file.")],
    to: Annotated[
        Literal["onnx", "openvino", "web", "diffusers", "hub", "single-file"],
        typer.Option(
            help="onnx, openvino: a folder that makes images without PyTorch. web: a page that makes them in a "
            "browser. diffusers: a pipeline folder. hub: the same with the code of a gated U-Net (trust_remote_code). "
            "single-file: Stable Diffusion's original names."
        ),
    ] = "onnx",
    steps: Annotated[
        str | None,
        typer.Option(help="Of onnx, openvino, web: numbers of steps that it shall offer.  [default: 4,8,20,50]"),
    ] = None,
    scheduler: Annotated[
        list[str] | None,
        typer.Option(help="Samplers that it shall offer; may be repeated.  [default: the pipeline's and dpm++]"),
    ] = None,
    size: Annotated[
        Any, size_option("Of onnx, openvino, web: images of this size alone.  [default: any that the networks take]")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Keep weights in 16 bits: half the size, as fast.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Of onnx, web: keep weights in 8 bits, a quarter, as fast.")
    ] = False,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable", help="Of onnx: ONNX's own operators alone, for other runtimes; attention is slower."
        ),
    ] = False,
    teacher: Annotated[str | None, typer.Option(help="Of web: another pipeline, shown beside it.")] = None,
    runtime: Annotated[
        Path | None, typer.Option(help="Of web: npm's tarball of onnxruntime-web, or its folder.  [default: npm's]")
    ] = None,
) -> None:
    """Write a pipeline for where slimdpm, or PyTorch, is not.

    A folder of onnx or openvino is complete in itself: graphs, the sampler as a table, and generate.py, which needs
    numpy, pillow and the runtime. Each graph is compared with the network that it was made of.

        slimdpm export runs/cat -o cat-onnx

        python cat-onnx/generate.py -n 8 --seed 0 --steps 20 -o images

        slimdpm export runs/cat --to web --teacher google/ddpm-ema-cat-256 -o cat-page

        slimdpm export runs/cat --to hub --half -o cat-for-the-hub
    """
    from slimdpm.cli.profile import numbers

    if to not in _GRAPHS and (int8 or steps or scheduler or size):
        raise SlimdpmError("--steps, --scheduler, --size and --int8 belong to --to onnx, openvino and web")
    if int8 and (half or to == "openvino"):
        raise SlimdpmError("--int8 goes with --to onnx and web, and not with --half")
    if portable and to != "onnx":
        raise SlimdpmError("--portable belongs to --to onnx: the others have no need of it")
    if to != "web" and (teacher or runtime):
        raise SlimdpmError("--teacher and --runtime belong to --to web")
    display = Display(console)
    if to == "onnx" or to == "openvino" or to == "web":
        from slimdpm.export.folder import STEPS, Samplers, Weights, export_pipeline

        counts = tuple(numbers(steps, "--steps", int)) if steps else STEPS
        samplers = Samplers(tuple(scheduler), counts) if scheduler else Samplers(steps=counts)
        weights: Weights = "float16" if half else "int8" if int8 else "float32"
        shared: Any = {"samplers": samplers, "weights": weights, "size": size, "display": display}
        if to == "web":
            from slimdpm.export.web.site import write_site

            write_site(source, output, teacher=teacher, runtime=runtime, **shared)
        else:
            export_pipeline(source, output, to=to, portable=portable, **shared)
    elif to == "single-file":
        from slimdpm.export.single_file import write_single_file

        write_single_file(source, output, half=half)
        display.say(f"{output}: for tools that read Stable Diffusion's original files")
    else:
        from slimdpm.export.hub import write_diffusers_folder, write_hub_folder

        write = write_hub_folder if to == "hub" else write_diffusers_folder
        write(source, output, variant="fp16" if half else None)
        display.say(f"{output}: {'diffusers loads it with trust_remote_code=True' if to == 'hub' else 'a pipeline'}")
