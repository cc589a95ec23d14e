"""What this machine is, for reports."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch


def machine_facts() -> dict[str, str]:
    """What a figure was made on: the device and the versions that matter."""
    device = f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    packages = ", ".join(f"{name} {version(name)}" for name in ("slimdpm", "torch", "diffusers"))
    return {"device": device, "software": f"{packages}, Python {platform.python_version()}"}
