"""A run's data made ready: images or clean samples, and encoded conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from slimdpm.cache.latents import prepare_latents
from slimdpm.cache.teacher_samples import Samples, prepare_samples
from slimdpm.cache.text_embeddings import Embeddings, prepare_embeddings
from slimdpm.conditioning import Conditioning
from slimdpm.data.dataset import Decoder, Images, prepare_images
from slimdpm.data.sources import content_of
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.hashing import fingerprint, name_of, short
from slimdpm.system.progress import Display
from slimdpm.training.job import Job


@dataclass(frozen=True)
class Cache:
    """The folder that keeps what is computed once, and how.

    Attributes:
        root: the folder.
        dtype: on the disk.
        device: to compute on.
        display: where progress is shown.
    """

    root: Path
    dtype: torch.dtype
    device: torch.device
    display: Display

    def embeddings(
        self, texts: Sequence[str], encode: Callable, encoders: Sequence[nn.Module], name: str
    ) -> Embeddings:
        return prepare_embeddings(
            texts, encode, encoders, name, self.root, dtype=self.dtype, device=self.device, display=self.display
        )


def prepare_data(job: Job, run: RunFolder, accelerator: Accelerator, display: Display) -> tuple[Images, Conditioning]:
    """The images of a job, as clean samples if its cache keeps them, and the conditioning with what it keeps.

    Raises:
        SlimdpmError: if no image can be read, or the cache does not fit on the disk.
    """
    conditioning, cache = job.shell.conditioning, None
    if job.recipe.data.keeps:
        cache = _open(job, run, accelerator, display)
        conditioning = conditioning.kept(job.conditions, cache)
    images = _images(job, replace(job.shell, conditioning=conditioning), cache, accelerator, display)
    skipped = images.report_broken()
    if skipped:
        display.say(f"warning: {skipped}")
    return replace(images, conditions=job.conditions), conditioning


def inputs_of(job: Job, run: RunFolder) -> dict[str, str]:
    """What decides a job's steps beside its recipe: networks and images by their content, in short, by name."""
    found = {}
    unet = job.origin if job.teacher is None else job.teacher.unet
    if unet is not None:
        found["the teacher"] = name_of(unet)
    if job.shell.frozen:
        found["the networks around the U-Net"] = short(*map(fingerprint, job.shell.frozen))
    return found | {"the images": content_of(job.source, _folder(job, run))}


def _open(job: Job, run: RunFolder, accelerator: Accelerator, display: Display) -> Cache:
    return Cache(_folder(job, run), getattr(torch, job.recipe.data.cache_dtype), accelerator.device, display)


def _folder(job: Job, run: RunFolder) -> Path:
    cache = job.recipe.data.cache
    root = run.cache if isinstance(cache, bool) else Path(cache).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimdpmError(f"data.cache: the folder {root} cannot be made: {error.strerror}") from None
    return root


def _images(job: Job, shell, cache: Cache | None, accelerator: Accelerator, display: Display) -> Images:
    data = job.recipe.data
    decoder = Decoder(shell.image_size, shell.image_channels, data.crop, data.interpolation)
    if cache is not None and isinstance(job.source, Samples):
        return prepare_samples(job.source, shell, cache.root, dtype=cache.dtype, device=cache.device, display=display)
    if cache is not None and shell.keeps_latents(data):
        return prepare_latents(
            job.source,
            decoder,
            shell,
            cache.root,
            flip=data.flip,
            dtype=cache.dtype,
            device=cache.device,
            workers=data.workers,
            display=display,
        )

    with accelerator.main_process_first():  # the others read what it kept
        root = cache.root if cache else None
        return prepare_images(job.source, decoder, cache=root, workers=data.workers, display=display)
