"""slimdpm: a diffusion pipeline goes in, a slim diffusion pipeline comes out.

>>> import slimdpm
>>> student = slimdpm.slim("path/to/pipeline", "path/to/images", ratio=12)
>>> student(batch_size=4, num_inference_steps=50).images

The method is Spectral Diffusion, from "Diffusion Probabilistic Model Made Slim" (CVPR 2023, arXiv 2211.17106).
"""

import importlib
import sys
from typing import Any

if "slimdpm_command" not in sys.modules:  # the command loads what it needs, when it needs it
    from slimdpm.api import slim, train
    from slimdpm.conditioning import Request
    from slimdpm.data.arrays import Arrays
    from slimdpm.method.distiller import Distiller, TappedStudent
    from slimdpm.method.presets import PRESETS
    from slimdpm.method.slimming import Budget, plan_student
    from slimdpm.pipelines import ClassConditionalLDMPipeline, ClassEmbedder
    from slimdpm.pipelines.loading import load_pipeline
    from slimdpm.pipelines.sampling import sample_images
    from slimdpm.recipe import Recipe
    from slimdpm.recipe_file import load_recipe
    from slimdpm.system.errors import SlimdpmError

    # diffusers loads a saved student through `sys.modules["slimdpm.unet"]`.
    from slimdpm.unet import SpectralUNet2DConditionModel, SpectralUNet2DModel

_LATE = {  # they load matplotlib, or what exports
    "analyze": "slimdpm.analysis.analyze",
    "evaluate": "slimdpm.metrics.evaluate",
    "export_pipeline": "slimdpm.export.folder",
}

__all__ = [
    "PRESETS",
    "Arrays",
    "Budget",
    "ClassConditionalLDMPipeline",
    "ClassEmbedder",
    "Distiller",
    "Recipe",
    "Request",
    "SlimdpmError",
    "SpectralUNet2DConditionModel",
    "SpectralUNet2DModel",
    "TappedStudent",
    "analyze",
    "evaluate",
    "export_pipeline",
    "load_pipeline",
    "load_recipe",
    "plan_student",
    "sample_images",
    "slim",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
