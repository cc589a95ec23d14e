"""Pipelines: loading them, sampling from them, and the class-conditional one.

Saved folders name `slimdpm.pipelines`, and diffusers takes a component's loading method from the module that has its
class: the names below stay here.
"""

from diffusers import ModelMixin

from slimdpm.pipelines.class_conditional import ClassConditionalLDMPipeline
from slimdpm.unet import ClassEmbedder

__all__ = ["ClassConditionalLDMPipeline", "ClassEmbedder", "ModelMixin"]
