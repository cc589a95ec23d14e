"""What a network costs: parameters and MACs, counted on the meta device without allocating a weight.

MACs (multiply-accumulates) have two conventions, and every figure names its own:

- ``conv+linear``: convolutions and linear layers, the convention of the paper's tables;
- ``all``: these and the two products inside attention, ``Q K^T`` and ``A V``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from slimdpm.method.networks import build, call, example_inputs, once_per_config
from slimdpm.system.errors import blamed
from slimdpm.system.sizes import Size

_CONV_LINEAR = ("convolution", "addmm", "mm")  # what torch's counter calls a convolution and a linear layer


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass of batch 1."""

    params: int
    macs: int  # conv+linear, the paper's convention
    macs_all: int  # with the products inside attention


@once_per_config
def measure(config: Mapping[str, Any], *, size: Size | None = None, tokens: int = 77) -> Cost:
    """Count a U-Net's parameters and MACs from its config.

    Args:
        config: a diffusers U-Net config with its ``_class_name``.
        size: of the input in latent pixels; by default the config's ``sample_size``.
        tokens: length of the conditioning sequence of a cross-attention U-Net.

    Raises:
        SlimdpmError: if the network is of an unknown class or has no size.
    """
    with torch.device("meta"):
        return measure_model(build(config), size=size, tokens=tokens)


def measure_model(model: Any, *, size: Size | None = None, tokens: int = 77) -> Cost:
    """`measure` for a network at hand, wherever its weights are: it is rebuilt on the meta device."""
    if next(model.parameters()).device.type != "meta":
        with torch.device("meta"):
            model = build(model.config)
    inputs = example_inputs(model.config, size=size, tokens=tokens, device="meta")
    # Training mode or not makes no difference to the count; attention is counted because meta has no fused kernel.
    complaint = f"the config of this {type(model).__name__} fits no forward pass"
    with blamed(complaint), FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model, inputs.pop("sample"), inputs.pop("timestep"), inputs)
    flops = {str(op).rpartition(".")[2]: n for op, n in counter.get_flop_counts()["Global"].items()}
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        macs=sum(flops.get(op, 0) for op in _CONV_LINEAR) // 2,
        macs_all=sum(flops.values()) // 2,
    )
