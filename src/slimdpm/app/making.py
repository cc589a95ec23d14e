"""Images of a teacher and its student from the same noise, as they form, with the time that they take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slimdpm.conditioning import ClassLabels, Request
from slimdpm.data.images import to_pixels
from slimdpm.pipelines.sampling import SCHEDULERS, as_they_sample, forming_samples, make_scheduler, probe
from slimdpm.pipelines.shell import Shell, network_of, shell_of
from slimdpm.pipelines.teacher import Teacher, open_pipeline
from slimdpm.run_folder import RunFolder
from slimdpm.system.devices import synchronize
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.processes import pick_device
from slimdpm.system.progress import Display

MOST_IMAGES, MOST_STEPS, MOST_SEED, MOST_GUIDANCE, LONGEST_PROMPT = 16, 1000, 2**53 - 1, 30.0, 1000
_PREVIEWS = 20  # of images as they form


def open_networks(source: str, teacher: str | None, device: str | None, display: Display) -> dict[str, Teacher]:
    """The teacher, if there is one, and the student.

    Args:
        source: a run folder, a diffusers folder or a hub id.
        teacher: the same; by default what the run's recipe names, if it can be loaded.
        device: where to compute, by default the best there is.
        display: where it is said that there is no teacher.

    Raises:
        SlimdpmError: for what cannot be loaded, or two pipelines whose images cannot be compared.
    """
    on = pick_device(device)
    student = _opened(source, on)
    if student.shell.conditioning.extra:
        raise SlimdpmError(f"{source} is given images, for which the page has no place: use slimdpm sample --image")
    run = RunFolder(source)
    named = teacher or (run.recipe().teacher if run.recipe_file.is_file() else None)
    if named is None:
        return {"student": student}
    try:
        networks = {"teacher": _opened(named, on), "student": student}
        _check(networks)
    except SlimdpmError as error:
        if teacher is not None:
            raise
        display.say(f"the student alone, since its teacher cannot stand beside it: {error}")
        return {"student": student}
    return networks


def _opened(source: str, device: torch.device) -> Teacher:
    pipeline = open_pipeline(source).to(device)
    return Teacher(source, network_of(pipeline), shell_of(pipeline))


def _check(networks: Mapping[str, Teacher]) -> None:
    """That all make the same of the same noise and the same request."""
    found = [(n.shell.shape, type(n.shell.conditioning), class_numbers(n.shell)) for n in networks.values()]
    if found[0] != found[1]:
        names = " and ".join(network.name for network in networks.values())
        raise SlimdpmError(f"{names} cannot be compared: their samples differ in shape, or in what conditions them")


def class_numbers(shell: Shell) -> list[int]:
    """Of the classes that a network knows, none if it knows no classes."""
    return shell.conditioning.numbers if isinstance(shell.conditioning, ClassLabels) else []


@dataclass(frozen=True)
class Made:
    """What a network has made so far.

    Attributes:
        images: uint8 ``(B, H, W, C)``; before the last step as noisy as they are, latents in the colours of their
            first three channels.
        done: steps that are taken, which a scheduler may count otherwise than it is asked.
        steps: that there are.
        seconds: that they took.
        step: seconds of one, the median.
        decoding: seconds of the autoencoder; None until it is done.
    """

    images: np.ndarray
    done: int
    steps: int
    seconds: float
    step: float
    decoding: float | None = None


def make_images(
    networks: Mapping[str, Teacher],
    *,
    count: int,
    steps: int,
    scheduler: str,
    seed: int,
    request: Request | None = None,
) -> Iterator[tuple[str, Made]]:
    """Images of each network from the same noise, as they form: one network after the other, the last named first.

    Args:
        networks: by name; their samples have one shape.
        count: how many images, in one batch.
        steps, scheduler, seed, request: see `slimdpm.pipelines.sampling.sample_batches`.

    Yields:
        a network's name and what it has made; its last are the images of `slimdpm.pipelines.sampling.sample_images`.

    Raises:
        SlimdpmError: before anything is made, for what is beyond the limits or what a network cannot do.
    """
    request = request or Request()
    _within("images", count, 1, MOST_IMAGES)
    _within("steps", steps, 1, MOST_STEPS)
    _within("seed", seed, 0, MOST_SEED)
    _within("guidance", request.guidance or 1, 1, MOST_GUIDANCE)
    if scheduler not in SCHEDULERS:
        raise SlimdpmError(f"unknown scheduler {scheduler!r}; there are {', '.join(SCHEDULERS)}")
    if max(map(len, [*request.prompts, request.negative_prompt or ""])) > LONGEST_PROMPT:
        raise SlimdpmError(f"prompts of {LONGEST_PROMPT:,} letters at most")
    for network in networks.values():
        network.shell.conditioning.in_turn(request)
        probe(network.shell, scheduler, steps)
    options = {"steps": steps, "scheduler": scheduler, "seed": seed, "request": request}
    for name in reversed(list(networks)):
        for made in _forming(networks[name], range(count), options):
            yield name, made


@torch.inference_mode()
def _forming(network: Teacher, images: range, options: Mapping[str, Any]) -> Iterator[Made]:
    """Images of one network as they form."""
    shell, unet = network.shell, network.unet
    taken = make_scheduler(shell, options["scheduler"])
    taken.set_timesteps(options["steps"])
    calls = len(taken.timesteps)
    seconds: list[float] = []
    with as_they_sample(unet, *([] if shell.autoencoder is None else [shell.autoencoder])):
        start = time.perf_counter()
        for samples in forming_samples(unet, shell, images, **options):
            synchronize(unet.device)
            seconds.append(time.perf_counter() - start)
            if len(seconds) % max(1, calls // _PREVIEWS) == 0:
                yield Made(_preview(samples), len(seconds), calls, sum(seconds), float(np.median(seconds)))
            start = time.perf_counter()
        decoded = to_pixels(shell.decode(samples))
        decoding = time.perf_counter() - start
    yield Made(decoded, calls, calls, sum(seconds), float(np.median(seconds)), decoding)


def _preview(samples: torch.Tensor) -> np.ndarray:
    """Samples ``(B, C, H, W)`` of any scale as something to look at."""
    colours = samples[:, :3] if samples.shape[1] >= 3 else samples[:, :1]
    return to_pixels(colours / max(1.0, float(colours.std())))


def _within(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise SlimdpmError(f"{what}: {value} is not within {least} and {most:,}")


def first_prompt(source: str) -> str:
    """Of a run's samples; empty if it has none."""
    run = RunFolder(source)
    prompts = run.recipe().samples.prompts if run.recipe_file.is_file() else ()
    return next(iter(prompts), "")
