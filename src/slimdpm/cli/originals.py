"""The command that brings original checkpoints in: parse, call, print. `slimdpm.cli` registers it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from slimdpm.system.amounts import parameters
from slimdpm.system.progress import Display

console = Console()


def import_(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="The original .ckpt or .safetensors.")],
    config: Annotated[
        str,
        typer.Option(
            metavar="YAML", help="What the original repository has for it. For Stable Diffusion: a diffusers folder."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The diffusers folder to write.")],
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="The running averages of the weights, if there are any.")
    ] = True,
) -> None:
    """Turn an original checkpoint into a diffusers folder, a teacher for `slimdpm slim`.

    CompVis latent-diffusion: ffhq, celebahq, lsun_beds, lsun_churches, cin256-v2, and others of these networks. The
    YAML is read as data, and of the checkpoint only tensors are read: neither can run code. A tensor that is missing
    or has no place is an error.

        slimdpm import model.ckpt --config models/ldm/ffhq256/config.yaml -o teachers/ffhq

    Stable Diffusion: one .safetensors or .ckpt. It has no tokenizer, so --config is a diffusers folder of the same
    family, whose weights are not needed, or its hub id; --no-ema changes nothing.

        slimdpm import v1-5.safetensors --config stable-diffusion-v1-5/ -o teachers/sd
    """
    from slimdpm.originals import import_checkpoint, import_single_file

    if os.path.isfile(config) or config.endswith((".yaml", ".yml")):
        parts = import_checkpoint(checkpoint, Path(config), output, ema=ema)
        averages = "" if parts.ema or not ema else ", which has no averaged weights"
        _print(f"{output}: the {'averaged' if parts.ema else 'trained'} weights of {checkpoint}{averages}")
        _print(f"{_named(parts.unet)}, {_named(parts.autoencoder)}")
        if parts.class_embedder is not None:
            _print(f"class-conditional: {parts.class_embedder.config.num_classes} labels")
    else:
        pipeline = import_single_file(checkpoint, config, output)
        _print(f"{output}: {type(pipeline).__name__}, {_named(pipeline.unet)}, {_named(pipeline.vae)}")


def _named(network: Any) -> str:
    return f"{type(network).__name__} of {parameters(sum(p.numel() for p in network.parameters()))} parameters"


def _print(line: str) -> None:
    Display(console).say(line)
