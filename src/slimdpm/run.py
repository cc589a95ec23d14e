"""The run folder, the unit that a user keeps.

``recipe.yaml`` (resolved), ``checkpoints/``, ``metrics.jsonl``, ``samples/``, ``student/`` (a diffusers pipeline),
``report.html``, ``analysis/`` (of `slimdpm analyze`); besides, ``logs/`` for trackers and ``cache/`` for what is
computed of the data once, and ``given/`` for the images that samples are made of, if the network sees any.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slimdpm.errors import SlimdpmError
from slimdpm.files import append_line, remove_leftovers, write_text
from slimdpm.recipe import Recipe, differences, read_recipe


class RunFolder:
    """Paths of a run, and what is read from and written to them."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.recipe_file = self.path / "recipe.yaml"
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
        self._lock: FileLock | None = None
        self._new = False

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
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SlimdpmError(f"{self.path} cannot be made: {error.strerror}") from None
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SlimdpmError(f"another process is working in {self.path}") from None
        for folder in (self.path, self.checkpoints, self.samples, self.cache, self.student / "unet"):
            remove_leftovers(folder)
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
        """The recipe that the run was started with.

        Raises:
            SlimdpmError: if the folder holds no run.
        """
        if not self.recipe_file.is_file():
            raise SlimdpmError(f"{self.path} is no run folder of slimdpm: it has no recipe.yaml")
        return read_recipe(self.recipe_file)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        append_line(self.metrics_file, json.dumps(values))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; one that a kill cut short is left out."""
        if not self.metrics_file.exists():
            return []
        lines = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be taken again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))
