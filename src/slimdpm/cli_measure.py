"""The commands that measure: parse, call, print. `slimdpm.cli` registers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from slimdpm.metrics.scores import Evaluation

console = Console()


def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Run folders, diffusers folders, hub ids; or folders of samples.")
    ],
    against: Annotated[str | None, typer.Option(help="The real images: folder, .npz, .npy or hf:NAME.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=10, help="Images of each model.")] = 10_000,
    compare: Annotated[
        bool, typer.Option("--compare", help="Several models: ratios to the first. More than one model implies it.")
    ] = False,
    extractor: Annotated[
        str, typer.Option(help="inception, efficientnet-lite0 (no download), or a TorchScript or ONNX file.")
    ] = "inception",
    inception_weights: Annotated[Path | None, typer.Option(help="The weights' file, instead of a download.")] = None,
    reference_stats: Annotated[
        Path | None, typer.Option(help=".npz of mu and sigma for the FID, instead of the data's own.")
    ] = None,
    write_stats: Annotated[Path | None, typer.Option(help="Write the data's mu and sigma as .npz.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the scheduler.")] = 50,
    scheduler: Annotated[
        str | None, typer.Option(help="dpm++, ddim, euler, ... or a class of diffusers.  [default: the pipeline's]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="All models start from the same noise.")] = 0,
    size: Annotated[int | None, typer.Option(help="Images' size in pixels.  [default: the first model's]")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for images, features, results.json.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.  [default: the best there is]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how good the samples of MODELS are, and where in the spectrum they fail.

    FID, KID, precision, recall and Inception Score on the features of one network; distances of power spectra, power
    ratios by octave and sliced Wasserstein distances on the images themselves; each with a 95 % interval. Two random
    halves of the real images are measured alike: the floor.

    A stopped evaluation goes on where it was by the same command. Several processes share the work: accelerate launch.

        slimdpm evaluate runs/cat --against photos/ -n 10000

        slimdpm evaluate --compare runs/teacher runs/lite runs/spectral --against photos/ --extractor efficientnet-lite0
    """
    from slimdpm.display import Display
    from slimdpm.metrics.evaluate import Settings
    from slimdpm.metrics.evaluate import evaluate as run
    from slimdpm.parallel import processes

    settings = Settings(
        count=count,
        extractor=extractor,
        inception_weights=inception_weights,
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        size=size,
        device=device,
    )
    main = processes().is_main_process
    result = run(
        models,
        against,
        output or _beside(models),
        settings,
        reference_moments=reference_stats,
        write_moments=write_stats,
        display=Display(console if main and not as_json else None),
    )
    if main and as_json:
        print(json.dumps(result.as_json(), indent=2))
    elif main:
        _print(result)


def _beside(models: list[str]) -> Path:
    """A single run's folder keeps its evaluation; a comparison gets one of its own."""
    run = Path(models[0])
    return run / "evaluation" if len(models) == 1 and (run / "recipe.yaml").exists() else Path("evaluation")


def _print(result: Evaluation) -> None:
    from slimdpm.metrics.scores import as_rows

    headings, rows = as_rows(result)
    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for warning in result.warnings:
        console.print(f"note: {warning}", highlight=False, markup=False, soft_wrap=not console.is_terminal)
