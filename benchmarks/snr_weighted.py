"""What weighing the distillation's timesteps by min-SNR does with a good teacher, of v and of ε: one pair of runs each.

    python benchmarks/snr_weighted.py --work runs/snr-weighted

The student without gates of garments_seconds.py ``--on cpu``, seed 0, after `STEPS` steps. Everything resumes; saves
snr_weighted.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from garments import EACH
from garments_seconds import BATCHES, GUIDANCE, RATIO, job_of
from rich.console import Console

from slimdpm.demo.judge import Judge
from slimdpm.demo.run import APART
from slimdpm.demo.students import lasting
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display
from slimdpm.training.run import run_job

RESULTS = Path(__file__).parent / "results/snr_weighted.json"
TEACHERS = {"v": "garments-teacher", "epsilon": "garments-teacher-long"}
RUNS = {"old": False, "new": True}  # whether the distillation is weighed
STEPS = 800


def trained(teacher: str, weighted: bool, folder: Path, display: Display) -> None:
    job = lasting(job_of(f"{RATIO}-plain-0", teacher, folder, "cpu"), STEPS)
    distill = job.recipe.distill.model_copy(update={"snr_weighted": weighted})
    run_job(replace(job, recipe=job.recipe.model_copy(update={"distill": distill})), folder, display, report=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    display, found = Display(Console()), {}
    judge = Judge(options.work / "measured", display)
    for kind, teacher in TEACHERS.items():
        shown = judge.verdict(teacher, load_pipeline(f"slimdpm:{teacher}"), GUIDANCE, EACH)
        for name, weighted in RUNS.items():
            trained(teacher, weighted, folder := options.work / f"{teacher}-{name}-0", display)
            verdict = judge.verdict(f"{teacher}-{name}-0-{STEPS}", load_pipeline(folder), GUIDANCE, EACH)
            figures = {**verdict.figures(), APART: verdict.apart(shown)}
            found[f"{kind}, {'weighed' if weighted else 'all alike'}"] = figures
    facts = {"steps": STEPS, "batch size": BATCHES["cpu"], "seed": 0, "guidance": GUIDANCE, "hardware": machine_facts()}
    write_json(RESULTS, {**facts, "students": found})
    for name, figures in found.items():
        print(name, {what: f"{value:.4g}" for what, value in figures.items()})


if __name__ == "__main__":
    main()
