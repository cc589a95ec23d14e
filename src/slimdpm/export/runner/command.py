"""The command of an exported folder, ``python generate.py``."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from slimdpm.export.runner.conditions import conditions
from slimdpm.export.runner.folder_data import MOST, Network, Wrong, at, manifest_of, networks, sized, table_of, wrong
from slimdpm.export.runner.images import SEEN
from slimdpm.export.runner.sampling import denoise, random_stream


def batches(
    folder: Path, manifest: dict, table: dict, options: argparse.Namespace, told: Callable[[], None]
) -> Iterator[tuple[int, np.ndarray]]:
    """Image by image its number and pixels ``(H, W, C)``; `told` is called after each step."""
    opened = networks(folder, manifest, options.threads)
    given_to = conditions(folder, manifest, options, opened)
    unet, decoder = opened("unet"), opened("decoder") if manifest.get("decoder") else None
    latents, shape = float(at(manifest, "scale", kind=(int, float), least=1e-9, most=1e9)), tuple(manifest["shape"])
    for first in range(0, options.count, options.batch_size):
        images = range(first, min(first + options.batch_size, options.count))
        predict = guided(unet, *given_to(images))
        samples = denoise(predict, table, [random_stream(options.seed, i) for i in images], shape, told)
        if decoder is not None:
            samples = decoder(latent_sample=(samples / np.float32(latents)))
        if not np.isfinite(samples).all():
            wrong("the images are not finite: a network is damaged")
        pixels = np.rint((samples.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        yield from zip(images, pixels, strict=True)


def guided(unet: Network, rows: list[dict[str, np.ndarray]], scales: list[float]) -> Callable[..., np.ndarray]:
    """The network, called once a step for all that it is asked."""
    given = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    shown = [given.pop(SEEN)] if SEEN in given else []

    def predict(x: np.ndarray, t: float) -> np.ndarray:
        sample = np.concatenate([np.concatenate([x] * len(rows)), *shown], axis=1)
        parts = np.split(unet(sample=sample, timestep=np.array([t], np.float32), **given), len(rows))
        made = parts[0]
        for (less, more), scale in zip(pairwise(parts), scales, strict=True):
            made = made + np.float32(scale) * (more - less)
        return made

    return predict


def save(file: Path, pixels: np.ndarray) -> None:
    """A PNG that is whole or absent."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(temporary, format="PNG")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def main(words: list[str] | None = None, folder: Path | None = None) -> int:
    """The command; returns the exit code, 2 for what the user can mend."""
    options = _options(words)
    folder = folder or Path(__file__).resolve().parent
    began = time.perf_counter()
    try:
        manifest = manifest_of(folder)
        if options.size is not None:
            manifest = sized(manifest, options.size)
        table = table_of(folder, manifest, options.scheduler, options.steps)
        progress = Progress(len(table["steps"]) * math.ceil(options.count / options.batch_size))
        made = 0
        for number, pixels in batches(folder, manifest, table, options, progress):
            options.output.mkdir(parents=True, exist_ok=True)
            save(options.output / f"{number:05d}.png", pixels)
            made += 1
        seconds = time.perf_counter() - began
        print(f"\r{made} images in {options.output}: {seconds:.1f} s, {made / seconds:.2f} a second{_memory()}")
    except Wrong as error:
        print(f"\rerror: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"\rerror: {options.output} cannot be written: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\rstopped", file=sys.stderr)
        return 130
    return 0


class Progress:
    """A line with the time left, where somebody looks on."""

    def __init__(self, total: int):
        self.total, self.done, self.began = total, 0, time.perf_counter()

    def __call__(self) -> None:
        self.done += 1
        if sys.stderr.isatty():
            left = (time.perf_counter() - self.began) / self.done * (self.total - self.done)
            print(f"\r{self.done}/{self.total} steps, {left:.0f} s left ", end="", file=sys.stderr, flush=True)


def _memory() -> str:
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return f", {peak / 1e6:.0f} MB of memory at most"
    except ImportError:  # Windows
        return ""


def _options(words: list[str] | None) -> argparse.Namespace:
    def number(least: int, most: int) -> Callable[[str], int]:
        def integer(text: str) -> int:
            if not least <= (value := int(text)) <= most:
                raise ValueError
            return value

        return integer

    def sides(text: str) -> tuple[int, int]:
        height, _, width = text.lower().partition("x")
        return number(1, MOST)(height), number(1, MOST)(width or height)

    parser = argparse.ArgumentParser(description="Make images with the networks in this folder.")
    parser.add_argument("-n", "--count", type=number(1, 10**6), default=1, help="how many images (1)")
    parser.add_argument("--seed", type=number(0, 2**63), default=0, help="image i of a seed is always the same (0)")
    parser.add_argument("--steps", type=number(1, 10**4), help="of the sampler; see sampler.json")
    parser.add_argument("--size", type=sides, help="height x width in pixels, as 256x384 (the pipeline's own)")
    parser.add_argument("--scheduler", help="one of those in sampler.json")
    parser.add_argument("--class", dest="classes", action="append", default=[], help="name or number; may be repeated")
    parser.add_argument("--prompt", action="append", default=[], help="text; may be repeated")
    parser.add_argument(
        "--image", dest="images", action="append", default=[], help="to paint in or to edit; may be repeated"
    )
    parser.add_argument("--mask", dest="masks", action="append", default=[], help="white is painted anew (the middle)")
    parser.add_argument("--negative-prompt", help="what shall not be seen")
    parser.add_argument("--guidance", type=float, help="scale; 1 is none")
    parser.add_argument("-o", "--output", type=Path, default=Path("images"), help="folder of the PNGs (images)")
    parser.add_argument("--batch-size", type=number(1, MOST), default=8, help="images made at once (8)")
    parser.add_argument("--threads", type=number(1, 1024), help="of the runtime (all cores)")
    return parser.parse_args(words)
