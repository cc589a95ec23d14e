"""Which channels of a U-Net belong together: what is added, or meets one by one, can only be kept together."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from slimdpm.system.errors import SlimdpmError
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp

Axis = tuple[str, ...] | None  # the groups that lie along a dimension, one after the other; None: kept whole
TIME = ("time_embedding",)


def mixing_layers(unet: nn.Module) -> set[str]:
    """The residual blocks and resamplers whose output channels are not those of their input."""

    def mixes(module: nn.Module) -> bool:
        if isinstance(module, ResnetBlock2D):
            return module.conv_shortcut is not None
        if isinstance(module, (Downsample2D, Upsample2D)):
            return module.use_conv
        if isinstance(module, WaveletGatingDown):
            return module.mix is not None
        return isinstance(module, WaveletGatingUp) and module.expand is not None

    return {name for name, module in unet.named_modules() if mixes(module)}


class ChannelGroups:
    """Which groups of channels lie along the dimensions of a U-Net's weights, in the order of its forward pass.

    Args:
        mixing: `mixing_layers` of teacher and student, so that both have the same groups.

    Attributes:
        axes: for each weight the groups along each of its dimensions.
        widths: the channels of each group.
        heads: the number of heads of the groups inside attention.
        reading: the weights ``(out, into, ...)`` that read groups.
    """

    def __init__(self, unet: Any, mixing: set[str]):
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.widths: dict[str, int] = {}
        self.heads: dict[str, int] = {}
        self.reading: set[str] = set()
        self._mixing = mixing
        self._names = {module: name for name, module in unet.named_modules()}
        self._embeddings(unet)
        x = self._new(unet.conv_in, unet.conv_in.out_channels)
        self._layer(unet.conv_in, x)
        skips = [x]
        for block in unet.down_blocks:
            for resnet, attention in _layers(block):
                x = self._attended(attention, self._resnet(resnet, x))
                skips.append(x)
            for resampler in block.downsamplers or ():
                x = self._resampler(resampler, x)
                skips.append(x)
        if unet.mid_block is not None:
            for resnet, attention in _layers(unet.mid_block):
                x = self._attended(attention, self._resnet(resnet, x))
        for block in unet.up_blocks:
            for resnet, attention in _layers(block):
                x = self._attended(attention, self._resnet(resnet, (*x, *skips.pop())))
            for resampler in block.upsamplers or ():
                x = self._resampler(resampler, x)
        self._layer(unet.conv_norm_out, x)
        self._layer(unet.conv_out, None, x)

    def _new(self, module: nn.Module, width: int) -> tuple[str, ...]:
        """A group of its own, called like the module that writes it."""
        name = self._names[module]
        self.widths[name] = width
        return (name,)

    def _layer(self, module: nn.Module | None, out: Axis, into: Axis = None) -> None:
        """A convolution or linear layer ``(out, into, ...)``, a norm ``(out,)``, or an embedding ``(n, out)``."""
        if module is None:
            return
        for name, parameter in module.named_parameters(recurse=False):
            axes = (into, out) if isinstance(module, nn.Embedding) else (out, into, None, None)
            self.axes[f"{self._names[module]}.{name}"] = axes[: parameter.ndim]
            if into is not None and parameter.ndim > 1:
                self.reading.add(f"{self._names[module]}.{name}")

    def _embeddings(self, unet: Any) -> None:
        self.widths[TIME[0]] = unet.time_embedding.linear_2.out_features
        for part in ("time_embedding", "class_embedding", "add_embedding"):
            embedding = getattr(unet, part, None)
            if isinstance(embedding, TimestepEmbedding):
                hidden = self._new(embedding.linear_1, embedding.linear_1.out_features)
                self._layer(embedding.linear_1, hidden)
                self._layer(embedding.linear_2, TIME, hidden)
            elif isinstance(embedding, (nn.Embedding, nn.Linear)):
                self._layer(embedding, TIME)

    def _resnet(self, resnet: nn.Module, x: tuple[str, ...]) -> tuple[str, ...]:
        if not isinstance(resnet, ResnetBlock2D):
            raise _unknown(resnet)
        inner = self._new(resnet.conv1, resnet.conv1.out_channels)
        out = self._new(resnet, resnet.conv2.out_channels) if self._names[resnet] in self._mixing else x
        self._layer(resnet.norm1, x)
        for resampler in (resnet.upsample, resnet.downsample):
            if resampler is not None:
                self._resampler(resampler, x)
        self._layer(resnet.conv1, inner, x)
        scale_and_shift = resnet.time_embedding_norm == "scale_shift"
        self._layer(resnet.time_emb_proj, inner * 2 if scale_and_shift else inner, TIME)
        self._layer(resnet.norm2, inner)
        self._layer(resnet.conv2, out, inner)
        self._layer(resnet.conv_shortcut, out, x)
        return out

    def _resampler(self, resampler: Any, x: tuple[str, ...]) -> tuple[str, ...]:
        if isinstance(resampler, ResnetBlock2D):
            return self._resnet(resampler, x)
        if not isinstance(resampler, (Downsample2D, Upsample2D, WaveletGatingDown, WaveletGatingUp)):
            raise _unknown(resampler)
        out = self._new(resampler, resampler.channels) if self._names[resampler] in self._mixing else x
        if isinstance(resampler, (Downsample2D, Upsample2D)):
            self._layer(resampler.conv, out, x)
            return out
        gate = resampler.gate
        hidden = self._new(gate.squeeze, gate.squeeze.out_features)
        self._layer(gate.squeeze, hidden, x)
        self._layer(gate.excite, out * 4, hidden)
        if isinstance(resampler, WaveletGatingDown):
            self._layer(resampler.mix, out, x)
        elif resampler.expand is not None:
            self._layer(resampler.expand, out * 4, x if resampler.expand.groups == 1 else None)
        return out

    def _attended(self, module: nn.Module | None, x: tuple[str, ...]) -> tuple[str, ...]:
        """After a residual block: attention, a transformer or nothing. All of them write into what they read."""
        if isinstance(module, Attention):
            self._attention(module, x)
        elif isinstance(module, Transformer2DModel):
            self._transformer(module, x)
        elif module is not None:
            raise _unknown(module)
        return x

    def _attention(self, attention: Attention, x: Axis) -> None:
        inner = self._new(attention.to_q, attention.to_q.out_features)
        self.heads[inner[0]] = attention.heads
        self._layer(attention.group_norm, x)
        self._layer(attention.to_q, inner, x)
        for layer in (attention.to_k, attention.to_v):
            self._layer(layer, inner, None if attention.is_cross_attention else x)
        self._layer(attention.to_out[0], x, inner)

    def _transformer(self, transformer: Any, x: Axis) -> None:
        inner = self._new(transformer.proj_in, transformer.proj_in.weight.shape[0])
        self._layer(transformer.norm, x)
        self._layer(transformer.proj_in, inner, x)
        for block in transformer.transformer_blocks:
            for norm in (block.norm1, block.norm2, block.norm3):
                self._layer(norm, inner)
            for attention in (block.attn1, block.attn2):
                if attention is not None:
                    self._attention(attention, inner)
            widen, _, narrow = block.ff.net[:3]
            hidden = self._new(narrow, narrow.in_features)
            self._layer(widen.proj, hidden * (widen.proj.out_features // narrow.in_features), inner)
            self._layer(narrow, inner, hidden)
        self._layer(transformer.proj_out, x, inner)


def _layers(block: Any) -> Iterable[tuple[nn.Module, nn.Module | None]]:
    """The residual blocks of a block, each with the attention or transformer that belongs to it, if there is one."""
    if {name for name, _ in block.named_children()} - {"resnets", "attentions", "downsamplers", "upsamplers"}:
        raise _unknown(block)
    return zip_longest(block.resnets, getattr(block, "attentions", ()))


def _unknown(module: nn.Module) -> SlimdpmError:
    return SlimdpmError(f"student.init: a {type(module).__name__} cannot be inherited; set student.init to random")
