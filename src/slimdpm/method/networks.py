"""The networks that slimdpm knows: built from their configs, and called with what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from diffusers import ConfigMixin, UNet2DConditionModel, UNet2DModel
from diffusers.models.modeling_utils import no_init_weights
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._pytree import tree_map

from slimdpm.method.dit import TransformerDenoiser
from slimdpm.method.shapes import ShapesAlone
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.sizes import Size, described, sample_size, sides
from slimdpm.unet import FixedHeadsUNet2DModel, SpectralUNet2DConditionModel, SpectralUNet2DModel

NETWORKS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        UNet2DModel,
        UNet2DConditionModel,
        SpectralUNet2DModel,
        SpectralUNet2DConditionModel,
        FixedHeadsUNet2DModel,
        TransformerDenoiser,
    )
}

_LARGEST = 2**20  # number in a network's config
_MODULES = 15_000  # in a network: the U-Net of XL has fewer than 5,000

P = ParamSpec("P")
T = TypeVar("T")


def once_per_config(
    function: Callable[Concatenate[Mapping[str, Any], P], T],
) -> Callable[Concatenate[Mapping[str, Any], P], T]:
    """Remember what follows from a config alone: it takes a pass on the meta device, and is asked for often."""
    known: dict[str, T] = {}

    @wraps(function)
    def remembered(config: Mapping[str, Any], *args: P.args, **kwargs: P.kwargs) -> T:
        key = repr((dict(config), args, kwargs))
        if key not in known:
            known[key] = function(config, *args, **kwargs)
        return known[key]

    return remembered


def build(config: Mapping[str, Any]) -> Any:
    """The U-Net of a diffusers config (with its ``_class_name``), freshly initialised on the current device.

    Raises:
        SlimdpmError: for an unknown class, or values that no network can be built from.
    """
    name = check_known(config.get("_class_name"))
    check_config(config, f"the config of a {name}")
    with blamed(f"no {name} can be built from its config"), built_within(f"the config of a {name}"):
        return _of_config(NETWORKS[name], config)


@contextmanager
def outlines() -> Iterator[None]:
    """Networks that are built within have shapes alone: on the meta device, where even first values take time.

    A forward pass is better off outside: within, each operation is asked for its device.
    """
    with torch.device("meta"), no_init_weights():
        yield


def outline(config: Mapping[str, Any]) -> Any:
    """`build` within `outlines`."""
    with outlines():
        return build(config)


def check_known(name: Any) -> str:
    """A network's class name, or a `SlimdpmError` if slimdpm has none of that name."""
    if not isinstance(name, str) or name not in NETWORKS:
        raise SlimdpmError(f"{name} is not a network that slimdpm knows (it knows {', '.join(NETWORKS)})")
    return name


def like(model: Any) -> Any:
    """A new model of diffusers or transformers with the config of another."""
    return _of_config(type(model), model.config) if isinstance(model, ConfigMixin) else type(model)(model.config)


def _of_config(cls: Any, config: Mapping[str, Any]) -> Any:
    """Without diffusers' notes, of which one calls values defaults that were given by position."""
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    return cls.from_config({**values, "_class_name": cls.__name__})


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Refuse numbers that nobody means, before anything is built with them.

    Args:
        config: of any part of a pipeline; nested values count.
        name: what the message calls it.
    """

    def sane(value: Any) -> bool:
        if isinstance(value, (Mapping, list, tuple)):
            return all(map(sane, value.values() if isinstance(value, Mapping) else value))
        return not isinstance(value, (int, float)) or abs(value) <= _LARGEST  # which nan and inf are not

    for key, value in config.items():
        if not sane(value):
            raise SlimdpmError(f"{name}: the value of {key} is beyond reason")


@contextmanager
def built_within(name: Any) -> Iterator[None]:
    """Networks are built of so many modules at most: else a number of layers could take all time and memory.

    Raises:
        SlimdpmError: that what `name` describes is larger.
    """
    built = 0

    def count(*_: Any) -> None:
        nonlocal built
        built += 1
        if built > _MODULES:
            raise SlimdpmError(f"{name} describes a network of more than {_MODULES:,} modules: its layers are too many")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def network_config(network: Any) -> dict[str, Any]:
    """A network's config with the name of its class, as `build` takes it."""
    return {**network.config, "_class_name": type(network).__name__}


def known_settings(config: Mapping[str, Any]) -> set[str]:
    """The keys that the network of this config takes."""
    return set(inspect.signature(NETWORKS[config["_class_name"]].__init__).parameters) - {"self"}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults of its class in place of what it leaves out, as diffusers reads it."""
    cls = NETWORKS.get(str(config.get("_class_name")), object)
    given = inspect.signature(cls.__init__).parameters.values()
    return {**{p.name: p.default for p in given if p.default is not p.empty}, **config}


@once_per_config
def keeps_size(config: Mapping[str, Any], size: Size) -> bool:
    """Whether a network gives back what it is given at this size: some halve only even sides."""
    network = outline(config)
    inputs = example_inputs(config, size=size, device="meta")
    try:
        with torch.no_grad(), ShapesAlone():
            call(network, inputs.pop("sample"), inputs.pop("timestep"), inputs)
    except (SlimdpmError, RuntimeError, ValueError):  # what went down does not meet what comes up
        return False
    return True


def example_inputs(
    config: Mapping[str, Any], *, batch: int = 1, size: Size | None = None, tokens: int = 77, device: str = "cpu"
) -> dict[str, Any]:
    """Inputs of the right shapes for a U-Net of this config, as keyword arguments of its `forward`."""
    height, width = sides(size or sample_size(config))
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, config["in_channels"], height, width, device=device),
        "timestep": torch.zeros(batch, dtype=torch.long, device=device),
    }
    context = config.get("cross_attention_dim")
    if context is not None:
        context = context if isinstance(context, int) else context[0]
        width = config.get("encoder_hid_dim") or context
        inputs["encoder_hidden_states"] = torch.randn(batch, tokens, width, device=device)
    if config.get("num_class_embeds") is not None:
        inputs["class_labels"] = torch.zeros(batch, dtype=torch.long, device=device)
    if config.get("addition_embed_type") == "text_time":  # SDXL: pooled text and six time ids
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, pooled, device=device),
            "time_ids": torch.zeros(batch, 6, device=device),
        }
    return inputs


def interface(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a network is given and gives, but for the size: channels and the shapes of its conditions."""
    given = example_inputs(config, size=8, tokens=1, device="meta")
    shapes = {name: tree_map(lambda value: tuple(value.shape), value) for name, value in given.items()}
    return {**shapes, "output": config["out_channels"]}


Inputs = dict[str, Any]  # keyword arguments of the network: tensors (B, ...), or dicts of them


EXTRA = "extra_channels"  # among them, but no argument: channels (B, C', H, W) that follow the noisy sample's


def call(network: nn.Module, sample: Tensor, t: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """A network's output ``(B, C, H, W)`` for a noisy sample and whatever else it is given.

    Raises:
        SlimdpmError: if it is of another height or width than the sample.
    """
    arguments = {name: value for name, value in inputs.items() if name != EXTRA}
    if EXTRA in inputs:
        sample = torch.cat([sample, inputs[EXTRA].to(sample)], dim=1)  # (B, C + C', H, W)
    output = network(sample, t, return_dict=False, **arguments)[0]
    if output.shape[2:] != sample.shape[2:]:
        ours, theirs = (described(tuple(tensor.shape[2:])) for tensor in (sample, output))
        raise SlimdpmError(f"the {type(network).__name__} makes {theirs} of {ours}: its config is of no use here")
    return output


def map_inputs(function: Callable[[Tensor, Tensor], Tensor], first: Inputs, second: Inputs) -> Inputs:
    """The same inputs of two batches, put together tensor by tensor."""
    return {
        key: map_inputs(function, value, second[key]) if isinstance(value, dict) else function(value, second[key])
        for key, value in first.items()
    }
