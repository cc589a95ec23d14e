"""What the network is given beside the noisy sample. The one place that knows which of three cases it is.

Nothing (`Unconditional`), a class (`ClassLabels`), or text (`Text`). All three answer the same questions: what a data
set says about its images, what a training batch and what the samples give the network, what classifier-free guidance
(arXiv 2207.12598) drops, and what the null condition looks like in its place.

A *condition* is what is known of one image, as data: the number of its class, or its caption. Encoding it is a pure
function of it and of frozen `modules`, so encoded conditions can be kept.
"""

from __future__ import annotations

from typing import Any

from slimdpm.conditioning.base import EXTRA, Conditioning, Guidance, Request, Unconditional, call
from slimdpm.conditioning.classes import ClassLabels, class_labels_of, new_class_labels
from slimdpm.conditioning.text import Text
from slimdpm.errors import SlimdpmError

__all__ = [
    "EXTRA", "ClassLabels", "Conditioning", "Guidance", "Request", "Text", "Unconditional", "call", "class_labels_of",
    "conditioning_of", "new_class_labels",
]  # fmt: skip


def conditioning_of(pipeline: Any, network: Any, size: int) -> Conditioning:
    """How a pipeline's network is conditioned.

    Args:
        pipeline: any of `slimdpm.loading.PIPELINES`.
        network: its U-Net, or what stands for one.
        size: of its images in pixels.

    Raises:
        SlimdpmError: for a network with cross-attention that nothing feeds.
    """
    if hasattr(pipeline, "encode_prompt"):
        return Text(pipeline, size)
    labels = class_labels_of(pipeline, network)
    if labels is not None:
        return labels
    if network.config.get("cross_attention_dim") is not None:
        raise SlimdpmError("the U-Net has cross-attention, and nothing in the pipeline feeds it")
    return Unconditional()
