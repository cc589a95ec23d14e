"""The latents of a data set, encoded once, so that training neither decodes images nor runs an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slimdpm.cache.content import content_of, short
from slimdpm.cache.store import Layout, Notes, Store
from slimdpm.data import Decoder, Images, check_readable, to_model_range
from slimdpm.devices import resident
from slimdpm.display import Display
from slimdpm.fingerprint import fingerprint
from slimdpm.sources import Source
from slimdpm.teachers import Shell

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
        source: the images.
        decoder: how they become squares; center crops.
        shell: with the autoencoder.
        root: the latents are kept in a folder of it that is named by what they depend on.
        flip: encode the mirrored images too: an autoencoder does not mirror exactly.
        dtype: to keep them in.
        device: to encode on.
        workers: threads that decode images.
        display: where progress is shown.

    Raises:
        SlimdpmError: if no image can be read, or the cache does not fit on the disk.
    """
    mirrored = (False, True) if flip else (False,)
    shape = (len(mirrored), shell.channels, shell.size, shell.size)
    layout = Layout(len(source), dict.fromkeys(shell.moments, shape), dtype)
    preprocessing = (repr(decoder), flip, str(dtype), _BATCH)
    key = short(content_of(source, root), fingerprint(shell.autoencoder), repr(preprocessing))
    with ThreadPoolExecutor(max(workers, 1)) as pool, resident([shell.autoencoder], device):
        make = _maker(source, decoder, shell, mirrored, device, pool)
        store = Store(root / f"latents-{key}", layout).build(make, f"latents of {len(source)} images", display)
    broken = {number: (name, reason) for number, (name, reason) in store.notes().items()}
    check_readable(source, broken)
    good = np.array([i for i in range(len(source)) if i not in broken])
    return replace(Images(source, decoder, good, list(broken.values()), None), latents=store)


def _maker(
    source: Source,
    decoder: Decoder,
    shell: Shell,
    mirrored: tuple[bool, ...],
    device: torch.device,
    pool: ThreadPoolExecutor,
) -> Callable[[int, int], tuple[dict[str, Tensor], Notes]]:
    blank = np.zeros((decoder.size, decoder.size, decoder.channels), np.uint8)

    def decode(number: int) -> tuple[np.ndarray, str | None]:
        try:
            return decoder(source, number), None
        except Exception as error:  # decoders raise anything at all on a broken file
            return blank, f"{type(error).__name__}: {error}".splitlines()[0][:120]

    def make(first: int, last: int) -> tuple[dict[str, Tensor], Notes]:
        decoded = list(pool.map(decode, range(first, last)))
        notes = {first + i: [source.name(first + i), reason] for i, (_, reason) in enumerate(decoded) if reason}
        squares = torch.from_numpy(np.stack([square for square, _ in decoded])).permute(0, 3, 1, 2)
        return _encode(squares, shell, mirrored, device), notes

    return make


@torch.inference_mode()
def _encode(squares: Tensor, shell: Shell, mirrored: tuple[bool, ...], device: torch.device) -> dict[str, Tensor]:
    """uint8 ``(N, C, H, W)`` to ``(N, variants, C, h, w)`` of each part."""
    made: list[dict[str, Tensor]] = []
    for part in squares.split(_BATCH):
        images = to_model_range(part.to(device))
        variants = [shell.encode_moments(images.flip(-1) if flipped else images) for flipped in mirrored]
        made.append({name: torch.stack([v[name] for v in variants], dim=1).cpu() for name in variants[0]})
    return {name: torch.cat([part[name] for part in made]) for name in made[0]}
