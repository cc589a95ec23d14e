"""The commands of a run and of its results: slim, train, sample, demo. `slimdpm.cli.main` registers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from slimdpm.cli.measure import size_option
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display
from slimdpm.system.text import one_line

console = Console()

Output = Annotated[Path, typer.Option("--output", "-o", help="Run folder. The same command resumes what is in it.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file with further settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, key=value, for example train.lr=1e-4.")]
Ratio = Annotated[
    float | None, typer.Option(help="Times fewer MACs than the teacher.  [default: 12 if no budget is given]")
]
Width = Annotated[int | None, typer.Option(help="Base channels, instead of a ratio.")]
MaxMacs = Annotated[str | None, typer.Option(help="conv+linear MACs at most, for example 500M.")]
MaxParams = Annotated[str | None, typer.Option(help="Parameters at most, for example 20M.")]
Speedup = Annotated[
    float | None,
    typer.Option(help="Times faster than the teacher, measured on this machine: chooses widths and depth."),
]
MaxMs = Annotated[float | None, typer.Option(help="Milliseconds of one call of the network at most, in the same way.")]
Runtime = Annotated[
    str | None,
    typer.Option(help="Of --speedup and --max-ms: pytorch, onnxruntime or openvino, on the CPU.  [default: pytorch]"),
]
Gated = Annotated[
    bool | None,
    typer.Option(
        "--gated/--plain",
        help="Wavelet-gated resampling, as in the paper, or the teacher's own: a U-Net that loads without slimdpm.  "
        "[default: plain]",
    ),
]
Init = Annotated[
    Literal["random", "teacher"] | None,
    typer.Option(
        help="First weights: the teacher's most important channels, a head start, or random ones.  [default: teacher]"
    ),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.  [default: 100000]")]
Hours = Annotated[
    float | None,
    typer.Option(help="Instead of steps: hours for training with its samples and report, measured on this machine."),
]
Until = Annotated[
    float | None,
    typer.Option(help="Stop when the error on images held out is at most so many times the teacher's, e.g. 1.05."),
]
HeldOut = Annotated[
    int | None,
    typer.Option(help="Images kept back from training.  [default: a fiftieth, at most 256; of fewer than 1000 none]"),
]
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
    speedup: Speedup = None,
    max_ms: MaxMs = None,
    runtime: Runtime = None,
    gated: Gated = None,
    init: Init = None,
    steps: Steps = None,
    hours: Hours = None,
    until: Until = None,
    held_out: HeldOut = None,
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

        slimdpm slim google/ddpm-cat-256 photos/ -o runs/fast --speedup 10 --runtime onnxruntime

        slimdpm slim google/ddpm-cat-256 photos/ -o runs/good --until 1.05

        slimdpm slim google/ddpm-cat-256 teacher -o runs/cat --set data.samples.count=20000
    """
    budget = {"ratio": ratio, "width": width, "max_macs": max_macs, "max_params": max_params}
    student = {**budget, "speedup": speedup, "max_ms": max_ms, "runtime": runtime, "init": init}
    _start(
        output,
        dry_run,
        as_json,
        task="slim",
        teacher=teacher,
        data=data,
        student=student,
        gated=gated,
        size=size,
        cache=False if no_cache else None,
        steps=steps,
        hours=hours,
        until=until,
        held_out=held_out,
        recipe=recipe,
        assignments=set_ or (),
    )


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
    speedup: Speedup = None,
    max_ms: MaxMs = None,
    runtime: Runtime = None,
    steps: Steps = None,
    hours: Hours = None,
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
    budget = {"ratio": ratio, "width": width, "max_macs": max_macs, "max_params": max_params}
    student = {**budget, "speedup": speedup, "max_ms": max_ms, "runtime": runtime, "base": model}
    _start(
        output,
        dry_run,
        as_json,
        task="train",
        teacher=like,
        data=data,
        student=student,
        size=size,
        cache=False if no_cache else None,
        steps=steps,
        hours=hours,
        recipe=recipe,
        assignments=set_ or (),
    )


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
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Noise levels σ between which there is guidance.  [default: all]"),
    ] = None,
    size: Annotated[Any, size_option("Images' size in pixels, if the network takes it.  [default: its own]")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the PNGs and grid.png.")] = Path("samples"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images made at once.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.  [default: the best there is]")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile first: a minute or so, then faster steps.")
    ] = False,
) -> None:
    """Make images with a student, or with any pipeline that can be a teacher.

    Images that are there already are not made again, so a long job resumes.

        slimdpm sample runs/cat -n 64 --steps 50 --scheduler dpm++ --seed 0 -o samples/

        slimdpm sample runs/clothing --class dress --class 3 --guidance 2

        slimdpm sample runs/clothing --guidance 4 --guidance-interval 0.3 5

        slimdpm sample runs/sd --prompt "a photo of a dress" --negative-prompt blurry --guidance 7.5 --size 512x384

        slimdpm sample runs/inpaint --prompt "a red dress" --image photo.jpg --mask mask.png
    """
    from slimdpm.conditioning import Request
    from slimdpm.pipelines.sample_files import write_samples

    write_samples(
        source,
        output,
        count=count,
        steps=steps,
        scheduler=scheduler,
        seed=seed,
        batch_size=batch_size,
        request=Request(
            classes or (), prompt or (), negative_prompt, guidance, image or (), mask or (), guidance_interval
        ),
        size=size,
        device=device,
        compile=compile,
        display=Display(console),
    )


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the runs and report.html.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of plain; the others' follow.")] = None,
) -> None:
    """Slim a teacher of garments in a few minutes on a CPU: no download, no argument.

    Teacher and photographs come with the package. Three students of equal MACs and the same start are trained for as
    many seconds: distilled with wavelet gates and without, and on the photographs alone. The report compares them with
    their teacher: cost, errors, samples of each class.
    """
    from slimdpm.demo.run import run_demo

    run_demo(output, seed=seed, steps=steps, display=Display(console))


def _start(output: Path, dry_run: bool, as_json: bool, **arguments: Any) -> None:
    """A run of these arguments of `slimdpm.api.planned`, or what it would be."""
    from slimdpm.api import planned
    from slimdpm.training.run import run_job

    if as_json and not dry_run:
        raise SlimdpmError("--json belongs to --dry-run")
    display = Display(Console(stderr=True) if dry_run else console)
    job = planned(**arguments, weights=not dry_run, output=output, display=display)
    if dry_run:
        _tell(job, output, as_json)
    else:
        run_job(job, output, display)


def _tell(job: Any, output: Path, as_json: bool) -> None:
    """What a run of this job in this folder would be; of several processes one speaks."""
    from slimdpm.run_folder import RunFolder
    from slimdpm.system.processes import launched
    from slimdpm.training.accelerator import check_trackers
    from slimdpm.training.checkpoint import checkpoint_step, checkpoints
    from slimdpm.training.dry_run import forecast, labelled, lines

    check_trackers(job.recipe.train.trackers)
    run = RunFolder(output)
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
