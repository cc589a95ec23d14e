"""Damage by structure (a known key, a wild value) and by bytes."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from random import Random
from typing import Any


def nested(depth: int, leaf: Any = 1) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


TEXTS = [
    "",
    " ",
    "a",
    "0",
    "1",
    "-1",
    "nan",
    "inf",
    "null",
    "None",
    "true",
    "\x1b[31mred\x1b[0m",
    "one\ntwo",
    "\r\x07\x08",
    "\u202egnp.exe",
    "A" * 10_000,
    "../../etc/passwd",
    "/dev/zero",
    "/",
    ".",
    "~",
    "%s%n",
    "{0}",
    "\x00",
    "é" * 300,
    "\ud7ff\ufffe",
    "[bold red]x[/]",
    "[/]",
    "🙂" * 50,
    "C:\\data\\x",
    "os.system",
    "__class__",
    "epsilon",
    "float16",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    5,
    7,
    12,
    100,
    1000,
    10**5,
    10**8,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    2**64,
    10**25,
    -(10**12),
    0.0,
    -0.5,
    0.5,
    1.5,
    1e-320,
    1e308,
    1e-5,
    float("nan"),
    float("inf"),
    float("-inf"),
]
OTHERS = [None, True, False, [], {}, [[]], [1, 2], [None], ["a"], [0.5], {"a": 1}, {"": None}, [8, 16, 32], [1] * 2000]


def wild(rng: Random) -> Any:
    """A value that nobody expects."""
    picked = rng.random()
    if picked < 0.45:
        return rng.choice(NUMBERS)
    if picked < 0.7:
        return rng.choice(TEXTS)
    if picked < 0.97:
        return copy.deepcopy(rng.choice(OTHERS))
    return nested(rng.choice([5, 30, 100]))


def wild_word(rng: Random) -> str:
    """A word of the command line: what a shell can hand over has no zero in it."""
    value = rng.choice(NUMBERS + TEXTS) if rng.random() < 0.8 else str(wild(rng))
    return str(value).replace("\x00", "")


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of everything inside nested values."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((*path, key))
        found += places(inner, (*path, key))
    return found


def mutated(values: Any, rng: Random, under: tuple = ()) -> tuple[Any, str]:
    """A copy of JSON-like values with one to three places changed, and what was done."""
    values = copy.deepcopy(values)
    notes = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        there = [path for path in places(values) if path[: len(under)] == under]
        if not there:
            break
        path = rng.choice(there)
        parent = values
        for key in path[:-1]:
            parent = parent[key]
        notes.append(_change(parent, path[-1], rng, ".".join(map(str, path))))
    return values, "; ".join(notes)


def _change(parent: Any, key: Any, rng: Random, where: str) -> str:
    how = rng.random()
    old = parent[key]
    if how < 0.1:
        del parent[key]
        return f"{where} gone"
    if how < 0.17 and isinstance(parent, dict):
        parent[rng.choice([f"{key}s", str(key).upper(), "x" * 300, "\x1b[2J", "", "__class__"])] = parent.pop(key)
        return f"{where} renamed"
    if how < 0.25 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(old))
        return f"{where} twice"
    if isinstance(old, bool):
        parent[key] = rng.choice([not old, wild(rng)])
    elif isinstance(old, (int, float)) and how < 0.65:
        parent[key] = rng.choice([0, -old, old + 1, old - 1, old * 2, old * 10, old * 10**6, old / 2, str(old), [old]])
    elif isinstance(old, list) and how < 0.6:
        parent[key] = rng.choice([old[:-1], old + old, old[::-1], [*old, wild(rng)], [wild(rng) for _ in old], old[:1]])
    elif isinstance(old, str) and how < 0.45:
        parent[key] = rng.choice([old + "X", old[:-1], old.upper(), [old], {old: old}, old * 200, f"\x1b[1m{old}"])
    else:
        parent[key] = wild(rng)
    return f"{where} = {parent[key]!r}"[:200]


def scarred(data: bytes, rng: Random, header: int = 512) -> tuple[bytes, str]:
    """Bytes with one to four scars, half of them near the beginning."""
    data, notes = bytearray(data), []
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not data:
            break
        most = min(len(data), header) if rng.random() < 0.5 else len(data)
        at, how = rng.randrange(most), rng.randrange(8)
        length = min(rng.choice([1, 4, 16, 200]), len(data) - at)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + length] = rng.randbytes(length)
        elif how == 2:
            del data[at:]
        elif how == 3:
            data[at:at] = rng.randbytes(length)
        elif how == 4:
            del data[at : at + length]
        elif how == 5:
            data[at : at + length] = bytes(length)
        elif how == 6:
            data[at : at + length] = b"\xff" * length
        else:
            data[at:at] = data[at : at + length]
        notes.append(f"{('flip', 'noise', 'cut', 'more', 'less', 'zeros', 'ones', 'twice')[how]}@{at}")
    return bytes(data), ",".join(notes)


def copied(source: Path, target: Path) -> Path:
    """A folder's copy of which any file may be replaced; weights are hard links, nothing writes into them."""
    shutil.copytree(source, target, copy_function=_copy, symlinks=True)
    return target


def _copy(source: str, target: str) -> None:
    if Path(source).stat().st_size > 2**15 and Path(source).suffix in (".safetensors", ".ckpt", ".onnx"):
        Path(target).hardlink_to(source)
    else:
        shutil.copyfile(source, target)


def replaced(file: Path, data: bytes) -> Path:
    """Write a file anew: what it was linked with stays as it is."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)
    return file
