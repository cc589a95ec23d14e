"""Pipelines from folders and the hub: their files are data, every weight is there, and no code of theirs is run."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, DiffusionPipeline
from diffusers.utils import is_transformers_available
from torch import nn

from slimdpm.documents import read_json
from slimdpm.errors import SlimdpmError, blamed, first_line
from slimdpm.pipelines import ClassConditionalLDMPipeline, ClassEmbedder
from slimdpm.unet import FixedHeadsUNet2DModel, SpectralUNet2DConditionModel, SpectralUNet2DModel

TEXT_TO_IMAGE = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
)
PIPELINES = (
    "DDPMPipeline",
    "DDIMPipeline",
    "LDMPipeline",
    "DiTPipeline",
    "ClassConditionalLDMPipeline",
    *TEXT_TO_IMAGE,
)
_REFUSED: dict[str, str] = {  # pipelines, and why
    "LDMSuperResolutionPipeline": "it enlarges images that were degraded in a way that its files do not tell",
    "StableDiffusionUpscalePipeline": "it enlarges images with noise of a level and a second scheduler of their own",
}
AUTOENCODERS = ("VQModel", "AutoencoderKL")
ASSETS = Path(__file__).parent / "assets"
_OURS: dict[str, Any] = {
    c.__name__: c
    for c in (
        SpectralUNet2DModel,
        SpectralUNet2DConditionModel,
        FixedHeadsUNet2DModel,
        ClassEmbedder,
        ClassConditionalLDMPipeline,
    )
}
_OPTIONAL = ("vqvae", "class_embedder")  # parts that a pipeline may do without
_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
# The first DiTs name a class that diffusers has since split: it still loads them through it.
_TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")
_NETWORKS = ("UNet2DModel", "UNet2DConditionModel", *_TRANSFORMERS, *AUTOENCODERS)


def pipeline_class(name: str) -> type[DiffusionPipeline]:
    """One of `PIPELINES`."""
    return _OURS.get(name) or getattr(diffusers, name)


def unsupported(what: str, name: Any) -> SlimdpmError:
    """The error for a pipeline that is none of `PIPELINES`."""
    return SlimdpmError(
        "; ".join([what, *filter(None, [_REFUSED.get(str(name))]), f"supported are {', '.join(PIPELINES)}"])
    )


def load_pipeline(source: str | Path, *, weights: bool = True, **kwargs: Any) -> DiffusionPipeline:
    """A saved pipeline, teacher's or student's, from a folder, a run folder or a hub id.

    Like `DiffusionPipeline.from_pretrained`, but it also takes a hub id whose U-Net is one of ours, and weights that
    are missing are an error. Only safetensors are read, and no code that comes with the files is run.

    Args:
        source: where it is.
        weights: False builds the networks from their configs on the meta device: they have shapes and no numbers.
        kwargs: passed on to ``from_pretrained``, for example ``torch_dtype``.

    Raises:
        SlimdpmError: if it is missing, no pipeline, of an unsupported kind, or lacks weights.
    """
    folder = locate(source)
    index = read_config(folder / "model_index.json")
    class_name = index.get("_class_name")
    if class_name not in PIPELINES:
        raise unsupported(f"{source} is a {class_name}", class_name)
    if class_name in TEXT_TO_IMAGE and not is_transformers_available():
        raise SlimdpmError(f"a {class_name} needs the package transformers: pip install slimdpm[text]")
    model_of = load_model if weights else outline_model
    models: dict[str, nn.Module] = {}
    for part, value in index.items():
        library, name = value if isinstance(value, list) else (None, None)
        if library == "diffusers" and name in _NETWORKS:
            models[part] = model_of(getattr(diffusers, name), folder / part, kwargs)
        elif library in ("slimdpm.unet", "slimdpm.pipelines") and name in _OURS:
            models[part] = model_of(_OURS[name], folder / part, kwargs)
        elif library == "transformers" and name in _TEXT_ENCODERS:
            models[part] = model_of(getattr(importlib.import_module("transformers"), name), folder / part, kwargs)
        elif part in _OPTIONAL and name is None:
            continue
        elif part in ("unet", "transformer", *_OPTIONAL):
            raise SlimdpmError(f"the {part} of {source} is a {name} of {library}, which is not supported")
    if not models.keys() & {"unet", "transformer"}:
        raise SlimdpmError(f"{source} has no U-Net")
    if not weights and "safety_checker" in index:  # nothing to plan, and its weights would be read
        kwargs = {**kwargs, "safety_checker": None, "requires_safety_checker": False}
    try:
        with _checked():
            return pipeline_class(class_name).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, **models, **kwargs
            )
    except (OSError, ValueError, TypeError) as error:
        raise SlimdpmError(f"{source} cannot be loaded: {first_line(error)}") from None


@contextmanager
def _checked() -> Iterator[None]:
    """The parts are of the right kinds, whatever the annotations say by which diffusers goes.

    It warns of a KL autoencoder in its own `LDMPipeline`, and of the text that JSON makes of numbers in a mapping.
    """

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Expected types for")

    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def locate(source: str | Path, holds: str = "model_index.json") -> Path:
    """The local folder of a path or a hub id."""
    if str(source) == "demo:teacher":
        return ASSETS / "demo-teacher"
    path = Path(source).expanduser()
    if path.is_file():
        original = path.suffix in (".ckpt", ".safetensors")
        hint = "; slimdpm import makes one of an original checkpoint" if original else ""
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
        raise SlimdpmError(f"{source} is no folder here, and the hub has not given it: {first_line(error)}") from None


def read_config(file: Path) -> dict[str, Any]:
    """The keys and values of a JSON file of diffusers.

    Raises:
        SlimdpmError: if it cannot be read, or holds something else.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise SlimdpmError(f"{file} holds no keys and values")
    return value


def load_model(cls: Any, folder: Path, kwargs: Mapping[str, Any]) -> nn.Module:
    """A model with all of its weights: diffusers itself only warns when some are missing."""
    dtype = {k: v for k, v in kwargs.items() if k in ("torch_dtype", "variant")}
    with blamed(f"{folder} cannot be loaded"):  # a damaged file fails in the reader, the parser or the constructor
        model, info = cls.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **dtype)
    missing = [*info["missing_keys"], *info["unexpected_keys"]]
    if missing:
        raise SlimdpmError(
            f"the weights in {folder} do not belong to its config: {len(missing)} are missing or left over, "
            f"for example {missing[0]}"
        )
    return model


def outline_model(cls: Any, folder: Path, kwargs: Mapping[str, Any]) -> nn.Module:
    """A model of the folder's config on the meta device; its weights need not be there, and `kwargs` are theirs."""
    with blamed(f"{folder} cannot be loaded"), torch.device("meta"):
        if issubclass(cls, ConfigMixin):
            return cls.from_config(cls.load_config(folder))
        return cls(cls.config_class.from_pretrained(folder))  # transformers
