"""slimdpm: a diffusion pipeline goes in, a slim diffusion pipeline comes out.

>>> import slimdpm
>>> student = slimdpm.slim("path/to/pipeline", "path/to/images", ratio=12)
>>> student(batch_size=4, num_inference_steps=50).images

The method is Spectral Diffusion, from "Diffusion Probabilistic Model Made Slim" (CVPR 2023, arXiv 2211.17106).
"""

from slimdpm.api import slim, train
from slimdpm.conditioning import Request
from slimdpm.method.presets import PRESETS
from slimdpm.pipelines import ClassConditionalLDMPipeline, ClassEmbedder
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.sampling import sample_images
from slimdpm.system.errors import SlimdpmError

# Eagerly: diffusers loads a saved student through `sys.modules["slimdpm.unet"]`.
from slimdpm.unet import SpectralUNet2DConditionModel, SpectralUNet2DModel

__all__ = [
    "PRESETS",
    "ClassConditionalLDMPipeline",
    "ClassEmbedder",
    "Request",
    "SlimdpmError",
    "SpectralUNet2DConditionModel",
    "SpectralUNet2DModel",
    "load_pipeline",
    "sample_images",
    "slim",
    "train",
]
