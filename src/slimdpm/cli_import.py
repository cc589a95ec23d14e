"""The command that brings original checkpoints in: parse, call, print. `slimdpm.cli` registers it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def import_(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="The original .ckpt or .safetensors.")],
    config: Annotated[Path, typer.Option(help="The YAML that belongs to it, from the original repository.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The diffusers folder to write.")],
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="The running averages of the weights, if there are any.")
    ] = True,
) -> None:
    """Turn an original checkpoint into a diffusers folder, a teacher for `slimdpm slim`.

    CompVis latent-diffusion: ffhq, celebahq, lsun_beds, lsun_churches, cin256-v2, and others of these networks. The
    YAML is read as data and of the checkpoint only tensors are read: neither can run code here.

        slimdpm import model.ckpt --config config.yaml -o teachers/ffhq
    """
    from slimdpm.originals import import_checkpoint

    parts = import_checkpoint(checkpoint, config, output, ema=ema)
    weights = "averaged" if parts.ema else "trained"
    unet, autoencoder = type(parts.unet).__name__, type(parts.autoencoder).__name__
    params = sum(p.numel() for p in parts.unet.parameters())
    console.print(
        f"{output}: {unet} ({weights} weights, {params / 1e6:.2f} M parameters), {autoencoder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
