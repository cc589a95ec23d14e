"""The Wiener view of denoising (section 3 of the paper): what the best linear filter restores, by frequency and time.

With the data's power ``P(f) = |X_0(f)|²`` and the process ``x_t = √ᾱ x_0 + √(1 − ᾱ) ε``, the filter that minimises
``E |X_0 − G X_t|²`` is ``G = √ᾱ / (ᾱ + (1 − ᾱ) / P)``. Rare frequencies drown first and come back last.
"""

from __future__ import annotations

import numpy as np


def wiener_gain(power: np.ndarray, alpha_bar: np.ndarray) -> np.ndarray:
    """``G(f)`` at each noise level (section 3).

    Args:
        power: of the data ``(F,)``, above 0.
        alpha_bar: ``ᾱ_t`` ``(T,)`` between 0 and 1.

    Returns:
        ``(T, F)``.
    """
    a = np.asarray(alpha_bar, np.float64)[:, None]
    return np.sqrt(a) / (a + (1 - a) / np.asarray(power, np.float64))


def reconstruction_power(power: np.ndarray, alpha_bar: np.ndarray) -> np.ndarray:
    """``|X̂_0(f)|² = |G|² (ᾱ |X_0|² + 1 − ᾱ)``, what the filter restores ``(T, F)``; never above `power`."""
    a = np.asarray(alpha_bar, np.float64)[:, None]
    return wiener_gain(power, alpha_bar) ** 2 * (a * power + 1 - a)


def appearance(restored: np.ndarray, power: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """The timestep at which half of each frequency's power is there, on the way from noise to image.

    Args:
        restored: power of x̂_0 ``(T, F)`` at growing timesteps.
        power: of the data ``(F,)``.
        timesteps: ``(T,)``, growing.

    Returns:
        ``(F,)``: interpolated between timesteps; NaN where half is never there.
    """
    share = restored / power  # falls with the timestep
    result = np.full(len(power), np.nan)
    for f, values in enumerate(share.T):
        enough = np.flatnonzero(values >= 0.5)
        if not len(enough):
            continue
        last = enough[-1]  # the noisiest level at which half is there
        if last == len(values) - 1:
            result[f] = timesteps[last]
        else:
            part = (values[last] - 0.5) / (values[last] - values[last + 1])
            result[f] = timesteps[last] + part * (timesteps[last + 1] - timesteps[last])
    return result
