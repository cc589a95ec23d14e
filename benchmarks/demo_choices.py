"""What is best for the same seconds in a run of minutes: the demo's students, changed in one thing each.

    python benchmarks/demo_choices.py ../shared/data/clothing/validation --work runs/demo-choices

Each student gets the seconds that `BUDGET` steps of the base take, processor time of one thread; its steps follow from
what a step of each takes in turn. They are judged by photographs that neither training nor the demo's test has. A
student that learns the teacher's *guided* output needs one call of the network for a step of the sampler, the others
two. Everything resumes. Saves demo_choices.json, to which a run with other seeds or cells adds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.tables import markdown
from rich.console import Console

from slimdpm.demo.judge import EACH, GUIDANCE, SCHEDULER, STEPS, Judge
from slimdpm.demo.students import demo_recipe, lasting, lite_recipe, seconds_per_step
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.recipe import Recipe
from slimdpm.system.documents import read_json
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display
from slimdpm.training.job import Job
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

RESULTS = Path(__file__).parent / "results/demo_choices.json"
LITE, BASE = "fair Lite", "Spectral"
BUDGET = 400  # steps of the base


def distilled(kind: str = "spectral", reuse: int = 4, **settings: float) -> dict[str, dict[str, Any]]:
    return {"student": {"kind": kind}, "distill": {"reuse": reuse, **settings}}


CELLS: dict[str, dict[str, dict[str, Any]]] = {
    BASE: distilled(),
    "Spectral, reuse 2": distilled(reuse=2),
    "Spectral, reuse 8": distilled(reuse=8),
    "Spectral, no L_DDPM": distilled(lambda_denoising=0.0),
    "Spectral, guided": distilled(guidance=GUIDANCE),
    "plain": distilled("plain"),
    "plain, reuse 8": distilled("plain", 8),
    "plain, reuse 16": distilled("plain", 16),
    "plain, reuse 8, λ 1": distilled("plain", 8, lambda_spatial=1.0, lambda_freq=1.0),
    "plain, reuse 8, λ 0.5": distilled("plain", 8, lambda_spatial=0.5, lambda_freq=0.5),
    "plain, reuse 8, guided": distilled("plain", 8, guidance=GUIDANCE),
}


def recipe_of(name: str, seed: int, cache: Path) -> Recipe:
    base = demo_recipe(seed)
    own: dict[str, dict[str, Any]] = {
        "data": {"cache": str(cache)},
        "student": {"overrides": {}},
    }  # its teacher's depth
    base = base.model_copy(update={k: getattr(base, k).model_copy(update=changes) for k, changes in own.items()})
    if name == LITE:
        return lite_recipe(base)
    values = base.model_dump(exclude_unset=True)
    for section, changes in CELLS[name].items():
        values[section] = {**values.get(section, {}), **changes}
    return Recipe.model_validate(values)


def run(photographs: str, work: Path, names: list[str], seeds: list[int]) -> dict[str, Any]:
    display = Display(Console())
    judge = Judge(work / "measured", display, photographs)
    found: dict[str, Any] = read_json(RESULTS)["networks"] if RESULTS.exists() else {}
    for seed in seeds:
        folder = work / str(seed)
        jobs = {name: plan_job(recipe_of(name, seed, work / "cache")) for name in [LITE, *names]}
        seconds = timed(jobs, work, display)
        for name, job in jobs.items():
            steps = round(BUDGET * seconds[BASE] / seconds[name])
            pipeline = run_job(lasting(job, steps), folder / name, display, report=False)
            for scale in [1.0] if "guided" in name else [GUIDANCE, 1.0] if name in (LITE, BASE) else [GUIDANCE]:
                verdict = judge.verdict(f"{name} {seed} {scale:g}", pipeline, scale)
                key = f"{name}, guidance {scale:g}"
                told = {"seed": seed, "steps": steps, "seconds of a step": seconds[name]}
                told |= {"calls of a step": 1 if scale == 1 else 2, **verdict.figures()}
                found[key] = [*(run for run in found.get(key, []) if run["seed"] != seed), told]
                print(table(found), flush=True)
    for scale in (1.0, GUIDANCE):
        if (key := f"teacher, guidance {scale:g}") not in found:
            verdict = judge.verdict(f"teacher {scale:g}", load_pipeline(demo_recipe().teacher or ""), scale)
            found[key] = [verdict.figures()]
    return {
        "networks": found,
        "samples": f"{EACH} of each class, {SCHEDULER}, {STEPS} steps, seed 0",
        "photographs": len(judge.photographs),
        "hardware": machine_facts(),
    }


def timed(jobs: dict[str, Job], work: Path, display: Display) -> dict[str, float]:
    """Seconds of a step of each student; measured once for all seeds, in turns with the base."""
    file = work / "seconds.json"
    known = read_json(file) if file.exists() else {}
    if missing := [name for name in jobs if name not in known]:
        together = {name: jobs[name] for name in dict.fromkeys([BASE, *missing])}
        found = seconds_per_step(together, work / f"timed-{len(known)}", display)
        scale = known.get(BASE, found[BASE]) / found[BASE]  # another sitting may be slower as a whole
        known |= {name: found[name] * scale for name in missing}
        write_json(file, known)
    return known


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the seeds."""
    heads = ["student", "seeds", "steps", "calls a sampler's step", "error", "upper half", "kernel distance", "named"]
    formats = {"steps": ",.0f", "calls of a step": ".0f", "error": ".4f", "upper half": ".4f", "kernel distance": ".3f"}
    rows = []
    for name, runs in found.items():
        means = {key: float(np.mean([run[key] for run in runs])) for key in [*formats, "named"] if key in runs[0]}
        cells = [format(means[key], form) if key in means else "" for key, form in formats.items()]
        seeds = len(runs) if "seed" in runs[0] else ""
        rows.append([name, str(seeds), *cells, f"{means['named']:.0%}"])
    return markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", help="a folder for each class")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", choices=CELLS, default=[*CELLS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = run(options.photographs, options.work, options.only, options.seeds)
    write_json(RESULTS, found)
    print(table(found["networks"]))


if __name__ == "__main__":
    main()
