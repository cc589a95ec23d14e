"""A caller's pipeline as a teacher: read and not changed, and its networks as their configs describe them.

What people put around a network is undone in a copy that shares its weights: compiled modules, offloading, adapters
(LoRA) and parametrisations. What is no layer of such a network after that (quantised layers, adapters without a way to
merge them) is refused by name: a student could not inherit it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn.utils import parametrize

from slimdpm.method.networks import like, outlines
from slimdpm.system.errors import SlimdpmError, blamed


def borrowed(pipeline: DiffusionPipeline, *, weights: bool = True) -> DiffusionPipeline:
    """A pipeline of plain networks in single precision, with the weights of another: whatever is done to their modes,
    gradients, devices and types, the other's stay as they are.

    Args:
        pipeline: the caller's.
        weights: False takes an outline, whose weights are on the meta device.

    Raises:
        SlimdpmError: for a layer that a network of its config does not have.
    """
    twin = copy.copy(pipeline)  # with what it has beside its parts, the names of a DiT's classes, say
    networks = {part: model for part, model in pipeline.components.items() if isinstance(model, nn.Module)}
    twin.register_modules(**{part: plain(model, part, weights=weights) for part, model in networks.items()})
    return twin


@torch.no_grad()
def plain(model: nn.Module, part: str, *, weights: bool = True) -> nn.Module:
    """A network's copy without what was put around it and its layers; it shares the weights that need no change.

    Args:
        model: of diffusers or transformers.
        part: what a message calls it.
        weights: whether they must be there.

    Raises:
        SlimdpmError: for a layer that a network of its config does not have.
    """
    with blamed(f"the {part} cannot be copied"):
        model = getattr(model, "_orig_mod", model)  # compiled
        own = _apart(model)
        remove_hook_from_submodules(own)  # offloaded weights come back
        for name, module in list(own.named_modules()):
            if name and (inner := _unwrapped(module)) is not module:
                parent, _, child = name.rpartition(".")
                setattr(own.get_submodule(parent), child, inner)
        with outlines():
            fresh = like(own)
    kinds = {name: type(module) for name, module in fresh.named_modules()}
    for name, module in own.named_modules():
        if type(module) is not kinds.get(name) or hasattr(module, "_diffusers_hook"):
            raise SlimdpmError(
                f"the {part} has a {type(module).__module__}.{type(module).__name__} at {name or 'its root'}, which is "
                f"no plain layer of a {type(fresh).__name__}: merge it into the weights or remove it first"
            )
    shapes = {name: value.shape for name, value in fresh.state_dict().items()}
    for name, value in own.state_dict().items():
        if value.shape != shapes.pop(name, None) or (weights and value.is_meta):
            raise SlimdpmError(f"the {part} has no weight at {name} as a {type(fresh).__name__} has it")
    if shapes:
        raise SlimdpmError(f"the {part} has no weight at {next(iter(shapes))}, which a {type(fresh).__name__} has")
    return own.float().eval()


def _apart(model: nn.Module) -> Any:
    """A copy with parameters of its own over the same memory."""
    shared: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        same = tensor.detach()
        shared[id(tensor)] = nn.Parameter(same, False) if isinstance(tensor, nn.Parameter) else same
    return copy.deepcopy(model, shared)


def _unwrapped(module: Any) -> nn.Module:
    """A layer with what an adapter or a parametrisation adds in its weights."""
    module = getattr(module, "_orig_mod", module)
    while hasattr(module, "base_layer") and hasattr(module, "merge"):  # peft's adapters
        for parameter in module.base_layer.parameters():
            parameter.data = parameter.data.clone()  # merging writes into it
        (module.unmerge if getattr(module, "disable_adapters", False) else module.merge)()
        module = module.base_layer
    for name in list(getattr(module, "parametrizations", ())):
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return module
