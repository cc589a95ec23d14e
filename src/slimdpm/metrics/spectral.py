"""Where in the spectrum a set of images differs from another, and by how much."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from slimdpm.metrics.intervals import Draws, Measured, unbiased_distance
from slimdpm.metrics.spectrum import ring_frequencies, ring_powers

_TINY = 1e-12


def spectra(batches: Iterable[np.ndarray]) -> np.ndarray:
    """The radial power spectrum of each image ``(N, rings)``, see `slimdpm.metrics.spectrum`."""
    return np.concatenate([ring_powers(batch) for batch in batches])


def spectral_metrics(images: np.ndarray, reference: np.ndarray, draws: Draws) -> dict[str, Measured]:
    """Distances of mean power spectra, and power ratios by octave.

    Args:
        images: spectra of the evaluated images ``(N, rings)``.
        reference: spectra of the real ones ``(M, rings)``.

    Returns:
        ``log-spectral distance, dB``: root mean square over the rings of ``10 log10`` of the ratio of mean powers;
        ``upper-half error, dB``: the same over the rings beyond half of Nyquist (0.25 cycles per pixel) alone;
        ``power ratio a-b``: power of the evaluated images over the real ones' in an octave, 1 is best, frequencies
        in cycles per pixel, the highest octave first.
    """
    mean, real = _resampled(images, draws.images), _resampled(reference, draws.reference)
    frequency = ring_frequencies(2 * images.shape[1])  # images of an even size
    decibel = 10 * np.log10((mean + _TINY) / (real + _TINY))  # (1 + B, rings)
    result = {
        name: unbiased_distance(np.sqrt((part**2).mean(axis=1)))
        for name, part in (
            ("log-spectral distance, dB", decibel),
            ("upper-half error, dB", decibel[:, frequency > 0.25]),
        )
    }
    for low, high in octaves(len(frequency)):
        inside = (frequency > low) & (frequency <= high)
        weight = frequency[inside]  # a ring's area grows with its radius
        ratios = (mean[:, inside] @ weight + _TINY) / (real[:, inside] @ weight + _TINY)  # (1 + B,)
        result[f"power ratio {low:g}-{high:g}"] = Measured(float(ratios[0]), ratios[1:])
    return result


def octaves(rings: int) -> list[tuple[float, float]]:
    """Bands of cycles per pixel from the highest octave down to the last that has two rings."""
    bands, high = [], 0.5
    while high * 2 * rings >= 4:
        bands.append((high / 2, high))
        high /= 2
    return bands


def _resampled(spectra: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Mean spectra: of all images first, then of each draw ``(1 + B, rings)``."""
    return np.concatenate([spectra.mean(axis=0, keepdims=True), shares @ spectra])
