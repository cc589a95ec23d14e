"""``slimdpm sample``: images as PNG files, resumable."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slimdpm.conditioning import Request
from slimdpm.data.images import grid, picture, pixels, save_picture, zoom_for
from slimdpm.method.networks import network_config
from slimdpm.pipelines.compiled import Compiled
from slimdpm.pipelines.fitting import fitted
from slimdpm.pipelines.sampling import make_scheduler, probe, sample_batches
from slimdpm.pipelines.shell import network_of, shell_of
from slimdpm.pipelines.teacher import open_pipeline
from slimdpm.run_folder import RunFolder
from slimdpm.system.documents import read_json, regular
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import remove_leftovers, write_json
from slimdpm.system.hashing import fingerprint
from slimdpm.system.processes import pick_device
from slimdpm.system.progress import Display
from slimdpm.system.shared_work import check_folder, claim
from slimdpm.system.sizes import Size, described

_SETTINGS = "samples.json"
_GRID = 64  # images in the grid at most


def write_samples(
    source: str,
    folder: Path,
    *,
    count: int,
    steps: int = 50,
    scheduler: str | None = None,
    seed: int = 0,
    batch_size: int = 32,
    request: Request | None = None,
    size: Size | None = None,
    device: str | None = None,
    compile: bool = False,
    display: Display | None = None,
) -> None:
    """Write ``00000.png``, ... and ``grid.png`` of a pipeline's samples. Images that are there are not made again.

    Args:
        source: a run folder, a diffusers folder or a hub id.
        folder: where to.
        count: how many.
        steps, scheduler, seed, batch_size, request, size: see `slimdpm.pipelines.sampling.sample_batches`.
        device: where to compute, by default the best there is.
        compile: network and decoder first, see `slimdpm.pipelines.compiled`.
        display: where progress is shown.

    Raises:
        SlimdpmError: for a pipeline that cannot be loaded, or a folder that holds samples of other settings.
    """
    display = display or Display()
    pipeline = open_pipeline(source).to(pick_device(device))
    request, shell = _request(source, request or Request()), shell_of(pipeline)
    if size is not None:
        shell = fitted(shell, size, {"network": network_config(network_of(pipeline))}, "--size")
    first = shell.conditioning.sampling_inputs(range(1), request, pipeline.device)
    first.within(request.guidance_interval, shell.process)  # what cannot be is an error before the folder
    probe(pipeline, scheduler, steps)
    settings = {
        "network": fingerprint(network_of(pipeline)),
        "scheduler": type(make_scheduler(pipeline, scheduler)).__name__,
        "steps": steps,
        "seed": seed,
        **({"size": described(size)} if size is not None else {}),
        **shell.conditioning.facts(request),
    }
    _check(folder, settings)
    with claim(folder):
        _check(folder, settings)  # again: another process may have been faster
        write_json(folder / _SETTINGS, settings)
        remove_leftovers(folder, locked=True)
        missing = [i for i in range(count) if not _intact(_file(folder, i))]
        options: dict[str, Any] = {"steps": steps, "scheduler": scheduler, "seed": seed}
        options |= {"request": request, "size": size}
        options["compiler"] = partial(Compiled, say=display.say) if compile else None
        with display.task("sampling", count, done=count - len(missing), unit="images") as task:
            for numbers in _stretches(missing):
                made = sample_batches(pipeline, numbers, batch_size=batch_size, progress=task.advance, **options)
                for number, image in zip(numbers, (image for batch in made for image in batch), strict=True):
                    save_picture(_file(folder, number), picture(image))
        shown = np.stack([_pixels(_file(folder, i)) for i in range(min(count, _GRID))])
        columns = min(8, ceil(sqrt(len(shown))))
        save_picture(folder / "grid.png", grid(shown, columns, zoom=zoom_for(shown)))
    display.say(f"{count} images and grid.png in {folder}")


def _stretches(numbers: Iterable[int]) -> Iterator[range]:
    """Numbers without a gap between them."""
    for _, stretch in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in stretch]
        yield range(found[0], found[-1] + 1)


def _request(source: str, request: Request) -> Request:
    """A run knows prompts and images for its samples, if none are given."""
    run = RunFolder(source)
    if not run.recipe_file.is_file():
        return request
    prompts = request.prompts or run.recipe().samples.prompts
    return replace(request, prompts=prompts, images=request.images or sorted(run.given.glob("*.png")))


def _check(folder: Path, settings: dict) -> None:
    """That a folder has samples of these settings, or nothing."""
    check_folder(folder, "samples of slimdpm", _SETTINGS)
    file = folder / _SETTINGS
    if file.exists() and read_json(file) != json.loads(json.dumps(settings)):
        raise SlimdpmError(f"{folder} holds samples of another network or of other settings; choose another folder")


def _intact(file: Path) -> bool:
    """Whether a picture is there and whole; its checksums tell."""
    try:
        with regular(file) as stream, Image.open(stream, formats=["PNG"]) as image:
            image.verify()
    except (SlimdpmError, SyntaxError):  # the latter is what Pillow raises for some damages of a PNG
        return False
    return True


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file, formats=["PNG"]) as image:
        return pixels(image)
