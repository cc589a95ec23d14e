"""accelerate, set up from a recipe: precision, accumulation, processes, trackers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from slimdpm.recipe import Recipe
from slimdpm.recipe_file import flatten
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.processes import on_cpu, processes

_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(recipe: Recipe, run: RunFolder) -> Accelerator:
    """An accelerator for one run. Several runs may follow each other in one process.

    Raises:
        SlimdpmError: if the device cannot do the precision, a tracker is not to be had, or the batch cannot be shared.
    """
    check_trackers(recipe.train.trackers)
    # accelerate keeps its settings in singletons; a second run in this process brings its own.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    processes()
    try:
        accelerator = Accelerator(
            cpu=on_cpu(),
            mixed_precision=_PRECISION[recipe.train.precision],
            log_with=recipe.train.trackers or None,
            project_dir=str(run.path),
        )
    except ValueError as error:
        raise SlimdpmError(f"train.precision {recipe.train.precision}: {str(error).splitlines()[0]}") from None
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as in convolutions by default
    accelerator.gradient_accumulation_steps = split_batch(recipe, accelerator.num_processes)[1]
    return accelerator


@contextmanager
def tracking(accelerator: Accelerator, recipe: Recipe) -> Iterator[None]:
    """Track in the run's ``logs/`` while the context is open; the recipe goes along as the hyper-parameters."""
    values = flatten(recipe.model_dump(mode="json"))
    plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in values.items()}
    accelerator.init_trackers("logs", config=plain)
    try:
        yield
    finally:
        # Not accelerator.end_training(): it would also end the process group, which the results still need.
        for tracker in accelerator.trackers:
            tracker.finish()


def where(accelerator: Accelerator) -> list[str]:
    """On what a run trains, in a line; and one more if its launcher was asked for more."""
    count = accelerator.num_processes
    lines = [f"device: {accelerator.device.type}, {count} {'process' if count == 1 else 'processes'}"]
    if count == 1 and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        lines.append(
            "warning: the launcher was asked for several processes and started one: accelerate's needs a GPU for each; "
            "torchrun --nproc_per_node 2 -m slimdpm.cli starts two on any machine"
        )
    return lines


def check_trackers(names: list[str]) -> None:
    """Raise a `SlimdpmError` for a tracker that accelerate does not know or whose package is not installed."""
    known = [str(kind.value) for kind in LoggerType if kind is not LoggerType.ALL]
    available = {str(LoggerType(kind).value) for kind in get_available_trackers()}
    for name in names:
        if name not in known:
            raise SlimdpmError(f"train.trackers: unknown tracker {name!r}; there are {', '.join(known)}")
        if name not in available:
            raise SlimdpmError(
                f"train.trackers: the package of {name} is not installed; pip install it, or set train.trackers=[]"
            )


def split_batch(recipe: Recipe, processes: int) -> tuple[int, int]:
    """(images in a micro-step of one process, micro-steps in a step).

    Raises:
        SlimdpmError: if the processes cannot share the batch evenly.
    """
    total, most = recipe.train.batch_size, recipe.train.max_batch_per_device
    if total % processes:
        raise SlimdpmError(f"train.batch_size {total} cannot be shared evenly by {processes} processes")
    share = total // processes
    micro = next(n for n in range(min(share, most or share), 0, -1) if share % n == 0)
    return micro, share // micro
