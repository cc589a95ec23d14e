"""The commands that measure: parse, call, print. `slimdpm.cli` registers them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from slimdpm.system.progress import Display, figures_table
from slimdpm.system.sizes import Size, size_of

console = Console()


def size_option(about: str) -> Any:
    """``--size``, a number for squares, or height x width."""

    def parse(text: str) -> Size:
        try:
            return size_of(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return typer.Option(parser=parse, metavar="N|HxW", help=about)


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Run folders, diffusers folders, hub ids; or folders of samples."),
    ],
    against: Annotated[str | None, typer.Option(help="The real images: folder, .tar, .npz, .npy or hf:NAME.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=10, max=10**6, help="Images of each model.")] = 10_000,
    compare: Annotated[
        bool, typer.Option("--compare", help="Several models: ratios to the first. More than one model implies it.")
    ] = False,
    extractor: Annotated[
        str,
        typer.Option(help="inception, efficientnet-lite0 (no download), or an .onnx file: TorchScript is code."),
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
    guidance: Annotated[float | None, typer.Option(min=1, help="Scale; 1 is none.  [default: each pipeline's]")] = None,
    size: Annotated[Any, size_option("Images' size in pixels.  [default: the first model's]")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for images, features, results.json.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.  [default: the best there is]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how good the samples of each MODEL are, and where in the spectrum they fail.

    FID, KID, precision, recall and Inception Score on the features of one network; distances of power spectra, power
    ratios by octave and sliced Wasserstein distances on the images themselves; each with a 95 % interval. Two random
    halves of the real images are measured alike: the floor. Of several models, how closely they follow the first: how
    far their samples are from its own of the same noise. For that alone no real images are needed.

    A stopped evaluation goes on where it was by the same command. Several processes share the work, see the README.

        slimdpm evaluate runs/cat --against photos/ -n 10000

        slimdpm evaluate --compare runs/teacher runs/lite runs/spectral --against photos/ --extractor efficientnet-lite0

        slimdpm evaluate path/to/teacher runs/slim -n 100
    """
    from slimdpm.metrics.evaluate import Settings
    from slimdpm.metrics.evaluate import evaluate as run
    from slimdpm.system.processes import processes

    settings = Settings(
        count=count,
        extractor=extractor,
        inception_weights=inception_weights,
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        size=size,
        guidance=guidance,
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


def _print(result: Any) -> None:
    """An evaluation in tables."""
    from slimdpm.metrics.scores import tables

    for headings, rows in tables(result):
        _print_table(headings, rows)
    for warning in result.warnings:
        Display(console).say(f"note: {warning}")


def analyze(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, diffusers folder or hub id.")],
    against: Annotated[str, typer.Option(help="The real images: folder, .tar, .npz, .npy or hf:NAME.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the figures.  [default: RUN/analysis]")
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option(help="A further network for the comparison of sizes; may be repeated.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=2, max=10**6, help="Real images for the spectrum.")] = 1000,
    samples: Annotated[int, typer.Option(min=2, max=10**6, help="Images of each network.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Of the scheduler.")] = 25,
    scheduler: Annotated[
        str | None, typer.Option(help="dpm++, ddim, euler, ... or a class of diffusers.  [default: the run's, or ddim]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.  [default: the best there is]")] = None,
) -> None:
    """Show where in the spectrum a network works: the paper's section 3 for your own model and data.

    Five figures as PNG and SVG with their numbers as CSV: the data's power law; the Wiener filter's view of denoising;
    which frequency the network restores when; what cheaper networks lose; what the wavelet gates let through. A run's
    report.html gets them too, in plain words.

        slimdpm analyze runs/cat --against photos/ --compare runs/lite
    """
    from slimdpm.analysis.analyze import Settings
    from slimdpm.analysis.analyze import analyze as run

    settings = Settings(count, samples, steps, scheduler, seed, device)
    page = run(source, against, output, settings, compare=compare or (), display=Display(console))
    Display(console).say(f"figures and page: {page}")


def complexity(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Parameters and MACs of every network in the paper's complexity tables, ours beside the paper's.

    Counted from the architecture, batch 1, nothing is downloaded or allocated. *conv+linear* is the paper's convention,
    *all* adds the products inside attention.

        slimdpm reproduce complexity
    """
    from slimdpm.method.complexity import complexity_rows

    rows = complexity_rows()
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
        return
    headings = ("task", "network", "parameters", "paper", "", "MACs conv+linear", "paper", "", "MACs all")
    _wide().print(figures_table(headings, (row.cells() for row in rows), texts=(0, 1)))
    console.print(
        "* recalled, not checked against the paper's page; – the paper gives no figure, or none is known to us"
    )


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column is text and whose others are figures."""
    _wide().print(figures_table(headings, rows))
    console.print()


def _wide() -> Console:
    """A log has no width: a table's lines are not cut there."""
    return console if console.is_terminal else Console(width=200)
