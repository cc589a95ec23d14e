"""An exported folder, all of which is somebody's data: read, and checked before it is used."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

FORMAT = 1
LARGEST = 64 * 2**20  # bytes of a JSON
MOST = 2**13  # of a side, of channels, of tokens, of images at once
Network = Callable[..., Any]  # of arrays by name, to an array or a list of them


class Wrong(Exception):
    """Something that the user can mend, in one line."""


def wrong(message: str) -> NoReturn:
    line = "".join(c if c.isprintable() else " " for c in message)
    raise Wrong(line if len(line) <= 500 else f"{line[:250]} ... {line[-240:]}")


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
    places = ("decoder", "encoder", "text_encoder", "text_encoder_2")
    named = (manifest.get(place, "sampler.json") for place in places)
    for name in ("sampler.json", manifest.get("unet"), *named):
        if not isinstance(name, str) or name not in manifest["files"]:
            wrong(f"the folder's files are incomplete: {str(name)[:80]} is missing")
    return manifest


def sized(manifest: dict, size: tuple[int, int]) -> dict:
    """The manifest for images of another height and width than the pipeline's own."""
    shape, image = manifest["shape"], [at(manifest, "image", i, kind=int, least=1, most=MOST) for i in range(3)]
    if list(size) == image[1:]:
        return manifest
    if manifest.get("step") is None:
        wrong(f"this folder makes images of {image[1]}x{image[2]} alone: leave --size out")
    step, factor = at(manifest, "step", kind=int, least=1, most=MOST), image[1] // shape[1]
    if image[1:] != [side * factor for side in shape[1:]] or step % factor:
        wrong("the folder's shape, image and step do not fit")
    if any(side % step or not 2 * step <= side <= MOST for side in size):
        wrong(f"this folder makes images whose sides are multiples of {step}, from {2 * step} to {MOST}")
    changed = {**manifest, "shape": [shape[0], *(side // factor for side in size)], "image": [image[0], *size]}
    told = manifest.get("condition")
    if isinstance(told, dict) and "time_ids" in told:
        changed["condition"] = {**told, "time_ids": [*size, 0, 0, *size]}
    return changed


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
            wrong(f"{folder / name} cannot be loaded: {first_line(error)}")

        def call(**inputs: np.ndarray) -> Any:
            try:
                return network(**inputs) if outputs else network(**inputs)[0]
            except Exception as error:
                wrong(f"{folder / name} and the folder's other files do not fit: {first_line(error)}")

        return call

    return opened


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))
