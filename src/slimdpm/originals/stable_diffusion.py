"""Single files of Stable Diffusion as diffusers folders, through diffusers' own loader."""

from __future__ import annotations

import warnings
from pathlib import Path
from traceback import format_exception_only
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from slimdpm.errors import SlimdpmError
from slimdpm.files import atomic_folder
from slimdpm.originals.reading import inert_globals, read_tensors

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def import_single_file(checkpoint: Path, config: str, output: Path) -> DiffusionPipeline:
    """Write a ``.safetensors`` or ``.ckpt`` of Stable Diffusion as a diffusers folder, without a safety checker.

    A single file has neither the tokenizer nor any config, so diffusers' loader takes them from a pipeline of the same
    family.

    Args:
        checkpoint: the single file.
        config: a folder of such a pipeline, of which no weights are read, or its hub id.
        output: the folder, which does not exist yet.

    Raises:
        SlimdpmError: if the file is damaged, wants to run code or is something else; if the config is not to be had or
            does not belong to it; if `output` exists. Nothing is half-written.
    """
    if output.exists():
        raise SlimdpmError(f"{output} exists already: give another folder or remove it")
    if not any(name.startswith("model.diffusion_model.") for name in read_tensors(checkpoint)):
        raise SlimdpmError(f"{checkpoint} is no single file of Stable Diffusion: it has no model.diffusion_model")
    pipeline = _load(checkpoint, config, _pipeline_class(config))
    with atomic_folder(output) as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


def _pipeline_class(config: str) -> Any:
    try:
        name = DiffusionPipeline.load_config(config).get("_class_name")
    except Exception as error:  # the hub's client raises many kinds; each means that it is not to be had
        raise SlimdpmError(
            f"{config} is no diffusers folder here, and the hub has not given it ({_first_line(error)}): give "
            "as --config a folder with a model_index.json, the parts' configs and the tokenizer of the same family"
        ) from None
    if name not in PIPELINES:
        raise SlimdpmError(f"{config} is a {name}; single files are read as {', '.join(PIPELINES)}")
    return getattr(diffusers, name)


def _load(checkpoint: Path, config: str, pipeline_class: Any) -> DiffusionPipeline:
    try:
        with inert_globals(checkpoint), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = pipeline_class.from_single_file(
                str(checkpoint), config=config, safety_checker=None, feature_extractor=None
            )
    except ImportError:
        raise SlimdpmError("Stable Diffusion needs the transformers package: pip install transformers") from None
    except NotImplementedError:  # a network of diffusers that cannot leave the meta device
        raise SlimdpmError(f"{checkpoint} does not belong to {config}: weights are missing") from None
    except Exception as error:  # shapes, names, configs and tokenizers each fail in their own reader
        raise SlimdpmError(f"{checkpoint} cannot be read with the configs of {config}: {_first_line(error)}") from None
    for name, part in pipeline.components.items():  # one of transformers is left there without a word
        if hasattr(part, "parameters") and any(p.is_meta for p in part.parameters()):
            raise SlimdpmError(f"{checkpoint} does not belong to {config}: weights of the {name} are missing")
    return pipeline


def _first_line(error: Exception) -> str:
    return format_exception_only(error)[0].splitlines()[0]
