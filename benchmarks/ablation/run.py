"""The ablation from its images to its table, in pieces that resume and that several processes share.

Stages: images; teacher; tuning of the learning rates; cells, a group of one seed at a time; results. A piece that is
done is not done again, and one that another process is at is left to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from filelock import FileLock
from torch import nn

from slimdpm.method.cost import measure
from slimdpm.method.latency import latencies
from slimdpm.method.networks import build
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.recipe import Recipe
from slimdpm.system.documents import read_json
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import atomic_folder, write_json
from slimdpm.system.hashing import fingerprint
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display
from slimdpm.system.shared_work import share
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

from .choices import Choices, stages
from .data import prepare_parts
from .figures import cells_figure, changes_figure, pareto_figure, samples_figure
from .grid import (
    CHANGED,
    DEFAULT,
    LONG_LITE,
    LONG_SPECTRAL,
    SEEDS,
    Cell,
    Idea,
    cells_of,
    core_cells,
    pareto_cells,
    recipe_of,
    teacher_recipe,
    weighed,
)
from .measure import EXTRACTOR, HELD_OUT, Judge, Measures, error_measures
from .sizes import SIZES
from .together import train_together

TOGETHER = 9  # cells at most that share one run of the teacher
SHOWN_CELLS = ("lite", "spectral", CHANGED, DEFAULT, LONG_LITE, weighed(LONG_SPECTRAL))
SHOWN = 16  # samples of each network in a picture


@dataclass(frozen=True)
class Piece:
    """Cells of one seed that are trained side by side."""

    cells: tuple[Cell, ...]
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cells[0].group}-{self.seed}"


class Ablation:
    """One size of the experiment in one folder.

    Args:
        size: a key of `SIZES`.
        data: images with ``train/`` in the names of those for training: a folder, or an .npz with ``names``.
        folder: keeps everything; the same call goes on where it was.
        seeds: of the students.
        display: where progress is shown.
        teacher: the folder of one that was trained before; by default it is trained.
        more: cells beside the grid's.
    """

    def __init__(
        self,
        size: str,
        data: str,
        folder: Path,
        seeds: Sequence[int] = SEEDS,
        display: Display | None = None,
        *,
        teacher: Path | None = None,
        more: Sequence[Cell] = (),
    ):
        if size not in SIZES:
            raise SlimdpmError(f"there is no ablation of size {size!r}; there are {', '.join(SIZES)}")
        self.size, self.label, self.folder, self.seeds = SIZES[size], size, folder, tuple(seeds)
        self.display = display or Display()
        self.given, self.teacher = teacher is not None, teacher or folder / "teacher-bf16"
        self.cells = [*cells_of(self.size), *more]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".data.lock"):
            self.parts = prepare_parts(data, folder / "data", self.size.pixels, self.display)
        self.choices = Choices(self._measured)
        self.judge = Judge(folder / "samples", self.parts["evaluation"], self.size.images, self.size.sampler_steps)

    def run(self, groups: Sequence[str] | None = None) -> dict[str, Any]:
        """Do what is left of it.

        Args:
            groups: of the cells; all by default.

        Returns:
            the results, also in ``results.json``. Pieces that other processes are at are missing in them.
        """
        self.train_teacher()
        for candidates in stages():
            self._do([Piece(tuple(cells), self.seeds[0]) for cells in _grouped(candidates)], wait=True)
        cells = [cell for cell in self._distinct() if groups is None or cell.group in groups]
        if not cells:
            raise SlimdpmError(f"no such group; there are {', '.join(_grouped_names(self.cells))}")
        self._do(Piece(tuple(packed), seed) for packed in _packed(cells) for seed in self.seeds)
        return self.results()

    def _distinct(self) -> list[Cell]:
        """The cells without those that, by what the tuning chose, repeat an earlier one."""
        recipes: list[tuple[Recipe, Idea]] = []
        cells = []
        for cell in self.cells:
            if (made := (self.recipe(cell, self.seeds[0]), cell.idea)) not in recipes:
                recipes.append(made)
                cells.append(cell)
        return cells

    def train_teacher(self) -> None:
        """Train the teacher unless one was given, and measure it and the floor; other processes wait for it."""
        with FileLock(self.folder / ".teacher.lock"):
            if not self.given and not self.teacher.exists():
                run_job(plan_job(teacher_recipe(self.size, self.images)), self.folder / "teacher", self.display)
                keep_in_bf16(load_pipeline(self.folder / "teacher"), self.teacher)
            if not self._teacher_file.exists():
                pipeline = load_pipeline(self.teacher)
                cost = measure({**pipeline.unet.config, "_class_name": "UNet2DModel"})
                facts = {"fingerprint": fingerprint(pipeline.unet), **vars(cost)}
                measures = self.judge.measures("teacher", pipeline)
                write_json(self._teacher_file, {**facts, "measures": measures, "floor": self.judge.floor()})

    def take(self, results: Path) -> None:
        """Count the cells of earlier results as done; their students are not there to be looked at.

        Raises:
            SlimdpmError: if they are of another teacher.
        """
        self.train_teacher()
        known, teacher = read_json(results), json.loads(self._teacher_file.read_text())
        if known["teacher"]["fingerprint"] != teacher["fingerprint"]:
            raise SlimdpmError(f"{results} is of another teacher than {self.teacher}")
        for name, cell in {**known["tuning"], **known["cells"]}.items():
            for seed, measured in cell["seeds"].items():
                if not (file := self._file(name, int(seed))).exists():
                    write_json(file, measured)

    def _do(self, pieces: Iterable[Piece], *, wait: bool = False) -> None:
        share(pieces, lambda piece: self.folder / f".{piece.name}.lock", self._piece, wait=wait)

    def _piece(self, piece: Piece) -> None:
        missing = [cell for cell in piece.cells if not self._file(cell.name, piece.seed).exists()]
        if not missing:
            return
        self.display.say(f"{piece.name}: {', '.join(cell.name for cell in missing)}")
        recipes = {cell.name: self.recipe(cell, piece.seed) for cell in missing}
        jobs = {name: plan_job(recipe) for name, recipe in recipes.items()}
        folders = {cell.name: self._run_folder(cell.name, piece.seed) for cell in missing}
        ideas = {cell.name: cell.idea for cell in missing}
        pipelines = train_together(jobs, folders, self.display, ideas=ideas)
        for cell in self.display.track(missing, len(missing), "measuring", "students"):
            pipeline, job = pipelines[cell.name], jobs[cell.name]
            measures = error_measures(pipeline, self.parts["tune"], "" if cell.tuning else HELD_OUT)
            if not cell.tuning:
                measures = {**self.judge.measures(f"{cell.name}-{piece.seed}", pipeline), **measures}
            facts = {"rate": job.recipe.train.lr, "channels": list(job.plan.config["block_out_channels"])}
            write_json(self._file(cell.name, piece.seed), {**facts, **vars(job.plan.cost), "measures": measures})

    def recipe(self, cell: Cell, seed: int) -> Recipe:
        """The recipe of a cell, with what the tuning chose for it."""
        return recipe_of(
            cell,
            self.size,
            seed,
            teacher=self.teacher,
            images=self.images,
            rate=self.choices.rate(cell),
            gating=self.choices.gating(cell),
            losses=self.choices.losses(cell),
        )

    def _measured(self, candidate: Cell) -> Measures:
        return json.loads(self._file(candidate.name, self.seeds[0]).read_text())["measures"]

    def pictures(self, folder: Path, title: str) -> None:
        """Write figures of what is measured so far: ``TITLE_cells.png``, ``_changes``, ``_pareto`` and ``_samples``.

        The rows of the last: real images, the teacher, and `SHOWN_CELLS` of the first seed as far as they are there.
        """
        results = self.results()
        cells_figure(results, folder / f"{title}_cells.png")
        changes_figure(results, folder / f"{title}_changes.png")
        pareto_figure(results, folder / f"{title}_pareto.png")
        networks = {"teacher": load_pipeline(self.teacher)}
        for name in SHOWN_CELLS:
            student = self.student(name, self.seeds[0])
            if student.exists():
                networks[f"{name}-{self.seeds[0]}"] = load_pipeline(student)
        made = [self.judge.samples(label, pipeline, SHOWN) for label, pipeline in networks.items()]
        samples_figure(
            [self.parts["evaluation"][:: len(self.parts["evaluation"]) // SHOWN][:SHOWN], *made],
            folder / f"{title}_samples.png",
        )

    def measure_latency(self) -> None:
        """Time one step of the teacher and of Lite and Spectral at each width, on an otherwise idle machine."""
        networks = {"teacher": load_pipeline(self.teacher).unet}
        for cell in [*core_cells(), *pareto_cells(self.size)]:
            if cell.group == "pareto" or cell.name in ("lite", "spectral"):
                recipe = self.recipe(cell, self.seeds[0])
                networks[cell.name] = build(plan_job(recipe).plan.config).eval()
        write_json(self.folder / "latency.json", latencies(networks))

    def results(self) -> dict[str, Any]:
        """Everything that is measured so far; written to ``results.json``."""
        teacher = json.loads(self._teacher_file.read_text())
        result = {
            "facts": self._facts(),
            "floor": teacher.pop("floor"),
            "teacher": teacher,
            "cells": self._collected(self.cells),
            "latency": self._latency(),
            "tuning": self._collected([cell for candidates in stages() for cell in candidates]),
        }
        write_json(self.folder / "results.json", result)
        return result

    def _latency(self) -> dict[str, float]:
        file = self.folder / "latency.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _collected(self, cells: Sequence[Cell]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for cell in cells:
            files = {seed: self._file(cell.name, seed) for seed in self.seeds}
            seeds = {str(seed): json.loads(file.read_text()) for seed, file in files.items() if file.exists()}
            if seeds:
                table[cell.name] = {"group": cell.group, "about": cell.about, "kind": cell.kind, "seeds": seeds}
        return table

    def _facts(self) -> dict[str, Any]:
        size = self.size
        return {
            "size": self.label,
            "images": {part: len(images) for part, images in self.parts.items()},
            "preprocessing": f"centre crop, Lanczos to {size.pixels} pixels, half of the training images mirrored",
            "teacher": dict(size.teacher_settings),
            "students": dict(size.student_settings),
            "samples": f"{size.images} of each network, dpm++ {size.sampler_steps} steps, seed 0, {EXTRACTOR} features",
            "hardware": machine_facts(),
        }

    def student(self, cell: str, seed: int) -> Path:
        """Where its pipeline lies once it is trained; not there if only its figures were taken over."""
        return self._run_folder(cell, seed) / "student"

    @property
    def images(self) -> Path:
        return self.folder / "data" / "train.npy"

    @property
    def _teacher_file(self) -> Path:
        return self.folder / "teacher.json"

    def _file(self, cell: str, seed: int) -> Path:
        return self.folder / "results" / f"{_slug(cell)}-{seed}.json"

    def _run_folder(self, cell: str, seed: int) -> Path:
        return self.folder / "students" / f"{_slug(cell)}-{seed}"


def kept_teacher(size: str) -> Path | None:
    """The teacher that lies in the repository, if there is one of this size."""
    folder = Path(__file__).parents[1] / "teachers" / f"clothing-{size}"
    return folder if folder.exists() else None


def keep_in_bf16(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline of a few MB so that a repository can hold it: half of the bytes, in small files.

    What is loaded from there is the same to the bit everywhere, so it is what the students learn from here, too.
    """
    nn.Module.to(pipeline.unet, torch.bfloat16)  # not diffusers' own, which warns
    for part in (pipeline, pipeline.unet):
        part.register_to_config(_name_or_path="")  # where it was trained is nobody's business
    with atomic_folder(folder) as temporary:
        pipeline.save_pretrained(temporary, max_shard_size="1900KB")


def _grouped(cells: Sequence[Cell]) -> list[list[Cell]]:
    names = _grouped_names(cells)
    return [[cell for cell in cells if cell.group == name] for name in names]


def _packed(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Whole groups together, as many as make at most `TOGETHER` cells: the more share the teacher, the cheaper."""
    packs: list[list[Cell]] = []
    for group in _grouped(cells):
        if packs and len(packs[-1]) + len(group) <= TOGETHER:
            packs[-1] += group
        else:
            packs.append(group)
    return packs


def _grouped_names(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.group for cell in cells))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)
