"""Checkpoints: everything that decides the next step, as safetensors and JSON, written whole or not at all.

A checkpoint is a folder ``step-00001000`` with

- ``student.safetensors``, ``ema.safetensors``: the U-Net's weights, by their own names;
- ``aligners.safetensors``: the 1x1 convolutions of distillation;
- ``optimizer.safetensors``: the optimiser's moments, by parameter number;
- ``state.json``: the step and counters; the learning rate's schedule follows from the step. It also holds the digests
  of all files: a run goes on from what was written, or says what was changed.

There is no state of a random generator: each step seeds its own (see `slimdpm.training.trainer`).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from slimdpm.method.distiller import TappedStudent
from slimdpm.system.errors import SlimdpmError, first_line
from slimdpm.system.files import atomic_folder, load_tensors, read_sealed, save_tensors, write_sealed

_NAME = re.compile(r"step-(\d+)")


@dataclass
class Trainable:
    """The parts of a run that change from step to step."""

    student: TappedStudent
    ema: EMAModel
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: Any = None  # torch.amp.GradScaler with fp16
    step: int = 0
    seconds: float = 0.0  # of training so far, over all sittings


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in a folder, the oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("step-*") if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return [path for _, path in sorted(found)]


def checkpoint_step(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


def save_checkpoint(folder: Path, state: Trainable, *, keep: int) -> Path:
    """Write a checkpoint and prune the oldest beyond `keep`.

    Raises:
        SlimdpmError: if the disk is full or not writable; what was there before is untouched.
    """
    path = folder / f"step-{state.step:08d}"
    if path.exists():  # a run that resumed, changed nothing and ends again
        return path
    moments, groups = flatten_optimizer(state.optimizer.state_dict())
    with atomic_folder(path) as temporary:
        save_tensors(temporary / "student.safetensors", state.student.unet.state_dict())
        save_tensors(temporary / "ema.safetensors", ema_weights(state.student.unet, state.ema))
        save_tensors(temporary / "aligners.safetensors", state.student.aligners.state_dict())
        save_tensors(temporary / "optimizer.safetensors", moments)
        values = {
            "step": state.step,
            "seconds": state.seconds,
            "ema_step": state.ema.optimization_step,
            "optimizer_groups": groups,
            "scaler": state.scaler.state_dict() if state.scaler else None,
        }
        write_sealed(temporary / "state.json", values, temporary.glob("*.safetensors"))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_checkpoint(path: Path, state: Trainable) -> bool:
    """Bring `state` to where the checkpoint left it.

    Returns:
        whether it could be verified; those of earlier versions have no digests.

    Raises:
        SlimdpmError: if a file is missing, added or changed, or belongs to another step or network.
    """
    try:
        values = read_sealed(path / "state.json", unsealed=True)
        verified = "files" in values
        added = {file.name for file in path.glob("[!.]*")} - {*values.get("files", ()), "state.json"}
        if verified and added:
            raise SlimdpmError(f"{min(added)} is none of its files")
        if values["step"] != checkpoint_step(path):
            raise SlimdpmError(f"it is of step {values['step']}")
        state.student.unet.load_state_dict(load_tensors(path / "student.safetensors"))
        state.student.aligners.load_state_dict(load_tensors(path / "aligners.safetensors"))
        averages = load_tensors(path / "ema.safetensors")
        for (name, _), shadow in zip(state.student.unet.named_parameters(), state.ema.shadow_params, strict=True):
            shadow.copy_(averages[name])
        moments = load_tensors(path / "optimizer.safetensors")
        state.optimizer.load_state_dict(unflatten_optimizer(moments, values["optimizer_groups"]))
        state.schedule.last_epoch = values["step"]  # the learning rate itself is in the optimiser's groups
        state.ema.optimization_step = values["ema_step"]
        if state.scaler and values["scaler"]:
            state.scaler.load_state_dict(values["scaler"])
        state.step, state.seconds = values["step"], values["seconds"]
    except (SlimdpmError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        before = [other for other in checkpoints(path.parent) if checkpoint_step(other) < checkpoint_step(path)]
        way = f"to go on from {before[-1].name}" if before else "to start again: there is none before it"
        raise SlimdpmError(f"checkpoint {path} cannot be used ({first_line(error)}); remove it {way}") from None
    return verified


def ema_weights(unet: nn.Module, ema: EMAModel) -> dict[str, Tensor]:
    """The averaged weights under the U-Net's own names, with its buffers."""
    averages = dict(zip((name for name, _ in unet.named_parameters()), ema.shadow_params, strict=True))
    return {**unet.state_dict(), **averages}


def flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as named tensors (``"12.exp_avg"``) and its groups as plain values."""
    tensors = {f"{i}.{key}": value for i, entry in state["state"].items() for key, value in entry.items()}
    return tensors, [{k: v.item() if isinstance(v, Tensor) else v for k, v in g.items()} for g in state["param_groups"]]


def unflatten_optimizer(tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The inverse of `flatten_optimizer`."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        entries.setdefault(int(number), {})[key] = tensor
    return {"state": entries, "param_groups": groups}
