"""Sliced Wasserstein distance on a Laplacian pyramid: how far local patches are from real ones, scale by scale.

After Karras et al. 2018 (section 5): 7×7 patches of each level of the pyramid, projected to random directions. Patches
are scaled by the reference's standard deviation for both sets, so that missing contrast counts as a difference.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slimdpm.metrics.intervals import Draws, Measured, unbiased_distance

PATCH = 7
PATCHES = 8  # of each image and level
DIRECTIONS = 64
SMALLEST = 16  # pixels of the last level
MOST = 4096  # images: more change the distance by less than its interval
REPLICATES = 100
_QUANTILES = 256


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Band-pass levels ``(B, C, H / 2^k, W / 2^k)`` from the finest; the last is the low-pass rest."""
    levels = []
    while min(images.shape[-2:]) // 2 >= SMALLEST:
        smaller = _blur(images)[..., ::2, ::2]
        levels.append(images - F.interpolate(smaller, size=images.shape[-2:], mode="bilinear", align_corners=False))
        images = smaller
    return [*levels, images]


def _blur(x: Tensor) -> Tensor:
    """The 5-tap binomial filter, mirrored at the edges."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    channels = x.shape[1]
    kernel = (taps[:, None] * taps[None, :]).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)


def patches(batches: Iterable[np.ndarray], seed: int = 0) -> dict[int, np.ndarray]:
    """Random patches of each level: ``{its shorter side: (N, PATCHES, C · PATCH²) float32}``, N at most `MOST`.

    Args:
        batches: uint8 ``(B, H, W, C)``.
        seed: of the places, which depend on the image's number alone.
    """
    rng = np.random.default_rng(seed)
    parts: dict[int, list[np.ndarray]] = {}
    count = 0
    for batch in batches:
        batch = batch[: MOST - count]
        if not len(batch):
            break
        count += len(batch)
        x = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1
        for level in laplacian_pyramid(x):
            if min(level.shape[-2:]) < PATCH:
                break
            height, width = (side - PATCH + 1 for side in level.shape[-2:])
            # A number draws other places than a pair of it: squares keep theirs.
            places = rng.integers(height if height == width else (height, width), size=(len(batch), PATCHES, 2))
            parts.setdefault(min(level.shape[-2:]), []).append(_cut(level.numpy(), places))
    return {size: np.concatenate(cut) for size, cut in parts.items()}


def _cut(level: np.ndarray, places: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(level, (PATCH, PATCH), axis=(2, 3))  # (B, C, h, w, p, p)
    numbers = np.arange(len(level))[:, None]
    found = windows[numbers, :, places[..., 0], places[..., 1]]  # (B, PATCHES, C, p, p)
    return np.ascontiguousarray(found.reshape(*places.shape[:2], -1))


def sliced_wasserstein(
    images: dict[int, np.ndarray], reference: dict[int, np.ndarray], draws: Draws
) -> dict[str, Measured]:
    """The distance at each level, in standard deviations of the reference's patches.

    Args:
        images, reference: see `patches`.
        draws: of images and reference; the first `REPLICATES` are used.
    """
    result = {}
    for size, real in reference.items():
        rng = np.random.default_rng(size)
        directions = rng.standard_normal((real.shape[-1], DIRECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        mean, scale = real.mean(axis=(0, 1)), real.std()
        quantiles = [
            _quantiles((part - mean) / scale @ directions, shares)
            for part, shares in ((images[size], draws.images), (real, draws.reference))
        ]
        distances = np.abs(quantiles[0] - quantiles[1]).mean(axis=(1, 2))  # (1 + B,)
        result[f"SWD {size}px"] = unbiased_distance(distances)
    return result


def _quantiles(projected: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Quantiles of each direction, of all images first, then of each draw ``(1 + B, DIRECTIONS, _QUANTILES)``.

    Values are sorted once; a draw only changes their weights.
    """
    count, each, directions = projected.shape
    used = shares[:REPLICATES, :count]
    used = used / used.sum(axis=1, keepdims=True)  # of the first images alone they sum to 1 again
    weights = np.concatenate([np.full((1, count), 1 / count), used])
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    result = np.empty((len(weights), directions, _QUANTILES), np.float32)
    for d in range(directions):
        values = projected[:, :, d].ravel()
        order = np.argsort(values, kind="stable")
        values, owners = values[order], order // each
        for b, weight in enumerate(weights):
            cumulative = np.cumsum(weight[owners]) / each
            result[b, d] = values[np.searchsorted(cumulative, levels).clip(max=len(values) - 1)]
    return result
