"""``slimdpm sample``: images as PNG files, resumable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from slimdpm.conditioning import Request
from slimdpm.display import Display
from slimdpm.errors import SlimdpmError
from slimdpm.files import atomic_file, remove_leftovers, write_json
from slimdpm.fingerprint import fingerprint
from slimdpm.images import grid, picture, pixels
from slimdpm.parallel import pick_device
from slimdpm.results import save_picture, zoom_for
from slimdpm.run import RunFolder
from slimdpm.sampling import make_scheduler, sample_batches
from slimdpm.teachers import load_pipeline, network_of, shell_of

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
    device: str | None = None,
    display: Display | None = None,
) -> None:
    """Write ``00000.png``, ... and ``grid.png`` of a pipeline's samples. Images that are there are not made again.

    Args:
        source: a run folder, a diffusers folder or a hub id.
        folder: where to.
        count: how many.
        steps, scheduler, seed, batch_size, request: see `slimdpm.sampling.sample_batches`.
        device: where to compute, by default the best there is.
        display: where progress is shown.

    Raises:
        SlimdpmError: for a pipeline that cannot be loaded, or a folder that holds samples of other settings.
    """
    display = display or Display()
    pipeline = load_pipeline(source).to(pick_device(device))
    request, conditioning = _request(source, request or Request()), shell_of(pipeline).conditioning
    conditioning.sampling_inputs(range(1), request, pipeline.device)  # what cannot be is an error before the folder
    settings = {
        "network": fingerprint(network_of(pipeline)),
        "scheduler": type(make_scheduler(pipeline, scheduler)).__name__,
        "steps": steps,
        "seed": seed,
        **conditioning.facts(request),
    }
    _claim(folder, settings)
    # All images of a batch or none: the ones that are missing decide where to go on.
    missing = [i for i in range(count) if not _file(folder, i).exists()]
    first = missing[0] if missing else count
    with display.task("sampling", count, done=first, unit="images") as task:
        batches = sample_batches(
            pipeline,
            range(first, count),
            steps=steps,
            scheduler=scheduler,
            seed=seed,
            batch_size=batch_size,
            request=request,
            progress=task.advance,
        )
        number = first
        for batch in batches:
            for image in batch:
                with atomic_file(_file(folder, number)) as temporary:
                    picture(image).save(temporary, format="PNG")
                number += 1
    shown = np.stack([_pixels(_file(folder, i)) for i in range(min(count, _GRID))])
    save_picture(folder / "grid.png", grid(shown, columns=8, zoom=zoom_for(shown)))
    display.say(f"{count} images and grid.png in {folder}")


def _request(source: str, request: Request) -> Request:
    """A run knows prompts and images for its samples, if none are given."""
    run = RunFolder(source)
    if not run.recipe_file.is_file():
        return request
    prompts = request.prompts or run.recipe().samples.prompts
    return replace(request, prompts=prompts, images=request.images or sorted(run.given.glob("*.png")))


def _claim(folder: Path, settings: dict) -> None:
    """Take up a folder of the same settings, or an empty one."""
    file = folder / _SETTINGS
    if folder.exists() and not folder.is_dir():
        raise SlimdpmError(f"{folder} is a file; give a folder for the images")
    if file.exists():
        if json.loads(file.read_text()) != settings:
            raise SlimdpmError(f"{folder} holds samples of another network or of other settings; choose another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise SlimdpmError(f"{folder} is not empty; choose another folder for the images")
    write_json(file, settings)
    remove_leftovers(folder)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return pixels(image)
