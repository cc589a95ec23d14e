"""One image from any file to a square of 8-bit pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

Image.init()
EXTENSIONS = frozenset(Image.registered_extensions()) - {".pdf", ".mpg", ".mpeg", ".eps", ".ps", ".wmf", ".emf"}
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def upright(image: Image.Image, channels: int = 3) -> Image.Image:
    """The image as a viewer shows it, in RGB (or greyscale for one channel).

    The EXIF orientation is applied, a palette is looked up, transparency is laid on white, CMYK is converted, and
    16-bit greyscale is brought to 8 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB" if channels == 3 else "L")


def square(
    image: Image.Image,
    size: int,
    *,
    crop: str = "center",
    interpolation: str = "bilinear",
    rng: np.random.Generator | None = None,
) -> Image.Image:
    """Resize the shorter side to `size` and crop a square, like diffusers' training examples.

    Args:
        image: any size.
        size: of the square, in pixels.
        crop: ``"center"`` or ``"random"`` (along the longer side, from `rng`).
        interpolation: one of `FILTERS`; all are antialiased when they shrink.
    """
    width, height = image.size
    scale = size / min(width, height)
    # At least `size`: rounding must not leave the square one pixel short.
    resized = (max(size, round(width * scale)), max(size, round(height * scale)))
    if resized != image.size:
        image = image.resize(resized, FILTERS[interpolation])
    spare = (resized[0] - size, resized[1] - size)
    if crop == "random" and rng is not None:
        left, top = (int(rng.integers(0, s + 1)) for s in spare)
    else:
        left, top = (s // 2 for s in spare)
    return image.crop((left, top, left + size, top + size))


def pixels(image: Image.Image) -> np.ndarray:
    """``(H, W, C)`` uint8, C being 1 or 3."""
    array = np.asarray(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array


def grid(images: np.ndarray | Sequence[np.ndarray], columns: int, *, gap: int = 2, zoom: int = 1) -> Image.Image:
    """Images ``(N, H, W, C)`` uint8 in rows of `columns`, `gap` white pixels apart, each pixel drawn `zoom` wide."""
    tiles = np.asarray(images).repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return Image.fromarray(sheet if channels == 3 else sheet[..., 0])


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and floating greyscale, whose values PIL would clip at 255."""
    values = np.asarray(image).astype(np.float64)
    top = values.max(initial=0)
    limit = 1.0 if top <= 1.0 and image.mode == "F" else 255.0 if top <= 255 else 65535.0
    return Image.fromarray(np.clip(values * 255 / limit, 0, 255).round().astype(np.uint8))
