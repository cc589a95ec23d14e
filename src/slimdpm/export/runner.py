"""Make images with the networks in this folder: python generate.py -n 8 --seed 0 --steps 20 -o images

Needs numpy, pillow and onnxruntime (or openvino, for a folder of its files), and nothing else. The same seed makes the
same images as `slimdpm sample` does with the pipeline that the folder was exported from. Nothing in the folder is run
but this file: the rest is data, and is checked before it is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

FORMAT = 1
LARGEST = 64 * 2**20  # bytes of a JSON
MOST = 2**13  # of a side, of channels, of tokens, of images at once
Network = Callable[..., Any]  # of arrays by name, to an array or a list of them


class Wrong(Exception):
    """Something that the user can mend, in one line."""


def wrong(message: str) -> NoReturn:
    line = "".join(c if c.isprintable() else " " for c in message)
    raise Wrong(line if len(line) <= 500 else f"{line[:250]} ... {line[-240:]}")


# The folder: everything in it is somebody's data.


def read_json(file: Path) -> Any:
    try:
        if file.stat().st_size > LARGEST or not file.is_file():
            wrong(f"{file} is too large or no file")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        wrong(f"{file} is missing")
    except (OSError, ValueError, RecursionError) as error:
        wrong(f"{file} cannot be read: {error}")


def at(value: Any, *keys: Any, kind: Any, least: float = -math.inf, most: float = math.inf) -> Any:
    """A value deep in what a JSON holds, of the right kind and within bounds."""
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            wrong(f"the folder's {keys[0]} is incomplete: {key} is missing")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if not fits or (number and not least <= value <= most):
        wrong(f"the folder's {' '.join(map(str, keys))} is {str(value)[:40]!r}, which cannot be")
    return value


def manifest_of(folder: Path) -> dict:
    """What slimdpm.json says, once each file that it names was found inside the folder, whole and unchanged."""
    manifest = read_json(folder / "slimdpm.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        wrong(f"{folder / 'slimdpm.json'} is of another format than this file reads ({FORMAT})")
    at(manifest, "shape", kind=list)
    for i in range(3):
        at(manifest, "shape", i, kind=int, least=1, most=MOST)
    if math.prod(manifest["shape"]) < 16:
        wrong("the folder's shape is too small")
    for name in at(manifest, "files", kind=dict):
        size = at(manifest, "files", name, "bytes", kind=int, least=0, most=2**40)
        file, parts = folder / name, Path(name).parts
        if Path(name).is_absolute() or ".." in parts or not parts or "\\" in name or "\0" in name:
            wrong(f"the folder names a file outside it: {name}")
        if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
            wrong(f"{file} is missing")
        if file.stat().st_size != size:
            wrong(f"{file} is damaged: it has {file.stat().st_size:,} bytes and should have {size:,}")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != manifest["files"][name].get("sha256"):
                wrong(f"{file} is damaged: its content is not what was exported")
    named = (manifest.get(place, "sampler.json") for place in ("decoder", "text_encoder", "text_encoder_2"))
    for name in ("sampler.json", manifest.get("unet"), *named):
        if not isinstance(name, str) or name not in manifest["files"]:
            wrong(f"the folder's files are incomplete: {str(name)[:80]} is missing")
    return manifest


def table_of(folder: Path, manifest: dict, scheduler: str | None, steps: int | None) -> dict:
    """The sampler that was asked for; see `step`."""
    tables = read_json(folder / "sampler.json")
    scheduler = scheduler or at(manifest, "default", "scheduler", kind=str)
    known = tables.get("schedulers", {}) if isinstance(tables, dict) else {}
    if scheduler not in known:
        wrong(f"there is no scheduler {scheduler!r} in this folder; there are {', '.join(known)}")
    counts = at(known, scheduler, kind=dict)
    default = str(at(manifest, "default", "steps", kind=int))
    wanted = str(steps) if steps else default if default in counts else next(iter(counts), "")
    if wanted not in counts:
        wrong(f"there are no {wanted} steps of {scheduler} in this folder; there are {', '.join(counts)}")
    table = at(counts, wanted, kind=dict)
    at(table, "start", kind=(int, float), least=0, most=1e6)
    if table.get("prediction") not in ("epsilon", "v_prediction", "sample") or table.get("memory") not in (
        "clean",
        "noise",
        "output",
    ):
        wrong("the folder's sampler.json is of a kind that this file does not know")
    if table.get("clip") is not None:
        at(table, "clip", kind=(int, float), least=1e-6, most=1e6)
    for number, row in enumerate(at(table, "steps", kind=list)):
        for key in ("t", "scale", "alpha", "sigma", "x", "e", "n"):
            at(table, "steps", number, key, kind=(int, float), least=-1e9, most=1e9)
        for lag in at(table, "steps", number, "m", kind=dict):
            at(table, "steps", number, "m", lag, kind=(int, float), least=-1e9, most=1e9)
            if not lag.isdecimal() or int(lag) > number:
                wrong("the folder's sampler.json looks back to a step before the first")
        at(row, "draws", kind=bool)
    return table


def networks(folder: Path, manifest: dict, threads: int | None) -> Callable[..., Network]:
    """Each network by its place in the manifest, as a function of its inputs by name: to its first output, or to a list
    of those that are named."""

    def onnx(file: Path, names: tuple[str, ...]) -> Network:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda **inputs: session.run(names or None, inputs)

    def openvino(file: Path, names: tuple[str, ...]) -> Network:
        from openvino import Core

        core = Core()
        core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        if threads:
            core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
        compiled = core.compile_model(str(file), "CPU")
        return lambda **inputs: [*map(compiled(inputs).__getitem__, names or (0,))]

    def opened(place: str, *outputs: str) -> Network:
        name = at(manifest, place, kind=str)
        package = "openvino" if name.endswith(".xml") else "onnxruntime"
        try:
            network = (openvino if name.endswith(".xml") else onnx)(folder / name, outputs)
        except ImportError:
            wrong(f"this folder needs the package {package}: pip install {package} numpy pillow")
        except Exception as error:
            wrong(f"{folder / name} cannot be loaded: {_first_line(error)}")

        def call(**inputs: np.ndarray) -> Any:
            try:
                return network(**inputs) if outputs else network(**inputs)[0]
            except Exception as error:
                wrong(f"{folder / name} and the folder's other files do not fit: {_first_line(error)}")

        return call

    return opened


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))


# Noise: PyTorch's, for each image a stream of its own.


def random_stream(seed: int, image: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Draws what PyTorch's CPU generator draws for this image: 24 bits of MT19937 for a uniform number, and Box and
    Muller's transform over blocks of sixteen."""
    state = np.random.SeedSequence([seed, image]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    bits: Any = np.random.RandomState(int(state) & 0xFFFFFFFF)._bit_generator

    def uniform(count: int) -> np.ndarray:
        return (bits.random_raw(count) & 0xFFFFFF).astype(np.float32) / np.float32(2**24)

    def normal(numbers: np.ndarray) -> np.ndarray:
        blocks = numbers.reshape(-1, 2, 8).astype(np.float64)
        radius, angle = np.sqrt(-2 * np.log(1 - blocks[:, 0])), 2 * np.pi * blocks[:, 1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        count = math.prod(shape)
        numbers, rest = uniform(count), count % 16
        made = np.empty(count)
        made[: count - rest] = normal(numbers[: count - rest])
        if rest:
            made[-16:] = normal(uniform(16))
        return made.astype(np.float32).reshape(shape)

    return draw


# The sampler: between two calls of the network everything is linear.


def denoise(predict: Callable, table: dict, streams: list, shape: tuple[int, ...], told: Callable[[], None]) -> Any:
    """From noise to clean samples ``(B, C, H, W)``, step by step of the table."""
    x = np.stack([draw(shape) for draw in streams]) * np.float64(table["start"])
    memory: list[np.ndarray] = []
    longest = 1 + max((int(lag) for row in table["steps"] for lag in row["m"]), default=0)
    for row in table["steps"]:
        given = x * row["scale"]
        e = predict(given.astype(np.float32), row["t"]).astype(np.float64)
        if e.shape != x.shape or not np.isfinite(e).all():
            wrong("the network's output is not finite or of another shape: it is damaged")
        if table["prediction"] == "epsilon":
            clean = (given - row["sigma"] * e) / row["alpha"]
        elif table["prediction"] == "v_prediction":
            clean = row["alpha"] * given - row["sigma"] * e
        else:
            clean = e
        if table["clip"] is not None:
            clean = clean.clip(-table["clip"], table["clip"])
        noise = (given - row["alpha"] * clean) / row["sigma"] if table["memory"] == "noise" else None
        memory = [{"clean": clean, "noise": noise, "output": e}[table["memory"]], *memory][:longest]
        x = row["x"] * x + row["e"] * e + sum(value * memory[int(lag)] for lag, value in row["m"].items())
        if row["draws"]:
            x = x + row["n"] * np.stack([draw(shape) for draw in streams])
        told()
    return x.astype(np.float32)


# What the network is given besides: nothing, a class, a text.


class Words:
    """CLIP's byte-pair encoding, from tokens.json or, of a second text encoder, from tokens_2.json."""

    parts = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")

    def __init__(self, file: Path):
        told = read_json(file)
        self.numbers = at(told, "vocabulary", kind=dict)
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(at(told, "merges", kind=list)) if len(pair) == 2}
        self.length = at(told, "length", kind=int, least=2, most=MOST)
        self.begin, self.end, self.pad = (
            at(told, k, kind=int, least=0, most=2**31 - 1) for k in ("begin", "end", "pad")
        )
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
        rest = (byte for byte in range(256) if byte not in plain)
        self.bytes = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}

    def __call__(self, text: str) -> np.ndarray:
        """Numbers ``(T,)``, cut or filled to the length that the text encoder takes."""
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()
        found = [number for part in self.parts.findall(text) for number in self._encoded(part)][: self.length - 2]
        numbers = [self.begin, *found, self.end]
        return np.array(numbers + [self.pad] * (self.length - len(numbers)), np.int32)

    def _encoded(self, part: str) -> list[int]:
        if part in self.numbers and part.startswith("<|"):
            return [self.numbers[part]]
        word = [self.bytes[byte] for byte in part.encode()]
        word[-1] += "</w>"
        while len(word) > 1:
            best = min(pairwise(word), key=lambda pair: self.ranks.get(pair, math.inf))
            if best not in self.ranks:
                break
            merged: list[str] = []
            for piece in word:
                joins = bool(merged) and (merged[-1], piece) == best
                merged[-1:] = [merged[-1] + piece] if joins else [*merged[-1:], piece]
            word = merged
        return [self.numbers.get(piece, self.end) for piece in word]


def conditions(folder: Path, manifest: dict, options: argparse.Namespace, opened: Callable[[str], Network]) -> Callable:
    """What images of these numbers give the network, with and without the condition, and the scale of guidance."""
    told = at(manifest, "condition", kind=dict) if manifest.get("condition") else {"kind": "none"}
    kind, asked = told.get("kind"), {"a class": options.classes, "a prompt": options.prompt}
    takes = {"class": "a class", "text": "a prompt"}.get(str(kind))
    for what, given in asked.items():
        if given and what != takes:
            wrong(f"this pipeline takes {takes or 'neither class nor prompt'}, not {what}")
    if kind == "none":
        return lambda images: ({}, None, 1.0)
    scale = (
        options.guidance if options.guidance is not None else at(told, "guidance", kind=(int, float), least=1, most=1e3)
    )
    if kind == "class":
        numbers, null = _classes(told, options.classes), told.get("null")
        if scale != 1 and null is None:
            wrong("the network knows no null class: it cannot be guided")
        return lambda images: (
            {"class_labels": np.array([numbers[i % len(numbers)] for i in images], np.int64)},
            None if scale == 1 else {"class_labels": np.full(len(images), null, np.int64)},
            scale,
        )
    if kind != "text":
        wrong(f"this file knows no condition of the kind {str(kind)[:40]!r}")
    if not options.prompt:
        wrong("this pipeline makes images of a text: give --prompt")
    encoded = _encoded([*options.prompt, options.negative_prompt or ""], folder, told, opened)
    if told.get("zeros") is True and options.negative_prompt is None:
        encoded |= {name: np.concatenate([r[:-1], 0 * r[-1:]]) for name, r in encoded.items() if name != "time_ids"}
    return lambda images: (
        {name: rows[[i % len(options.prompt) for i in images]] for name, rows in encoded.items()},
        None if scale == 1 else {name: rows[[-1] * len(images)] for name, rows in encoded.items()},
        scale,
    )


def _encoded(texts: list[str], folder: Path, told: dict, opened: Callable[..., Network]) -> dict[str, np.ndarray]:
    """What the U-Net is given of each text; Stable Diffusion XL's of two encoders, and sizes."""

    def encoded(which: str, hidden: str, *pooled: str) -> list[np.ndarray]:
        words = Words(folder / f"tokens{which}.json")
        encoder = opened(f"text_encoder{which}", hidden, *pooled)
        made = encoder(input_ids=np.stack([words(text) for text in texts]))
        for rows, before in zip(made, ((len(texts), words.length), (len(texts),)), strict=False):
            if rows.shape[:-1] != before:
                wrong(f"the folder's text_encoder{which} gives {rows.shape} for {len(texts)} texts: it is damaged")
        return made

    if "hidden" not in told:
        return {"encoder_hidden_states": encoded("", "last_hidden_state")[0]}
    hidden = [at(told, "hidden", i, kind=str) for i in range(2)]
    sizes = [at(told, "time_ids", i, kind=int, least=0, most=MOST) for i in range(6)]
    (first,), (second, pooled) = encoded("", hidden[0]), encoded("_2", hidden[1], "text_embeds")
    if first.shape[1] != second.shape[1]:
        wrong("the folder's two text encoders do not fit")
    states = np.concatenate([first, second], axis=-1)
    return {
        "encoder_hidden_states": states,
        "text_embeds": pooled,
        "time_ids": np.array([sizes] * len(texts), np.float32),
    }


def _classes(told: dict, wanted: list[str]) -> list[int]:
    """Numbers of the classes that were asked for, by name or number; without any, all in turn."""
    rows, null = at(told, "rows", kind=int, least=1, most=2**20), told.get("null")
    if null is not None:
        at(told, "null", kind=int, least=0, most=rows - 1)
    known = {number: str(at(told, "names", kind=dict).get(str(number), "")) for number in range(rows) if number != null}
    named = {part.strip(): number for number, name in known.items() for part in (name, *name.split(",")) if part}
    for word in wanted:
        if word not in named and not (word.isdecimal() and int(word) in known):
            wrong(f"there is no class {word!r}; the classes are {', '.join(list(named)[:20]) or f'0 to {rows - 1}'}")
    return [named[word] if word in named else int(word) for word in wanted] or list(known)


# Images.


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
        given, null, scale = given_to(images)
        joined = given if null is None else {name: np.concatenate([null[name], given[name]]) for name in given}

        def predict(x: np.ndarray, t: float, joined: dict = joined, null: Any = null, scale: float = scale) -> Any:
            rows = x if null is None else np.concatenate([x, x])
            output = unet(sample=rows, timestep=np.array([t], np.float32), **joined)
            if null is None:
                return output
            without, with_ = np.split(output, 2)
            return without + np.float32(scale) * (with_ - without)

        samples = denoise(predict, table, [random_stream(options.seed, i) for i in images], shape, told)
        if decoder is not None:
            samples = decoder(latent_sample=(samples / np.float32(latents)))
        if not np.isfinite(samples).all():
            wrong("the images are not finite: a network is damaged")
        pixels = np.rint((samples.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        yield from zip(images, pixels, strict=True)


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

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-n", "--count", type=number(1, 10**6), default=1, help="how many images (1)")
    parser.add_argument("--seed", type=number(0, 2**63), default=0, help="image i of a seed is always the same (0)")
    parser.add_argument("--steps", type=number(1, 10**4), help="of the sampler; see sampler.json")
    parser.add_argument("--scheduler", help="one of those in sampler.json")
    parser.add_argument("--class", dest="classes", action="append", default=[], help="name or number; may be repeated")
    parser.add_argument("--prompt", action="append", default=[], help="text; may be repeated")
    parser.add_argument("--negative-prompt", help="what shall not be seen")
    parser.add_argument("--guidance", type=float, help="scale; 1 is none")
    parser.add_argument("-o", "--output", type=Path, default=Path("images"), help="folder of the PNGs (images)")
    parser.add_argument("--batch-size", type=number(1, MOST), default=8, help="images made at once (8)")
    parser.add_argument("--threads", type=number(1, 1024), help="of the runtime (all cores)")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
