"""The command line: parse, call, print."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from slimdpm import cli_import, cli_measure
from slimdpm.cli_measure import size_option
from slimdpm.display import Display, figures_table
from slimdpm.errors import SlimdpmError, first_line
from slimdpm.text import one_line

app = typer.Typer(
    help="A diffusion pipeline goes in, a slim diffusion pipeline comes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
_TRACEBACK = "--traceback"
_EXTRAS = {"scipy": "metrics", "datasets": "datasets", "transformers": "text", "onnxruntime": "onnx", "skimage": "demo"}

Output = Annotated[Path, typer.Option("--output", "-o", help="Run folder. The same command resumes what is in it.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file with further settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, key=value, for example train.lr=1e-4.")]
Ratio = Annotated[
    float | None, typer.Option(help="Times fewer MACs than the teacher.  [default: 12 if no budget is given]")
]
Width = Annotated[int | None, typer.Option(help="Base channels, instead of a ratio.")]
MaxMacs = Annotated[str | None, typer.Option(help="conv+linear MACs at most, for example 500M.")]
MaxParams = Annotated[str | None, typer.Option(help="Parameters at most, for example 20M.")]
Init = Annotated[
    Literal["random", "teacher"] | None,
    typer.Option(
        help="First weights: the teacher's most important channels, a head start, or random ones.  [default: teacher]"
    ),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
Size = Annotated[
    Any, size_option("Images are cut to squares of this many pixels, or to height x width.  [default: the network's]")
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Decode and encode images and captions anew each time, keep nothing.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would run: networks, cost, steps, memory. Reads no weights.")
]
Json = Annotated[bool, typer.Option("--json", help="Of --dry-run: print JSON.")]


@app.command()
def slim(
    teacher: Annotated[str | None, typer.Argument(help="diffusers folder, run folder or hub id.")] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Folder of images or .tar shards, .npz, .npy or hf:NAME; or teacher, which makes the images itself."
        ),
    ] = None,
    output: Output = Path("run"),
    ratio: Ratio = None,
    width: Width = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    init: Init = None,
    steps: Steps = None,
    size: Size = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Distil TEACHER into a slim student on the images of DATA.

    The run folder gets checkpoints, samples, the student as a diffusers pipeline, and report.html. Ctrl-C saves and
    stops; the same command goes on from there.

        slimdpm slim google/ddpm-cat-256 photos/ -o runs/cat --ratio 12

        slimdpm slim google/ddpm-cat-256 teacher -o runs/cat --set data.samples.count=20000
    """
    student = {"ratio": ratio, "width": width, "max_macs": max_macs, "max_params": max_params, "init": init}
    values: dict[str, Any] = {"task": "slim", "teacher": teacher, "student": student}
    values["data"] = {"path": data, "size": size, "cache": False if no_cache else None}
    _start(values, output, steps, recipe, set_, dry_run, as_json)


@app.command()
def train(
    data: Annotated[str | None, typer.Argument(help="Folder of images or .tar shards, .npz, .npy or hf:NAME.")] = None,
    output: Output = Path("run"),
    model: Annotated[
        str | None, typer.Option(help="Preset, config.json, or folder with one (see slimdpm profile).")
    ] = None,
    like: Annotated[str | None, typer.Option(help="Pipeline whose U-Net, scheduler and autoencoder are taken.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Times fewer MACs than that network: the Lite baseline.")] = None,
    width: Width = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    steps: Steps = None,
    size: Size = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a U-Net on the images of DATA alone: a teacher, or the Lite baseline.

    slimdpm train photos/ -o runs/teacher --model pixel-64

    slimdpm train photos/ -o runs/lite --like runs/teacher --ratio 12
    """
    student = {"base": model, "ratio": ratio, "width": width, "max_macs": max_macs, "max_params": max_params}
    values: dict[str, Any] = {"task": "train", "teacher": like, "student": student}
    values["data"] = {"path": data, "size": size, "cache": False if no_cache else None}
    _start(values, output, steps, recipe, set_, dry_run, as_json)


@app.command()
def sample(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, diffusers folder or hub id.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=10**6, help="How many images.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Of the scheduler.")] = 50,
    scheduler: Annotated[
        str | None, typer.Option(help="dpm++, ddim, euler, ... or a class of diffusers.  [default: the pipeline's]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Image i of a seed is the same in any batch.")] = 0,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Class by number or name; may be repeated.  [default: all]")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Text; may be repeated.  [default: the run's]")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What shall not be seen.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="To inpaint or to edit; may be repeated.  [default: the run's]")
    ] = None,
    mask: Annotated[list[Path] | None, typer.Option(help="White where to inpaint.  [default: the middle]")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Scale; 1 is none.  [default: the pipeline's]")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the PNGs and grid.png.")] = Path("samples"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images made at once.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.  [default: the best there is]")] = None,
) -> None:
    """Make images with a student, or with any pipeline that can be a teacher.

    Images that are there already are not made again, so a long job resumes.

        slimdpm sample runs/cat -n 64 --steps 50 --scheduler dpm++ --seed 0 -o samples/

        slimdpm sample runs/clothing --class dress --class 3 --guidance 2

        slimdpm sample runs/sd --prompt "a photo of a dress" --negative-prompt blurry --guidance 7.5

        slimdpm sample runs/inpaint --prompt "a red dress" --image photo.jpg --mask mask.png
    """
    from slimdpm.conditioning import Request
    from slimdpm.pictures import write_samples

    write_samples(
        source,
        output,
        count=count,
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        batch_size=batch_size,
        request=Request(classes or (), prompt or (), negative_prompt, guidance, image or (), mask or ()),
        device=device,
        display=Display(console),
    )


@app.command()
def profile(
    models: Annotated[list[str] | None, typer.Argument(help="Presets, config.json files, or folders with one.")] = None,
    against: Annotated[str | None, typer.Option(help="Print each one's ratio to this network.")] = None,
    size: Annotated[Any, size_option("Of the input in (latent) pixels.  [default: the config's]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters and MACs of networks, counted without allocating them. Without MODELS: all presets.

    MACs are of one forward pass, batch 1. *conv+linear* counts convolutions and linear layers, as papers do; *all*
    adds the products inside attention.

        slimdpm profile ldm4-spectral ldm4-lite --against ldm4
    """
    from slimdpm.presets import PRESETS, find_network
    from slimdpm.profile import measure

    networks = [find_network(name) for name in models or PRESETS]
    costs = {n.name: measure(n.config, size=size, tokens=n.tokens) for n in networks}
    reference = None
    if against is not None:
        network = find_network(against)
        reference = measure(network.config, size=size, tokens=network.tokens)
    if as_json:
        values = {name: vars(cost) for name, cost in costs.items()}
        if reference is not None:
            for name, cost in costs.items():
                values[name]["ratio"] = reference.macs / cost.macs
        print(json.dumps(values, indent=2))
        return
    headings = [
        "network",
        "parameters",
        "MACs conv+linear",
        "MACs all",
        *([f"{against} ÷ it"] if reference else []),
        "",
    ]
    rows = []
    for network in networks:
        cost = costs[network.name]
        ratio = [f"{reference.macs / cost.macs:.2f}"] if reference else []
        numbers = [f"{cost.params / 1e6:.2f} M", f"{cost.macs / 1e9:.3f} G", f"{cost.macs_all / 1e9:.3f} G"]
        rows.append([network.name, *numbers, *ratio, network.note])
    console.print(figures_table(headings, rows, texts=(0, len(headings) - 1)))


app.command("import")(cli_import.import_)
app.command()(cli_measure.evaluate)
app.command()(cli_measure.analyze)
app.add_typer(cli_measure.reproduce, name="reproduce")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the runs and report.html.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of each student.")] = None,
) -> None:
    """Slim a small teacher in a few minutes on a CPU: no download, no argument.

    The teacher comes with the package; the images are crops of photographs in scikit-image and scikit-learn. A Lite
    baseline of equal cost is trained for as many steps, and the report compares the three.
    """
    from slimdpm.demo import run_demo

    run_demo(output, seed=seed, steps=steps, display=Display(console))


def _start(
    values: dict[str, Any],
    output: Path,
    steps: int | None,
    recipe: Path | None,
    sets: list[str] | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from slimdpm.job import plan_job, run_job
    from slimdpm.recipe import load_recipe

    if as_json and not dry_run:
        raise SlimdpmError("--json belongs to --dry-run")
    values = {**values, "train": {"steps": steps}}
    job = plan_job(load_recipe(recipe, sets or (), values=_given(values)), weights=not dry_run)
    if dry_run:
        _tell(job, output, as_json)
    else:
        run_job(job, output, Display(console))


def _tell(job: Any, output: Path, as_json: bool) -> None:
    """What a run of this job in this folder would be; of several processes one speaks."""
    from slimdpm.checkpoint import checkpoint_step, checkpoints
    from slimdpm.dry_run import forecast, labelled, lines
    from slimdpm.parallel import check_trackers, launched
    from slimdpm.run import RunFolder

    check_trackers(job.recipe.train.trackers)
    run = RunFolder(output)
    job = replace(job, recipe=run.settled(job.recipe))
    run.check(job.recipe)
    found = checkpoints(run.checkpoints)
    rank, processes = launched()
    if rank:
        return
    values = forecast(job, processes=processes, resumes_at=checkpoint_step(found[-1]) if found else 0)
    if as_json:
        print(json.dumps(values, indent=2))
        return
    for label, text in lines(values):
        console.print(Text.assemble((labelled(label), "bold"), one_line(text, 2000)), soft_wrap=True)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without what was not given, at any depth."""
    nested = {k: _given(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"slimdpm {version('slimdpm')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(_TRACEBACK, help="After any command: show where in slimdpm an error comes from.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point: whatever goes wrong is one line. A user's mistake exits with 2, a stop like its signal."""
    from slimdpm.parallel import leave
    from slimdpm.stopping import Stopped, interruptible

    arguments = [word for word in sys.argv[1:] if word != _TRACEBACK]
    received = interruptible()
    try:
        _silence_libraries()
        code = app(arguments, prog_name="slimdpm", standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except Stopped as stopped:
        code = _told(str(stopped), 128 + stopped.signal)
    except (Exception, KeyboardInterrupt) as error:
        if received or isinstance(error, KeyboardInterrupt):  # an interrupted import is any error at all
            code = _told("stopped", 128 + (received or [2])[0])
        elif _TRACEBACK in sys.argv:
            raise
        else:
            code = _told(*_explained(error))
    finally:
        leave()
    for number in (signal.SIGINT, signal.SIGTERM):  # there is nothing left to stop
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one line, and the exit code: 2 if the user can mend it."""
    import torch

    if isinstance(error, SlimdpmError):
        return f"error: {error}", 2
    if hasattr(error, "format_message"):  # typer's own, about options and arguments
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        return f"error: {error.format_message().rstrip('.')}{hint}", 2
    if isinstance(error, typer.Abort):
        return "stopped", 130
    if isinstance(error, ImportError) and error.name in _EXTRAS:
        return f"error: this needs the package {error.name}: pip install 'slimdpm[{_EXTRAS[error.name]}]'", 2
    if isinstance(error, OSError):
        return f"error: {f'{error.filename}: ' if error.filename else ''}{first_line(error)}", 2
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error):
        return "error: out of memory; try a smaller batch (train.max_batch_per_device, --batch-size) or size", 2
    if "onnection closed by peer" in str(error) or "onnection reset by peer" in str(error):
        return "error: another process of this launch has ended; what it said is the reason", 2
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"error: {reason} (this is a fault of slimdpm; {_TRACEBACK} shows where)", 1


def _told(message: str, code: int) -> int:
    print(one_line(message), file=sys.stderr)
    return code


def _silence_libraries() -> None:
    """What they advise and warn of, nobody who calls a command can follow."""
    from diffusers.utils import is_transformers_available, logging

    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda _: None  # of finalizers, after an error that is told
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if is_transformers_available():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()


if __name__ == "__main__":
    main()
