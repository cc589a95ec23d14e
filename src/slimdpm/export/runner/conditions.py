"""What the network is given besides the noisy sample: nothing, a class, a text, a text and an image."""

from __future__ import annotations

import argparse
import math
import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from slimdpm.export.runner.folder_data import MOST, Network, at, read_json, wrong
from slimdpm.export.runner.images import Ask, Asked, seeing


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


def conditions(folder: Path, manifest: dict, options: argparse.Namespace, opened: Callable[..., Network]) -> Ask:
    """What images of these numbers give the network: with the condition alone, or first without it and then with ever
    more of it; and how strongly each of these steps guides."""
    told = at(manifest, "condition", kind=dict) if manifest.get("condition") else {"kind": "none"}
    kind, sees = told.get("kind"), str(told.get("sees", ""))
    asked = {
        "a class": options.classes,
        "a prompt": options.prompt,
        "an image": options.images,
        "a mask": options.masks,
    }
    parts = {"class": "a class", "text": "a prompt", "image": "an image", "image and mask": "an image and a mask"}
    takes = [parts[part] for part in (kind, sees) if part in parts]
    for what, given in asked.items():
        if given and what not in " and ".join(takes):
            wrong(f"this pipeline takes {' and '.join(takes) or 'neither class nor prompt'}, not {what}")
    if kind == "none":
        return lambda images: ([{}], [])
    scale = (
        options.guidance if options.guidance is not None else at(told, "guidance", kind=(int, float), least=1, most=1e3)
    )
    if kind == "class":
        numbers, null = _classes(told, options.classes), told.get("null")
        if scale != 1 and null is None:
            wrong("the network knows no null class: it cannot be guided")

        def labels(images: range) -> Asked:
            given = {"class_labels": np.array([numbers[i % len(numbers)] for i in images], np.int64)}
            without = {"class_labels": np.full(len(images), null, np.int64)}
            return ([given], []) if scale == 1 else ([without, given], [scale])

        return labels
    if kind != "text":
        wrong(f"this file knows no condition of the kind {str(kind)[:40]!r}")
    if not options.prompt:
        wrong("this pipeline makes images of a text: give --prompt")
    encoded = _encoded([*options.prompt, options.negative_prompt or ""], folder, told, opened)
    if told.get("zeros") is True and options.negative_prompt is None:
        encoded |= {name: np.concatenate([r[:-1], 0 * r[-1:]]) for name, r in encoded.items() if name != "time_ids"}

    def texts(images: range) -> Asked:
        given = {name: rows[[i % len(options.prompt) for i in images]] for name, rows in encoded.items()}
        null = {name: rows[[-1] * len(images)] for name, rows in encoded.items()}
        return ([given], []) if scale == 1 else ([null, given], [scale])

    return seeing(texts, sees, told, manifest, options, opened) if sees else texts


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
