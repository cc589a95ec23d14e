"""Teachers: pretrained pipelines, opened and tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from slimdpm.conditioning.classes import ClassLabels
from slimdpm.conditioning.text import Text
from slimdpm.method.networks import call, like, map_inputs, network_config, once_per_config, outline, outlines
from slimdpm.method.shapes import ShapesAlone
from slimdpm.pipelines.borrowing import borrowed
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.shell import Shell, _supported, network_of, shell_of
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.hashing import fingerprint
from slimdpm.system.sizes import sides


@dataclass(frozen=True)
class Teacher:
    """A pretrained pipeline: its U-Net, or what is called as one, and the shell. `name` is how the recipe calls it."""

    name: str
    unet: Any
    shell: Shell

    @property
    def config(self) -> dict[str, Any]:
        """Of the network, with its class."""
        return network_config(self.unet)

    @property
    def has_scales(self) -> bool:
        """Whether its features have scales, as a U-Net's do: then they can be distilled, and its topology slimmed."""
        return "block_out_channels" in self.unet.config


def load_teacher(source: str | Path | DiffusionPipeline, *, weights: bool = True) -> Teacher:
    """A teacher from a diffusers folder, a run folder of slimdpm, a hub id, or a pipeline at hand.

    Args:
        source: where it is.
        weights: False for an outline on the meta device, see `load_pipeline`.

    Raises:
        SlimdpmError: if it is missing, no pipeline, of an unsupported kind, or lacks weights.
    """
    if isinstance(source, DiffusionPipeline):
        _supported(source)
        pipeline = borrowed(source, weights=weights)
        network = network_of(pipeline)
        name = f"{type(source).__name__} {fingerprint(network) if weights else 'outline'}"
    else:
        pipeline = load_pipeline(source, weights=weights)
        name, network = str(source), network_of(pipeline)
    shell = shell_of(pipeline)
    if weights or not isinstance(source, DiffusionPipeline):  # who has an outline at hand has planned it
        _try(name, network, shell)
    return Teacher(name, network, shell)


def open_pipeline(source: str | Path) -> DiffusionPipeline:
    """A pipeline that makes images: as `load_pipeline`, and its parts are tried.

    Raises:
        SlimdpmError: as `load_teacher`.
    """
    pipeline = load_pipeline(source)
    _try(str(source), network_of(pipeline), shell_of(pipeline))
    return pipeline


@torch.no_grad()
def _try(name: str, network: Any, shell: Shell) -> None:
    """A teacher's parts work and fit each other, as far as shapes tell: on the meta device.

    Raises:
        SlimdpmError: for one that does not.
    """
    conditioning, inputs = shell.conditioning, {}
    with blamed(f"what encodes the conditions of {name} does not work"):
        if isinstance(conditioning, Text):
            texts = ["a", "some more words"]  # of different lengths, as in a batch
            inputs = Text.training_inputs(conditioning, {"conditions": texts})
        elif isinstance(conditioning, ClassLabels):
            where: Any = conditioning.embedder.device if conditioning.embedder else "meta"
            inputs = conditioning.training_inputs({"conditions": torch.zeros(2, dtype=torch.long, device=where)})
    with blamed(f"the network of {name} does not work with the rest of it"):
        sample = torch.empty(2, network.config.in_channels, *sides(shell.size), device="meta")
        _pass(network_config(network), sample, map_inputs(lambda given, _: given.to("meta"), inputs, inputs))
    if shell.autoencoder is not None:
        with blamed(f"the autoencoder of {name} does not work"), ShapesAlone():
            with outlines():
                trial = replace(shell, autoencoder=like(shell.autoencoder))
            images = torch.empty(1, shell.image_channels, *sides(shell.image_size), device="meta")
            latents = torch.empty(1, shell.channels, *sides(shell.size), device="meta")
            encoded = trial.autoencoder.encoder(images)
            if encoded.shape[2:] != latents.shape[2:] or trial.decode(latents).shape != images.shape:
                raise SlimdpmError(f"the autoencoder of {name} gives latents of another shape than its network takes")


@once_per_config
def _pass(config: Mapping[str, Any], sample: torch.Tensor, inputs: dict[str, Any]) -> None:
    """A forward pass of a network of this config for two inputs on the meta device; raises whatever it raises."""
    with ShapesAlone():
        call(outline(config), sample, torch.zeros(2, device="meta"), inputs)
