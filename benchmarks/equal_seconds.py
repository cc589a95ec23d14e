"""What is best for the same seconds of training: students of equal MACs, each given the seconds of the first.

    python benchmarks/equal_seconds.py clothing-64.npz --work runs/equal-seconds

The garments of the ablation at 32×32 and its teacher. The opponent is the fair Lite: the teacher's weights as its
start, min-SNR weighting, trained on the images alone. Seconds are processor time of one thread: first a few steps of
each student, which take turns; from them follows how many steps each gets. The budget is what `STEPS` steps of
`BASE`, distillation with one use of the teacher's answers, take.

``--photographs 1000`` is the same with so many of the training images, drawn by chance; the teacher has seen all.

Everything resumes; started twice, the two share the work. Cells are compared on the images that are held out for
choices (their kernel distance, too) and on the evaluation's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.data import prepare_parts
from ablation.grid import DENSE_MIXED, FROM_TEACHER, MIN_SNR, Cell, changed, lambdas, recipe_of
from ablation.measure import Judge, error_measures, mean_error
from ablation.run import kept_teacher
from ablation.sizes import SIZES
from ablation.tables import Summary, markdown
from filelock import FileLock
from rich.console import Console

from slimdpm.pipelines.loading import load_pipeline
from slimdpm.run_folder import RunFolder
from slimdpm.system.files import atomic_file, write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display
from slimdpm.system.shared_work import share
from slimdpm.training.accelerator import make_accelerator
from slimdpm.training.plan import plan_job
from slimdpm.training.run import new_trainer, run_job

HERE = Path(__file__).parent
STEPS = 1000
TIMED, UNTIMED = 32, 16  # steps of each student that are timed, and before them: whole groups of every reuse
SIZE = SIZES["32"]
BASE = "spectral, reuse 1"
LITE = "fair lite"
CORE = [LITE, BASE, "spectral, reuse 4", "plain, reuse 4", "spectral, reuse 8"]
RATE = 8e-3  # the best of three for Lite and for gated networks, on the images for choices (docs/findings.md)


def cells() -> dict[str, Cell]:
    """The students by name, the base first."""
    plain = {**FROM_TEACHER, **MIN_SNR}
    found = {BASE: _distilled("spectral", 1), LITE: Cell(LITE, "", LITE, "lite", False, plain)}
    for reuse in (2, 4, 8):
        found[f"spectral, reuse {reuse}"] = _distilled("spectral", reuse)
    for reuse in (4, 8):
        found[f"plain, reuse {reuse}"] = _distilled("lite", reuse)
        for factor in (2, 5, 10):
            found[f"plain, reuse {reuse}, weighed, λ {factor}"] = _distilled("lite", reuse, **weighed(factor))
    found["spectral, reuse 4, weighed, λ 2"] = _distilled("spectral", 4, **weighed(2))
    found["plain, reuse 8, weighed, teacher alone"] = _distilled("lite", 8, **weighed(2), lambda_denoising=0.0)
    found[f"{LITE}, rate 4e-3"] = Cell("", "", "", "lite", False, plain, rate=4e-3)
    found[f"{LITE}, rate 16e-3"] = Cell("", "", "", "lite", False, plain, rate=16e-3)
    return found


def weighed(factor: float) -> dict[str, Any]:
    """L_spatial and L_freq weighed by timestep as L_DDPM is."""
    return {"snr_weighted": True, "lambda_spatial": float(factor), "lambda_freq": float(factor)}


def _distilled(kind: str, reuse: int, **distill: Any) -> Cell:
    settings = {**MIN_SNR, "distill.reuse": reuse, **{f"distill.{key}": value for key, value in distill.items()}}
    return (
        changed("", "", "", settings) if kind == "spectral" else Cell("", "", "", kind, True, FROM_TEACHER | settings)
    )


class Study:
    """The study in one folder; with `photographs`, of so many of the training images."""

    def __init__(
        self, data: str, folder: Path, names: Sequence[str], seeds: Sequence[int], photographs: int | None = None
    ):
        self.folder, self.seeds = folder, seeds
        end = f"-{photographs}" if photographs else ""
        self.part, self.students = f"train{end}", folder / f"students{end}"
        self.names = list(dict.fromkeys([LITE, *names]))  # beside which all are set
        self.display = Display(Console())
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".data.lock"):
            self.parts = prepare_parts(data, folder / "data", SIZE.pixels, self.display)
            if photographs:
                self.parts["train"] = some(self.parts["train"], photographs, self.images)
        self.teacher = kept_teacher("32")
        self.judges = {
            part: Judge(folder / "samples" / part, self.parts[part], SIZE.images, SIZE.sampler_steps)
            for part in ("tune", "evaluation")
        }

    @property
    def images(self) -> Path:
        """Of training."""
        return self.folder / "data" / f"{self.part}.npy"

    def run(self) -> dict[str, Any]:
        """Train and measure what is left; the results so far."""
        seconds = self.seconds_per_step()
        pieces = [(name, seed) for seed in self.seeds for name in self.names]
        share(pieces, lambda piece: self.file(*piece, "lock"), lambda piece: self.train(*piece, seconds), wait=False)
        return self.results()

    def recipe(self, name: str, seed: int, steps: int) -> Any:
        cell = cells()[name]
        gating = DENSE_MIXED if cell.kind == "spectral" else {}
        recipe = recipe_of(
            cell,
            SIZE,
            seed,
            teacher=self.teacher,
            images=self.images,
            rate=cell.rate or RATE,
            gating=gating,
            losses=lambdas(2.0, 2.0) if cell.distilled else {},
        )
        train = {"steps": steps, "warmup": max(steps // 20, 1), "checkpoint_every": 200}
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})

    def seconds_per_step(self) -> dict[str, float]:
        """Processor time of a step of each student: a group of steps of each in turn."""
        path = self.folder / "seconds.json"
        with FileLock(self.folder / ".seconds.lock"):
            known = json.loads(path.read_text()) if path.exists() else {}
            if missing := [name for name in self.names if name not in known]:
                timed = [BASE, *(name for name in missing if name != BASE)]
                found = self._timed(timed)
                scale = known.get(BASE, found[BASE]) / found[BASE]  # another sitting may be slower as a whole
                known |= {name: known.get(name, value * scale) for name, value in found.items()}
                write_json(path, known)
        return known

    def _timed(self, names: Sequence[str]) -> dict[str, float]:
        walks, spent, group = {}, {name: [] for name in names}, 8
        accelerator = None
        for name in names:
            run = RunFolder(self.folder / "timing" / name.replace(" ", "-"))
            job = plan_job(self.recipe(name, 0, 10_000))
            run.open(job.recipe)
            accelerator = accelerator or make_accelerator(job.recipe, run)
            walks[name] = new_trainer(job, run, accelerator).steps()
        for turn in range((UNTIMED + TIMED) // group):
            for name, walk in walks.items():
                start = time.process_time()
                for _ in range(group):
                    next(walk)
                if turn >= UNTIMED // group:
                    spent[name].append((time.process_time() - start) / group)
        return {name: float(np.median(values)) for name, values in spent.items()}

    def train(self, name: str, seed: int, seconds: Mapping[str, float]) -> None:
        """One student, and what it is worth."""
        if self.file(name, seed).exists():
            return
        steps = round(STEPS * seconds[BASE] / seconds[name])
        job = plan_job(self.recipe(name, seed, steps))
        folder = self.file(name, seed, "run")
        pipeline = run_job(job, folder, self.display, report=False)
        measures = {
            part: {
                **error_measures(pipeline, self.parts[part]),
                **judge.distances(f"{self.part} {name}-{seed}", pipeline),
            }
            for part, judge in self.judges.items()
        }
        found = {
            "steps": steps,
            "seconds per step": seconds[name],
            "lr": job.recipe.train.lr,
            "channels": list(job.plan.config["block_out_channels"]),
            "macs": job.plan.cost.macs,
            "params": job.plan.cost.params,
            "measures": measures,
        }
        write_json(self.file(name, seed), found)

    def file(self, name: str, seed: int, end: str = "json") -> Path:
        self.students.mkdir(exist_ok=True)
        return self.students / f"{name.replace(', ', '_').replace(' ', '-')}-{seed}.{end}"

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.names:
            files = {str(seed): self.file(name, seed) for seed in self.seeds}
            if seeds := {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}:
                found[name] = seeds
        return {"facts": self.facts(), "teacher": self._teacher(), "cells": found}

    def _teacher(self) -> dict[str, Any]:
        file = self.folder / "teacher.json"
        with FileLock(self.folder / ".teacher.lock"):
            if not file.exists():
                pipeline = load_pipeline(self.teacher)
                values = {
                    part: {**error_measures(pipeline, self.parts[part]), **judge.distances("teacher", pipeline)}
                    for part, judge in self.judges.items()
                }
                write_json(file, values)
        return json.loads(file.read_text())

    def facts(self) -> dict[str, Any]:
        return {
            "images": {part: len(images) for part, images in self.parts.items()},
            "budget": f"the processor time of {STEPS} steps of {BASE}, one thread, batches of 16",
            "samples": f"{SIZE.images} of each network, dpm++ {SIZE.sampler_steps} steps, seed 0, efficientnet-lite0",
            "hardware": machine_facts(),
        }


def some(images: np.ndarray, count: int, file: Path) -> np.ndarray:
    """`count` of the images, kept in `file`."""
    if not file.exists():
        chosen = np.random.default_rng(0).permutation(len(images))[:count]
        with atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, images[np.sort(chosen)])
    return np.load(file)


def joined(known: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What other sittings measured, and this one's, in the order in which the table has had them."""
    names = [*known, *(name for name in found if name not in known)]
    return {name: {**known.get(name, {}), **found.get(name, {})} for name in names}


COLUMNS = {  # of which images, and what
    "error": ("evaluation", "overall"),
    "upper half": ("evaluation", "upper-half"),
    "kernel distance": ("evaluation", "kernel distance"),
    "error, images for choices": ("tune", "overall"),
    "kernel distance, images for choices": ("tune", "kernel distance"),
}


def table(results: Mapping[str, Any]) -> str:
    """Ratios to the fair Lite of the same seed: mean, and the 95 % interval over the seeds."""
    cells, rows = results["cells"], []
    for name, seeds in cells.items():
        shared = [
            (one["measures"], cells[LITE][seed]["measures"]) for seed, one in seeds.items() if seed in cells[LITE]
        ]
        first, lite = next(iter(seeds.values())), next(iter(cells[LITE].values()))
        row = [name, f"{first['steps']:,}", f"{first['seconds per step'] / lite['seconds per step']:.2f}"]
        for part, what in COLUMNS.values():
            summary = Summary(tuple(_ratio(ours[part], theirs[part], what) for ours, theirs in shared))
            low, high = summary.interval
            interval = f" ({low:.3f} to {high:.3f})" if len(shared) > 1 and name != LITE else ""
            row.append(f"{summary.mean:.3f}{interval}")
        rows.append([*row, str(len(shared))])
    return markdown(["student", "steps", "seconds of a step ÷ Lite's", *COLUMNS, "seeds"], rows)


def _ratio(measures: Mapping[str, float], base: Mapping[str, float], what: str) -> float:
    if what == "kernel distance":
        return measures[what] / base[what]
    return mean_error(measures, base, what)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="the ablation's images")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=CORE, choices=list(cells()), help="students")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sitting", help="a name for results that are kept apart: another machine has other seconds")
    parser.add_argument("--photographs", type=int, help="of the training images, by default all")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Study(options.data, options.work, options.only, range(options.seeds), options.photographs).run()
    ends = [f"_{end}" for end in (options.sitting, options.photographs) if end]
    file = options.output / f"equal_seconds{''.join(ends)}.json"
    known = json.loads(file.read_text())["cells"] if file.exists() else {}
    write_json(file, results := {**results, "cells": joined(known, results["cells"])})
    print(table(results))


if __name__ == "__main__":
    main()
