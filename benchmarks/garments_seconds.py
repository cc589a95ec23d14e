"""A good teacher and as many seconds of a GPU: the fair Lite, the distilled student without gates, and the gated one.

    python benchmarks/garments_seconds.py train --work runs/garments-seconds --seconds 120
    python benchmarks/garments_seconds.py measure --work runs/garments-seconds

Students of `recipes/garments-students.yaml` with batches of 128, 12 times smaller than the teacher, three seeds of
each. A step of each kind is timed alone and in turn; from it follow the steps. ``--teacher garments-teacher-long`` is
the same with one that predicts ε.
All then train at once, since a GPU has room for many networks so small (its MPS daemon lets them overlap; without it
they take longer for the same steps). `measure` needs no GPU: errors and samples, beside the photographs of
``slimdpm:garments-test``. Everything resumes; saves garments_seconds.json, garments_seconds_epsilon.json of the other.

    python benchmarks/garments_seconds.py train --work runs/garments-cpu --seconds 200 --on cpu
    python benchmarks/garments_seconds.py measure --work runs/garments-cpu --on cpu

is the same for cores: batches of 16, two at once, without gates; seconds are processor time. Saves
garments_seconds_cpu.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from ablation.tables import Summary, markdown
from garments import EACH
from garments_students import RECIPE
from rich.console import Console

from slimdpm.demo.judge import SCHEDULER, STEPS, Judge, Verdict
from slimdpm.demo.run import APART
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

RESULTS = Path(__file__).parent / "results"
TEACHERS = {"garments-teacher": "garments_seconds", "garments-teacher-long": "garments_seconds_epsilon"}  # its results
BATCHES = {"cuda": 128, "cpu": 16}
AT_ONCE = {"cuda": 9, "cpu": 2}
SEEDS = (0, 1, 2)
RATIO = 12
LITE = "lite"
KINDS = {LITE: lite_recipe, "plain": lambda recipe: recipe, "spectral": gated_recipe}
TITLES = {LITE: "fair Lite", "plain": "distilled, no gates", "spectral": "distilled, gates"}
NAMES = [f"{RATIO}-{kind}-{seed}" for kind in KINDS for seed in SEEDS]
GUIDANCE = 3.0
MEASURES = ("error", "upper half", "kernel distance", "named")


def kinds_on(place: str) -> list[str]:
    return [kind for kind in KINDS if place == "cuda" or kind != "spectral"]


def names_on(place: str) -> list[str]:
    return [name for name in NAMES if name.split("-")[1] in kinds_on(place)]


def job_of(name: str, teacher: str, work: Path, place: str) -> Job:
    """Of ``RATIO-KIND-SEED``."""
    ratio, kind, seed = name.split("-")
    recipe = demo_recipe(int(seed), file=RECIPE)
    train = {"batch_size": BATCHES[place], "sample_every": 0, "checkpoint_every": 1000, "log_every": 100}
    changed = {
        "teacher": f"slimdpm:{teacher}",
        "student": recipe.student.model_copy(update={"ratio": float(ratio)}),
        "data": recipe.data.model_copy(update={"workers": 2 if place == "cuda" else 0}),
        "train": recipe.train.model_copy(update=train),
    }
    return plan_job(KINDS[kind](recipe.model_copy(update=changed)), folder=work / name)


def train(teacher: str, work: Path, seconds: float, place: str) -> None:
    """All of them or some at once, each in a process of its own."""
    jobs = {kind: job_of(f"{RATIO}-{kind}-0", teacher, work, place) for kind in kinds_on(place)}
    seconds_per_step(jobs, work, Display(Console()))
    write_json(work / "machine.json", {"seconds of each, alone": seconds, **machine_facts()})
    command = [sys.executable, __file__, "train", "--work", work, "--teacher", teacher]
    command += ["--seconds", str(seconds), "--on", place, "--only"]
    with ThreadPool(AT_ONCE[place]) as pool:
        codes = pool.map(lambda name: subprocess.run([*command, name]).returncode, names_on(place), chunksize=1)
    if any(codes):
        raise SystemExit("not all of them are trained: see above, and start again to go on")


def train_one(name: str, teacher: str, work: Path, seconds: float, place: str) -> None:
    steps = round(seconds / read_json(work / "seconds.json")[name.split("-")[1]])
    run_job(lasting(job_of(name, teacher, work, place), steps), work / name, Display(Console()), report=False)


def measured(teacher: str, work: Path, place: str) -> dict[str, Any]:
    display = Display(Console())
    judge = Judge(work / "measured", display)
    networks = {"teacher": ASSETS / teacher, **{name: work / name for name in names_on(place)}}
    found: dict[str, Any] = {}
    verdicts: dict[str, Verdict] = {}
    for name, folder in networks.items():
        verdicts[name] = judge.verdict(name, load_pipeline(folder), GUIDANCE, EACH)
        found[name] = verdicts[name].figures()
        if name != "teacher":
            found[name] |= {"steps": steps_of(folder), APART: verdicts[name].apart(verdicts["teacher"])}
        print(name, found[name], flush=True)
    return {
        "networks": found,
        "seconds of a step": read_json(work / "seconds.json"),
        "batch size": BATCHES[place],
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
    compared = [what for what in ("error", "kernel distance", APART) if what in networks[NAMES[0]]]
    gap = [""] * len(compared)
    rows = [["teacher", "", "", "", *(f"{networks['teacher'][what]:.4g}" for what in MEASURES), *gap]]
    for kind, title in TITLES.items():
        if f"{RATIO}-{kind}-{SEEDS[0]}" not in networks:
            continue
        runs = [(networks[f"{RATIO}-{kind}-{seed}"], networks[f"{RATIO}-{LITE}-{seed}"]) for seed in SEEDS]
        means = [Summary(tuple(ours[what] for ours, _ in runs)).mean for what in MEASURES]
        ratios = [Summary(tuple(ours[what] / lite[what] for ours, lite in runs)) for what in compared]
        told = [f"{r.mean:.3f} ({r.interval[0]:.3f} to {r.interval[1]:.3f})" if kind != LITE else "1" for r in ratios]
        step = 1000 * found["seconds of a step"][kind]
        rows.append([title, str(RATIO), f"{runs[0][0]['steps']:,}", f"{step:.1f}", *(f"{m:.4g}" for m in means), *told])
    for name in [name for name in networks if name not in ("teacher", *NAMES)]:  # an earlier run had some
        ratio, kind, _ = name.split("-")
        one, step = networks[name], 1000 * found["seconds of a step"][kind]
        figures = [f"{one[what]:.4g}" for what in MEASURES]
        rows.append([TITLES[kind], ratio, f"{one['steps']:,}", f"{step:.1f}", *figures, *gap])
    heads = ["network", "times smaller", "steps", "ms a step", *MEASURES, *(f"{what} ÷ Lite's" for what in compared)]
    return markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    training = tasks.add_parser("train")
    training.add_argument("--seconds", type=float, required=True, help="of each student, as if it were alone")
    training.add_argument("--only", choices=NAMES, help="this one, in this process")
    for task in (training, tasks.add_parser("measure")):
        task.add_argument("--work", type=Path, required=True)
        task.add_argument("--on", choices=BATCHES, default="cuda")
        task.add_argument("--teacher", choices=TEACHERS, default=next(iter(TEACHERS)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task == "train" and options.only:
        train_one(options.only, options.teacher, options.work, options.seconds, options.on)
    elif options.task == "train":
        train(options.teacher, options.work, options.seconds, options.on)
    else:
        found = measured(options.teacher, options.work, options.on)
        end = "_cpu" if options.on == "cpu" else ""
        write_json(RESULTS / f"{TEACHERS[options.teacher]}{end}.json", found)
        print(table(found))


if __name__ == "__main__":
    main()
