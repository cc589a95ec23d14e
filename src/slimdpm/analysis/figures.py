"""The figures of an analysis. Lines are told apart without colour too: by dashes, markers and labels at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from slimdpm.analysis.observation import Observation
from slimdpm.metrics.spectrum import PowerLaw, Spectrum
from slimdpm.report.figures import colour, frequency_axis
from slimdpm.system import amounts
from slimdpm.wavelet import SUBBANDS

_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D")
_BAND_COLOURS = ("#000000", "#0072B2", "#E69F00", "#D55E00")


def data_figure(spectrum: Spectrum, law: PowerLaw) -> Figure:
    """The data's mean power and the fitted power law."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.loglog(spectrum.frequency, spectrum.power, "ko", markersize=3, label="real images")
    label = f"power law, slope {law.slope:.2f} ± {law.error:.2f}"
    axes.loglog(spectrum.frequency, law(spectrum.frequency), color="#D55E00", label=label)
    frequency_axis(axes, spectrum.frequency[0])
    axes.set_ylabel("power")
    axes.legend(frameon=False)
    return figure


def theory_figure(frequency: np.ndarray, timesteps: np.ndarray, gain: np.ndarray, restored: np.ndarray) -> Figure:
    """The Wiener filter over frequency at some noise levels, and the share of power that it restores over time.

    Args:
        gain: ``G`` ``(T, F)``.
        restored: share of the data's power ``(T, F)``.
    """
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = np.linspace(0, len(timesteps) - 1, 5).round().astype(int)
    for i, k in enumerate(chosen):
        left.semilogx(
            frequency,
            gain[k],
            color=_shade(i, len(chosen)),
            linestyle=_DASHES[i % 4],
            marker="" if i < 4 else ".",
            label=f"t = {timesteps[k]}",
        )
    frequency_axis(left, frequency[0])
    left.set_ylabel("gain G(f)")
    left.set_title("The filter at a noise level", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    _over_time(right, frequency, timesteps, restored)
    right.set_title("What it restores of each frequency", fontsize=10)
    return figure


def denoiser_figure(
    frequency: np.ndarray, theory: np.ndarray, observed: Mapping[str, Observation], power: np.ndarray
) -> Figure:
    """The share of the data's power in x̂_0 over time: theory's panel first, then one for each network.

    Args:
        theory: share that the Wiener filter restores ``(T, F)``.
        observed: of the networks, all at the same timesteps.
        power: of the data ``(F,)``.
    """
    figure = Figure(figsize=(3.0 * (1 + len(observed)), 3.4), layout="constrained")
    panels = figure.subplots(1, 1 + len(observed), sharey=True)
    timesteps = next(iter(observed.values())).timesteps
    shares = {"Wiener filter": theory, **{name: o.power / power for name, o in observed.items()}}
    for i, (axes, (name, share)) in enumerate(zip(panels, shares.items(), strict=True)):
        _over_time(axes, frequency, timesteps, share, legend=i == 0)
        axes.set_title(name, fontsize=10)
        if i:
            axes.set_ylabel("")
    panels[0].set_ylim(0, max(1.25, min(2.0, max(float(s.max()) for s in shares.values()))))
    return figure


def sizes_figure(real: Spectrum, networks: Mapping[str, tuple[float, Spectrum]]) -> Figure:
    """Power of samples over that of real images, one line a network, named with its MACs at the line's end."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    ends: list[tuple[float, str, str]] = []
    for i, (name, (macs, spectrum)) in enumerate(networks.items()):
        ratio = spectrum.power / real.power
        every = max(1, len(ratio) // 8)
        marker = {"marker": _MARKERS[i % 4], "markevery": every, "markersize": 4}
        axes.loglog(real.frequency, ratio, color=colour(name, i), linestyle=_DASHES[i % 4], **marker)
        ends.append((float(np.log10(ratio[-1])), f"{name}, {amounts.macs(macs)}", colour(name, i)))
    axes.axvspan(0.25, 0.5, color="#eeeeee", zorder=0)
    frequency_axis(axes, real.frequency[0])
    low, high = (np.log10(v) for v in axes.get_ylim())
    for place, (_, text, shade) in zip(_apart([e[0] for e in ends], 0.06 * (high - low)), ends, strict=True):
        axes.annotate(text, (0.52, 10**place), color=shade, fontsize=8, va="center", annotation_clip=False)
    axes.set_ylabel("power of samples ÷ real images")
    return figure


def gates_figure(timesteps: np.ndarray, gates: Mapping[str, np.ndarray]) -> Figure:
    """The mean gate of each sub-band over time, one panel a resampler."""
    columns = min(3, len(gates))
    rows = -(-len(gates) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.3 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, values) in zip(panels.flat, gates.items(), strict=False):
        for band in range(4):
            style = {"linestyle": _DASHES[band], "marker": _MARKERS[band], "markersize": 3}
            axes.plot(timesteps, values[:, band], color=_BAND_COLOURS[band], label=SUBBANDS[band], **style)
        axes.set_title(name, fontsize=8)
        axes.set_ylim(0, 1)
    panels[0, 0].invert_xaxis()  # all share it
    for axes in panels.flat[len(gates) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("timestep (noise → image)")
    for axes in panels[:, 0]:
        axes.set_ylabel("mean gate")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def bands_of(frequency: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Octaves of frequency from the lowest: a label, and which rings lie in it."""
    edges = [0.0, 1 / 16, 1 / 8, 1 / 4, 0.5]
    found = []
    for low, high in pairwise(edges):
        inside = (frequency > low) & (frequency <= high)
        if inside.any():
            found.append((f"{'below' if not low else f'1/{round(1 / low)} to'} 1/{round(1 / high)}", inside))
    return found


def _over_time(axes, frequency: np.ndarray, timesteps: np.ndarray, share: np.ndarray, legend: bool = True) -> None:
    """Mean share of the power in each octave, from noise on the left to the image on the right."""
    bands = bands_of(frequency)
    for i, (label, inside) in enumerate(bands):
        style = {"linestyle": _DASHES[i % 4], "marker": _MARKERS[i % 4], "markersize": 3}
        axes.plot(timesteps, share[:, inside].mean(axis=1), color=_shade(i, len(bands)), label=label, **style)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
    axes.invert_xaxis()
    axes.set_xlabel("timestep (noise → image)")
    axes.set_ylabel("power of x̂₀ ÷ real")
    if legend:
        axes.legend(frameon=False, fontsize=8, title="cycles per pixel", title_fontsize=8)


def _shade(i: int, count: int) -> str:
    """From dark to light, with a spread that stays readable in grey."""
    return ("#000000", "#0072B2", "#009E73", "#E69F00", "#CC79A7")[i % 5] if count > 1 else "#000000"


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved so that neighbours are at least `gap` apart."""
    order = np.argsort(places)
    moved = np.array(places, float)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    return [float(v) for v in moved]
