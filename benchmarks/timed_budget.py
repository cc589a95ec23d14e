"""At equal milliseconds, is a shallow and wide student better than a deep and thin one? And than one of equal MACs?

    OMP_NUM_THREADS=1 python benchmarks/timed_budget.py clothing-64.npz --size 32 --work runs/timed-budget

Four students of the ablation's teacher, trained and judged as the ablation's: `--ratio 12`; the shallowest of that
ratio; a budget in time as slimdpm plans it, which is mostly the shallowest and widest; and the deepest that is as fast.
The networks are planned once, by the processor's time of one thread. It can be stopped and started; --steps and
--images make it smaller. On a CPU the students of the small teachers cannot be 8 times faster, hence --speedup. Saves
timed_budget_SIZE_RUNTIME.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.data import prepare_parts
from ablation.measure import Judge, Measures, mean_error
from ablation.run import kept_teacher
from ablation.sizes import SIZES
from ablation.tables import markdown
from ablation.together import train_together
from rich.console import Console

from slimdpm.method.cost import measure
from slimdpm.method.depth import DEPTH, depth_of, depths
from slimdpm.method.runtimes import CPU, PYTORCH, RUNTIMES, described_runtime
from slimdpm.method.slimming import Budget, plan_student, student_base
from slimdpm.method.timed_plan import Stopwatch, TimeBudget, plan_in_time
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display
from slimdpm.training.plan import plan_job

HERE = Path(__file__).parent
RATIO = 12
RATE = 8e-3  # which the ablation chose for gated students
KEYS = (*DEPTH, "block_out_channels", "norm_num_groups", "attention_head_dim")  # which the planners set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data")
    parser.add_argument("--size", default="32")
    parser.add_argument("--teacher", type=Path, help="its folder; by default the one in benchmarks/teachers")
    parser.add_argument("--speedup", type=float, default=2.5)
    parser.add_argument("--runtime", choices=RUNTIMES, default=PYTORCH)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of the training; by default the ablation's")
    parser.add_argument("--images", type=int, help="samples of each network; by default the ablation's")
    parser.add_argument("--work", type=Path, default=Path("runs/timed-budget"))
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    size, display = SIZES[options.size], Display(Console())
    size = replace(size, images=options.images or size.images)
    options.work.mkdir(parents=True, exist_ok=True)
    parts = prepare_parts(options.data, options.work / "data", size.pixels, display)
    judge = Judge(options.work / "samples", parts["evaluation"], size.images, size.sampler_steps)
    networks = planned(options)
    steps = {"train.steps": options.steps} if options.steps else {}
    for seed in range(options.seeds):
        file = options.work / f"seed-{seed}.json"
        if not file.exists():
            write_json(file, trained(options, networks, seed, {**size.student_settings, **steps}, judge, display))
        print(table(saved(options, networks)), flush=True)


def teacher_of(options: argparse.Namespace) -> Path:
    teacher = options.teacher or kept_teacher(options.size)
    assert teacher is not None, f"no teacher of size {options.size} lies in the repository: give --teacher"
    return teacher


def planned(options: argparse.Namespace) -> dict[str, Any]:
    """The networks by name, ``config`` (what differs from the teacher's), cost and milliseconds; kept once planned."""
    file = options.work / "networks.json"
    if file.exists():
        return json.loads(file.read_text())
    torch.set_num_threads(1)
    teacher = {**load_pipeline(teacher_of(options)).unet.config, "_class_name": "UNet2DModel"}
    watch = Stopwatch(teacher, CPU, clock=time.process_time, runtime=options.runtime)
    budget, shallowest = TimeBudget(options.speedup), depth_of(depths(student_base(teacher, "plain", {}))[-1])
    configs: dict[str, Mapping[str, Any]] = {
        f"ratio {RATIO}": plan_student(teacher, Budget(ratio=RATIO)).config,
        f"ratio {RATIO}, shallowest": plan_student(teacher, Budget(ratio=RATIO), overrides=shallowest).config,
        "in time": plan_in_time(teacher, budget, watch).config,
        "in time, deepest": deepest(teacher, budget, watch),
    }
    seconds, of_students = watch(list(configs.values()))
    networks = {"teacher": {**vars(measure(teacher)), "ms": seconds * 1e3}}
    for (name, config), taken in zip(configs.items(), of_students, strict=True):
        own = {key: config[key] for key in KEYS if key in config}
        networks[name] = {"config": own, **vars(measure(config)), "ms": taken * 1e3}
    write_json(file, networks)
    return networks


def deepest(teacher: Mapping[str, Any], budget: TimeBudget, watch: Stopwatch) -> Mapping[str, Any]:
    """The student of a time that keeps most of its teacher's depth, and is as wide as it then can be."""
    ways = depths(student_base(teacher, "plain", {}))
    for way in ways:
        try:
            return plan_in_time(teacher, budget, watch, overrides=depth_of(way)).config
        except SlimdpmError:
            if way is ways[-1]:
                raise
    raise AssertionError("a network has a depth")


def trained(
    options: argparse.Namespace,
    networks: Mapping[str, Any],
    seed: int,
    settings: Mapping[str, Any],
    judge: Judge,
    display: Display,
) -> dict[str, Measures]:
    """The students of a seed side by side, and what they are worth."""
    jobs = {}
    for name, network in networks.items():
        if name != "teacher":
            values = {
                "teacher": str(teacher_of(options)),
                "data.path": str(options.work / "data" / "train.npy"),
                "data.flip": True,
                "data.held_out": 0,
                "student.overrides": network["config"],
                "train.schedule": "cosine",
                "train.lr": RATE,
                "train.seed": seed,
                "train.sample_every": 0,
                "train.trackers": [],
                "train.keep": 1,
            }
            jobs[name] = plan_job(load_recipe(None, settings={**values, **settings}))
    folders = {name: options.work / "students" / f"{name.replace(' ', '-')}-{seed}" for name in jobs}
    pipelines = train_together(jobs, folders, display)
    return {name: judge.measures(f"{name}-{seed}", pipeline) for name, pipeline in pipelines.items()}


def saved(options: argparse.Namespace, networks: Mapping[str, Any]) -> dict[str, Any]:
    """All that is measured so far, written where the docs find it."""
    files = {seed: options.work / f"seed-{seed}.json" for seed in range(options.seeds)}
    seeds = {str(seed): json.loads(file.read_text()) for seed, file in files.items() if file.exists()}
    facts = {
        "speedup": options.speedup,
        "clock": "processor's time, one thread",
        "runtime": described_runtime(options.runtime),
        "steps": options.steps or SIZES[options.size].student_settings["train.steps"],
        "samples": options.images or SIZES[options.size].images,
        "hardware": machine_facts(),
    }
    results = {"facts": facts, "networks": dict(networks), "seeds": seeds}
    write_json(options.output / f"timed_budget_{options.size}_{options.runtime}.json", results)
    return results


def table(results: Mapping[str, Any]) -> str:
    """Each student's figures, and means over the seeds; errors and kernel distances as ratios to `--ratio` 12's."""
    rows, base = [], f"ratio {RATIO}"
    teacher = results["networks"]["teacher"]
    for name, network in results["networks"].items():
        cost = [f"{network['params'] / 1e6:.3f} M", f"{network['macs'] / 1e6:.1f} M", f"{network['ms']:.1f}"]
        figures = [f"{teacher['ms'] / network['ms']:.2f}"]
        if name != "teacher":
            pairs = [(seed[name], seed[base]) for seed in results["seeds"].values()]
            errors = [mean_error(*pair) for pair in pairs]
            distances = [own["kernel distance"] / other["kernel distance"] for own, other in pairs]
            figures += [
                f"{np.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" for ratios in (errors, distances)
            ]
        config = network.get("config", {})
        rows.append([name, "-".join(map(str, config.get("block_out_channels", []))), *cost, *figures])
    headings = ["network", "channels", "parameters", "MACs", "ms", "times faster", "error ÷", "kernel distance ÷"]
    return markdown(headings, [[*row, *["–"] * (len(headings) - len(row))] for row in rows])


if __name__ == "__main__":
    main()
