"""The radial power spectrum: how much of each frequency is in a set of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spectrum:
    """A radially averaged power spectrum.

    Attributes:
        frequency: centre of each ring in cycles per pixel, from above 0 to 0.5 (Nyquist).
        power: mean of ``|F|²`` over the ring, the channels and the images, in squared units of the [−1, 1] range.
    """

    frequency: np.ndarray
    power: np.ndarray


def radial_spectrum(images: np.ndarray) -> Spectrum:
    """The radial power spectrum of images.

    Edges: a Hann window is laid over each image after its mean is taken off, since the transform sees an image as
    periodic and the jump from one side to the other would add power at high frequencies that no viewer sees. The
    window's own power is divided out, so white noise of variance σ² has a power of σ² at every frequency (but for the
    first ring, into which the missing mean leaks). Rings are one frequency step of the image wide; the corners beyond
    Nyquist are left out.

    Args:
        images: uint8 ``(N, H, W, C)``, H = W.
    """
    size = images.shape[1]
    window = np.hanning(size + 2)[1:-1]
    window2 = np.outer(window, window)
    window2 /= np.sqrt((window2**2).mean())
    total = np.zeros((size, size // 2 + 1))
    for image in images:  # one at a time: memory stays flat
        x = image.astype(np.float64) / 127.5 - 1
        x = (x - x.mean(axis=(0, 1))) * window2[..., None]
        total += (np.abs(np.fft.rfft2(x, axes=(0, 1), norm="ortho")) ** 2).mean(axis=-1)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    ring = np.rint(radius * size).astype(int)
    # Columns between the first and the last stand for two of the full plane.
    weight = np.full(total.shape, 2.0)
    weight[:, 0] = 1
    if size % 2 == 0:
        weight[:, -1] = 1
    rings = size // 2
    power = np.bincount(ring.ravel(), (total * weight).ravel())[1 : rings + 1]
    count = np.bincount(ring.ravel(), weight.ravel())[1 : rings + 1]
    return Spectrum(np.arange(1, rings + 1) / size, power / count / len(images))
