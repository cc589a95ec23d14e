"""Several students trained side by side: the same batches, and one run of the teacher for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from slimdpm.run_folder import RunFolder
from slimdpm.system.progress import Display
from slimdpm.system.stop_signals import Stopped, stop_signals
from slimdpm.training.accelerator import make_accelerator
from slimdpm.training.job import Job
from slimdpm.training.run import new_trainer
from slimdpm.training.student_folder import Results
from slimdpm.training.trainer import Trainer

from .grid import Idea


class OncePerBatch(nn.Module):
    """A frozen network that runs once for each batch, however many ask.

    The hooks of all that tap its blocks fire in the one run, so each of them finds its features.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self._known: tuple[Any, Any] | None = None

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Any:
        inputs = (x, t, options)  # the conditions are among the options
        if self._known is None or not _alike(self._known[0], inputs):
            self._known = inputs, self.network(x, t, **options)
        return self._known[1]

    def get_submodule(self, target: str) -> nn.Module:
        return self.network.get_submodule(target) if target else self


def _alike(a: Any, b: Any) -> bool:
    """Whether nested inputs have the same structure and equal values."""
    (ones, structure), (others, other_structure) = tree_flatten(a), tree_flatten(b)
    return structure == other_structure and all(map(_equal, ones, others))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def train_together(
    jobs: Mapping[str, Job],
    folders: Mapping[str, Path],
    display: Display | None = None,
    *,
    ideas: Mapping[str, Idea] | None = None,
) -> dict[str, DiffusionPipeline]:
    """Run jobs that share teacher, data, seed and steps; each keeps a run folder of its own, and resumes from it.

    A run that is behind the others, after a kill, catches up first.

    Args:
        jobs: by name.
        folders: of the runs, by the same names.
        display: where progress is shown.
        ideas: changes to some of them.

    Returns:
        the students' pipelines with averaged weights.

    Raises:
        slimdpm.system.stop_signals.Stopped: on Ctrl-C or SIGTERM, after a checkpoint of each.
    """
    display, ideas = display or Display(), ideas or {}
    teachers = [job.teacher for job in jobs.values() if job.teacher is not None]
    shared = OncePerBatch(teachers[0].unet) if teachers else None
    with ExitStack() as stack:
        first = next(iter(jobs))
        accelerator = make_accelerator(jobs[first].recipe, RunFolder(folders[first]))
        trainers: dict[str, Trainer] = {}
        for name, job in jobs.items():
            idea = ideas.get(name, Idea())
            trainers[name] = _trainer(job, folders[name], accelerator, shared, stack, idea)
            idea.network(trainers[name].state.student.unet)
            idea.trainer(trainers[name])
            trainers[name].resume()
        stack.enter_context(torch.random.fork_rng())
        received = stack.enter_context(stop_signals())
        _advance(list(trainers.values()), received, display)
        pipelines = {name: _pipeline(jobs[name], trainer) for name, trainer in trainers.items()}
        for name, idea in ideas.items():
            idea.network(pipelines[name].unet)
        return pipelines


def _trainer(
    job: Job, folder: Path, accelerator: Accelerator, shared: OncePerBatch | None, stack: ExitStack, idea: Idea
) -> Trainer:
    run = RunFolder(folder)
    job = replace(job, recipe=run.settled(job.recipe))
    run.open(job.recipe)
    stack.callback(run.close)
    teacher = replace(job.teacher, unet=shared) if job.teacher is not None else None
    return new_trainer(replace(job, teacher=teacher), run, accelerator, distiller=idea.distiller)


def _advance(trainers: Sequence[Trainer], received: Sequence[int], display: Display) -> None:
    """All to the last step, the one that is furthest behind first."""
    walks = {trainer: trainer.steps(received=received) for trainer in trainers}
    total = sum(trainer.settings.steps for trainer in trainers)
    done = sum(trainer.state.step for trainer in trainers)
    stopped: Stopped | None = None
    with display.task(f"{len(trainers)} students", total, done=done, unit="steps") as task:
        while walks:
            trainer = min(walks, key=lambda t: t.state.step)
            try:
                next(walks[trainer])
                task.advance()
            except StopIteration:
                del walks[trainer]
            except Stopped as signal:
                stopped = signal
                del walks[trainer]
    if stopped is not None:
        raise stopped


def _pipeline(job: Job, trainer: Trainer) -> DiffusionPipeline:
    results = Results(job, trainer.run, trainer.accelerator.device, Display())
    weights = trainer.weights()
    results.save_student(weights)
    return results.pipeline(weights).to(trainer.accelerator.device)
