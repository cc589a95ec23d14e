"""Image files: cut, scarred, misnamed, deep, thin, and with headers that promise the moon."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from .base import QUICK, SIZE, Base, picture, sets
from .case import Case, Outcome, kind
from .mutate import copied, scarred

FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
    "TGA",
    "ICO",
    "DDS",
    "SGI",
    "PCX",
    "JPEG2000",
    "MPO",
    "AVIF",
]
NAMES = [
    "x.png",
    "x.jpg",
    "x.webp",
    "x.gif",
    "x.bmp",
    "x.tif",
    "x.tiff",
    "x.ppm",
    "x.ico",
    "x.jp2",
    "x.psd",
    "x.icns",
    "x.fits",
]


def decoded(rng: Random, images: Path, folder: Path, base: Base, expect: str = "either", note: str = "") -> Case:
    """A case that decodes the images; most often nothing else."""
    picked = 1.0 if base.quick else rng.random()
    if picked < 0.1:
        measured = ["evaluate", images, "--against", base.images, "--size", SIZE, "-n", 10]
        return Case([*measured, "--extractor", base.extractor, "-o", folder / "out"], expect, note=note)
    if picked < 0.2:
        quick = sets(*QUICK[:-1], *(["data.cache=false"] if rng.random() < 0.3 else []))
        words = ["train", images, "--model", base.folder / "net.json", "-o", folder / "out", "--steps", 1, *quick]
        return Case(words, expect, note=note)

    def call() -> None:
        squares_of(images, folder / "cache")

    return Case(call=call, expect=expect, note=note)


def squares_of(images: Path, cache: Path) -> np.ndarray | None:
    """What training keeps of a folder; the broken ones are said."""
    from rich.console import Console

    from slimdpm.data.dataset import Decoder, prepare_images
    from slimdpm.data.open_source import open_source
    from slimdpm.system.progress import Display

    cache.mkdir()
    found = prepare_images(open_source(str(images)), Decoder(SIZE), cache=cache)
    if (broken := found.report_broken()) is not None:
        Display(Console()).say(broken)
    return found.squares


def encoded(rng: Random, form: str) -> bytes:
    """A whole picture of a format; one that this build of Pillow lacks becomes a PNG."""
    array = picture(np.random.default_rng(rng.getrandbits(32)))
    mode = rng.choice(["RGB", "RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "F", "LA"])
    stream = io.BytesIO()
    image = Image.fromarray(array)
    try:
        image = Image.fromarray(array[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        image.save(stream, format=form)
    except (OSError, KeyError, ValueError):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


@kind(45)
def image_bytes(rng: Random, folder: Path, base: Base) -> Case:
    """Scars in a file of any format, under its own name or another's."""
    images = copied(base.images, folder / "images")
    notes = []
    for i in range(rng.choice([1, 3, 12])):
        form = rng.choice(FORMATS)
        data = encoded(rng, form)
        if rng.random() < 0.8:
            data, note = scarred(data, rng, 128)
            notes.append(f"{form} {note}")
        (images / f"{i}{rng.choice(NAMES)}").write_bytes(data)
    return decoded(rng, images, folder, base, note="; ".join(notes)[:300])


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 20\n(CANARY-ps) (w) file closefile\nshowpage\n"


@kind(25)
def image_of_nothing(rng: Random, folder: Path, base: Base) -> Case:
    """What is no image, or hands work to another program."""
    images = copied(base.images, folder / "images")
    choices = {
        "postscript": POSTSCRIPT,
        "postscript in dos": b"\xc5\xd0\xd3\xc6" + struct.pack("<LL", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT,
        "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + struct.pack("<hhhhh", 0, 0, 24, 20, 72) + bytes(40),
        "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "html": b"<html>404</html>",
        "empty": b"",
        "zeros": bytes(5000),
        "noise": rng.randbytes(5000),
        "zip": b"PK\x03\x04" + bytes(60),
        "gif of no frame": b"GIF89a" + struct.pack("<HHBBB", 24, 20, 0, 0, 0) + b";",
        "mpeg": b"\x00\x00\x01\xb3" + bytes(40),
        "xbm": b"#define x_width 24\n#define x_height 20\nstatic char x_bits[] = {0x0};",
        "container": b"<ftcolumn columnName='x'>",
        "fli": struct.pack("<LHHHH", 200, 0xAF12, 1, 24, 20) + bytes(200),
        "mic": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000),
        "tiff loop": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    }
    note = rng.choice(sorted(choices))
    (images / rng.choice(NAMES)).write_bytes(choices[note])
    if rng.random() < 0.2:
        for file in images.iterdir():
            file.write_bytes(choices[note])
    return decoded(rng, images, folder, base, note=note)


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2, chunks: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


@kind(20)
def image_of_odd_size(rng: Random, folder: Path, base: Base) -> Case:
    """Thin, vast, or said to be so. A thin one that is whole is cropped like any other."""
    images = copied(base.images, folder / "images")
    how = rng.choice(["thin", "thinner", "high", "promised", "bomb", "nothing", "text bomb", "tiny"])
    data = {
        "thin": lambda: png(1, 20_000, b"\x00\x01\x02\x03" * 20_000),
        "thinner": lambda: png(1, 3_000_000, b"\x00\x01\x02\x03" * 3_000_000),
        "high": lambda: png(400_000, 2, (b"\x00" + b"\x07" * 1_200_000) * 2),
        "promised": lambda: png(2**31 - 1, 2**31 - 1, b"\x00\x01"),
        "bomb": lambda: png(30_000, 30_000, bytes(10**7)),
        "nothing": lambda: png(0, 5),
        "text bomb": lambda: png(24, 20, bytes(73 * 20)),
        "tiny": lambda: png(1, 1, b"\x00\x01\x02\x03"),
    }[how]()
    if how == "text bomb":
        body = b"x\x00\x00" + zlib.compress(bytes(200_000_000), 9)
        text = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
        data = data[:33] + text + data[33:]
    (images / "x.png").write_bytes(data)
    return decoded(rng, images, folder, base, "works", how)


@kind(15)
def deep_images(rng: Random, folder: Path, base: Base) -> Case:
    """16-bit greyscale, some of it dark: every value is a 257th of itself, whatever else is in the image."""
    import json

    images = folder / "images"
    images.mkdir()
    limits = [rng.choice([3, 200, 255, 256, 300, 5000, 65535]) for _ in range(12)]
    arrays = [
        np.random.default_rng(i).integers(0, most + 1, (SIZE, SIZE), dtype=np.uint16) for i, most in enumerate(limits)
    ]
    form, suffix = rng.choice([("PNG", "png"), ("TIFF", "tif"), ("PPM", "pgm")])
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(images / f"{i:02d}.{suffix}", format=form)

    def call() -> None:
        squares = squares_of(images, folder / "cache")
        assert squares is not None
        np.save(folder / "squares.npy", squares)

    def check(outcome: Outcome) -> None:
        squares = np.load(outcome.folder / "squares.npy").astype(int)
        for square, array in zip(squares, arrays, strict=True):
            expected = np.repeat((array / 257)[..., None], 3, axis=-1)
            assert abs(square - expected).max() <= 1, f"up to {array.max()}: {square.max()} for {expected.max():.1f}"

    return Case(call=call, expect="works", check=check, note=f"{form} {json.dumps(limits)}")
