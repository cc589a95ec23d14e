"""From an original checkpoint and its YAML to a folder of diffusers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline

from slimdpm.method.networks import build, outlines
from slimdpm.originals.autoencoder import autoencoder_config, autoencoder_sources
from slimdpm.originals.reading import read_tensors
from slimdpm.originals.settings import LatentDiffusionParams, MeasuredScale, read_settings
from slimdpm.originals.unet import unet_config, unet_sources
from slimdpm.originals.weights import Weights
from slimdpm.pipelines import ClassConditionalLDMPipeline, ClassEmbedder
from slimdpm.system.files import atomic_folder
from slimdpm.system.shared_work import claim_new
from slimdpm.system.validation import validated

UNET = "model.diffusion_model."
AVERAGES = "model_ema."
IMAGENET = 1000  # classes
# Beginnings of names that are known and of no use here.
IGNORED = (
    # The noise schedule as buffers: the scheduler computes it anew from the YAML.
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "lvlb_weights",
    "cond_ids",
    "logvar",  # a constant, unless learn_logvar, which is refused
    # How the running averages were made.
    "model_ema.decay",
    "model_ema.num_updates",
    # What the autoencoder was trained against: discriminator and LPIPS.
    "first_stage_model.loss.",
)


@dataclass(frozen=True)
class Parts:
    """What a checkpoint holds, as modules of diffusers with float32 weights on the CPU.

    Attributes:
        unet: a `UNet2DModel`, or ours with a fixed number of heads; a `UNet2DConditionModel` if there are classes.
        autoencoder: a `VQModel` or `AutoencoderKL`; its config has the scaling factor of the latents.
        scheduler: DDIM, as the original samples.
        class_embedder: labels ``(B,)`` to ``(B, 1, D)``, the one token that the U-Net attends to; or None.
        ema: whether the U-Net's weights are the running averages.
    """

    unet: Any
    autoencoder: Any
    scheduler: DDIMScheduler
    class_embedder: ClassEmbedder | None
    ema: bool

    def pipeline(self) -> DiffusionPipeline:
        """The parts as one: diffusers' own pipeline, or for classes ours."""
        if self.class_embedder is None:
            return LDMPipeline(self.autoencoder, self.unet, self.scheduler)
        null_class = self.class_embedder.config.null_class
        return ClassConditionalLDMPipeline(self.unet, self.scheduler, self.autoencoder, self.class_embedder, null_class)


def import_checkpoint(checkpoint: Path, config: Path, output: Path, *, ema: bool = True) -> Parts:
    """Write an original latent-diffusion checkpoint as a folder that `slimdpm.load_pipeline` and diffusers read.

    Args:
        ema: take the running averages of the U-Net's weights if there are any.

    Raises:
        SlimdpmError: as `convert_checkpoint`, or if `output` exists or another process writes it. Nothing is
            half-written.
    """
    with claim_new(output):
        parts = convert_checkpoint(checkpoint, config, ema=ema)
        with atomic_folder(output) as folder:
            parts.pipeline().save_pretrained(folder, safe_serialization=True)
        return parts


def convert_checkpoint(checkpoint: Path, config: Path, *, ema: bool = True) -> Parts:
    """The parts of an original checkpoint as modules.

    Raises:
        SlimdpmError: for a file that is missing, damaged or wants to run code; a YAML that is no data or describes
            something else; weights that do not belong to it, which are listed.
    """
    settings = read_settings(config)
    weights = Weights(checkpoint, read_tensors(checkpoint))
    ema = ema and any(name.startswith(AVERAGES) for name in weights.left)
    parts = _outline(settings)
    weights.fill(parts.unet, unet_sources(settings.unet_config.params), UNET, ema=ema)
    if settings.scale_by_std:  # measured on the first batch of training, so it lies among the weights
        measured = weights.take("scale_factor")
        if measured is not None:
            scale = validated(MeasuredScale, {"scale_factor": measured.tolist()}, str(checkpoint))
            parts.autoencoder.register_to_config(scaling_factor=scale.scale_factor)
    ddconfig = settings.first_stage_config.params.ddconfig
    weights.fill(parts.autoencoder, autoencoder_sources(ddconfig), "first_stage_model.")
    if parts.class_embedder is not None:
        weights.fill(parts.class_embedder, {"embedding": "embedding"}, "cond_stage_model.")
    weights.check(IGNORED if ema else (*IGNORED, AVERAGES), f"{checkpoint} does not belong to {config}")
    return replace(parts, ema=ema)


def outline(config: Path) -> Parts:
    """The parts that a YAML describes, on the meta device: their shapes without any weights."""
    return _outline(read_settings(config))


def _outline(settings: LatentDiffusionParams) -> Parts:
    stage = settings.first_stage_config
    first = autoencoder_config(stage, settings.scale_factor)
    with outlines():
        unet = build(unet_config(settings.unet_config.params)).eval()
        autoencoder = getattr(diffusers, first["_class_name"]).from_config(first).eval()
        class_embedder = _class_embedder(settings)
    return Parts(unet, autoencoder, _scheduler(settings), class_embedder, ema=False)


def _class_embedder(settings: LatentDiffusionParams) -> ClassEmbedder | None:
    """The embedding of the labels. ImageNet has 1000 classes: a row more stands for none, as the original samples."""
    params = settings.class_embedder
    if params is None:
        return None
    null_class = IMAGENET if params.n_classes == IMAGENET + 1 else None
    return ClassEmbedder(params.n_classes, params.embed_dim, null_class)


def _scheduler(settings: LatentDiffusionParams) -> DDIMScheduler:
    """As the original's DDIM sampler: it starts at timestep 1 and ends at the first ``ᾱ`` instead of at 1.

    Its "linear" schedule is linear in ``√β``, which diffusers calls "scaled_linear".
    """
    return DDIMScheduler(
        num_train_timesteps=settings.timesteps,
        beta_start=settings.linear_start,
        beta_end=settings.linear_end,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
