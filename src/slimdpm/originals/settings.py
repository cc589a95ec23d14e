"""The YAML of an original checkpoint, read as data: it names classes to build, and none is ever imported.

What slimdpm converts is written down as types: a value of another network is an error that names its key. What only
training needs (learning rates, losses, data) is left aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from slimdpm.system.documents import read_yaml
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.validation import validated

GROUPS = 32  # of every normalisation: the original has no setting for it

# What the settings can be at most, many times what any published network has: a network is built before its weights
# are compared with it.
Layers = Annotated[int, Field(ge=1, le=8)]
Width = Annotated[int, Field(ge=1, le=8192)]  # channels, heads, pixels
Rows = Annotated[int, Field(ge=1, le=2**20)]  # of an embedding
Levels = Annotated[list[Annotated[int, Field(ge=1, le=32)]], Field(min_length=1, max_length=8)]
Resolutions = Annotated[list[Annotated[int, Field(ge=0, le=2**16)]], Field(max_length=32)]
Share = Annotated[float, Field(ge=0, lt=1)]
Beta = Annotated[float, Field(gt=0, lt=1)]
Scale = Annotated[float, Field(gt=1e-4, lt=1e4)]


class _Architecture(BaseModel):
    """Every key counts."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Training(BaseModel):
    """Keys that are not listed belong to training."""

    model_config = ConfigDict(extra="ignore", strict=True)


class UNetParams(_Architecture):
    """The arguments of ``openaimodel.UNetModel``.

    `attention_resolutions` are factors of downsampling, not sizes. Either `num_heads` or `num_head_channels` is given.
    """

    image_size: Width
    in_channels: Width
    out_channels: Width
    model_channels: Width
    num_res_blocks: Layers
    attention_resolutions: Resolutions
    channel_mult: Levels = [1, 2, 4, 8]
    dropout: Share = 0.0
    num_heads: int = -1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: Layers = 1
    context_dim: Width | None = None
    # Ways of computing the same:
    use_checkpoint: bool = False
    use_fp16: bool = False
    legacy: bool = True
    # Other networks, which the paper does not use:
    dims: Literal[2] = 2
    conv_resample: Literal[True] = True
    num_classes: None = None
    n_embed: None = None
    num_heads_upsample: Literal[-1] = -1

    @property
    def channels(self) -> list[int]:
        return [self.model_channels * mult for mult in self.channel_mult]

    def has_attention(self, level: int) -> bool:
        return 2**level in self.attention_resolutions

    @property
    def attending(self) -> list[int]:
        """Levels with attention; the middle block's is the last level's."""
        last = len(self.channel_mult) - 1
        return [level for level in range(last + 1) if self.has_attention(level) or level == last]

    def heads(self, level: int) -> int:
        """Attention heads of a level; the middle block's are the last level's."""
        return self.num_heads if self.num_head_channels == -1 else self.channels[level] // self.num_head_channels


class AutoencoderParams(_Architecture):
    """``ddconfig``: the arguments of ``model.Encoder`` and ``model.Decoder``."""

    double_z: bool = True
    z_channels: Width
    resolution: Width
    in_channels: Width
    out_ch: Width
    ch: Width
    ch_mult: Levels = [1, 2, 4, 8]
    num_res_blocks: Layers
    attn_resolutions: Resolutions
    dropout: Share = 0.0
    # Other networks:
    resamp_with_conv: Literal[True] = True
    use_linear_attn: Literal[False] = False
    attn_type: Literal["vanilla"] = "vanilla"
    give_pre_end: Literal[False] = False
    tanh_out: Literal[False] = False


class FirstStageParams(_Training):
    embed_dim: Width
    n_embed: Rows | None = None  # of the codebook; a KL autoencoder has none
    ddconfig: AutoencoderParams
    remap: None = None
    use_ema: Literal[False] = False


class ClassEmbedderParams(_Training):
    embed_dim: Width
    n_classes: Rows = 1000


class UNetConfig(_Training):
    target: str
    params: UNetParams


class FirstStageConfig(_Training):
    target: str
    params: FirstStageParams


class ClassEmbedderConfig(_Training):
    target: str
    params: ClassEmbedderParams


class LatentDiffusionParams(_Training):
    """The arguments of ``ddpm.LatentDiffusion`` that say how its weights are used."""

    unet_config: UNetConfig
    first_stage_config: FirstStageConfig
    cond_stage_config: ClassEmbedderConfig | Literal["__is_unconditional__"]
    timesteps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    linear_start: Beta = 1e-4
    linear_end: Beta = 2e-2
    scale_factor: Scale = 1.0
    scale_by_std: bool = False
    # Other processes, and embedded labels that are not fed to attention:
    beta_schedule: Literal["linear"] = "linear"
    given_betas: None = None
    parameterization: Literal["eps"] = "eps"
    conditioning_key: Literal["crossattn"] | None = None
    learn_logvar: Literal[False] = False
    use_positional_encodings: Literal[False] = False

    @property
    def class_embedder(self) -> ClassEmbedderParams | None:
        stage = self.cond_stage_config
        return stage.params if isinstance(stage, ClassEmbedderConfig) else None


class _Model(_Training):
    params: LatentDiffusionParams


class _File(_Training):
    model: _Model


class MeasuredScale(BaseModel):
    scale_factor: Scale


TARGETS = {
    "target": ("LatentDiffusion",),
    "params.unet_config.target": ("UNetModel",),
    "params.first_stage_config.target": ("VQModelInterface", "VQModel", "AutoencoderKL"),
    "params.cond_stage_config.target": ("ClassEmbedder",),
}


def read_settings(file: Path) -> LatentDiffusionParams:
    """The network, autoencoder and process that a YAML of latent-diffusion describes.

    Raises:
        SlimdpmError: with one line about the first thing that is missing or not supported.
    """
    values = read_yaml(file)
    model = values.get("model") if isinstance(values, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(model.get("params"), Mapping):
        raise SlimdpmError(f"{file} is no config of latent-diffusion: it has no model.params")
    for key, known in TARGETS.items():
        target = _at(model, key)
        if isinstance(target, str) and target.rpartition(".")[2] not in known:
            raise SlimdpmError(f"{file}: model.{key} is {target}; slimdpm imports {', '.join(known)}")
    settings = validated(_File, values, str(file)).model.params
    _check(settings, file)
    return settings


def _check(settings: LatentDiffusionParams, file: Path) -> None:
    """What one key says about another."""
    unet, first = settings.unet_config.params, settings.first_stage_config
    if (unet.num_heads == -1) == (unet.num_head_channels == -1):
        raise SlimdpmError(f"{file}: give the U-Net either num_heads or num_head_channels")
    per_head = unet.num_heads if unet.num_head_channels == -1 else unet.num_head_channels
    if per_head < 1 or any(unet.channels[level] % per_head for level in unet.attending):
        raise SlimdpmError(f"{file}: the U-Net's attention heads do not divide its channels {unet.channels}")
    for name, channels in (("model_channels", unet.model_channels), ("ch", first.params.ddconfig.ch)):
        if channels < 1 or channels % GROUPS:
            raise SlimdpmError(f"{file}: {name} is {channels}, and not a multiple of the {GROUPS} norm groups")
    if unet.use_spatial_transformer and unet.resblock_updown:
        raise SlimdpmError(f"{file}: resblock_updown with use_spatial_transformer is not supported")
    latents = first.params.embed_dim
    if not unet.in_channels == unet.out_channels == latents:
        raise SlimdpmError(
            f"{file}: in_channels {unet.in_channels} and out_channels {unet.out_channels} of the U-Net are not the "
            f"autoencoder's embed_dim {latents}"
        )
    context = settings.class_embedder.embed_dim if settings.class_embedder else None
    if unet.context_dim != context or unet.use_spatial_transformer != (context is not None):
        raise SlimdpmError(
            f"{file}: the U-Net attends to context_dim {unet.context_dim}, the conditioning stage gives {context}"
        )
    if "VQ" in first.target and first.params.n_embed is None:
        raise SlimdpmError(f"{file}: a {first.target.rpartition('.')[2]} needs n_embed, the size of its codebook")
    if "KL" in first.target and first.params.embed_dim != first.params.ddconfig.z_channels:
        raise SlimdpmError(f"{file}: a KL autoencoder whose embed_dim differs from z_channels is not supported")


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values
