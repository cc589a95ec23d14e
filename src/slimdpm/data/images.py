"""One image from any file to a square of 8-bit pixels, or to a rectangle of the run's height and width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from slimdpm.system.documents import without_waiting
from slimdpm.system.files import atomic_file
from slimdpm.system.sizes import Size, sides

Image.init()
# Those that Pillow decodes itself: it hands others (PostScript) to a program on the path, whatever a file is called.
_DECODED = "AVIF BMP DDS DIB GIF ICNS ICO IM JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI SUN TGA TIFF WEBP XBM XPM"
FORMATS = tuple(name for name in _DECODED.split() if name in Image.OPEN)
EXTENSIONS = frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)
MOST_PIXELS = 2**27  # of an image: half a gigabyte with transparency
_DEEP = {"I": 65535.0, "F": 1.0}  # white of whole numbers (Pillow has 16 bits as them, too), of floating point
_LONG = 16  # times as long as wide: such an image is not resized whole
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of images of so many channels
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def open_image(file: Path | BinaryIO) -> Image.Image:
    """The first picture of an image file, decoded.

    Raises:
        Exception: whatever Pillow raises for a file that is broken, too large or of none of the `FORMATS`.
    """
    if isinstance(file, Path):
        with open(file, "rb", opener=without_waiting) as stream:
            return open_image(stream)
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are too many, {MOST_PIXELS:,} at most")
        image.load()
        return image


def upright(image: Image.Image, channels: int = 3) -> Image.Image:
    """The image as a viewer shows it, in the mode of so many channels, see `MODES`.

    The EXIF orientation is applied, a palette is looked up, transparency is laid on white where the mode has none,
    CMYK is converted, and deep greyscale is brought to 8 bits: white is 65535 for whole numbers of 16 or more bits, 1
    for floating point.

    Raises:
        ValueError: for deep greyscale far outside this range; what it means cannot be told.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if channels in (1, 3):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    return image.convert(MODES[channels])


def square(
    image: Image.Image,
    size: Size,
    *,
    crop: str = "center",
    interpolation: str = "bilinear",
    rng: np.random.Generator | None = None,
) -> Image.Image:
    """Shrink or enlarge until `size` is covered and crop, for a square like diffusers' training examples.

    Args:
        crop: ``"center"`` or ``"random"`` (along the side that is too long, from `rng`).
        interpolation: one of `FILTERS`; all are antialiased when they shrink.
    """
    height, width = sides(size)
    scale = max(width / image.width, height / image.height)
    # At least `size`: rounding must not leave the square one pixel short.
    resized = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    spare = (resized[0] - width, resized[1] - height)
    if crop == "random" and rng is not None:
        left, top = (int(rng.integers(0, s + 1)) for s in spare)
    else:
        left, top = (s // 2 for s in spare)
    right, bottom = left + width, top + height
    if resized[0] > _LONG * width or resized[1] > _LONG * height:  # resized as a whole it might take gigabytes
        x, y = resized[0] / image.width, resized[1] / image.height
        box = (left / x, top / y, min(right / x, image.width), min(bottom / y, image.height))
        return image.resize((width, height), FILTERS[interpolation], box)
    if resized != image.size:
        image = image.resize(resized, FILTERS[interpolation])
    return image.crop((left, top, right, bottom))


def pixels(image: Image.Image) -> np.ndarray:
    """``(H, W, C)`` uint8."""
    array = np.asarray(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array


def picture(array: np.ndarray) -> Image.Image:
    """The image of pixels ``(H, W, C)`` uint8, in the mode of its channels."""
    return Image.fromarray(array if array.shape[-1] > 1 else array[..., 0])


def on_white(images: np.ndarray) -> np.ndarray:
    """Images ``(..., C)`` uint8 without transparency: laid on white if their channels have it, else as they are."""
    if images.shape[-1] in (1, 3):
        return images
    colour, alpha = images[..., :-1].astype(np.float32), images[..., -1:].astype(np.float32) / 255
    return (255 + (colour - 255) * alpha).round().astype(np.uint8)


def grid(images: np.ndarray | Sequence[np.ndarray], columns: int, *, gap: int = 2, zoom: int = 1) -> Image.Image:
    """Images ``(N, H, W, C)`` uint8 in rows of `columns`, `gap` white pixels apart, each pixel drawn `zoom` wide.

    Transparency stays.
    """
    tiles = np.asarray(images).repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, height, width, channels = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return picture(sheet)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and floating greyscale, whose values PIL would clip at 255."""
    white = _DEEP[image.mode[0]]
    values = np.asarray(image).astype(np.float32)
    low, high = values.min(), values.max()
    # What a resampling leaves beyond black and white is clipped; another range would come out black or white.
    if not (-white / 2 <= low and high <= 2 * white):
        raise ValueError(f"greyscale from {low:g} to {high:g}: black must be 0 and white {white:g}")
    values *= 255 / white
    return Image.fromarray(np.clip(values, 0, 255, out=values).round().astype(np.uint8))


def to_model_range(array: Tensor) -> Tensor:
    """uint8 pixels as floats in [−1, 1]."""
    return array.float() / 127.5 - 1


def to_pixels(samples: Tensor) -> np.ndarray:
    """Samples ``(B, C, H, W)`` in [−1, 1] as uint8 ``(B, H, W, C)``."""
    return ((samples.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def stacked(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Pairs of images one above the other, ``(N, 2H, W, C)``."""
    return np.concatenate([upper, lower], axis=1)


def zoom_for(images: np.ndarray) -> int:
    """How many times to enlarge images ``(N, H, W, C)`` to be seen well."""
    return max(1, 96 // max(images.shape[1:3]))


def save_picture(path: Path, image: Any) -> None:
    """A PNG, whole or not at all."""
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
