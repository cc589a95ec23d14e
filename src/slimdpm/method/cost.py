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
from diffusers.models.attention_processor import Attention
from torch import nn

from slimdpm.method.networks import call, example_inputs, once_per_config, outline
from slimdpm.method.shapes import MacCounter
from slimdpm.system import amounts
from slimdpm.system.errors import blamed
from slimdpm.system.sizes import Size
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp

_OWNERS = (Attention, WaveletGatingDown, WaveletGatingUp)  # layers that compute beside what is in them


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass of batch 1."""

    params: int
    macs: int  # conv+linear, the paper's convention
    macs_all: int  # with the products inside attention

    @property
    def megabytes(self) -> float:
        """Of the weights, in single precision."""
        return 4e-6 * self.params

    def __str__(self) -> str:
        macs, macs_all = amounts.macs(self.macs), amounts.macs(self.macs_all)
        return f"{amounts.parameters(self.params)} parameters, {macs} MACs conv+linear, {macs_all} all"


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
    return measure_model(outline(config), size=size, tokens=tokens)


def measure_model(model: Any, *, size: Size | None = None, tokens: int = 77) -> Cost:
    """`measure` for a network at hand, wherever its weights are: it is rebuilt on the meta device."""
    if next(model.parameters()).device.type != "meta":
        model = outline(model.config)
    inputs = example_inputs(model.config, size=size, tokens=tokens, device="meta")
    counter = _counted(model, inputs)
    paper = sum(counter.layers.values())
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        macs=paper,
        macs_all=paper + sum(counter.products.values()),
    )


def _counted(model: Any, inputs: dict[str, Any]) -> MacCounter:
    """The MACs of a forward pass by layer."""
    # Training mode or not makes no difference to the count.
    complaint = f"the config of this {type(model).__name__} fits no forward pass"
    with blamed(complaint), torch.no_grad(), MacCounter(model, _OWNERS) as counter:
        call(model, inputs.pop("sample"), inputs.pop("timestep"), inputs)
    return counter


class WidthCounter:
    """`measure` for many widths of one topology: one pass is counted, what other widths cost is computed from it.

    The MACs of a convolution or linear layer are in proportion to its weights, those of attention's products and of
    gated resampling to their channels; how often each is used depends on positions and tokens alone, which no width
    changes, and no norm group or head. A layer that the pass has not seen (a shortcut between unequal widths) is cause
    for another pass.

    Args:
        size, tokens: see `measure`.
    """

    def __init__(self, *, size: Size | None = None, tokens: int = 77):
        self.size, self.tokens = size, tokens
        self._uses: dict[str, tuple[int, int]] = {}  # MACs for each weight or channel: of conv+linear, and of products
        self._costs: dict[tuple[int, ...], Cost] = {}  # by widths

    def measure(self, config: Mapping[str, Any]) -> Cost:
        """The cost of this config."""
        widths = tuple(config["block_out_channels"])
        if widths not in self._costs:
            self._costs[widths] = self._computed(config)
        return self._costs[widths]

    def _computed(self, config: Mapping[str, Any]) -> Cost:
        model = outline(config)
        extents = {name: extent for name, module in model.named_modules() if (extent := _extent(module))}
        if not extents.keys() <= self._uses.keys():
            self._count(model, extents)
        paper, products = (sum(self._uses[n][kind] * extent for n, extent in extents.items()) for kind in (0, 1))
        return Cost(sum(p.numel() for p in model.parameters()), paper, paper + products)

    def _count(self, model: Any, extents: Mapping[str, int]) -> None:
        inputs = example_inputs(model.config, size=self.size, tokens=self.tokens, device="meta")
        counter = _counted(model, inputs)
        for name, extent in extents.items():
            self._uses[name] = counter.layers[name] // extent, counter.products[name] // extent


def _extent(module: Any) -> int:
    """To what a layer's own MACs are in proportion, 0 if it has none."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return module.weight.numel()
    if isinstance(module, Attention):
        return module.to_q.out_features
    return module.channels if isinstance(module, (WaveletGatingDown, WaveletGatingUp)) else 0
