"""What a start from the teacher's weights is worth on the demo's task: Lite and Spectral, equal steps.

    python benchmarks/init_from_teacher.py --seeds 3 --output benchmarks/results/init_from_teacher.json

Each student is the demo's recipe with ``student.init`` random or teacher. The figure is the error of ε on the demo's
held-out crops, also before the first step. A result that is there already is not made again, so the script can be
stopped and started; one student takes one to two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from demo_variants import VARIANTS, measure, variant_recipe

from slimdpm.data.demo_photographs import demo_source
from slimdpm.data.images import to_model_range
from slimdpm.method.inherit import inherited_weights
from slimdpm.method.networks import build
from slimdpm.metrics.denoising import denoising_errors
from slimdpm.recipe import Recipe
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.training.plan import plan_job

NETWORKS = ("lite", "spectral")
STARTS = ("random", "teacher")


def student_recipe(network: str, start: str, seed: int, steps: int | None) -> Recipe:
    recipe = variant_recipe(VARIANTS[network], seed, steps)
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"init": start})})


def errors_at_start(recipe: Recipe) -> list[float]:
    """The error of ε at each noise level before the first step."""
    job = plan_job(recipe)
    torch.manual_seed(recipe.train.seed)
    unet = build(job.plan.config)
    if job.origin is not None:
        unet.load_state_dict(inherited_weights(job.origin, unet), strict=False)
    held_out = to_model_range(torch.from_numpy(demo_source("held-out").images).permute(0, 3, 1, 2))
    return list(denoising_errors(unet, job.shell.process, held_out).overall)


def table(results: dict) -> str:
    """Errors as means over noise levels and seeds, and the ratio to a random start of the same seed."""
    lines = [f"{'student':20} {'at start':>9} {'overall':>8} {'upper':>8} {'÷ random':>9}"]
    for name, seeds in results.items():
        random = results[f"{name.split()[0]} random"]
        start, overall, upper = (np.mean([r[k] for r in seeds.values()]) for k in ("at_start", "overall", "upper"))
        ratios = [np.divide(r["overall"], random[s]["overall"]).mean() for s, r in seeds.items() if s in random]
        lines.append(f"{name:20} {start:9.4f} {overall:8.4f} {upper:8.4f} {np.mean(ratios):9.4f}  ({len(seeds)} seeds)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each student; by default the demo's")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/init_from_teacher.json"))
    options = parser.parse_args()
    stored = json.loads(options.output.read_text()) if options.output.exists() else {}
    results = stored.get("results", {})
    for seed in range(options.seeds):
        for name in (f"{network} {start}" for network in NETWORKS for start in STARTS):
            if str(seed) in results.setdefault(name, {}):
                continue
            recipe = student_recipe(*name.split(), seed, options.steps)
            results[name][str(seed)] = {"at_start": errors_at_start(recipe), **measure(recipe)}
            write_json(options.output, {"hardware": machine_facts(), "results": results})
            print(table({k: v for k, v in results.items() if v}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
