"""The students: diffusers' U-Nets whose resamplers are wavelet-gated. And one teacher that diffusers cannot express.

Everything else is the parent's, so whatever works on a diffusers U-Net works here: saving and loading, attention
processors, gradient checkpointing, class and time embeddings. Saved folders name this module; its path stays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from slimdpm.wavelet import LOW_PASS, Gates, WaveletGatingDown, WaveletGatingUp

# diffusers looks for `ModelMixin` in the module that a pipeline's model_index.json names, and loads through it.
__all__ = [
    "FixedHeadsUNet2DModel",
    "ModelMixin",
    "SpectralUNet2DConditionModel",
    "SpectralUNet2DModel",
    "gate_resamplers",
]


def gate_resamplers(
    model: nn.Module, *, expansion: str, reduction: int, gate_init: Gates, down_mix: bool = False
) -> int:
    """Replace each `Downsample2D` and `Upsample2D` in `model`, in place, by wavelet gating.

    This covers the resamplers of the blocks and those inside residual blocks (``downsample_type="resnet"``, LDM-8).
    The latter carry no convolution of their own: what is replaced there is average pooling or nearest-neighbour
    upsampling, so WG-Up needs no expansion and uses gated copies.

    Returns:
        the number of resamplers replaced.

    Raises:
        ValueError: if a resampler changes the number of channels, or none is found in a network of several levels.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, (Downsample2D, Upsample2D)):
                continue
            if child.out_channels != child.channels:
                raise ValueError(
                    f"wavelet gating keeps the channels, {name} maps {child.channels} to {child.out_channels}"
                )
            gated: nn.Module
            if isinstance(child, Downsample2D):
                gated = WaveletGatingDown(child.channels, reduction, gate_init, down_mix)
            else:
                gated = WaveletGatingUp(child.channels, reduction, gate_init, expansion if child.use_conv else "none")
            setattr(parent, name, gated)
            replaced += 1
    return replaced


def _takes_arguments_of(parent: type) -> Callable[[Callable], Callable]:
    """Give an ``__init__(self, *args, own=..., **kwargs)`` the signature of the parent's, with its own at the end.

    diffusers reads the config's keys from the signature, so the parent's must be visible in it. Taking them from the
    parent keeps the keys right in any diffusers version.
    """

    def decorate(init: Callable) -> Callable:
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        theirs = [p for p in inspect.signature(vars(parent)["__init__"]).parameters.values() if p.kind in named]
        own = [p for p in inspect.signature(init).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
        init.__signature__ = inspect.Signature([*theirs, *own])  # type: ignore[attr-defined]
        return init

    return decorate


class SpectralUNet2DModel(UNet2DModel):
    """`diffusers.UNet2DModel` with wavelet-gated resampling (section 4.1 of arXiv 2211.17106).

    Takes all arguments of the parent, and:

    Args:
        wavelet_expansion: how WG-Up makes its coefficients, see `slimdpm.wavelet.WaveletGatingUp`.
        wavelet_gate_reduction: channels over hidden width in the gates' FFN.
        wavelet_gate_init: the gates of LL, LH, HL, HH before training.
        wavelet_down_mix: whether a 1x1 convolution follows WG-Down.
    """

    @register_to_config
    @_takes_arguments_of(UNet2DModel)
    def __init__(
        self,
        *args: Any,
        wavelet_expansion: str = "grouped",
        wavelet_gate_reduction: int = 4,
        wavelet_gate_init: Gates = LOW_PASS,
        wavelet_down_mix: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        gate_resamplers(
            self,
            expansion=wavelet_expansion,
            reduction=wavelet_gate_reduction,
            gate_init=wavelet_gate_init,
            down_mix=wavelet_down_mix,
        )


class SpectralUNet2DConditionModel(UNet2DConditionModel):
    """`diffusers.UNet2DConditionModel` with wavelet-gated resampling, see `SpectralUNet2DModel`."""

    @register_to_config
    @_takes_arguments_of(UNet2DConditionModel)
    def __init__(
        self,
        *args: Any,
        wavelet_expansion: str = "grouped",
        wavelet_gate_reduction: int = 4,
        wavelet_gate_init: Gates = LOW_PASS,
        wavelet_down_mix: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        gate_resamplers(
            self,
            expansion=wavelet_expansion,
            reduction=wavelet_gate_reduction,
            gate_init=wavelet_gate_init,
            down_mix=wavelet_down_mix,
        )


class FixedHeadsUNet2DModel(UNet2DModel):
    """`diffusers.UNet2DModel` with as many attention heads on each level, whatever the level's channels.

    The parent fixes the size of a head (``attention_head_dim``), so its heads multiply with the channels. The
    LSUN-Church network of latent-diffusion has 8 heads on every level. No parameter changes its shape, only how it is
    read; ``attention_head_dim`` stays what a student of this network inherits.

    Takes all arguments of the parent, and:

    Args:
        num_attention_heads: heads of each attention layer; they divide each level's channels.
    """

    @register_to_config
    @_takes_arguments_of(UNet2DModel)
    def __init__(self, *args: Any, num_attention_heads: int = 8, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Attention):
                module.heads = num_attention_heads
                module.scale = (module.inner_dim // num_attention_heads) ** -0.5
                module.sliceable_head_dim = num_attention_heads


class ClassEmbedder(ModelMixin, ConfigMixin):
    """A class as one token for cross-attention, as in the ImageNet model of latent diffusion (arXiv 2112.10752).

    Args:
        num_classes: rows of the embedding, the null class included.
        embedding_dim: the U-Net's ``cross_attention_dim``.
        null_class: the row that stands for no class, or None.
    """

    @register_to_config
    def __init__(self, num_classes: int = 1001, embedding_dim: int = 512, null_class: int | None = 1000):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embedding_dim)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels ``(B,)`` as tokens ``(B, 1, D)``."""
        return self.embedding(labels)[:, None]
