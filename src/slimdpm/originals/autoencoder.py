"""The first stages of latent-diffusion (VQ and KL) as `VQModel` and `AutoencoderKL` of diffusers."""

from __future__ import annotations

from typing import Any

from slimdpm.originals.settings import GROUPS, AutoencoderParams, FirstStageConfig
from slimdpm.originals.weights import Sources


def autoencoder_config(stage: FirstStageConfig, scaling_factor: float) -> dict[str, Any]:
    """The diffusers config, with its ``_class_name``.

    Args:
        scaling_factor: latents are multiplied by it before the U-Net sees them.
    """
    p = stage.params.ddconfig
    levels = range(len(p.ch_mult))
    config: dict[str, Any] = {
        "sample_size": p.resolution,
        "in_channels": p.in_channels,
        "out_channels": p.out_ch,
        "block_out_channels": [p.ch * mult for mult in p.ch_mult],
        "layers_per_block": p.num_res_blocks,
        "latent_channels": p.z_channels,
        "norm_num_groups": GROUPS,
        "scaling_factor": scaling_factor,
        "down_block_types": [f"{_attn(p, level)}DownEncoderBlock2D" for level in levels],
        "up_block_types": [f"{_attn(p, level)}UpDecoderBlock2D" for level in reversed(levels)],
    }
    if "KL" in stage.target:
        return {"_class_name": "AutoencoderKL", **config}
    codebook = {"num_vq_embeddings": stage.params.n_embed, "vq_embed_dim": stage.params.embed_dim}
    return {"_class_name": "VQModel", **config, **codebook}


def autoencoder_sources(p: AutoencoderParams) -> Sources:
    """Modules of the diffusers autoencoder by the modules of the original that hold their weights.

    The original's decoder numbers its levels from fine to coarse, diffusers' from coarse to fine.
    """
    top = len(p.ch_mult) - 1
    sources: Sources = {name: name for name in ("quantize.embedding", "quant_conv", "post_quant_conv")}
    for side in ("encoder", "decoder"):
        sources |= {
            f"{side}.conv_in": f"{side}.conv_in",
            f"{side}.conv_norm_out": f"{side}.norm_out",
            f"{side}.conv_out": f"{side}.conv_out",
            **_resnet(f"{side}.mid_block.resnets.0", f"{side}.mid.block_1"),
            **_attention(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"),
            **_resnet(f"{side}.mid_block.resnets.1", f"{side}.mid.block_2"),
        }
    for level in range(top + 1):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{top - level}"
        sources |= _level(p, level, down, f"encoder.down.{level}", p.num_res_blocks)
        sources |= _level(p, level, up, f"decoder.up.{level}", p.num_res_blocks + 1)
        sources[f"{down}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        sources[f"{up}.upsamplers.0.conv"] = f"decoder.up.{level}.upsample.conv"
    return sources


def _attn(p: AutoencoderParams, level: int) -> str:
    return "Attn" if p.resolution // 2**level in p.attn_resolutions else ""


def _level(p: AutoencoderParams, level: int, ours: str, theirs: str, blocks: int) -> Sources:
    sources: Sources = {}
    for i in range(blocks):
        sources |= _resnet(f"{ours}.resnets.{i}", f"{theirs}.block.{i}")
        if _attn(p, level):
            sources |= _attention(f"{ours}.attentions.{i}", f"{theirs}.attn.{i}")
    return sources


def _resnet(ours: str, theirs: str) -> Sources:
    same = {f"{ours}.{name}": f"{theirs}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
    return {**same, f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}


def _attention(ours: str, theirs: str) -> Sources:
    parts = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}
