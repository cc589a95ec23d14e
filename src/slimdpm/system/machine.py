"""What this machine is, for reports."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch


def device_facts(device: torch.device) -> str:
    """What a device is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def runtime_facts(compiled: bool = False) -> str:
    """What runs the networks."""
    return f"{'compiled' if compiled else 'eager'} PyTorch {torch.__version__}"


def machine_facts() -> dict[str, str]:
    """What a figure was made on: the device and the versions that matter."""
    device = device_facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    packages = ", ".join(f"{name} {version(name)}" for name in ("slimdpm", "torch", "diffusers"))
    return {"device": device, "software": f"{packages}, Python {platform.python_version()}"}
