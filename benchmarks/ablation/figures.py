"""The ablation's pictures: every cell beside Lite, quality against cost, samples from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from slimdpm.data.images import grid, save_picture
from slimdpm.report.figures import colour
from slimdpm.system.files import atomic_file

from .grid import CHANGED
from .tables import BASELINE, Summary, compared, teacher_summaries

SHOWN = ("error of ε", "upper half", "kernel distance")
BASES = {BASELINE: "Lite", CHANGED: "Spectral"}
LABELS = {"lite": "Lite", "spectral": "Spectral, from the teacher's weights"}
PARETO = ("kernel distance", "Fréchet distance", "upper-half error, dB")


def cells_figure(results: Mapping[str, Any], path: Path) -> None:
    """A line for each cell but the changes: its ratio to Lite in each column, with the interval over the seeds."""
    _rows_figure(results, BASELINE, path)


def changes_figure(results: Mapping[str, Any], path: Path) -> None:
    """The same for the changes to Spectral from the teacher's weights; nothing is written if there are none."""
    if compared(results, CHANGED):
        _rows_figure(results, CHANGED, path)


def _rows_figure(results: Mapping[str, Any], base: str, path: Path) -> None:
    found, cells = compared(results, base), results["cells"]
    figure = Figure(figsize=(10.0, 1.2 + 0.3 * len(found)), layout="constrained")
    teacher = teacher_summaries(results, results["teacher"]["measures"], base)
    for axes, title in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        for row, (name, ratios) in enumerate(found.items()):
            _point(axes, row, ratios[title], colour(cells[name]["kind"]))
        axes.axvline(1, color=colour(cells[base]["kind"]), linestyle=":", linewidth=1.2)
        axes.axvline(teacher[title].mean, color=colour("teacher"), linestyle="-.", linewidth=1.2)
        axes.set_title(f"{title}\nratio to {BASES[base]}", fontsize=10)
        axes.set_yticks(range(len(found)), [cells[name]["about"] for name in found], fontsize=8)
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.invert_yaxis() if axes.get_ylim()[0] < axes.get_ylim()[1] else None
    _save(figure, path)


def _point(axes: Any, row: int, summary: Summary, shade: str) -> None:
    low, high = summary.interval
    if np.isfinite(low):
        axes.plot([low, high], [row, row], color=shade, linewidth=2, alpha=0.5)
    axes.plot(summary.values, [row] * len(summary.values), "|", color=shade, markersize=7)
    axes.plot(summary.mean, row, "o", color=shade, markersize=5)


def pareto_figure(results: Mapping[str, Any], path: Path) -> None:
    """Quality against MACs, and against measured latency: Lite and Spectral at each of their widths.

    Spectral starts from the teacher's weights; its network is that of the grid's Spectral, and so is its latency.
    """
    names = {"lite": [BASELINE], "spectral": [CHANGED]}
    for name in results["cells"]:
        kind, _, width = name.partition(" width ")
        if width and kind in names:
            names[kind].append(name)
    costs = (("macs_all", 1e6, "M MACs (all)"), ("latency", 1e-3, "latency of one step, ms"))
    figure = Figure(figsize=(10.0, 6.0), layout="constrained")
    for line, (key, unit, label) in zip(figure.subplots(2, len(PARETO)), costs, strict=True):
        for axes, metric in zip(line, PARETO, strict=True):
            for kind, members in names.items():
                points = sorted(
                    _point_of(results, name, key, unit, metric) for name in members if name in results["cells"]
                )
                points = [point for point in points if np.isfinite(point[0])]
                if points:
                    x, y, error = zip(*points, strict=True)
                    axes.errorbar(x, y, yerr=error, marker="o", color=colour(kind), label=LABELS[kind], capsize=2)
            axes.axhline(
                results["teacher"]["measures"][metric], color=colour("teacher"), linestyle="-.", label="teacher"
            )
            axes.axhline(results["floor"][metric], color="#000000", linestyle="--", label="real against real")
            if key == "macs_all":
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
                axes.xaxis.set_minor_formatter(NullFormatter())
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.set_xlabel(label)
            axes.set_title(metric, fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    _save(figure, path)


def _point_of(results: Mapping[str, Any], name: str, key: str, unit: float, metric: str) -> tuple[float, float, float]:
    """Cost, mean and standard error of one width."""
    seeds = list(results["cells"][name]["seeds"].values())
    summary = Summary(tuple(seed["measures"][metric] for seed in seeds))
    timed = results.get("latency", {}).get(name.removesuffix(" from teacher"), float("nan"))
    cost = timed if key == "latency" else seeds[0][key]
    return cost / unit, summary.mean, summary.error


def samples_figure(rows: Sequence[np.ndarray], path: Path, *, zoom: int = 2) -> None:
    """Rows of images ``(N, H, W, C)``, one network a row, from the same noise."""
    save_picture(path, grid(np.concatenate(rows), len(rows[0]), zoom=zoom))


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
