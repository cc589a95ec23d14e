"""Do the ablation's comparisons of samples hold when more steps of the sampler are taken?

    python benchmarks/ablation_steps.py clothing-64.npz --size 32 --work runs/ablation-32

Teacher, Lite, and Spectral from the teacher's weights, of short and long training, as `benchmarks/ablation.py` left
them, are sampled with different numbers of dpm++ steps. What is measured is kept; start it again to go on. Saves
ablation_SIZE_steps.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from ablation.grid import CHANGED, LONG_LITE, LONG_SPECTRAL, weighed
from ablation.measure import Judge
from ablation.run import Ablation, kept_teacher
from ablation.tables import markdown

from slimdpm.pipelines.loading import load_pipeline
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts

STEPS = (20, 60)
COUNT = 256
# Each network, and what it is beside.
CELLS = {
    "lite": "lite",
    CHANGED: "lite",
    **dict.fromkeys([LONG_LITE, LONG_SPECTRAL, weighed(LONG_SPECTRAL)], LONG_LITE),
}
MEASURES = ("kernel distance", "Fréchet distance", "log-spectral distance, dB", "upper-half error, dB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data")
    parser.add_argument("--size", default="32")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation-32"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    teacher = kept_teacher(options.size)
    ablation = Ablation(options.size, options.data, options.work, range(options.seeds), teacher=teacher)
    file = options.output / f"ablation_{options.size}_steps.json"
    facts = {"samples": f"{COUNT} of each network, dpm++, seed 0", "hardware": machine_facts(), "measures": {}}
    results = json.loads(file.read_text()) if file.exists() else facts
    for steps in STEPS:
        judge = Judge(options.work / "samples-by-steps", ablation.parts["evaluation"], COUNT, steps)
        networks = [(cell, seed, ablation.student(cell, seed)) for seed in ablation.seeds for cell in CELLS]
        for name, seed, folder in [*networks, ("teacher", 0, ablation.teacher)]:
            kept = results["measures"].setdefault(str(steps), {}).setdefault(name, {})
            if str(seed) not in kept and folder.exists():
                found = judge.distances(f"{name}-{seed}-{steps}", load_pipeline(folder))
                kept[str(seed)] = {measure: found[measure] for measure in MEASURES}
                write_json(file, results)
                print(table(results), flush=True)


def table(results: dict) -> str:
    """Each network's means over the seeds, and its ratio to Lite of the same seed and length of training."""
    headings = ["network", "steps", *(title for measure in MEASURES for title in (measure, "÷ lite"))]
    rows = []
    for steps, networks in results["measures"].items():
        for name, seeds in networks.items():
            cells = [name, steps]
            lite = networks.get(CELLS.get(name), {})  # none for the teacher
            for measure in MEASURES:
                own = [found[measure] for found in seeds.values()]
                ratios = [f[measure] / lite[s][measure] for s, f in seeds.items() if s in lite]
                cells += [f"{np.mean(own):.3f}", f"{np.mean(ratios):.2f}" if ratios else "–"]
            rows.append(cells)
    return markdown(headings, rows)


if __name__ == "__main__":
    main()
