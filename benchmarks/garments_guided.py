"""Guidance that is learnt: one call of the network a step, beside the two of a fair Lite.

    python benchmarks/garments_guided.py train --work runs/garments-guided --begun runs/garments-seconds
    python benchmarks/garments_guided.py measure --work runs/garments-guided

`recipes/garments-guided.yaml`: the gated student of benchmarks/garments_seconds.py (12 times smaller, seed 0) goes on
with its teacher's guided output, the fair Lite with the photographs, for as many seconds: processor time of one thread,
steps of both taken in turn before they are trained. Lite is guided as it samples, by two calls, or not at all. Measured
on the photographs of ``slimdpm:garments-test``. Everything resumes; saves garments_guided.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ablation.tables import markdown
from garments import EACH
from garments_seconds import GUIDANCE, MEASURES, steps_of
from rich.console import Console

from slimdpm.demo.judge import SCHEDULER, STEPS, Judge
from slimdpm.demo.students import demo_recipe, lasting, lite_recipe, seconds_per_step
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.system.documents import read_json
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes/garments-guided.yaml"
RESULTS = HERE / "results/garments_guided.json"
LITE, GUIDED = "garments-12x-lite", "garments-12x"  # folders
BEGUN = {GUIDED: "12-spectral-0", LITE: "12-lite-0"}
ROWS = {  # title: folder, guidance
    "fair Lite, two calls": (LITE, GUIDANCE),
    "fair Lite, one call": (LITE, 1.0),
    "guidance learnt, one call": (GUIDED, 1.0),
}


def train(work: Path, begun: Path, names: list[str], display: Display) -> None:
    recipe = demo_recipe(file=RECIPE)
    jobs = {name: plan_job(each, folder=work / name) for name, each in ((GUIDED, recipe), (LITE, lite_recipe(recipe)))}
    jobs = {name: replace(job, origin=load_pipeline(begun / BEGUN[name]).unet) for name, job in jobs.items()}
    seconds = seconds_per_step(jobs, work, display)
    jobs[LITE] = lasting(jobs[LITE], round(recipe.train.steps * seconds[GUIDED] / seconds[LITE]))
    for name in names:
        run_job(jobs[name], work / name, display, report=False)


def measured(work: Path) -> dict[str, Any]:
    judge = Judge(work / "measured", Display(Console()))
    found: dict[str, Any] = {}
    for title, (name, scale) in ROWS.items():
        figures = judge.verdict(title, load_pipeline(work / name), scale, EACH).figures()
        found[title] = {"steps": steps_of(work / name), **figures}
    return {
        "networks": found,
        "seconds of a step": read_json(work / "seconds.json"),
        "batch size": demo_recipe(file=RECIPE).train.batch_size,
        "samples": f"{EACH} of each class, {SCHEDULER}, {STEPS} steps, guidance {GUIDANCE:g} by two calls, seed 0",
        "photographs": len(judge.photographs),
        "hardware": machine_facts(),
    }


def table(found: Mapping[str, Any]) -> str:
    rows = []
    for title, one in found["networks"].items():
        distance = f"{one['kernel distance']:.3f} ± {one['its standard error']:.3f}"
        rows.append(
            [
                title,
                f"{one['steps']:,}",
                f"{one['error']:.4f}",
                f"{one['upper half']:.4f}",
                distance,
                f"{one['named']:.0%}",
            ]
        )
    return markdown(["samples of", "steps", *MEASURES], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    training = tasks.add_parser("train")
    training.add_argument("--begun", type=Path, required=True, help="the folder of garments_seconds.py")
    training.add_argument("--only", nargs="+", choices=[*BEGUN], default=[*BEGUN])
    for task in (training, tasks.add_parser("measure")):
        task.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task == "train":
        train(options.work, options.begun, options.only, Display(Console()))
        return
    found = measured(options.work)
    write_json(RESULTS, found)
    print(table(found))


if __name__ == "__main__":
    main()
