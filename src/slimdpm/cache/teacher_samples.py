"""Data that the teacher makes: its samples, denoised once and kept as they are, latents or pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from slimdpm.conditioning import Request
from slimdpm.data.dataset import Decoder, Images
from slimdpm.data.images import picture, to_pixels
from slimdpm.pipelines.sampling import clean_samples, make_scheduler, probe
from slimdpm.pipelines.shell import Shell
from slimdpm.pipelines.teacher import Teacher
from slimdpm.recipe import DataRecipe, TeacherSamples
from slimdpm.system.devices import resident
from slimdpm.system.documents import read_text
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.hashing import fingerprint, name_of, settings_of, short
from slimdpm.system.progress import Display
from slimdpm.system.tensor_store import Layout, Notes, Rows, Store, batches

_SHARD = 64  # samples take longer than latents: a kill shall cost few


@dataclass(frozen=True)
class Samples:
    """A source of images that the teacher makes; they are there after `prepare_samples`.

    Attributes:
        store: them, each as the part ``"sample"`` ``(1, C, h, w)``; None before they are made.
    """

    teacher: Teacher
    settings: TeacherSamples
    request: Request
    store: Store | None = None

    def __len__(self) -> int:
        return self.settings.count

    def image(self, index: int) -> Image.Image:
        assert self.store is not None
        shell = self.teacher.shell
        place = shell.autoencoder.device if shell.autoencoder is not None else "cpu"
        array = to_pixels(shell.decode(self.store.row(index)["sample"].float().to(place)))[0]
        return picture(array)

    def name(self, index: int) -> str:
        return f"sample {index}"

    def identity(self) -> str:
        return repr((self.teacher.name, self.settings))

    def conditions(self) -> Sequence | None:
        """Of each sample: all in turn, so that each comes equally often.

        Raises:
            SlimdpmError: if the teacher cannot be asked so.
        """
        cycle = self.teacher.shell.conditioning.in_turn(self.request)
        return None if cycle is None else [cycle[i % len(cycle)] for i in range(len(self))]


def plan_samples(teacher: Teacher, data: DataRecipe) -> Samples:
    """The samples that a recipe's `data` section asks the teacher for; none is made yet."""
    if data.flip and teacher.shell.autoencoder is not None:
        raise SlimdpmError("data.flip: latents do not mirror; leave it, and raise data.samples.count instead")
    settings = data.samples
    probe(teacher.shell, settings.scheduler, settings.steps, "data.samples.steps")
    prompts = [] if settings.prompts is None else _read_prompts(Path(settings.prompts).expanduser())
    return Samples(teacher, settings, Request(prompts=prompts, guidance=settings.guidance))


def prepare_samples(
    source: Samples,
    shell: Shell,
    root: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device,
    display: Display,
) -> Images:
    """The samples as training images, made now if they are not kept from before.

    Args:
        shell: the teacher's at the size of the images; its conditioning may keep what it encoded.
        root: the samples are kept in a folder below it that is named by what they depend on, their number aside.
    """
    s, unet = source.settings, source.teacher.unet
    layout = Layout(len(source), {"sample": (1, *shell.shape)}, dtype, _SHARD)

    def make(numbers: range, notes: Notes) -> Iterator[Rows]:
        options: dict[str, Any] = {"steps": s.steps, "scheduler": s.scheduler, "seed": s.seed}
        with resident([unet, *shell.conditioning.modules], device):
            for batch in batches(numbers, s.batch_size):
                with torch.inference_mode():  # not around: a network that moved in it would be of no use to training
                    made = clean_samples(unet, shell, batch, request=source.request, **options).float().cpu()
                # In pixels there is nothing beyond black and white; latents know no such bound.
                yield {"sample": (made if shell.autoencoder is not None else made.clamp(-1, 1))[:, None]}

    folder = root / f"samples-{_key(source, shell, layout)}"
    store = Store(folder, layout).build(make, f"{len(source)} samples of the teacher", display)
    decoder = Decoder(shell.image_size, shell.image_channels)
    images = Images(replace(source, store=store), decoder, np.arange(len(source)), [], None)
    return replace(images, latents=store)


def _key(source: Samples, shell: Shell, layout: Layout) -> str:
    s, own = source.settings, source.teacher.shell.conditioning
    scheduler = make_scheduler(shell, s.scheduler)
    networks = [name_of(source.teacher.unet), *map(fingerprint, own.modules)]
    sampler = (type(scheduler).__name__, s.steps, s.seed, s.guidance, s.batch_size)
    shown = repr(own.in_turn(source.request))
    return short(*networks, repr(sampler), settings_of(scheduler.config), shown, layout.key)


def _read_prompts(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    text = read_text(file, name=f"data.samples.prompts: {file}")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise SlimdpmError(f"data.samples.prompts: {file} holds no prompt; write one on each line")
    return prompts
