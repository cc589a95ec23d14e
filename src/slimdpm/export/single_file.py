"""A plain student of Stable Diffusion as a single file under the original names, for tools that read such files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from diffusers import (
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from slimdpm.originals.autoencoder import autoencoder_sources
from slimdpm.originals.settings import GROUPS, AutoencoderParams, UNetParams
from slimdpm.originals.unet import unet_sources
from slimdpm.originals.weights import original_tensors
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.files import check_new, save_tensors, write_text

KINDS = (StableDiffusionPipeline, StableDiffusionInpaintPipeline, StableDiffusionInstructPix2PixPipeline)
_PARAMETERIZATIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def write_single_file(source: str, output: Path, *, half: bool = False) -> None:
    """Write U-Net, autoencoder and text encoder of a pipeline under the names of CompVis' Stable Diffusion.

    Beside the file goes a ``.yaml`` of the same name if the original's settings can tell the networks: tools of the
    original code need it to know other widths than those of Stable Diffusion v1.

    Args:
        source: folder, run folder or hub id of a Stable Diffusion v1 whose U-Net has no gates.
        output: a ``.safetensors`` that is not there yet.
        half: write the weights in fp16.

    Raises:
        SlimdpmError: for a pipeline that has no such file, or a file that cannot be written.
    """
    if output.suffix != ".safetensors":
        raise SlimdpmError(f"{output}: a single file is a .safetensors")
    settings = output.with_suffix(".yaml")
    for file in (output, settings):
        check_new(file)
    pipeline = load_pipeline(source)
    _check(source, pipeline)
    with blamed(f"{source} cannot be written as a single file"):
        tensors = _tensors(pipeline)
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    original = original_settings(pipeline)
    if original is not None:
        write_text(settings, yaml.safe_dump(original, sort_keys=False))
    save_tensors(output, tensors)


def _check(source: str, pipeline: Any) -> None:
    """That a pipeline is one of those that single files hold."""
    if type(pipeline) not in KINDS:
        names = ", ".join(kind.__name__ for kind in KINDS)
        raise SlimdpmError(f"{source} is a {type(pipeline).__name__}: single files are written of {names}")
    if type(pipeline.unet) is not UNet2DConditionModel:
        raise SlimdpmError(
            f"the U-Net of {source} is wavelet-gated, and single files have no room for gates: slim its teacher with "
            "--set student.layout=sd"
        )
    if pipeline.unet.config.use_linear_projection:
        raise SlimdpmError(f"{source} is a Stable Diffusion 2, whose text encoder has other names: only v1 is written")


def _tensors(pipeline: Any) -> dict[str, Tensor]:
    unet = original_tensors(pipeline.unet, unet_sources(_unet(pipeline.unet.config)), "model.diffusion_model.")
    sources = autoencoder_sources(_autoencoder(pipeline.vae.config))
    first = original_tensors(pipeline.vae, sources, "first_stage_model.")
    # The attention of the original's autoencoder is made of 1x1 convolutions, as nothing else in it is linear.
    first = {name: tensor[..., None, None] if tensor.ndim == 2 else tensor for name, tensor in first.items()}
    text = {  # transformers has left out the inner prefix since its version 5
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in pipeline.text_encoder.state_dict().items()
    }
    return {**unet, **first, **text}


def _multiples(widths: list[int]) -> list[int]:
    """Of the first; ones where they are none: names do not depend on widths."""
    exact = all(width % widths[0] == 0 for width in widths)
    return [width // widths[0] for width in widths] if exact else [1] * len(widths)


def _unet(config: Mapping[str, Any]) -> UNetParams:
    """``unet_config.params`` of the original."""
    layers, depth = config["layers_per_block"], config["transformer_layers_per_block"]
    size, heads = config["sample_size"], config["attention_head_dim"]
    if not isinstance(layers, int) or not isinstance(depth, int):
        raise SlimdpmError("its U-Net has levels of several depths, for which the original has no setting")
    attending = [2**level for level, kind in enumerate(config["down_block_types"]) if "CrossAttn" in kind]
    return UNetParams(
        image_size=size if isinstance(size, int) else max(size),
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        model_channels=config["block_out_channels"][0],
        attention_resolutions=attending,
        num_res_blocks=layers,
        channel_mult=_multiples(config["block_out_channels"]),
        num_heads=heads if isinstance(heads, int) else -1,
        use_spatial_transformer=True,
        transformer_depth=depth,
        context_dim=config["cross_attention_dim"],
        legacy=False,
    )


def _autoencoder(config: Mapping[str, Any]) -> AutoencoderParams:
    """``first_stage_config.params.ddconfig`` of the original."""
    return AutoencoderParams(
        double_z=True,
        z_channels=config["latent_channels"],
        resolution=256,  # of the training; nothing is computed from it without attention outside of the middle
        in_channels=config["in_channels"],
        out_ch=config["out_channels"],
        ch=config["block_out_channels"][0],
        ch_mult=_multiples(config["block_out_channels"]),
        num_res_blocks=config["layers_per_block"],
        attn_resolutions=[],
    )


def original_settings(pipeline: Any) -> dict[str, Any] | None:
    """The YAML of the original code for these networks; None where it has no words for them.

    It multiplies one width, has as many heads on each level, 32 norm groups everywhere, and a linear schedule of √β.
    """
    unet, vae, process = pipeline.unet.config, pipeline.vae.config, pipeline.scheduler.config
    widths = [unet["block_out_channels"], vae["block_out_channels"]]
    told = (
        type(pipeline) is StableDiffusionPipeline
        and all(width % levels[0] == 0 for levels in widths for width in levels)
        and isinstance(unet["attention_head_dim"], int)
        and unet["norm_num_groups"] == vae["norm_num_groups"] == GROUPS
        and process.get("beta_schedule") == "scaled_linear"
    )
    if not told:
        return None
    params, first = (known.model_dump(exclude_unset=True) for known in (_unet(unet), _autoencoder(vae)))
    stage = {"embed_dim": vae["latent_channels"], "ddconfig": first, "lossconfig": {"target": "torch.nn.Identity"}}
    values = {
        "linear_start": process["beta_start"],
        "linear_end": process["beta_end"],
        "timesteps": process["num_train_timesteps"],
        "parameterization": _PARAMETERIZATIONS[process["prediction_type"]],
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": params["image_size"],
        "channels": unet["in_channels"],
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": vae["scaling_factor"],
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": stage},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": values}}
