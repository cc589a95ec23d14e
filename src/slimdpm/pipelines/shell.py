"""The shell that surrounds a U-Net: what passes from teacher to student untouched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from slimdpm.conditioning import Conditioning, Unconditional, conditioning_of
from slimdpm.method.dit import TransformerDenoiser
from slimdpm.method.forward_process import Process, config_of
from slimdpm.pipelines.loading import (
    AUTOENCODERS,
    PIPELINES,
    load_model,
    locate,
    outline_model,
    pipeline_class,
    read_config,
    unsupported,
)
from slimdpm.recipe import DataRecipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import Size, each_side, sample_size, sides


@dataclass(frozen=True)
class Shell:
    """A pipeline without its U-Net: what passes from teacher to student untouched.

    Attributes:
        pipeline_class: of the student.
        scheduler: its scheduler.
        size: of what the U-Net denoises.
        channels: its channels.
        autoencoder: a `VQModel` or `AutoencoderKL`; None in pixel space.
        conditioning: what the U-Net is given besides the noisy sample.
        parts: what else the pipeline is made with, by the names of its arguments, the autoencoder among them.
    """

    pipeline_class: type[DiffusionPipeline]
    scheduler: Any
    size: Size
    channels: int
    autoencoder: Any = None
    conditioning: Conditioning = field(default_factory=Unconditional)
    parts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scale = 1 if self.autoencoder is None else self.autoencoder.config.scaling_factor
        if not isinstance(scale, (int, float)) or not scale or not math.isfinite(scale):
            raise SlimdpmError(f"the autoencoder's scaling_factor is {scale!r}: latents cannot be scaled by it")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of what the U-Net denoises."""
        return (self.channels, *sides(self.size))

    @property
    def factor(self) -> int:
        """A side of the images over one of what the U-Net denoises."""
        return 1 if self.autoencoder is None else 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @property
    def image_size(self) -> Size:
        """Of the images in pixels."""
        return each_side(lambda side: side * self.factor, self.size)

    def sized(self, image_size: Size) -> Shell:
        """The shell for images of another size, whose sides the factor divides."""
        size = each_side(lambda side: side // self.factor, image_size)
        return replace(self, size=size, conditioning=self.conditioning.sized(image_size))

    @property
    def image_channels(self) -> int:
        return self.channels if self.autoencoder is None else self.autoencoder.config.in_channels

    @cached_property
    def process(self) -> Process:
        return Process.of_scheduler(self.scheduler)

    @property
    def frozen(self) -> list[nn.Module]:
        """The networks of the shell."""
        return self.encoders(latents=False)

    def encoders(self, *, latents: bool, conditions: bool = False) -> list[nn.Module]:
        """Those that training needs: with `latents` known, none for images; with `conditions` kept, none for them."""
        images = [] if latents or self.autoencoder is None else [self.autoencoder]
        return [*images, *([] if conditions and self.conditioning.keepable else self.conditioning.modules)]

    def keeps_latents(self, data: DataRecipe) -> bool:
        """Whether training reads latents that are kept and does without the autoencoder; else it needs the images."""
        return self.autoencoder is not None and data.keeps_latents and not self.conditioning.extra

    @property
    def moments(self) -> tuple[str, ...]:
        """What `encode_moments` gives: the clean sample, or mean and log-variance of what it is drawn from."""
        return ("mean", "logvar") if isinstance(self.autoencoder, AutoencoderKL) else ("sample",)

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> dict[str, Tensor]:
        """Images ``(B, C, H, W)`` in [−1, 1] as what is known of the U-Net's clean samples, ``(B, C, h, w)`` each."""
        if self.autoencoder is None:
            return {"sample": images}
        encoded = self.autoencoder.encode(images)
        if "sample" in self.moments:
            return {"sample": encoded.latents * self.autoencoder.config.scaling_factor}
        return {"mean": encoded.latent_dist.mean, "logvar": encoded.latent_dist.logvar}

    def draw(self, moments: Mapping[str, Tensor]) -> Tensor:
        """The U-Net's clean samples; a KL autoencoder's are random."""
        if "sample" in moments:
            return moments["sample"]
        parameters = torch.cat([moments["mean"], moments["logvar"]], dim=1)
        return DiagonalGaussianDistribution(parameters).sample() * self.autoencoder.config.scaling_factor

    def clean_samples(self, batch: Mapping[str, Any], device: torch.device) -> Tensor:
        """The U-Net's clean samples of a training batch, which has ``"latents"`` or ``"images"``."""
        if "latents" in batch:
            return self.draw({part: rows.to(device, non_blocking=True) for part, rows in batch["latents"].items()})
        return self.encode(batch["images"].to(device, non_blocking=True))

    def encode(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in [−1, 1] as the U-Net's clean samples."""
        return self.draw(self.encode_moments(images))

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """The inverse of `encode`: images in about [−1, 1]."""
        if self.autoencoder is None:
            return samples
        return self.autoencoder.decode(samples / self.autoencoder.config.scaling_factor).sample

    def predicting(self, prediction: str | None) -> Shell:
        """The shell whose scheduler is told what its network predicts, if that is another thing than the teacher's."""
        if prediction in (None, self.process.prediction):
            return self
        config = {**config_of(self.scheduler), "prediction_type": prediction}
        return replace(self, scheduler=type(self.scheduler).from_config(config))

    def with_unet(self, unet: nn.Module, prediction: str | None = None) -> DiffusionPipeline:
        """The pipeline with this U-Net, which predicts what the teacher does or something else."""
        scheduler = self.predicting(prediction).scheduler
        return self.pipeline_class(unet=unet, scheduler=scheduler, **{**self.parts, **self.conditioning.parts()})


def shell_of(pipeline: DiffusionPipeline) -> Shell:
    """Everything of a pipeline but its U-Net.

    Raises:
        SlimdpmError: for a pipeline or a process of an unsupported kind.
    """
    name, network = _supported(pipeline), network_of(pipeline)
    config = network.config
    autoencoder = getattr(pipeline, "vqvae", None) or getattr(pipeline, "vae", None)
    scheduler = pipeline.scheduler
    if autoencoder is not None and scheduler.config.get("clip_sample"):  # by its class's default alone? not in latents
        scheduler = type(scheduler).from_config(config_of(scheduler, latent=True))
    shell = Shell(pipeline_class(name), scheduler, sample_size(config), config.out_channels, autoencoder)
    conditioning = conditioning_of(pipeline, network, shell.image_size)
    if config.in_channels != config.out_channels + conditioning.extra:
        raise SlimdpmError(
            f"the U-Net of this {name} has {config.in_channels} channels in and {config.out_channels} out; "
            f"{config.out_channels + conditioning.extra} in would be right"
        )
    own = conditioning.pipeline or name
    parts = _others(pipeline) if own == name else {"vqvae": autoencoder}
    shell = replace(shell, pipeline_class=pipeline_class(own), conditioning=conditioning, parts=parts)
    shell.process.check()  # an unsupported scheduler is an error now, not at the first step
    return shell


def network_of(pipeline: DiffusionPipeline) -> Any:
    """The network that denoises, to be called as a U-Net is.

    Raises:
        SlimdpmError: for a pipeline of an unsupported kind.
    """
    _supported(pipeline)
    return TransformerDenoiser(pipeline.transformer) if hasattr(pipeline, "transformer") else pipeline.unet


def _supported(pipeline: DiffusionPipeline) -> str:
    """Which of `PIPELINES` it is."""
    name = next((c.__name__ for c in type(pipeline).__mro__ if c.__name__ in PIPELINES), None)
    if name is None:
        raise unsupported(f"a {type(pipeline).__name__} is not supported", type(pipeline).__name__)
    return name


def _others(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """A pipeline's arguments but for its network and its scheduler."""
    given = {k: v for k, v in pipeline.config.items() if k not in pipeline.components and not k.startswith("_")}
    return {k: v for k, v in {**pipeline.components, **given}.items() if k not in ("unet", "scheduler")}


def new_shell(
    unet: Mapping[str, Any],
    *,
    timesteps: int = 1000,
    beta_schedule: str = "linear",
    prediction: str = "epsilon",
    autoencoder: str | None = None,
    conditioning: Conditioning | None = None,
    weights: bool = True,
) -> Shell:
    """The shell of a pipeline that is trained from nothing: a DDPM in pixels, or in an autoencoder's latents.

    Without `weights` the autoencoder is an outline on the meta device.
    """
    if unet["in_channels"] != unet.get("out_channels", unet["in_channels"]):
        raise SlimdpmError("a network with other channels in than out sees an image: give a pipeline that shows it one")
    conditioning, size = conditioning or Unconditional(), sample_size(unet)
    # By name: diffusers forgets arguments that are given by place when it makes another scheduler of this one.
    scheduler = DDPMScheduler(
        num_train_timesteps=timesteps,
        beta_schedule=beta_schedule,
        prediction_type=prediction,
        clip_sample=autoencoder is None,
    )
    if autoencoder is None:
        kind = pipeline_class(conditioning.pipeline or "DDPMPipeline")
        return Shell(kind, scheduler, size, unet["in_channels"], conditioning=conditioning)
    folder = locate(autoencoder, holds="config.json")
    name = read_config(folder / "config.json").get("_class_name")
    if name not in AUTOENCODERS:
        raise SlimdpmError(f"{autoencoder} is a {name}; supported autoencoders are {', '.join(AUTOENCODERS)}")
    model = (load_model if weights else outline_model)(getattr(diffusers, name), folder, {})
    kind = pipeline_class(conditioning.pipeline or "LDMPipeline")
    return Shell(kind, scheduler, size, unet["in_channels"], model, conditioning, {"vqvae": model})
