"""What the network is given beside the noisy sample. The one place that knows which case it is.

Nothing (`Unconditional`), a class (`ClassLabels`), text (`Text`), or text and an image (`Inpainting`, `Editing`). All
answer the same questions: what a data set says about its images, what a training batch and what the samples give the
network, what classifier-free guidance (arXiv 2207.12598) drops, and what the null condition looks like in its place.

A *condition* is what is known of one image, as data: the number of its class, or its caption. Encoding it is a pure
function of it and of frozen `modules`, so encoded conditions can be kept.
"""

from __future__ import annotations

from typing import Any

from slimdpm.conditioning.base import Conditioning, Guidance, Request, Unconditional
from slimdpm.conditioning.classes import ClassLabels, class_labels_of, new_class_labels
from slimdpm.conditioning.image import Editing, Inpainting
from slimdpm.conditioning.text import Text
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import Size

_WITH_IMAGES: dict[str, type[Text]] = {
    "StableDiffusionInpaintPipeline": Inpainting,
    "StableDiffusionXLInpaintPipeline": Inpainting,
    "StableDiffusionInstructPix2PixPipeline": Editing,
}

__all__ = [
    "ClassLabels", "Conditioning", "Editing", "Guidance", "Inpainting", "Request", "Text", "Unconditional",
    "class_labels_of", "conditioning_of", "new_class_labels",
]  # fmt: skip


def conditioning_of(pipeline: Any, network: Any, size: Size) -> Conditioning:
    """How a pipeline's network is conditioned.

    Args:
        pipeline: any of `slimdpm.pipelines.loading.PIPELINES`.
        network: its U-Net, or what stands for one.
        size: of its images in pixels.

    Raises:
        SlimdpmError: for a network with cross-attention that nothing feeds.
    """
    if hasattr(pipeline, "encode_prompt") or hasattr(pipeline, "_encode_prompt"):
        # diffusers' inpainting takes networks, too, that see no image: it paints over their samples at each step.
        sees = network.config.in_channels != network.config.out_channels
        kinds = [_WITH_IMAGES[c.__name__] for c in type(pipeline).__mro__ if sees and c.__name__ in _WITH_IMAGES]
        return [*kinds, Text][0](pipeline, size)
    labels = class_labels_of(pipeline, network)
    if labels is not None:
        return labels
    if network.config.get("cross_attention_dim") is not None:
        raise SlimdpmError("the U-Net has cross-attention, and nothing in the pipeline feeds it")
    return Unconditional()
