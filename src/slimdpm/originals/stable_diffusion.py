"""Single files of Stable Diffusion as diffusers folders, through diffusers' own loader.

That loader imports the modules that the config folder names, calls their classes, and reads weights that lie there. So
it never sees the folder: it gets a copy of the documents that are known here, each read as data, and of a ``.ckpt`` the
tensors as safetensors.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from slimdpm.originals.reading import read_tensors
from slimdpm.pipelines.loading import TEXT_TO_IMAGE, Index, checked_index, outline_model, pipeline_class
from slimdpm.system.documents import parse_json, read_text
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.files import atomic_folder, check_weights, save_tensors, write_json
from slimdpm.system.shared_work import claim_new

# What is read of a part: its config, or a tokenizer's vocabulary.
_DOCUMENTS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.json")  # fmt: skip
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
_NETWORKS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")


def import_single_file(checkpoint: Path, config: str, output: Path) -> DiffusionPipeline:
    """Write a ``.safetensors`` or ``.ckpt`` of Stable Diffusion as a diffusers folder, without a safety checker.

    A single file has neither the tokenizer nor any config, so diffusers' loader takes them from a pipeline of the same
    family.

    Args:
        config: a folder of such a pipeline, of which no weights are read, or its hub id.

    Raises:
        SlimdpmError: if the file is damaged, wants to run code or is something else; if the config is not to be had,
            names a class that is not known or does not belong to the file; if `output` exists or another process writes
            it. Nothing is half-written.
    """
    with claim_new(output):
        tensors = read_tensors(checkpoint)
        if not any(name.startswith("model.diffusion_model.") for name in tensors):
            raise SlimdpmError(f"{checkpoint} is no single file of Stable Diffusion: it has no model.diffusion_model")
        check_weights(checkpoint, {name: tensor for name, tensor in tensors.items() if name.startswith(_NETWORKS)})
        folder = _configs(config)
        index = checked_index(folder, config)
        if index.pipeline not in TEXT_TO_IMAGE:
            raise SlimdpmError(f"{config} is a {index.pipeline}; single files are read as {', '.join(TEXT_TO_IMAGE)}")
        with atomic_folder(output) as written:
            copy = written / "original"
            _copy_documents(folder, index, copy)
            pipeline = _load(checkpoint, tensors, config, copy, pipeline_class(index.pipeline))
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


def _copy_documents(folder: Path, index: Index, copy: Path) -> None:
    """The index and what is known of its parts, networks of which are within bounds."""
    named: dict[str, Any] = {"_class_name": index.pipeline, **index.values}
    for part, kind in index.parts.items():
        if kind is None or part in _LEFT_OUT:
            continue
        named[part] = [kind.__module__.partition(".")[0], kind.__name__]
        (copy / part).mkdir(parents=True)
        for name in _DOCUMENTS:
            if (file := folder / part / name).exists():
                text = read_text(file)
                if file.suffix == ".json":
                    parse_json(text, str(file))
                (copy / part / name).write_text(text, encoding="utf-8")
        if issubclass(kind, nn.Module):
            outline_model(kind, copy / part, {})
    write_json(copy / "model_index.json", named)


def _load(checkpoint: Path, tensors: Mapping[str, Tensor], config: str, folder: Path, kind: Any) -> DiffusionPipeline:
    file = checkpoint
    if checkpoint.suffix != ".safetensors":
        file = folder / "weights.safetensors"
        save_tensors(file, {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(_NETWORKS)})
    with blamed(f"{checkpoint} cannot be read with the configs of {config}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pipeline = kind.from_single_file(
                str(file), config=str(folder), safety_checker=None, feature_extractor=None, local_files_only=True
            )
        except NotImplementedError:  # a network of diffusers that cannot leave the meta device
            raise SlimdpmError(f"{checkpoint} does not belong to {config}: weights are missing") from None
    for name, part in pipeline.components.items():  # one of transformers is left there without a word
        if hasattr(part, "parameters") and any(p.is_meta for p in part.parameters()):
            raise SlimdpmError(f"{checkpoint} does not belong to {config}: weights of the {name} are missing")
    return pipeline
