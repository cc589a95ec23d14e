"""Folders of diffusers for others: in half precision, and with the code that loads them where slimdpm is not."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

import slimdpm.unet
from slimdpm.export.self_contained import self_contained
from slimdpm.pipelines import ClassConditionalLDMPipeline, ClassEmbedder
from slimdpm.pipelines.loading import HUB_PIPELINE, HUB_UNET, load_pipeline
from slimdpm.system.documents import read_json
from slimdpm.system.files import atomic_folder, check_new, check_weights, write_json

_CARD = """---
library_name: diffusers
tags: [slimdpm]
---
A slim diffusion pipeline made by slimdpm.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER"{trust})
```
"""
_CODE = """
Its folder holds the code of {classes}: slimdpm need not be installed, and diffusers runs that code because of
`trust_remote_code=True`. Read it first: {files}.
"""
_ABOUT = "{what} of slimdpm {version} (Apache-2.0): written by slimdpm from its sources, to be loaded by diffusers."


def write_diffusers_folder(source: str, output: Path, *, variant: str | None = None) -> None:
    """Write a pipeline as a folder of diffusers, as slimdpm saves students.

    Args:
        source: folder, run folder or hub id.
        output: a folder that is not there yet.
        variant: ``"fp16"`` writes the weights in half precision, as ``diffusion_pytorch_model.fp16.safetensors`` and
            its kin: half of the bytes. None writes them in single precision.

    Raises:
        SlimdpmError: for a pipeline that cannot be read, a weight that is too large for half precision, or a folder
            that is there or cannot be written. Nothing is half-written.
    """
    check_new(output)
    pipeline = _loaded(source, variant)
    with atomic_folder(output) as folder:
        _save(pipeline, folder, variant)


def write_hub_folder(source: str, output: Path, *, variant: str | None = None) -> None:
    """`write_diffusers_folder`, with the code of slimdpm's classes in it.

    ``DiffusionPipeline.from_pretrained(output, trust_remote_code=True)`` loads it where slimdpm is not installed, and
    `slimdpm.load_pipeline` without running any of its code. A student that is all of diffusers' classes needs no code
    and gets none.
    """
    check_new(output)
    pipeline = _loaded(source, variant)
    with atomic_folder(output) as folder:
        _save(pipeline, folder, variant)
        _put_code(pipeline, folder)


def _loaded(source: str, variant: str | None) -> Any:
    pipeline = load_pipeline(source)
    if variant == "fp16":
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                check_weights(f"the {name} of {source} in half precision", part.half().state_dict())
    return pipeline


def _save(pipeline: Any, folder: Path, variant: str | None) -> None:
    """As diffusers saves it, but for where it was loaded from: that is nobody's business."""
    pipeline.save_pretrained(folder, variant=variant)
    for file in (*folder.glob("*.json"), *folder.glob("*/*config.json")):
        values = read_json(file)
        if values.pop("_name_or_path", None) is not None:
            write_json(file, values)


def _put_code(pipeline: Any, folder: Path) -> None:
    """The modules beside what they load, named in the index, and a card that says how."""
    index = read_json(folder / "model_index.json")
    written = {}
    for part, model in pipeline.components.items():
        if type(model).__module__ == slimdpm.unet.__name__:
            index[part][0] = HUB_UNET
            written[f"{part}/{HUB_UNET}.py"] = type(model).__name__
            (folder / part / f"{HUB_UNET}.py").write_text(unet_code(), encoding="utf-8")
    if type(pipeline) is ClassConditionalLDMPipeline:
        index["_class_name"] = [HUB_PIPELINE, ClassConditionalLDMPipeline.__name__]
        written[f"{HUB_PIPELINE}.py"] = ClassConditionalLDMPipeline.__name__
        (folder / f"{HUB_PIPELINE}.py").write_text(pipeline_code(), encoding="utf-8")
    write_json(folder / "model_index.json", index)
    card = _CARD.format(trust=", trust_remote_code=True" if written else "")
    if written:
        card += _CODE.format(classes=", ".join(written.values()), files=", ".join(f"`{name}`" for name in written))
    (folder / "README.md").write_text(card, encoding="utf-8")


@cache
def unet_code() -> str:
    """One module with all networks of slimdpm: diffusers keeps local modules by their names alone."""
    networks = (
        slimdpm.unet.SpectralUNet2DModel,
        slimdpm.unet.SpectralUNet2DConditionModel,
        slimdpm.unet.FixedHeadsUNet2DModel,
        ClassEmbedder,
    )
    return self_contained(_about("The networks"), *networks)


@cache
def pipeline_code() -> str:
    return self_contained(_about("The class-conditional pipeline"), ClassConditionalLDMPipeline)


def _about(what: str) -> str:
    return _ABOUT.format(what=what, version=version("slimdpm"))
