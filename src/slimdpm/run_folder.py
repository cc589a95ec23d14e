"""The run folder, the unit that a user keeps.

``recipe.yaml`` (resolved), ``inputs.json`` (which teacher and which images, by content), ``checkpoints/``,
``metrics.jsonl``, ``samples/``, ``student/`` (a diffusers pipeline), ``report.html``, ``analysis/`` (of `slimdpm
analyze`); besides, ``logs/`` for trackers and ``cache/`` for what is computed of the data once, and ``given/`` for the
images that samples are made of, if the network sees any.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from slimdpm.recipe import Recipe
from slimdpm.recipe_file import differences, read_recipe
from slimdpm.system.documents import regular
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import append_line, explained, read_sealed, remove_leftovers, write_sealed, write_text
from slimdpm.system.shared_work import claim

_LOGGED = {"step", "denoising", "seconds"}  # in each line of the log
# What holds for a run that was begun before there was such a key: answers kept, terms weighed, images held out.
_BEFORE: dict[str, dict[str, Any]] = {"distill": {"reuse": 1, "snr_weighted": False}, "data": {"held_out": 0}}


class RunFolder:
    """Paths of a run, and what is read from and written to them."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.recipe_file = self.path / "recipe.yaml"
        self.inputs_file = self.path / "inputs.json"
        self.checkpoints = self.path / "checkpoints"
        self.metrics_file = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.given = self.path / "given"
        self.student = self.path / "student"
        self.report = self.path / "report.html"
        self.analysis = self.path / "analysis"
        self.analysis_html = self.analysis / "sections.html"
        self.logs = self.path / "logs"
        self.cache = self.path / "cache"
        self._lock: BaseFileLock | None = None
        self._new = False

    def settled(self, recipe: Recipe) -> Recipe:
        """The recipe with what is not the same everywhere filled in: a run keeps what it began with.

        That is the defaults of its training, and the student and the steps that were measured for budgets in time.

        Raises:
            SlimdpmError: if the folder's recipe is damaged.
        """
        begun = self.recipe() if self.recipe_file.is_file() else recipe
        data, train, distill, student = recipe.data, recipe.train, recipe.distill, recipe.student
        if train.undecided and begun.train.timed is not None:
            train = train.within(begun.train.timed)
        if train.warmup is None and not train.undecided:
            train = train.model_copy(update={"warmup": begun.train.warmup_steps})
        if distill.reuse is None:
            distill = distill.model_copy(update={"reuse": begun.distill.uses})
        if distill.snr_weighted is None:
            distill = distill.model_copy(update={"snr_weighted": begun.distill.weighs})
        if data.held_out is None:
            data = data.model_copy(update={"held_out": begun.data.held_out})
        if student.in_time and student.timed is None:
            student = student.model_copy(update={"timed": begun.student.timed})
        return recipe.model_copy(update={"data": data, "train": train, "distill": distill, "student": student})

    def check(self, recipe: Recipe) -> None:
        """Refuse a folder that holds something else, before anything is written.

        Raises:
            SlimdpmError: naming the keys in which the folder's recipe differs, or what is in the way.
        """
        if self.path.exists() and not self.path.is_dir():
            raise SlimdpmError(f"{self.path} is a file; the run needs a folder")
        if self.recipe_file.exists():
            changed = differences(self.recipe(), recipe)
            if changed:
                verb = "differs" if len(changed) == 1 else "differ"
                raise SlimdpmError(
                    f"{self.path} holds a run of another recipe, {', '.join(changed)} {verb}; "
                    "choose another folder, or give the same recipe to resume"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise SlimdpmError(f"{self.path} is not empty and holds no run of slimdpm; choose another folder")

    def open(self, recipe: Recipe) -> None:
        """Make the folder or take up the run in it, and hold it against a second process.

        Raises:
            SlimdpmError: as `check`, or if another process is working in it.
        """
        self.check(recipe)
        self._new = not self.path.exists()
        self._lock = claim(self.path).lock
        with explained(self.path):
            self.checkpoints.mkdir(exist_ok=True)
        for folder in (self.path, self.checkpoints, self.samples, self.student / "unet"):
            remove_leftovers(folder, locked=True)
        remove_leftovers(self.cache)  # another run may be filling it
        self.keep(recipe)

    def keep(self, recipe: Recipe) -> None:
        """Write down what the run, held by this process, is."""
        write_text(self.recipe_file, recipe.to_yaml())

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard_if_new(self) -> None:
        """Remove a folder that `open` has just made, when the run cannot begin; a part of a cache is worth keeping."""
        if self._new and not any(self.cache.glob("*/*.safetensors")):
            self.close()
            shutil.rmtree(self.path, ignore_errors=True)

    def recipe(self) -> Recipe:
        """The recipe that the run was started with. Raises `SlimdpmError` if the folder holds no run."""
        if not self.recipe_file.is_file():
            raise SlimdpmError(f"{self.path} is no run folder of slimdpm: it has no recipe.yaml")
        recipe = read_recipe(self.recipe_file).renamed
        for name, values in _BEFORE.items():
            section = getattr(recipe, name)
            missing = {key: value for key, value in values.items() if getattr(section, key) is None}
            recipe = recipe.model_copy(update={name: section.model_copy(update=missing)})
        return recipe

    def grid(self, step: int) -> Path:
        """The picture of samples at a step."""
        return self.samples / f"step-{step:08d}.png"

    def changed_inputs(self, inputs: Mapping[str, str]) -> list[str]:
        """Which of a run's inputs are not those that it began with, by name; an old run begins with these.

        Args:
            inputs: their contents in short, by name.

        Raises:
            SlimdpmError: if the file is damaged.
        """
        if not self.inputs_file.exists():
            write_sealed(self.inputs_file, {"inputs": dict(inputs)})
        begun = read_sealed(self.inputs_file)["inputs"]
        return [name for name, content in inputs.items() if begun.get(name) != content]

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        append_line(self.metrics_file, json.dumps(values))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; what is none (a kill cut it short) is left out.

        Raises:
            SlimdpmError: if it cannot be read.
        """
        if not self.metrics_file.exists():
            return []
        lines = []
        with regular(self.metrics_file) as log:
            for line in log:
                try:
                    values = json.loads(line.decode(errors="replace"))
                except (ValueError, RecursionError):
                    continue
                if isinstance(values, dict) and values.keys() >= _LOGGED and all(map(_is_number, values.values())):
                    lines.append(values)
        return lines

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be taken again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        if self.metrics_file.exists():
            write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
