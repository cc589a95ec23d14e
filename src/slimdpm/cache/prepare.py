"""A run's data made ready: images or latents, and encoded conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from slimdpm.cache.latents import prepare_latents
from slimdpm.cache.text import Embeddings, prepare_embeddings
from slimdpm.conditioning import Conditioning
from slimdpm.data import Decoder, Images, prepare_images
from slimdpm.display import Display
from slimdpm.run import RunFolder

if TYPE_CHECKING:
    from slimdpm.job import Job


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

    def embeddings(self, texts: Sequence[str], encode: Callable, encoder: str) -> Embeddings:
        return prepare_embeddings(texts, encode, encoder, self.root, dtype=self.dtype, display=self.display)


def prepare_data(job: Job, run: RunFolder, accelerator: Accelerator, display: Display) -> tuple[Images, Conditioning]:
    """The images of a job, as latents if its cache keeps them, and the conditioning with what it keeps.

    Raises:
        SlimdpmError: if no image can be read, or the cache does not fit on the disk.
    """
    data, shell = job.recipe.data, job.shell
    decoder = Decoder(shell.image_size, shell.image_channels, data.crop, data.interpolation)
    conditioning, cache = shell.conditioning, None
    if data.cache is not False:
        root = run.cache if data.cache is True else Path(data.cache).expanduser()
        cache = Cache(root, getattr(torch, data.cache_dtype), accelerator.device, display)
        conditioning = conditioning.kept(job.conditions, cache)
    if cache is not None and shell.autoencoder is not None and decoder.crop == "center":
        images = prepare_latents(
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
    else:
        images = _decoded(job, decoder, cache.root if cache else None, accelerator, display)
    skipped = images.report_broken()
    if skipped:
        display.say(f"warning: {skipped}")
    return replace(images, conditions=job.conditions), conditioning


def _decoded(job: Job, decoder: Decoder, root: Path | None, accelerator: Accelerator, display: Display) -> Images:
    """The main process decodes first, the others read what it cached."""

    def track(items, total):
        return display.track(items, total, "reading images", "images")

    with accelerator.main_process_first():
        return prepare_images(
            job.source,
            decoder,
            cache=root,
            workers=job.recipe.data.workers,
            track=track,
        )
