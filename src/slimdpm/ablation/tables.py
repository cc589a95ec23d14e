"""The results as people read them: each cell beside Lite of the same seed, with the spread over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from slimdpm.ablation.measure import mean_error

BASELINE = "lite"
LEVEL = 0.95

# What a table's columns are: title, and whether the figure is the ratio to Lite of the same seed.
ERRORS = {"error of ε": "overall", "upper half": "upper-half"}
DISTANCES = {
    "kernel distance": "kernel distance",
    "Fréchet": "Fréchet distance",
    "log-spectral": "log-spectral distance, dB",
    "spectrum, upper half": "upper-half error, dB",
}


@dataclass(frozen=True)
class Summary:
    """A figure over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        """The standard error of the mean; not a number with a single seed."""
        n = len(self.values)
        return float(np.std(self.values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean by Student's t."""
        n = len(self.values)
        if n < 2:
            return float("nan"), float("nan")
        reach = float(student_t.ppf((1 + LEVEL) / 2, n - 1)) * self.error
        return self.mean - reach, self.mean + reach

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.error:.3f}" if len(self.values) > 1 else "")


def summaries(results: Mapping[str, Any], name: str) -> dict[str, Summary]:
    """A cell's ratios to Lite of the same seed, by column; empty if no seed has both."""
    cell, baseline = results["cells"][name]["seeds"], results["cells"].get(BASELINE, {"seeds": {}})["seeds"]
    shared = [(cell[seed]["measures"], baseline[seed]["measures"]) for seed in cell if seed in baseline]
    if not shared:
        return {}
    found = {title: Summary(tuple(mean_error(a, b, what) for a, b in shared)) for title, what in ERRORS.items()}
    for title, metric in DISTANCES.items():
        found[title] = Summary(tuple(a[metric] / b[metric] for a, b in shared))
    return found


def teacher_summaries(results: Mapping[str, Any], measures: Mapping[str, float]) -> dict[str, Summary]:
    """The same for something without seeds: the teacher, or the floor, which has no errors."""
    baselines = [seed["measures"] for seed in results["cells"][BASELINE]["seeds"].values()]
    found = {}
    if any(key.startswith("overall") for key in measures):
        found = {t: Summary(tuple(mean_error(measures, b, what) for b in baselines)) for t, what in ERRORS.items()}
    for title, metric in DISTANCES.items():
        found[title] = Summary(tuple(measures[metric] / b[metric] for b in baselines))
    return found


def rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the main table. All figures but the MACs are ratios to Lite: below 1 is better."""
    titles = [*ERRORS, *DISTANCES]
    headings = ["student", "M MACs", "seeds", *titles]
    table = []
    for name, cell in results["cells"].items():
        found = summaries(results, name)
        if not found:
            continue
        macs = next(iter(cell["seeds"].values()))["macs"] / 1e6
        table.append(
            [cell["about"], f"{macs:.1f}", str(len(found[titles[0]].values)), *(str(found[t]) for t in titles)]
        )
    if BASELINE in results["cells"]:
        teacher = teacher_summaries(results, results["teacher"]["measures"])
        floor = teacher_summaries(results, results["floor"])
        macs = results["teacher"]["macs"] / 1e6
        table.append(["teacher", f"{macs:.1f}", "–", *(f"{teacher[t].mean:.3f}" for t in titles)])
        table.append(["real against real", "–", "–", *(f"{floor[t].mean:.3f}" if t in floor else "–" for t in titles)])
    return headings, table


def markdown(headings: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A table for the docs."""
    lines = [
        "| " + " | ".join(headings) + " |",
        "|" + "|".join("---" if i == 0 else "--:" for i in range(len(headings))) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table)]) + "\n"
