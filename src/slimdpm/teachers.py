"""Pipelines in and out: a teacher from a diffusers folder or a hub id, and the shell that the student moves into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDPMPipeline, DDPMScheduler, DiffusionPipeline, LDMPipeline, VQModel
from torch import Tensor, nn

from slimdpm.conditioning import Unconditional
from slimdpm.errors import SlimdpmError
from slimdpm.process import Process
from slimdpm.unet import FixedHeadsUNet2DModel, SpectralUNet2DConditionModel, SpectralUNet2DModel

PIPELINES: dict[str, type[DiffusionPipeline]] = {c.__name__: c for c in (DDPMPipeline, DDIMPipeline, LDMPipeline)}
AUTOENCODERS: dict[str, type[nn.Module]] = {c.__name__: c for c in (VQModel, AutoencoderKL)}
ASSETS = Path(__file__).parent / "assets"
_OURS = {c.__name__: c for c in (SpectralUNet2DModel, SpectralUNet2DConditionModel, FixedHeadsUNet2DModel)}


@dataclass(frozen=True)
class Shell:
    """A pipeline without its U-Net: what passes from teacher to student untouched.

    Attributes:
        pipeline_class: the diffusers pipeline.
        scheduler: its scheduler.
        size: height and width of what the U-Net denoises.
        channels: its channels.
        autoencoder: a `VQModel` or `AutoencoderKL`; None in pixel space.
        conditioning: what the U-Net is given besides the noisy sample.
    """

    pipeline_class: type[DiffusionPipeline]
    scheduler: Any
    size: int
    channels: int
    autoencoder: Any = None
    conditioning: Unconditional = Unconditional()

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        if self.autoencoder is None:
            return self.size
        return self.size * 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @property
    def image_channels(self) -> int:
        return self.channels if self.autoencoder is None else self.autoencoder.config.in_channels

    @property
    def process(self) -> Process:
        return Process.of_scheduler(self.scheduler)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in [−1, 1] as the U-Net's clean samples; a KL autoencoder's are drawn at random."""
        if self.autoencoder is None:
            return images
        encoded = self.autoencoder.encode(images)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()
        return latents * self.autoencoder.config.scaling_factor

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """The inverse of `encode`: images in about [−1, 1]."""
        if self.autoencoder is None:
            return samples
        return self.autoencoder.decode(samples / self.autoencoder.config.scaling_factor).sample

    def with_unet(self, unet: nn.Module, prediction: str | None = None) -> DiffusionPipeline:
        """The pipeline with this U-Net; its scheduler is told what the network predicts, if that is another thing."""
        scheduler = self.scheduler
        if prediction is not None and prediction != self.process.prediction:
            scheduler = type(scheduler).from_config(scheduler.config, prediction_type=prediction)
        parts: dict[str, Any] = {"unet": unet, "scheduler": scheduler}
        if self.autoencoder is not None:
            parts["vqvae"] = self.autoencoder
        return self.pipeline_class(**parts)


@dataclass(frozen=True)
class Teacher:
    """A pretrained pipeline: its U-Net and the shell around it. `name` is how the recipe calls it."""

    name: str
    unet: Any
    shell: Shell


def load_teacher(source: str | Path | DiffusionPipeline) -> Teacher:
    """A teacher from a diffusers folder, a run folder of slimdpm, a hub id, or a pipeline at hand.

    Raises:
        SlimdpmError: if it is missing, no pipeline, of an unsupported kind, or lacks weights.
    """
    if isinstance(source, DiffusionPipeline):
        shell = shell_of(source)
        return Teacher(f"{type(source).__name__} {fingerprint(source.unet)}", source.unet, shell)
    pipeline = load_pipeline(source)
    return Teacher(str(source), pipeline.unet, shell_of(pipeline))


def load_pipeline(source: str | Path, **kwargs: Any) -> DiffusionPipeline:
    """A saved pipeline, teacher's or student's, from a folder, a run folder or a hub id.

    Like `DiffusionPipeline.from_pretrained`, but it also takes a hub id whose U-Net is one of ours, and weights that
    are missing are an error. Only safetensors are read, and no code that comes with the files is run.

    Args:
        source: where it is.
        kwargs: passed on to ``from_pretrained``, for example ``torch_dtype``.

    Raises:
        SlimdpmError: if it is missing, no pipeline, of an unsupported kind, or lacks weights.
    """
    folder = _locate(source)
    index = _read_index(folder)
    class_name = index.get("_class_name")
    if class_name not in PIPELINES:
        raise SlimdpmError(f"{source} is a {class_name}; supported are unconditional pipelines: {', '.join(PIPELINES)}")
    models: dict[str, nn.Module] = {}
    for part, value in index.items():
        library, name = value if isinstance(value, list) else (None, None)
        if library == "diffusers" and (name == "UNet2DModel" or name in AUTOENCODERS):
            models[part] = _load_model(getattr(diffusers, name), folder / part, kwargs)
        elif library == "slimdpm.unet" and name in _OURS:
            models[part] = _load_model(_OURS[name], folder / part, kwargs)
        elif part in ("unet", "vqvae"):
            raise SlimdpmError(f"the {part} of {source} is a {name} of {library}, which is not supported")
    if "unet" not in models:
        raise SlimdpmError(f"{source} has no U-Net")
    try:
        return PIPELINES[class_name].from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **models, **kwargs
        )
    except (OSError, ValueError, TypeError) as error:
        raise SlimdpmError(f"{source} cannot be loaded: {_first_line(error)}") from None


def shell_of(pipeline: DiffusionPipeline) -> Shell:
    """Everything of a pipeline but its U-Net.

    Raises:
        SlimdpmError: for a pipeline or a process of an unsupported kind.
    """
    kind = next((c for c in PIPELINES.values() if isinstance(pipeline, c)), None)
    if kind is None:
        raise SlimdpmError(f"a {type(pipeline).__name__} is not supported; supported are {', '.join(PIPELINES)}")
    config = pipeline.unet.config
    if config.in_channels != config.out_channels:
        raise SlimdpmError(
            f"the U-Net has {config.in_channels} channels in and {config.out_channels} out: "
            "networks that predict a variance too, or inpaint, are not supported"
        )
    if not isinstance(config.sample_size, int):
        raise SlimdpmError(f"the U-Net's sample_size is {config.sample_size}: a square size is needed in its config")
    shell = Shell(kind, pipeline.scheduler, config.sample_size, config.in_channels, getattr(pipeline, "vqvae", None))
    _ = shell.process  # an unsupported scheduler is an error now, not at the first step
    return shell


def new_shell(
    unet: Mapping[str, Any],
    *,
    timesteps: int = 1000,
    beta_schedule: str = "linear",
    prediction: str = "epsilon",
    autoencoder: str | None = None,
) -> Shell:
    """The shell of a pipeline that is trained from nothing: a DDPM in pixels, or in an autoencoder's latents."""
    scheduler = DDPMScheduler(timesteps, beta_schedule=beta_schedule, prediction_type=prediction)
    if autoencoder is None:
        return Shell(DDPMPipeline, scheduler, unet["sample_size"], unet["in_channels"])
    folder = _locate(autoencoder, holds="config.json")
    name = _read_json(folder / "config.json").get("_class_name")
    if name not in AUTOENCODERS:
        raise SlimdpmError(f"{autoencoder} is a {name}; supported autoencoders are {', '.join(AUTOENCODERS)}")
    model = _load_model(AUTOENCODERS[name], folder, {})
    return Shell(LDMPipeline, scheduler, unet["sample_size"], unet["in_channels"], model)


def fingerprint(model: nn.Module) -> str:
    """A short name for a network's weights: it changes when any of them does."""
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _locate(source: str | Path, holds: str = "model_index.json") -> Path:
    """The local folder of a path or a hub id."""
    if str(source) == "demo:teacher":
        return ASSETS / "demo-teacher"
    path = Path(source).expanduser()
    if path.is_file():
        hint = (
            "; slimdpm import makes one of an original checkpoint" if path.suffix in (".ckpt", ".safetensors") else ""
        )
        raise SlimdpmError(f"{path} is a file: give a diffusers folder (with a {holds}) or a hub id{hint}")
    if path.is_dir():
        for folder in (path, path / "student"):
            if (folder / holds).is_file():
                return folder
        raise SlimdpmError(f"{path} is no diffusers folder: it has no {holds}")
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise SlimdpmError(f"{source} does not exist")
    try:
        return Path(DiffusionPipeline.download(str(source), use_safetensors=True))
    except Exception as error:  # the hub's client raises many kinds; each means that it is not to be had
        raise SlimdpmError(f"{source} is no folder here, and the hub has not given it: {_first_line(error)}") from None


def _read_index(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "model_index.json")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SlimdpmError(f"{file} cannot be read: {_first_line(error)}") from None
    if not isinstance(value, dict):
        raise SlimdpmError(f"{file} holds no keys and values")
    return value


def _load_model(cls: Any, folder: Path, kwargs: Mapping[str, Any]) -> nn.Module:
    """A model with all of its weights: diffusers itself only warns when some are missing."""
    dtype = {k: v for k, v in kwargs.items() if k in ("torch_dtype", "variant")}
    try:
        model, info = cls.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **dtype)
    except Exception as error:  # a damaged file fails in the reader, the parser or the constructor
        raise SlimdpmError(f"{folder} cannot be loaded: {_first_line(error)}") from None
    missing = [*info["missing_keys"], *info["unexpected_keys"]]
    if missing:
        raise SlimdpmError(
            f"the weights in {folder} do not belong to its config: {len(missing)} are missing or left over, "
            f"for example {missing[0]}"
        )
    return model


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
