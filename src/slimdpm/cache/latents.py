"""The latents of a data set, encoded once, so that training neither decodes images nor runs an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from slimdpm.data.dataset import Decoder, Images, check_readable
from slimdpm.data.images import to_model_range
from slimdpm.data.sources import Source, content_of
from slimdpm.pipelines.shell import Shell
from slimdpm.system.devices import resident
from slimdpm.system.hashing import name_of, short
from slimdpm.system.progress import Display
from slimdpm.system.tensor_store import Layout, Make, Notes, Rows, Store, batches

_BATCH = 16  # images that are encoded at once: a part of what is computed, so always the same


def prepare_latents(
    source: Source,
    decoder: Decoder,
    shell: Shell,
    root: Path,
    *,
    flip: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device,
    workers: int,
    display: Display,
) -> Images:
    """A source's images with their latents, encoded now if they are not kept from before.

    Args:
        decoder: how they become squares; center crops.
        root: an existing folder; the latents are kept in one below it that is named by what they depend on.
        flip: encode the mirrored images too: an autoencoder does not mirror exactly.
    """
    mirrored = (False, True) if flip else (False,)
    shape = (len(mirrored), *shell.shape)
    layout = Layout(len(source), dict.fromkeys(shell.moments, shape), dtype)
    key = short(content_of(source, root), name_of(shell.autoencoder), repr((decoder, _BATCH)), layout.key)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        make = _maker(source, decoder, shell, mirrored, device, pool)
        store = Store(root / f"latents-{key}", layout).build(make, f"latents of {len(source)} images", display)
    broken = {number: (source.name(number), reason) for number, reason in store.notes().items()}
    check_readable(source, broken)
    good = np.array([i for i in range(len(source)) if i not in broken])
    return replace(Images(source, decoder, good, list(broken.values()), None), latents=store, memory=root)


def _maker(
    source: Source,
    decoder: Decoder,
    shell: Shell,
    mirrored: tuple[bool, ...],
    device: torch.device,
    pool: ThreadPoolExecutor,
) -> Make:
    blank = np.zeros(decoder.shape, np.uint8)

    def decode(number: int) -> tuple[np.ndarray, str | None]:
        square, reason = decoder.attempt(source, number)
        return blank if square is None else square, reason

    def make(numbers: range, notes: Notes) -> Iterator[Rows]:
        decoded = pool.map(decode, numbers)  # runs ahead of the encoder
        with resident([shell.autoencoder], device):
            for batch in batches(numbers, _BATCH):
                squares, reasons = zip(*(next(decoded) for _ in batch), strict=True)
                notes |= {number: reason for number, reason in zip(batch, reasons, strict=True) if reason}
                yield _encode(np.stack(squares), shell, mirrored, device)

    return make


@torch.inference_mode()
def _encode(squares: np.ndarray, shell: Shell, mirrored: tuple[bool, ...], device: torch.device) -> Rows:
    """uint8 ``(N, H, W, C)`` to ``(N, variants, C, h, w)`` of each part."""
    images = to_model_range(torch.from_numpy(squares).permute(0, 3, 1, 2).to(device))
    variants = [shell.encode_moments(images.flip(-1) if flipped else images) for flipped in mirrored]
    return {name: torch.stack([variant[name] for variant in variants], dim=1).cpu() for name in variants[0]}
