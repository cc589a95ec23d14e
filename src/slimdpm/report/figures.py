"""The figures of a report, as SVG that needs nothing else. Colours are told apart by the colour-blind (Okabe, Ito)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from slimdpm.method.losses import PARTS
from slimdpm.metrics.denoising import HELD_OUT, HELD_OUT_TEACHER, DenoisingErrors
from slimdpm.metrics.spectrum import Spectrum

COLOURS = {
    "real images": "#000000",
    "teacher": "#0072B2",
    "lite": "#E69F00",
    "plain": "#009E73",
    "spectral": "#D55E00",
    "student": "#D55E00",
}
_OTHERS = ("#CC79A7", "#56B4E9", "#F0E442", "#009E73")
_DASHES = {"real images": "--", "teacher": "-.", "lite": ":"}  # readable in black and white too


def colour(name: str, position: int = 0) -> str:
    """The colour of a network, the same in every figure."""
    return COLOURS.get(name.lower(), _OTHERS[position % len(_OTHERS)])


def spectra_figure(spectra: Mapping[str, Spectrum]) -> str:
    """Radial power spectra on top, and below them each one's ratio to the first."""
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    names = list(spectra)
    reference = spectra[names[0]]
    for i, (name, spectrum) in enumerate(spectra.items()):
        style = {"color": colour(name, i), "linestyle": _DASHES.get(name.lower(), "-"), "label": name}
        upper.loglog(spectrum.frequency, spectrum.power, **style)
        lower.semilogx(spectrum.frequency, spectrum.power / reference.power, **style)
    upper.set_ylabel("power")
    upper.legend(frameon=False)
    lower.set_ylabel(f"ratio to {names[0]}")
    _log_axis(lower)
    frequency_axis(lower, reference.frequency[0])
    for axes in (upper, lower):
        axes.axvspan(0.25, 0.5, color="#eeeeee", zorder=0)
    upper.text(0.26, upper.get_ylim()[0], " upper half", va="bottom", fontsize=8, color="#666666")
    return svg_of(figure)


def _log_axis(axes: Any) -> None:
    """Powers upwards; within a decade marked by plain numbers, not as multiples of a power of ten."""
    axes.set_yscale("log")
    low, high = axes.dataLim.intervaly
    if high < 10 * low:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.yaxis.set_minor_locator(NullLocator())


def frequency_axis(axes: Any, lowest: float) -> None:
    """Octaves from Nyquist down to the lowest frequency, as fractions of a cycle per pixel."""
    ticks = [f for f in (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2) if f >= lowest * 0.99]
    axes.set_xticks(ticks, [f"1/{round(1 / f)}" for f in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("frequency (cycles per pixel)")


def losses_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Each part of the loss over the steps, one panel a part, one line a network."""
    parts = [p for p in PARTS if any(p in line for c in curves.values() for line in c)]
    figure = Figure(figsize=(7.2, 2.5 if len(parts) > 1 else 3.0), layout="constrained")
    for axes, part in zip(np.atleast_1d(figure.subplots(1, len(parts))), parts, strict=True):
        for i, (name, lines) in enumerate(curves.items()):
            points = [(line["step"], line[part]) for line in lines if part in line]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour(name, i),
                    linestyle=_DASHES.get(name.lower(), "-"),
                    label=name,
                )
        low, high = axes.dataLim.intervaly
        if high > 10 * low > 0:
            axes.set_yscale("log")
        axes.set_title(part, fontsize=10)
        axes.set_xlabel("step")
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)
    return svg_of(figure)


def held_out_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The error on images held out over the steps, a line a network; their teacher's, which stays, is dashed."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    for i, (name, lines) in enumerate(curves.items()):
        points = [(line["step"], line[HELD_OUT]) for line in lines]
        axes.plot(*zip(*points, strict=True), color=colour(name, i), marker=".", label=name)
    teachers = {lines[-1][HELD_OUT_TEACHER] for lines in curves.values() if HELD_OUT_TEACHER in lines[-1]}
    for error in teachers:
        axes.axhline(error, color=colour("teacher"), linestyle=_DASHES["teacher"], label="teacher")
    _log_axis(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.set_ylabel("error of ε")
    if len(curves) + len(teachers) > 1:
        axes.legend(frameon=False, fontsize=8)
    return svg_of(figure)


def costs_figure(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Each network's share of what the first costs, a panel for each measure."""
    figure = Figure(figsize=(7.2, 0.7 + 0.3 * len(next(iter(costs.values())))), layout="constrained")
    for axes, (measure, values) in zip(
        np.atleast_1d(figure.subplots(1, len(costs), sharey=True)), costs.items(), strict=True
    ):
        names, first = list(values), next(iter(values.values()))
        shares = [value / first for value in values.values()]
        bars = axes.barh(names, shares, color=[colour(name, i) for i, name in enumerate(names)])
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=2, fontsize=8)
        axes.set_xlim(0, 1.25 * max(shares))
        axes.set_xticks([])
        axes.set_title(measure, fontsize=10)
        axes.invert_yaxis() if axes.get_ylim()[0] < axes.get_ylim()[1] else None
    return svg_of(figure)


def errors_figure(errors: Mapping[str, DenoisingErrors]) -> str:
    """Denoising errors by noise level, overall and in the upper half of the frequencies, relative to the teacher."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    names = list(errors)
    reference = errors[names[0]]
    panels = zip(
        figure.subplots(1, 2, sharey=True), ("overall", "upper"), ("all frequencies", "upper half"), strict=True
    )
    for axes, field, title in panels:
        base = np.array(getattr(reference, field))
        for i, name in enumerate(names[1:], 1):
            values = np.array(getattr(errors[name], field)) / base
            positions = np.arange(len(base)) + 0.38 * (i - len(names) / 2)
            axes.bar(positions, values, 0.36, color=colour(name, i), label=name)
        axes.axhline(1, color=colour(names[0]), linewidth=1)
        axes.set_xticks(range(len(base)), [str(t) for t in reference.timesteps])
        axes.set_xlabel("timestep (0 clean, 1000 noise)")
        axes.set_title(title, fontsize=10)
    figure.axes[0].set_ylabel(f"error of ε ÷ {names[0]}'s")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    return svg_of(figure)


def gallery_figure(columns: Sequence[str], blocks: Sequence[Sequence[tuple[str, np.ndarray]]]) -> Figure:
    """Images ``(columns, H, W, C)`` of rows and columns that have names, a gap between blocks of rows, on white for
    readers in the dark, too."""
    side, left, top, gap = 0.86, 1.98, 0.32, 0.14  # inches
    width = left + side * len(columns)
    height = top + sum(side * len(block) + gap for block in blocks)
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    for column, name in enumerate(columns):
        place = (left + (column + 0.47) * side) / width, 1 - 0.6 * top / height
        figure.text(*place, name, ha="center", va="center", fontsize=11)
    above = top
    for block in blocks:
        for name, images in block:
            figure.text(
                (left - 0.12) / width, 1 - (above + side / 2) / height, name, ha="right", va="center", fontsize=11
            )
            for column, image in enumerate(images):
                corner = (left + column * side) / width, 1 - (above + 0.95 * side) / height
                axes = figure.add_axes((*corner, 0.95 * side / width, 0.95 * side / height))
                axes.imshow(image, interpolation="lanczos", aspect="auto")
                axes.set_axis_off()
            above += side
        above += gap
    return figure


def svg_of(figure: Figure) -> str:
    """SVG to put into a page."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "slimdpm", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]
