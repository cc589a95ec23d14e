"""Single files of Stable Diffusion as diffusers folders, through diffusers' own loader.

That loader imports the modules that the config folder names, calls their classes, and reads weights that lie there. So
it never sees the folder: it gets a copy of the documents that are known here, each read as data, and for a ``.ckpt`` its
tensors as safetensors.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import Tensor

from slimdpm.documents import parse_json, read_text
from slimdpm.errors import SlimdpmError, blamed
from slimdpm.files import atomic_folder, check_weights, save_tensors, write_json
from slimdpm.loading import check_index, read_config
from slimdpm.originals.reading import read_tensors

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
# What is read of a part: its config, or a tokenizer's vocabulary.
_DOCUMENTS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.json")  # fmt: skip
_NETWORKS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
_NO_WEIGHTS = ("position_ids", "attn_mask", "num_updates")  # how names end that are of no use here


def import_single_file(checkpoint: Path, config: str, output: Path) -> DiffusionPipeline:
    """Write a ``.safetensors`` or ``.ckpt`` of Stable Diffusion as a diffusers folder, without a safety checker.

    A single file has neither the tokenizer nor any config, so diffusers' loader takes them from a pipeline of the same
    family.

    Args:
        checkpoint: the single file.
        config: a folder of such a pipeline, of which no weights are read, or its hub id.
        output: the folder, which does not exist yet.

    Raises:
        SlimdpmError: if the file is damaged, wants to run code or is something else; if the config is not to be had,
            names a class that is not known or does not belong to the file; if `output` exists. Nothing is half-written.
    """
    if output.exists():
        raise SlimdpmError(f"{output} exists already: give another folder or remove it")
    tensors = read_tensors(checkpoint)
    if not any(name.startswith("model.diffusion_model.") for name in tensors):
        raise SlimdpmError(f"{checkpoint} is no single file of Stable Diffusion: it has no model.diffusion_model")
    weights = {n: t for n, t in tensors.items() if n.startswith(_NETWORKS) and not n.endswith(_NO_WEIGHTS)}
    check_weights(checkpoint, weights)
    folder = _configs(config)
    index = read_config(folder / "model_index.json")
    if index.get("_class_name") not in PIPELINES:
        name = index.get("_class_name")
        raise SlimdpmError(f"{config} is a {name}; single files are read as {', '.join(PIPELINES)}")
    check_index(index, config)
    with atomic_folder(output) as written:
        copy = written / "original"
        _copy_documents(folder, index, copy)
        pipeline = _load(checkpoint, tensors, config, copy, getattr(diffusers, index["_class_name"]))
        shutil.rmtree(copy)
        pipeline.save_pretrained(written, safe_serialization=True)
    return pipeline


def _configs(config: str) -> Path:
    """The local folder of a path or a hub id."""
    complaint = f"{config} is no diffusers folder here"
    folder = Path(config)
    with blamed(f"{complaint}, and the hub has not given it"):  # its client raises many kinds
        if not folder.is_dir():
            folder = Path(snapshot_download(config, allow_patterns=["*.json", "*.txt"]))
    if not (folder / "model_index.json").exists():
        raise SlimdpmError(
            f"{complaint}: give as --config a folder with a model_index.json, the parts' configs and the tokenizer of "
            "the same family"
        )
    return folder


def _copy_documents(folder: Path, index: Mapping[str, Any], copy: Path) -> None:
    write_json(copy / "model_index.json", index)
    for part, value in index.items():
        for name in _DOCUMENTS if isinstance(value, list) else ():
            file = folder / part / name
            if file.exists():
                text = read_text(file)
                if file.suffix == ".json":
                    parse_json(text, str(file))
                (copy / part).mkdir(exist_ok=True)
                (copy / part / name).write_text(text, encoding="utf-8")


def _load(
    checkpoint: Path, tensors: Mapping[str, Tensor], config: str, folder: Path, pipeline_class: Any
) -> DiffusionPipeline:
    file = checkpoint
    if checkpoint.suffix != ".safetensors":
        file = folder / "weights.safetensors"
        save_tensors(file, tensors)
    try:
        with blamed(f"{checkpoint} cannot be read with the configs of {config}"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = pipeline_class.from_single_file(
                str(file), config=str(folder), safety_checker=None, feature_extractor=None, local_files_only=True
            )
    except ImportError:
        raise SlimdpmError("Stable Diffusion needs the transformers package: pip install transformers") from None
    for name, part in pipeline.components.items():  # one of transformers is left there without a word
        if hasattr(part, "parameters") and any(p.is_meta for p in part.parameters()):
            raise SlimdpmError(f"{checkpoint} does not belong to {config}: weights of the {name} are missing")
    return pipeline
