"""Images that a network sees: what inpainting paints in, and what an instruction says how to change."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from slimdpm.export.runner.folder_data import MOST, Network, at, first_line, wrong

# What the network is asked for images of some numbers: its inputs with the condition, or first those without it, then
# those with ever more of it; and how strongly each of these steps guides.
Asked = tuple[list[dict[str, np.ndarray]], list[float]]
Ask = Callable[[range], Asked]
SEEN = ""  # the name of an image's channels: no input of the network, they follow those of the noisy sample


def seeing(
    texts: Ask, sees: str, told: dict, manifest: dict, options: argparse.Namespace, opened: Callable[..., Network]
) -> Ask:
    """What texts give the network, and an image: for inpainting its mask and what that leaves of it, for an instruction
    (InstructPix2Pix) all of it."""
    if sees not in ("image", "image and mask"):
        wrong(f"this file knows no network that sees {sees[:40]!r}")
    if not options.images:
        wrong("this pipeline makes images of an image: give --image")
    size, encoder = [at(manifest, "image", i, kind=int, least=1, most=MOST) for i in (1, 2)], opened("encoder")
    scale = np.float32(at(manifest, "scale", kind=(int, float), least=1e-9, most=1e9))
    between = at(told, "image_guidance", kind=(int, float), least=0, most=1e3) if sees == "image" else 1.0

    def latents(images: np.ndarray) -> np.ndarray:  # the means, which come before the log-variances
        made = encoder(sample=images)
        means = made[:, : manifest["shape"][0]] if made.ndim == 4 else made
        if means.shape != (len(images), *manifest["shape"]):
            wrong(f"the folder's encoder gives {made.shape} for {len(images)} images: it is damaged")
        return means

    def squares(files: list, images: range, mode: str) -> np.ndarray:
        chosen = np.stack([square(files[i % len(files)], size, mode) for i in images]).astype(np.float32)
        return chosen.reshape(len(images), *size, -1).transpose(0, 3, 1, 2) / np.float32(127.5) - 1  # (B, C, H, W)

    def inpainted(images: range) -> Asked:
        rows, scales = texts(images)
        masks = squares(options.masks or [MIDDLE], images, "L") >= 0
        kept = latents(np.where(masks, np.float32(0), squares(options.images, images, "RGB"))) * scale
        y, x = (np.arange(n) * side // n for n, side in zip(kept.shape[2:], size, strict=True))
        shown = np.concatenate([masks[:, :, y][..., x].astype(np.float32), kept], axis=1)
        return [{**row, SEEN: shown} for row in rows], scales

    def edited(images: range) -> Asked:
        (*null, with_text), scales = texts(images)
        shown = latents(squares(options.images, images, "RGB"))
        neither = [{**row, SEEN: np.zeros_like(shown)} for row in null]
        rows = [*neither, *({**row, SEEN: shown} for row in (*null, with_text))]
        return rows, [between, *scales] if null else []

    return inpainted if sees == "image and mask" else edited


MIDDLE = Image.fromarray(np.pad(np.full((64, 64), 255, np.uint8), 32))  # the mask where none is given: the middle


def square(file: Any, size: list[int], mode: str) -> np.ndarray:
    """An image as a viewer shows it, shrunk or enlarged until it covers the size, and cut from the middle."""
    try:
        image = file if isinstance(file, Image.Image) else ImageOps.exif_transpose(Image.open(file))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert(mode)
    except Exception as error:
        wrong(f"the image {file} cannot be read: {first_line(error)}")
    height, width = size
    scale = max(width / image.width, height / image.height)
    resized = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    image = image if resized == image.size else image.resize(resized, Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + width, top + height)), np.uint8)
