"""What it costs to slim without images: the demo's student from real crops, and from samples that its teacher made.

    python benchmarks/data_free.py --seeds 3 --output benchmarks/results/data_free.json

Each student is the demo's Spectral with another training set: all 24,000 real crops, as many of them as the teacher
makes samples, or those samples. The figure is the error of ε on the demo's held-out crops. Samples are made once, for
all seeds, and a result that is there already is not made again, so the script can be stopped and started; the samples
take about ten minutes on an idle core, one student two.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from demo_variants import VARIANTS, measure, variant_recipe
from rich.console import Console

from slimdpm.cache.teacher_samples import Samples, prepare_samples
from slimdpm.data.demo_photographs import demo_source
from slimdpm.recipe import Recipe
from slimdpm.system.files import atomic_file, write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.processes import pick_device
from slimdpm.system.progress import Display
from slimdpm.training.plan import plan_job

SAMPLER = {"steps": 25, "scheduler": "ddim", "seed": 1}


def recipes(seed: int, steps: int | None, count: int, work: Path) -> dict[str, Recipe]:
    """The demo's student on each training set."""
    samples = {"count": count, **SAMPLER}
    data = {
        "real": {},
        "real, as few": {"data.path": str(_few(work, count))},
        "teacher": {
            "data.path": "teacher",
            "data.cache": str(work / "cache"),
            **{f"data.samples.{key}": value for key, value in samples.items()},
        },
    }
    return {arm: variant_recipe({**VARIANTS["spectral"], **settings}, seed, steps) for arm, settings in data.items()}


def _few(work: Path, count: int) -> Path:
    """Some of the real crops, drawn once."""
    file = work / f"real-{count}.npy"
    if not file.exists():
        crops = demo_source("train").images
        chosen = np.sort(np.random.default_rng(0).permutation(len(crops))[:count])
        with atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, crops[chosen])
    return file


def make_samples(recipe: Recipe) -> float:
    """Seconds in which the samples were made; next to none if they are there."""
    job = plan_job(recipe)
    assert isinstance(job.source, Samples) and isinstance(recipe.data.cache, str)
    start = time.perf_counter()
    root = Path(recipe.data.cache)
    root.mkdir(parents=True, exist_ok=True)
    prepare_samples(job.source, job.shell, root, device=pick_device("cpu"), display=Display(Console()))
    return time.perf_counter() - start


def table(results: dict) -> str:
    """Errors as means over noise levels and seeds, and the ratio to real data of the same seed."""
    lines = [f"{'training set':14} {'overall':>8} {'upper':>8} {'÷ real':>8} {'upper ÷ real':>13}"]
    for arm, seeds in results.items():
        overall, upper = (np.mean([r[k] for r in seeds.values()]) for k in ("overall", "upper"))
        pairs = [(r, results["real"][s]) for s, r in seeds.items() if s in results["real"]]
        ratios = [np.mean([np.divide(r[k], b[k]) for r, b in pairs]) for k in ("overall", "upper")]
        lines.append(f"{arm:14} {overall:8.4f} {upper:8.4f} {ratios[0]:8.4f} {ratios[1]:13.4f}  ({len(seeds)} seeds)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each student; by default the demo's")
    parser.add_argument("--count", type=int, default=2048, help="samples that the teacher makes")
    parser.add_argument("--work", type=Path, default=Path("runs/data-free"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/data_free.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    stored = json.loads(options.output.read_text()) if options.output.exists() else {}
    results = stored.get("results", {})
    settings = {"count": options.count, **SAMPLER}
    if stored and stored["samples"] != settings:
        raise SystemExit(f"{options.output} holds results of other samples: {stored['samples']}")
    seconds = make_samples(recipes(0, options.steps, options.count, options.work)["teacher"])
    seconds = max(seconds, stored.get("seconds_for_the_samples", 0.0))
    for seed in range(options.seeds):
        for arm, recipe in recipes(seed, options.steps, options.count, options.work).items():
            if str(seed) in results.setdefault(arm, {}):
                continue
            results[arm][str(seed)] = measure(recipe)
            facts = {"hardware": machine_facts(), "samples": settings, "seconds_for_the_samples": round(seconds, 1)}
            write_json(options.output, {**facts, "results": results})
            print(table({k: v for k, v in results.items() if v}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
