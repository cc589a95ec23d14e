"""Which parts of the method earn their place on the demo's task, at equal cost and equal training.

    python benchmarks/demo_variants.py --seeds 3 --output benchmarks/results/demo_variants.json

The variant *default* is the demo's recipe; every other one starts from random weights, weighs all timesteps alike, and
has the settings listed in OTHERS. The figure is the error of ε on the demo's held-out crops, over the Lite baseline's
of the same seed: below 1 is better than Lite. A result that is there already is not made again, so the script can be
stopped and started; one variant takes one to three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from ablation.grid import MIN_SNR, NO_TEACHER
from crops import crops_lite, crops_recipe

from slimdpm.data.demo_photographs import demo_source
from slimdpm.data.images import to_model_range
from slimdpm.metrics.denoising import TIMESTEPS, denoising_errors
from slimdpm.pipelines.shell import shell_of
from slimdpm.recipe import Recipe
from slimdpm.recipe_file import flatten, load_recipe
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

PLAIN = {"student.init": "random", "train.snr_gamma": "none"}
EPSILON = {"student.prediction": "epsilon"}  # of a teacher that predicts v
OTHERS: dict[str, dict] = {
    "lite": {"lite": True},
    "wg": NO_TEACHER,
    "wg-dense": {**NO_TEACHER, "student.overrides": {"wavelet_expansion": "dense"}},
    "wg-none": {**NO_TEACHER, "student.overrides": {"wavelet_expansion": "none"}},
    "wg-equal": {**NO_TEACHER, "student.overrides": {"wavelet_gate_init": [0.5, 0.5, 0.5, 0.5]}},
    "spectral": {},
    "spectral-paper": {"distill.pairs": "auto", "distill.lambda_spatial": 0.1, "distill.lambda_freq": 0.1},
    "spectral-dense": {"student.overrides": {"wavelet_expansion": "dense"}},
    "spectral-none": {"student.overrides": {"wavelet_expansion": "none"}},
    "lite-min-snr": {"lite": True, **MIN_SNR},
    "spectral-min-snr": MIN_SNR,
    "spectral-epsilon": EPSILON,
    "spectral-epsilon-min-snr": {**EPSILON, **MIN_SNR},
}
VARIANTS: dict[str, dict] = {"default": {}, **{name: {**PLAIN, **settings} for name, settings in OTHERS.items()}}


def variant_recipe(settings: dict, seed: int, steps: int | None) -> Recipe:
    base = crops_recipe(seed, steps)
    if settings.get("lite"):
        base = crops_lite(base)
    changed = {key: value for key, value in settings.items() if key != "lite"}
    values = flatten(base.model_dump(mode="json"))
    return load_recipe(None, settings={**{k: v for k, v in values.items() if v is not None}, **changed})


def measure(recipe: Recipe) -> dict:
    """Train one student and measure it."""
    torch.set_num_threads(2)
    job = plan_job(recipe)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = run_job(job, Path(folder) / "run", report=False)
    held_out = to_model_range(torch.from_numpy(demo_source("held-out").images).permute(0, 3, 1, 2))
    errors = denoising_errors(pipeline.unet, shell_of(pipeline).process, held_out)
    return {
        "channels": list(job.plan.config["block_out_channels"]),
        "params": job.plan.cost.params,
        "macs": job.plan.cost.macs,
        "steps": recipe.train.steps,
        "overall": errors.overall,
        "upper": errors.upper,
    }


def table(results: dict) -> str:
    """Ratios to Lite of the same seed: mean over noise levels and seeds, and by noise level in the upper half."""
    lines = [f"{'variant':24} {'MMACs':>6} {'overall':>8} {'upper':>8}   upper at t = {', '.join(map(str, TIMESTEPS))}"]
    for name, seeds in results.items():
        pairs = [(r, results["lite"][s]) for s, r in seeds.items() if s in results.get("lite", {})]
        if not pairs:
            continue
        overall, upper = (np.array([np.divide(r[k], b[k]) for r, b in pairs]) for k in ("overall", "upper"))
        levels = " ".join(f"{v:.3f}" for v in upper.mean(axis=0))
        macs = next(iter(seeds.values()))["macs"] / 1e6
        lines.append(
            f"{name:24} {macs:6.1f} {overall.mean():8.4f} {upper.mean():8.4f}   {levels}  ({len(pairs)} seeds)"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each student; by default the demo's")
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/demo_variants.json"))
    options = parser.parse_args()
    stored = json.loads(options.output.read_text()) if options.output.exists() else {}
    results = stored.get("results", {})
    for seed in range(options.seeds):
        for name in options.only or VARIANTS:
            if str(seed) not in results.setdefault(name, {}):
                results[name][str(seed)] = measure(variant_recipe(VARIANTS[name], seed, options.steps))
                write_json(options.output, {"hardware": machine_facts(), "results": results})
                print(table(results), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
