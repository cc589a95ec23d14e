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
    """The mean radial power spectrum of images, see `ring_powers`.

    Args:
        images: uint8 ``(N, H, W, C)``.
    """
    power = np.mean([ring_powers(image[None])[0] for image in images], axis=0)  # one at a time: memory stays flat
    return Spectrum(ring_frequencies(min(images.shape[1:3])), power)


def ring_frequencies(size: int) -> np.ndarray:
    """Centres of the rings in cycles per pixel, above 0 to 0.5, of an image whose shorter side has so many pixels."""
    return np.arange(1, size // 2 + 1) / size


def ring_powers(images: np.ndarray) -> np.ndarray:
    """The radial power spectrum of each image.

    Edges: a Hann window is laid over each image after its mean is taken off, since the transform sees an image as
    periodic and the jump from one side to the other would add power at high frequencies that no viewer sees. The
    window's own power is divided out, so white noise of variance σ² has a power of σ² at every frequency (but for the
    first ring, into which the missing mean leaks). Rings are one frequency step of the image's shorter side
    wide; the corners beyond Nyquist are left out.

    Args:
        images: ``(N, H, W, C)``; uint8 is taken to [−1, 1], floats are taken as they are.

    Returns:
        ``(N, min(H, W) // 2)``: mean of ``|F|²`` over the ring and the channels, in squared units of the images.
    """
    height, width = images.shape[1:3]
    size = min(height, width)
    window2 = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    window2 /= np.sqrt((window2**2).mean())
    x = images.astype(np.float64)
    x = x / 127.5 - 1 if images.dtype == np.uint8 else x
    x = (x - x.mean(axis=(1, 2), keepdims=True)) * window2[..., None]  # (N, H, W, C)
    power = (np.abs(np.fft.rfft2(x, axes=(1, 2), norm="ortho")) ** 2).mean(axis=-1)  # (N, H, W // 2 + 1)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    ring = np.rint(radius * size).astype(int).ravel()
    # Columns between the first and the last stand for two of the full plane.
    weight = np.full(power.shape[1:], 2.0)
    weight[:, 0] = 1
    if width % 2 == 0:
        weight[:, -1] = 1
    member = np.zeros((len(ring), size // 2 + 1))
    inside = ring <= size // 2
    member[np.flatnonzero(inside), ring[inside]] = weight.ravel()[inside]
    member = member[:, 1:] / member[:, 1:].sum(axis=0)
    return power.reshape(len(images), -1) @ member


@dataclass(frozen=True)
class PowerLaw:
    """``power = scale · frequency^slope``, fitted to a spectrum.

    Attributes:
        slope: about −2 for photographs (of power, not of amplitude).
        error: its standard error from the fit's residuals.
        scale: the power at one cycle per pixel.
    """

    slope: float
    error: float
    scale: float

    def __call__(self, frequency: np.ndarray) -> np.ndarray:
        return self.scale * frequency**self.slope


FIRST_RING = 5  # of a fit: the window smears the steep end of the spectrum over the first four


def fit_power_law(spectrum: Spectrum) -> PowerLaw:
    """A straight line through the logarithms of frequency and power from the fifth ring on; octaves count alike."""
    first = min(FIRST_RING, len(spectrum.power) // 2) - 1  # of latents of 8 pixels there are four
    frequency, power = spectrum.frequency[first:], spectrum.power[first:]
    weight = 1 / frequency  # an octave has rings in proportion to its frequency
    weight = weight / weight.sum()
    x, y = np.log(frequency), np.log(power)
    centred = x - weight @ x
    spread = (weight * centred) @ centred
    slope = float((weight * centred) @ y / spread)
    residual = y - weight @ y - slope * centred
    # Of a weighted fit whose residuals have one variance.
    variance = residual @ residual / max(len(x) - 2, 1)
    error = float(np.sqrt(variance * ((weight * centred) ** 2).sum()) / spread)
    return PowerLaw(slope, error, float(np.exp(weight @ y - slope * (weight @ x))))
