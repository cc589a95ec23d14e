"""``openaimodel.UNetModel`` of latent-diffusion as a U-Net of diffusers: the config, and where each weight goes.

diffusers has a converter of its own for Stable Diffusion's single files. It is not used here because it does not know
this family: attention with fused queries, keys and values, resampling inside residual blocks, running averages; and
because it drops what it does not know without a word.
"""

from __future__ import annotations

from typing import Any

from slimdpm.originals.settings import GROUPS, UNetParams
from slimdpm.originals.weights import Fused, Sources


def unet_config(p: UNetParams) -> dict[str, Any]:
    """The diffusers config, with its ``_class_name``.

    Cross-attention makes it a `UNet2DConditionModel`. Without, it is a `UNet2DModel`, in which heads have one size, or
    our `FixedHeadsUNet2DModel` if the original fixes their number instead.
    """
    levels = range(len(p.channel_mult))
    config: dict[str, Any] = {
        "sample_size": p.image_size,
        "in_channels": p.in_channels,
        "out_channels": p.out_channels,
        "block_out_channels": p.channels,
        "layers_per_block": p.num_res_blocks,
        "dropout": p.dropout,
        "norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if p.use_scale_shift_norm else "default",
    }
    attention, plain = "Attn", ""
    if p.use_spatial_transformer:
        attention = "CrossAttn"
        config |= {
            "_class_name": "UNet2DConditionModel",
            "cross_attention_dim": p.context_dim,
            "transformer_layers_per_block": p.transformer_depth,
            "attention_head_dim": [p.heads(level) for level in levels],  # diffusers' name for the number of heads
        }
    else:
        config |= {"_class_name": "UNet2DModel", "attn_norm_num_groups": GROUPS, "attention_head_dim": _head_size(p)}
        if len({p.channels[level] // p.heads(level) for level in p.attending}) > 1:
            config |= {"_class_name": "FixedHeadsUNet2DModel", "num_attention_heads": p.num_heads}
        if p.resblock_updown:
            config |= {"downsample_type": "resnet", "upsample_type": "resnet"}
    kinds = [attention if p.has_attention(level) else plain for level in levels]
    # A plain DownBlock2D cannot resample inside a residual block, and AttnDownBlock2D can.
    down, up = ("ResnetDownsample", "ResnetUpsample") if p.resblock_updown else ("Down", "Up")
    config["down_block_types"] = [f"{kind}DownBlock2D" if kind else f"{down}Block2D" for kind in kinds]
    config["up_block_types"] = [f"{kind}UpBlock2D" if kind else f"{up}Block2D" for kind in reversed(kinds)]
    return config


def unet_sources(p: UNetParams) -> Sources:
    """Modules of the diffusers U-Net by the modules of the original that hold their weights.

    The original numbers all blocks of a side in one row, ``input_blocks.0`` being the first convolution; each is a
    short list of a residual block, attention if the level has it, and a resampler if it is the level's last.
    """
    top = len(p.channel_mult) - 1
    sources: Sources = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    n = 1
    for level in range(top + 1):
        block = f"down_blocks.{level}"
        for i in range(p.num_res_blocks):
            sources |= _resnet(f"{block}.resnets.{i}", f"input_blocks.{n}.0")
            if p.has_attention(level):
                sources |= _attention(p, level, f"{block}.attentions.{i}", f"input_blocks.{n}.1")
            n += 1
        if level < top:
            sources |= _resampler(p, f"{block}.downsamplers.0", f"input_blocks.{n}.0", "op")
            n += 1
    sources |= _resnet("mid_block.resnets.0", "middle_block.0")
    sources |= _attention(p, top, "mid_block.attentions.0", "middle_block.1")
    sources |= _resnet("mid_block.resnets.1", "middle_block.2")
    n = 0
    for level in range(top, -1, -1):
        block = f"up_blocks.{top - level}"
        for i in range(p.num_res_blocks + 1):
            sources |= _resnet(f"{block}.resnets.{i}", f"output_blocks.{n}.0")
            if p.has_attention(level):
                sources |= _attention(p, level, f"{block}.attentions.{i}", f"output_blocks.{n}.1")
            if level and i == p.num_res_blocks:
                place = 1 + p.has_attention(level)
                sources |= _resampler(p, f"{block}.upsamplers.0", f"output_blocks.{n}.{place}", "conv")
            n += 1
    return sources


def _head_size(p: UNetParams) -> int:
    first = p.attending[0]
    return p.channels[first] // p.heads(first)


def _resnet(ours: str, theirs: str) -> Sources:
    parts = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}


def _resampler(p: UNetParams, ours: str, theirs: str, convolution: str) -> Sources:
    return _resnet(ours, theirs) if p.resblock_updown else {f"{ours}.conv": f"{theirs}.{convolution}"}


def _attention(p: UNetParams, level: int, ours: str, theirs: str) -> Sources:
    if p.use_spatial_transformer:
        return _transformer(p.transformer_depth, ours, theirs)
    groups = 1 if p.use_new_attention_order else p.heads(level)
    fused: Sources = {f"{ours}.to_{x}": Fused(f"{theirs}.qkv", part, groups) for part, x in enumerate("qkv")}
    return {f"{ours}.group_norm": f"{theirs}.norm", f"{ours}.to_out.0": f"{theirs}.proj_out", **fused}


def _transformer(depth: int, ours: str, theirs: str) -> Sources:
    """Both sides use the same names here."""
    names = [f"attn{a}.{layer}" for a in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")]
    names += ["ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"]
    names = [f"transformer_blocks.{d}.{name}" for d in range(depth) for name in names]
    return {f"{ours}.{name}": f"{theirs}.{name}" for name in ("norm", "proj_in", "proj_out", *names)}
