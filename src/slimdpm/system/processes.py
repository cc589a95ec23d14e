"""This process among those of one launch, and its device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list, get_int_from_env, parse_flag_from_env

from slimdpm.system.errors import SlimdpmError
from slimdpm.system.stop_signals import hearing

Found = TypeVar("Found")


def processes() -> PartialState:
    """This process among those of one launch: its rank, its device, and a barrier. The first call meets the others."""
    meets = launched()[1] > 1 and not PartialState._shared_state
    with hearing() if meets else nullcontext():
        return PartialState(cpu=on_cpu())


def on_cpu() -> bool:
    """Whether accelerate is to be told so: without GPUs it does not find the other processes of a launch by itself."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    alone = device is None or device.type == "mps"
    return parse_flag_from_env("ACCELERATE_USE_CPU") or (alone and launched()[1] > 1)


def launched() -> tuple[int, int]:
    """This process's rank and how many there are in its launch, without meeting the others."""
    return get_int_from_env(["RANK"], 0), get_int_from_env(["WORLD_SIZE"], 1)


def by_the_first(work: Callable[[], Found]) -> Found:
    """What the first process of a launch finds, for all of them; the others wait.

    Raises:
        SlimdpmError: in all of them, if the first one's work does.
    """
    if launched()[1] == 1:
        return work()
    found: list[Any] = [None]
    if processes().is_main_process:
        try:
            found = [work()]
        except SlimdpmError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], SlimdpmError):
        raise found[0]
    return found[0]


def pick_device(name: str | None) -> torch.device:
    """A device by name; None is this process's own, the best there is. Raises `SlimdpmError` if it is not to be had."""
    if name is None:
        return processes().device
    try:
        tried = torch.zeros(1, device=name)
        tried.item()  # which the meta device does not have
        return tried.device
    except Exception:  # for names that are unknown or of absent devices there are several
        raise SlimdpmError(f"the device {name!r} is not to be had here") from None


def leave() -> None:
    """Say goodbye to the other processes, at the end of a program."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
