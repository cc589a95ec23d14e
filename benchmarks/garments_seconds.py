"""A good teacher and as many seconds of a GPU: the fair Lite, the distilled student without gates, and the gated one.

    python benchmarks/garments_seconds.py train --work runs/garments-seconds --seconds 60
    python benchmarks/garments_seconds.py measure --work runs/garments-seconds

Students of `recipes/garments-students.yaml` with batches of 128, 12 times smaller than the teacher, three seeds of
each, and a gated one of 8 and of 18 times. A step of each kind is timed alone and in turn; from it follow the steps.
All then train at once, since a GPU has room for many networks so small (its MPS daemon lets them overlap; without it
they take longer for the same steps). `measure` needs no GPU: errors and samples, beside the photographs of
``slimdpm:garments-test``. Everything resumes; saves garments_seconds.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ablation.tables import Summary, markdown
from garments import EACH
from garments_students import RECIPE
from rich.console import Console

from slimdpm.demo.judge import SCHEDULER, STEPS, Judge
from slimdpm.demo.students import demo_recipe, gated_recipe, lasting, lite_recipe, seconds_per_step
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.run_folder import RunFolder
from slimdpm.system.documents import read_json
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.packaged import ASSETS
from slimdpm.system.progress import Display
from slimdpm.training.job import Job
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

RESULTS = Path(__file__).parent / "results/garments_seconds.json"
TEACHER = "garments-teacher-long"
BATCH = 128
SEEDS = (0, 1, 2)
RATIO = 12
LITE = "lite"
KINDS = {LITE: lite_recipe, "plain": lambda recipe: recipe, "spectral": gated_recipe}
TITLES = {LITE: "fair Lite", "plain": "distilled, no gates", "spectral": "distilled, gates"}
NAMES = [*(f"{RATIO}-{kind}-{seed}" for kind in KINDS for seed in SEEDS), "8-spectral-0", "18-spectral-0"]
GUIDANCE = 3.0
MEASURES = ("error", "upper half", "kernel distance", "named")


def job_of(name: str, work: Path) -> Job:
    """Of ``RATIO-KIND-SEED``."""
    ratio, kind, seed = name.split("-")
    recipe = demo_recipe(int(seed), file=RECIPE)
    train = {"batch_size": BATCH, "sample_every": 0, "checkpoint_every": 1000, "log_every": 100}
    changed = {
        "teacher": f"slimdpm:{TEACHER}",
        "student": recipe.student.model_copy(update={"ratio": float(ratio)}),
        "data": recipe.data.model_copy(update={"workers": 2}),
        "train": recipe.train.model_copy(update=train),
    }
    return plan_job(KINDS[kind](recipe.model_copy(update=changed)), folder=work / name)


def train(work: Path, seconds: float) -> None:
    """All of them at once, each in a process of its own."""
    seconds_per_step({kind: job_of(f"{RATIO}-{kind}-0", work) for kind in KINDS}, work, Display(Console()))
    write_json(work / "machine.json", {"seconds of each, alone": seconds, **machine_facts()})
    command = [sys.executable, __file__, "train", "--work", work, "--seconds", str(seconds), "--only"]
    processes = [subprocess.Popen([*command, name]) for name in NAMES]
    if any([process.wait() for process in processes]):  # noqa: C419 -- all of them are waited for
        raise SystemExit("not all of them are trained: see above, and start again to go on")


def train_one(name: str, work: Path, seconds: float) -> None:
    steps = round(seconds / read_json(work / "seconds.json")[name.split("-")[1]])
    run_job(lasting(job_of(name, work), steps), work / name, Display(Console()), report=False)


def measured(work: Path) -> dict[str, Any]:
    display = Display(Console())
    judge = Judge(work / "measured", display)
    networks = {"teacher": ASSETS / TEACHER, **{name: work / name for name in NAMES}}
    found: dict[str, Any] = {}
    for name, folder in networks.items():
        figures = judge.verdict(name, load_pipeline(folder), GUIDANCE, EACH).figures()
        found[name] = {"steps": steps_of(folder), **figures} if name in NAMES else figures
        print(name, figures, flush=True)
    return {
        "networks": found,
        "seconds of a step": read_json(work / "seconds.json"),
        "batch size": BATCH,
        "samples": f"{EACH} of each class, {SCHEDULER}, {STEPS} steps, guidance {GUIDANCE:g}, seed 0",
        "photographs": len(judge.photographs),
        "trained on": read_json(work / "machine.json"),
        "measured on": machine_facts(),
    }


def steps_of(run: Path) -> int:
    """That a run has taken."""
    return RunFolder(run).metrics()[-1]["step"]


def table(found: Mapping[str, Any]) -> str:
    """Means over the seeds, and ratios to the Lite of the same seed with their 95 % interval."""
    networks = found["networks"]
    rows = [["teacher", "", "", "", *(f"{networks['teacher'][what]:.4g}" for what in MEASURES), "", ""]]
    for kind, title in TITLES.items():
        runs = [(networks[f"{RATIO}-{kind}-{seed}"], networks[f"{RATIO}-{LITE}-{seed}"]) for seed in SEEDS]
        means = [Summary(tuple(ours[what] for ours, _ in runs)).mean for what in MEASURES]
        ratios = [
            Summary(tuple(ours[what] / lite[what] for ours, lite in runs)) for what in ("error", "kernel distance")
        ]
        told = [f"{r.mean:.3f} ({r.interval[0]:.3f} to {r.interval[1]:.3f})" if kind != LITE else "1" for r in ratios]
        step = 1000 * found["seconds of a step"][kind]
        rows.append([title, str(RATIO), f"{runs[0][0]['steps']:,}", f"{step:.1f}", *(f"{m:.4g}" for m in means), *told])
    for name in NAMES[-2:]:
        ratio, kind, _ = name.split("-")
        one, step = networks[name], 1000 * found["seconds of a step"][kind]
        figures = [f"{one[what]:.4g}" for what in MEASURES]
        rows.append([TITLES[kind], ratio, f"{one['steps']:,}", f"{step:.1f}", *figures, "", ""])
    heads = ["network", "times smaller", "steps", "ms a step", *MEASURES, "error ÷ Lite's", "kernel distance ÷ Lite's"]
    return markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    training = tasks.add_parser("train")
    training.add_argument("--seconds", type=float, required=True, help="of each student, as if it were alone")
    training.add_argument("--only", choices=NAMES, help="this one, in this process")
    for task in (training, tasks.add_parser("measure")):
        task.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task == "train" and options.only:
        train_one(options.only, options.work, options.seconds)
    elif options.task == "train":
        train(options.work, options.seconds)
    else:
        found = measured(options.work)
        write_json(RESULTS, found)
        print(table(found))


if __name__ == "__main__":
    main()
