"""Noise as PyTorch draws it, and the sampler, a table: between two calls of the network everything is linear."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from slimdpm.export.runner.folder_data import wrong


def random_stream(seed: int, image: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Draws what PyTorch's CPU generator draws for this image: 24 bits of MT19937 for a uniform number, and Box and
    Muller's transform over blocks of sixteen, each of its steps rounded to float32: over many steps of a sampler an
    angle that is not rounded adds up."""
    state = np.random.SeedSequence([seed, image]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    bits: Any = np.random.RandomState(int(state) & 0xFFFFFFFF)._bit_generator

    def uniform(count: int) -> np.ndarray:
        return (bits.random_raw(count) & 0xFFFFFF).astype(np.float32) / np.float32(2**24)

    def normal(numbers: np.ndarray) -> np.ndarray:
        first, second = numbers.reshape(-1, 2, 8).swapaxes(0, 1)
        radius = np.sqrt(np.float32(-2) * np.log(1 - first.astype(np.float64)).astype(np.float32))
        angle = (np.float32(2 * np.pi) * second).astype(np.float64)
        turned = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        return (radius[:, None] * turned).ravel()

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        count = math.prod(shape)
        numbers, rest = uniform(count), count % 16
        made = np.empty(count, np.float32)
        made[: count - rest] = normal(numbers[: count - rest])
        if rest:
            made[-16:] = normal(uniform(16))
        return made.reshape(shape)

    return draw


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
