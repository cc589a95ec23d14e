"""Pipelines from folders and the hub: their files are data, every weight is there, and no code of theirs is run.

Each part is loaded here, by a class that is known before anything is read: diffusers' own loader of pipelines would
look for classes, and for files with code, where the folder says.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, DDPMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import is_transformers_available
from torch import nn

from slimdpm.method.networks import built_within, check_config, outlines
from slimdpm.pipelines import ClassConditionalLDMPipeline, ClassEmbedder
from slimdpm.system.documents import read_json
from slimdpm.system.errors import SlimdpmError, blamed, first_line
from slimdpm.system.files import check_weights, load_tensors
from slimdpm.system.packaged import packaged_pipeline
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
    "ScoreSdeVePipeline": "its process is continuous, without alphas of discrete steps to distil",
    "StableDiffusionUpscalePipeline": "it enlarges images with noise of a level and a second scheduler of their own",
}
AUTOENCODERS = ("VQModel", "AutoencoderKL")
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
# Names of the first versions of diffusers and transformers.
_RENAMED = {
    "LatentDiffusionUncondPipeline": "LDMPipeline",
    "UNetUnconditionalModel": "UNet2DModel",
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "CLIPImageProcessorPil": "CLIPImageProcessor",  # as transformers 5 saves it where there is no torchvision
}
_U_NETS = ("UNet2DModel", "UNetUnconditionalModel", "UNet2DConditionModel")
# Modules of code that an exported folder carries for those who have no slimdpm: here its own classes stand for them.
HUB_UNET, HUB_PIPELINE = "slimdpm_unet", "slimdpm_pipeline"
_OUR_U_NETS = ("SpectralUNet2DModel", "SpectralUNet2DConditionModel", "FixedHeadsUNet2DModel")
# The first DiTs name a class that diffusers has since split: it still loads them through it.
_TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")
_Classes = dict[Any, tuple[str, ...]]  # by the library
_TEXT_ENCODERS: _Classes = {"transformers": ("CLIPTextModel", "CLIPTextModelWithProjection")}
_TOKENIZERS: _Classes = {"transformers": ("CLIPTokenizer", "CLIPTokenizerFast")}
_AUTOENCODERS: _Classes = {"diffusers": AUTOENCODERS}
_PARTS: dict[str, _Classes] = {  # what each may be
    "unet": {"diffusers": _U_NETS, "slimdpm.unet": _OUR_U_NETS, HUB_UNET: _OUR_U_NETS},
    "transformer": {"diffusers": _TRANSFORMERS},
    "vae": _AUTOENCODERS,
    "vqvae": _AUTOENCODERS,
    "scheduler": {"diffusers": tuple(cls.__name__ for cls in DDPMScheduler._get_compatibles())},
    "class_embedder": {
        "slimdpm.unet": ("ClassEmbedder",),
        "slimdpm.pipelines": ("ClassEmbedder",),  # of older folders
        HUB_UNET: ("ClassEmbedder",),
    },
    "text_encoder": _TEXT_ENCODERS,
    "text_encoder_2": _TEXT_ENCODERS,
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
    "feature_extractor": {"transformers": ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPFeatureExtractor")},
    "image_encoder": {"transformers": ("CLIPVisionModelWithProjection",)},
    "safety_checker": {"stable_diffusion": ("StableDiffusionSafetyChecker",)},
}
# Keys of configs by which a library imports code, or weights of another place.
_CODE = (
    "auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "quantization_config",
    "attn_implementation", "_attn_implementation", "base_model_name_or_path",
)  # fmt: skip
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d{5}-of-\d{5})?\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_built: set[tuple[Any, str]] = set()  # classes and configs that models were built of


@dataclass(frozen=True)
class Index:
    """What a ``model_index.json`` names, all of it known.

    Attributes:
        pipeline: one of `PIPELINES`.
        parts: their classes; None of a part that the pipeline goes without.
        values: the pipeline's other arguments.
    """

    pipeline: str
    parts: dict[str, Any]
    values: dict[str, Any]


def checked_index(folder: Path, source: str | Path = "") -> Index:
    """The index of a pipeline's folder, in which everything is known and nothing asks for code.

    Args:
        folder: with a ``model_index.json``.
        source: what a message calls it.

    Raises:
        SlimdpmError: for a pipeline or a class that slimdpm does not know, or a config that names code.
    """
    source = source or folder
    index = read_config(folder / "model_index.json")
    name = _RENAMED.get(str(index.get("_class_name")), index.get("_class_name"))
    if name == [HUB_PIPELINE, "ClassConditionalLDMPipeline"]:
        name = name[1]
    if name not in PIPELINES:
        raise unsupported(f"{source} is a {name}", name)
    if name in TEXT_TO_IMAGE and not is_transformers_available():
        raise SlimdpmError(f"a {name} needs the package transformers: pip install slimdpm[text]")
    parts: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for part, value in index.items():
        if part.startswith("_") or not isinstance(value, list):
            values[part] = value
        elif value == [None, None]:
            parts[part] = None
        else:
            library, named = map(str, value if len(value) == 2 else ("?", value))
            if named not in _PARTS.get(part, {}).get(library, ()):
                raise SlimdpmError(f"the {part} of {source} is a {named} of {library}, which is not supported")
            parts[part] = _class_of(library, named)
            # Some versions of diffusers run such a file.
            if library != HUB_UNET and (place(folder, part) / f"{library}.py").exists():
                raise SlimdpmError(f"{source} holds code: remove {part}/{library}.py")
    for file in (*folder.glob("*config*.json"), *folder.glob("*/*config*.json")):
        try:
            read_config(file)
        except SlimdpmError as error:
            raise SlimdpmError(f"{source} cannot be loaded: {error}") from None
    return Index(name, parts, values)


def place(folder: Path, part: str) -> Path:
    """Where a part's files are: in a folder of its name, or beside the index, as diffusers' first pipelines have it."""
    return folder / part if (folder / part).is_dir() else folder


def _class_of(library: str, name: str) -> Any:
    if name in _OURS:
        return _OURS[name]
    module = "diffusers.pipelines.stable_diffusion" if library == "stable_diffusion" else library
    return getattr(importlib.import_module(module), _RENAMED.get(name, name))


def pipeline_class(name: str) -> type[DiffusionPipeline]:
    """One of `PIPELINES`."""
    return _OURS.get(name) or getattr(diffusers, name)


def unsupported(what: str, name: Any) -> SlimdpmError:
    """The error for a pipeline that is none of `PIPELINES`."""
    return SlimdpmError(
        "; ".join([what, *filter(None, [_REFUSED.get(str(name))]), f"supported are {', '.join(PIPELINES)}"])
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' remarks: on configs of other versions, on keys that they ignore."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    if set(levels) == {logging.CRITICAL}:  # within another: a level that is set costs a look at all loggers
        yield
        return
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # their errors are raised as well
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@_quiet()
def load_pipeline(source: str | Path, *, weights: bool = True, **kwargs: Any) -> DiffusionPipeline:
    """A saved pipeline, teacher's or student's, from a folder, a run folder, a hub id or a name of the package's own.

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
    index = checked_index(folder, source)
    cls = pipeline_class(index.pipeline)
    if not weights:  # nothing to plan, and its weights would be read
        index.parts["safety_checker"], index.values["requires_safety_checker"] = None, False
    arguments: dict[str, Any] = {}
    for part in inspect.signature(cls.__init__).parameters.keys() & {**index.parts, **index.values, **kwargs}.keys():
        kind = index.parts.get(part)
        if part in kwargs or kind is None:
            arguments[part] = kwargs.get(part, index.values.get(part))
        elif issubclass(kind, nn.Module):
            arguments[part] = (load_model if weights else outline_model)(kind, place(folder, part), kwargs)
        else:
            if issubclass(kind, SchedulerMixin):
                read_config(place(folder, part) / "scheduler_config.json", kind)
            with blamed(f"{place(folder, part)} cannot be loaded"):
                arguments[part] = kind.from_pretrained(place(folder, part), local_files_only=True)
    with blamed(f"{source} cannot be loaded"):
        pipeline = cls(**arguments)
    pipeline.register_to_config(_name_or_path=str(folder))
    return pipeline


def locate(source: str | Path, holds: str = "model_index.json") -> Path:
    """The local folder of a path, a hub id, or a pipeline that comes with the package."""
    if packaged := packaged_pipeline(source):
        return packaged
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
        return _downloaded(str(source))
    except Exception as error:  # the hub's client raises many kinds; each means that it is not to be had
        raise SlimdpmError(f"{source} is no folder here, and the hub has not given it: {first_line(error)}") from None


def _downloaded(hub_id: str) -> Path:
    """The local copy of a repository, which may have its weights in half precision alone."""
    try:
        return Path(DiffusionPipeline.download(hub_id, use_safetensors=True))
    except OSError as error:
        if "necessary `safetensors` weights" not in str(error):
            raise
        return Path(DiffusionPipeline.download(hub_id, use_safetensors=True, variant="fp16"))


def read_config(file: Path, kind: Any = None) -> dict[str, Any]:
    """The keys and values of a JSON file of diffusers or transformers.

    Args:
        file: its path.
        kind: the class of what it describes; its numbers must then be within reason.

    Raises:
        SlimdpmError: if it cannot be read, holds something else, or asks for code.
    """
    values = read_json(file)
    if not isinstance(values, dict):
        raise SlimdpmError(f"{file} holds no keys and values")
    for key in _CODE:
        if values.get(key) not in (None, False, "eager", "sdpa"):
            raise SlimdpmError(f"{file} asks for more than data: {key}; remove it if the rest is what you want")
    if kind is not None:
        name = values.get("_class_name")
        ours = issubclass(kind, ModelMixin)  # a scheduler's config may be another's
        if ours and name is not None and _RENAMED.get(str(name), name) != kind.__name__ and name not in _TRANSFORMERS:
            raise SlimdpmError(
                f"the weights in {file.parent} do not belong to its config: that is of a {name}, and a {kind.__name__} "
                "is wanted"
            )
        check_config(values, str(file))
    return values


def load_model(cls: Any, folder: Path, kwargs: Mapping[str, Any]) -> nn.Module:
    """A model with all of its weights: diffusers itself only warns when some are missing."""
    if (cls, repr(read_config(folder / "config.json", cls))) not in _built:
        outline_model(cls, folder, kwargs)  # its faults are found before anything takes memory
    # transformers would take what the config says, so that a text encoder in half met a U-Net in float32
    dtype: dict[str, Any] = {"torch_dtype": torch.float32}
    dtype |= {k: v for k, v in kwargs.items() if k in ("torch_dtype", "variant")}
    files = [file.name for file in folder.iterdir()]
    variants = {match[1] for match in map(_WEIGHTS.fullmatch, files) if match}
    pickles = [name for name in files if name.endswith(_PICKLES)]
    if not variants and pickles:
        raise SlimdpmError(
            f"{folder} cannot be loaded: its weights are a pickle, {pickles[0]}, which may run code. Where you trust "
            "it, load the pipeline with diffusers and write it anew with save_pretrained, as safetensors"
        )
    if variants and None not in variants:  # half precision only, say
        dtype.setdefault("variant", min(variants))
    for name in files:
        if (match := _WEIGHTS.fullmatch(name)) and match[1] == dtype.get("variant"):
            check_weights(folder / name, load_tensors(folder / name))
    with blamed(f"{folder} cannot be loaded"), _quiet():  # a damaged file fails in the reader or the constructor
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
    config = read_config(folder / "config.json", cls)
    with blamed(f"{folder} cannot be loaded"), outlines(), built_within(folder), _quiet():
        if issubclass(cls, ConfigMixin):
            model = cls.from_config(cls.load_config(folder))
        else:
            model = cls(cls.config_class.from_pretrained(folder)).float()  # transformers: its configs tell a precision
    _built.add((cls, repr(config)))
    return model
