"""Samplers as tables beside diffusers' own schedulers: how far the samples are apart.

    python benchmarks/sampler_tables.py

Each sampler with 1 to 1,000 steps, with each kind of prediction and with and without clipping, from the same noise by a
network that bends and leaves the range: the largest difference, relative to the largest number on the way. Some
schedulers of diffusers fail at as many steps as they were trained with: these take one fewer. A
sampler that is in the result is not tried again.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from ablation.tables import markdown

from slimdpm.pipelines.sampling import SCHEDULERS
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_sampler_table import PREDICTIONS, STEPS, off_the_way

RESULTS = Path(__file__).parent / "results/sampler_tables.json"


def off(name: str, steps: int) -> dict[str, float]:
    """By prediction and clipping, of those that the scheduler can."""
    found = {}
    for prediction, clip in product(PREDICTIONS, (False, True)):
        try:
            apart = off_the_way(name, prediction, clip, steps)
        except (IndexError, AssertionError):  # of a scheduler that has as many steps as it was trained with
            continue
        if apart is not None:
            found[f"{prediction}{', clipped' * clip}"] = float(apart)
    return found


def tried(name: str) -> dict[str, dict[str, float]]:
    """By steps."""
    found = {steps: off(name, steps) for steps in (*STEPS, 1000)}
    if not found[1000]:
        found[999] = off(name, 999)
    return {str(steps): values for steps, values in found.items() if values}


def table(samplers: dict[str, Any]) -> str:
    rows = []
    for name, found in samplers.items():
        apart = {steps: f"{max(values.values()):.0e}" for steps, values in found.items()}
        rows.append(
            [name, *(apart.get(str(steps), "–") for steps in STEPS), apart.get("1000") or f"{apart['999']} (999)"]
        )
    return markdown(["sampler", *(f"{steps} step{'s' * (steps > 1)}" for steps in STEPS), "1,000"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    output = parser.parse_args().output
    results = json.loads(output.read_text()) if output.exists() else {"samplers": {}}
    for name in (name for name in SCHEDULERS if name not in results["samplers"]):
        results["samplers"][name] = tried(name)
        write_json(output, {**results, "seed": 3, "samples": [3, 8, 8], "hardware": machine_facts()})
    print(table(results["samplers"]))


if __name__ == "__main__":
    main()
