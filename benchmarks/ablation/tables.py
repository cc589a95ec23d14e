"""The results as people read them: each cell beside Lite of the same seed, with the spread over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .grid import CHANGED, DEFAULT, FURTHER, LONG_LITE, LONG_SPECTRAL, SLIMMER, weighed
from .measure import HELD_OUT, mean_error

BASELINE = "lite"
LEVEL = 0.95

# What a table's columns are: title, and whether the figure is the ratio to Lite of the same seed.
ERRORS = {"error of ε": "overall", "upper half": "upper-half"}
HELD_OUT_ERRORS = {"error of ε, held out": f"{HELD_OUT}overall"}  # of the images for choices
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
        from scipy.stats import t as student_t  # here: who only plans has no need of it

        reach = float(student_t.ppf((1 + LEVEL) / 2, n - 1)) * self.error
        return self.mean - reach, self.mean + reach

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.error:.3f}" if len(self.values) > 1 else "")


def summaries(results: Mapping[str, Any], name: str, base: str = BASELINE) -> dict[str, Summary]:
    """A cell's ratios to Lite, or another, of the same seed, by column; empty if no seed has both.

    Those on the held-out images are there if each of these seeds has them.
    """
    cell, baseline = results["cells"][name]["seeds"], results["cells"].get(base, {"seeds": {}})["seeds"]
    shared = [(cell[seed]["measures"], baseline[seed]["measures"]) for seed in cell if seed in baseline]
    if not shared:
        return {}
    held_out = all(any(key.startswith(HELD_OUT) for key in measures) for pair in shared for measures in pair)
    titles = (*ERRORS, *DISTANCES, *(HELD_OUT_ERRORS if held_out else ()))
    return {title: Summary(tuple(_ratio(a, b, title) for a, b in shared)) for title in titles}


def compared(results: Mapping[str, Any], base: str = BASELINE) -> dict[str, dict[str, Summary]]:
    """The cells' ratios to a base, by name: the changes if it is `CHANGED`, else all others."""
    cells = [name for name, cell in results["cells"].items() if (cell["group"] in FURTHER) == (base == CHANGED)]
    return {name: found for name in cells if (found := summaries(results, name, base))}


def teacher_summaries(
    results: Mapping[str, Any], measures: Mapping[str, float], base: str = BASELINE
) -> dict[str, Summary]:
    """The same for something without seeds: the teacher, or the floor, which has no errors."""
    baselines = [seed["measures"] for seed in results["cells"][base]["seeds"].values()]
    errors = ERRORS if any(key.startswith("overall") for key in measures) else {}
    return {title: Summary(tuple(_ratio(measures, b, title) for b in baselines)) for title in (*errors, *DISTANCES)}


def rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the main table, without `changes`. All figures but the MACs are ratios to Lite."""
    titles = [*ERRORS, *DISTANCES]
    headings = ["student", "M MACs", "seeds", *titles]
    table = []
    for name, found in compared(results).items():
        table.append([*_about(results["cells"][name], found), *(str(found[t]) for t in titles)])
    if BASELINE in results["cells"]:
        teacher = teacher_summaries(results, results["teacher"]["measures"])
        floor = teacher_summaries(results, results["floor"])
        macs = results["teacher"]["macs"] / 1e6
        table.append(["teacher", f"{macs:.1f}", "–", *(f"{teacher[t].mean:.3f}" for t in titles)])
        table.append(["real against real", "–", "–", *(f"{floor[t].mean:.3f}" if t in floor else "–" for t in titles)])
    return headings, table


def _about(cell: Mapping[str, Any], found: Mapping[str, Summary]) -> list[str]:
    """What a row begins with: the cell, its MACs in millions, and how many seeds were compared."""
    macs = next(iter(cell["seeds"].values()))["macs"] / 1e6
    return [cell["about"], f"{macs:.1f}", str(len(next(iter(found.values())).values))]


# The two by two by two of the core: each factor's cells without it and with it, the other factors alike.
FACTORS = {
    "gating": (
        ("lite", "gating"),
        ("spatial", "gating + spatial"),
        ("frequency", "gating + frequency"),
        ("spatial + frequency", "spectral"),
    ),
    "spatial distillation": (
        ("lite", "spatial"),
        ("frequency", "spatial + frequency"),
        ("gating", "gating + spatial"),
        ("gating + frequency", "spectral"),
    ),
    "frequency distillation": (
        ("lite", "frequency"),
        ("spatial", "spatial + frequency"),
        ("gating", "gating + frequency"),
        ("gating + spatial", "spectral"),
    ),
    "start from the teacher": (
        ("lite", "lite from teacher"),
        ("gating", "gating from teacher"),
        ("spatial + frequency", "lite + distilled from teacher"),
        ("spectral", "spectral from teacher"),
    ),
}


def effects(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What each part does by itself: with it over without it, the geometric mean over what else a student may have.

    The interval of 95 % is over the seeds. Below 1 is better.
    """
    table = []
    for factor, pairs in FACTORS.items():
        if not all(name in results["cells"] for pair in pairs for name in pair):
            continue
        measured = [[results["cells"][name]["seeds"] for name in pair] for pair in pairs]
        shared = sorted(set.intersection(*(set(seeds) for pair in measured for seeds in pair)))
        if not shared:
            continue
        line = [factor, str(len(shared))]
        for title in (*ERRORS, *DISTANCES):
            per_seed = [
                float(np.exp(np.mean([np.log(_ratio(b[s]["measures"], a[s]["measures"], title)) for a, b in measured])))
                for s in shared
            ]
            line.append(_with_interval(Summary(tuple(per_seed))))
        table.append(line)
    return ["part", "seeds", *ERRORS, *DISTANCES], table


def changes(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """One change at a time to the student that the grid starts from: ratios to it, 95 % intervals over the seeds.

    The error on the held-out images comes first: it is what may be chosen by.
    """
    titles = (*HELD_OUT_ERRORS, *ERRORS, *DISTANCES)
    table = [
        [*_about(results["cells"][name], found), *(_with_interval(found[t]) if t in found else "–" for t in titles)]
        for name, found in compared(results, CHANGED).items()
    ]
    return ["change", "M MACs", "seeds", *titles], table


def headlines(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The claims in a few lines: students over Lite, and over the teacher, with intervals of 95 % over the seeds."""
    spectral = ("spectral", CHANGED, DEFAULT, SLIMMER)
    long = (LONG_LITE, LONG_SPECTRAL, weighed(LONG_LITE), weighed(LONG_SPECTRAL))
    pairs = [
        *((name, BASELINE) for name in spectral),
        (DEFAULT, weighed(BASELINE)),
        (LONG_SPECTRAL, LONG_LITE),
        (weighed(LONG_SPECTRAL), LONG_LITE),
        (weighed(LONG_SPECTRAL), weighed(LONG_LITE)),
    ]
    lines = []
    for name, base in pairs:
        if found := summaries(results, name, base) if name in results["cells"] else {}:
            lines.append([f"{name} ÷ {base}", *(_with_interval(found[title]) for title in (*ERRORS, *DISTANCES))])
    for name in (BASELINE, *spectral, *long):
        if name in results["cells"]:
            seeds = results["cells"][name]["seeds"].values()
            over = [
                Summary(tuple(_ratio(seed["measures"], results["teacher"]["measures"], title) for seed in seeds))
                for title in (*ERRORS, *DISTANCES)
            ]
            lines.append([f"{name} ÷ teacher", *map(_with_interval, over)])
    return ["", *ERRORS, *DISTANCES], lines


def _ratio(measures: Mapping[str, float], baseline: Mapping[str, float], title: str) -> float:
    if what := {**ERRORS, **HELD_OUT_ERRORS}.get(title):
        return mean_error(measures, baseline, what)
    return measures[DISTANCES[title]] / baseline[DISTANCES[title]]


def _with_interval(summary: Summary) -> str:
    low, high = summary.interval
    return f"{summary.mean:.3f}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")


def markdown(headings: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A table for the docs."""
    lines = [
        "| " + " | ".join(headings) + " |",
        "|" + "|".join("---" if i == 0 else "--:" for i in range(len(headings))) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table)]) + "\n"


INTRODUCTION = (
    "Written by `benchmarks/ablation.py` from the JSON beside this file; docs/findings.md says what the figures mean "
    "and how they were measured. Ratios: below 1 is better, and an interval that holds 1 shows nothing."
)
SECTIONS = (
    ("Students beside Lite and the teacher", headlines, "In brackets the 95 % interval over the seeds."),
    (
        "Each part by itself",
        effects,
        "Each part's ratio of with to without, the geometric mean over what else a student may have.",
    ),
    (
        "One change at a time",
        changes,
        "Ratios to Spectral from the teacher's weights (outputs distilled with λ = 2, α = −1, gates that start near a "
        "low-pass, all timesteps weighed alike) of the same seed. The first column is of the held-out images, by which "
        "alone anything was chosen.",
    ),
    ("All cells", rows, "Ratios to Lite of the same seed, with the standard error of the mean."),
)


def page(results: Mapping[str, Any]) -> str:
    """All tables, with a heading and what the figures are."""
    parts = [f"# The ablation's tables\n\n{INTRODUCTION}\n"]
    parts += [f"## {title}\n\n{about}\n\n{markdown(*made(results))}" for title, made, about in SECTIONS]
    return "\n".join(parts)
