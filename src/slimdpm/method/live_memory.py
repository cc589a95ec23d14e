"""What networks take of a device's memory: passes with fake tensors, which have shapes and a device and no numbers.

Each storage that comes to life is added, each that dies is taken off; the peak is what counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slimdpm.method.networks import build, call, example_inputs, outlines
from slimdpm.system.sizes import Size

CPU = "cpu"  # named at each tensor: within `torch.device` all of a fake tensor's operations are asked for theirs


def peak_bytes(config: Mapping[str, Any], *, batch: int = 1, size: Size | None = None, tokens: int = 77) -> int:
    """The most that lives in a forward pass of a network in single precision, its weights and input included.

    Not in it: what kernels need inside (convolutions have workspaces), the allocator's waste and the libraries.

    Args:
        config: a diffusers U-Net config with its ``_class_name``.
        batch, size, tokens: of the input, see `slimdpm.method.networks.example_inputs`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = imagined_network(build, config)
        with Live(network) as live:
            inputs = example_inputs(config, batch=batch, size=size, tokens=tokens)
            call(network, inputs.pop("sample"), inputs.pop("timestep"), inputs)
    return live.peak + sum(parameter.nbytes for parameter in network.parameters())


def imagined_network(make: Callable[[Any], Any], config: Mapping[str, Any]) -> Any:
    """A network of fake tensors; it wants a `FakeTensorMode`."""
    with unset_fake_temporarily(), outlines():  # initial values would be imagined one by one
        network = make(config)
    for module in network.modules():  # not Module.to_empty, which swaps the data of tensors
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device=CPU)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CPU))
    return network


# Gradients are of their inputs' shapes. Torch goes through the arithmetic to find that out, 40 ms for each new shape.
GRADIENTS: dict[Any, Callable] = {
    torch.ops.aten.native_group_norm_backward.default: lambda grad, x, mean, rstd, weight, *sizes_and_mask: (
        torch.empty_like(x),
        torch.empty_like(weight),
        torch.empty_like(weight),
    ),
    torch.ops.aten.silu_backward.default: lambda grad, x: torch.empty_like(x),
}

_DEVICE = torch.ops.prim.device.default


class Live(TorchDispatchMode):
    """Adds up the storages that are alive, but for the weights of some networks.

    Attributes:
        now: bytes alive.
        peak: the most that there were.
    """

    def __init__(self, *networks: nn.Module | None):
        super().__init__()
        self.now = self.peak = 0
        weights = [p for network in networks if network is not None for p in network.parameters()]
        self._known = {p.untyped_storage()._cdata for p in weights}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is _DEVICE and isinstance(args[0], FakeTensor) and not args[0].fake_mode.in_kernel_invocation:
            return args[0].fake_device  # torch asks more often than it computes
        output = GRADIENTS.get(function, function)(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self._known:
            self._known.add(name)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.now -= size
