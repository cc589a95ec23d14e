"""Class-conditional generation with a U-Net, for which diffusers has no pipeline of its own.

Saved folders name `slimdpm.pipelines`: the path stays. ``ClassConditionalLDMPipeline.from_pretrained`` loads them, and
so does `slimdpm.load_pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import diffusers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from slimdpm.conditioning import Request, class_labels_of
from slimdpm.method.forward_process import Process
from slimdpm.pipelines.denoise import denoise
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import sample_size, sides


class ClassConditionalLDMPipeline(DiffusionPipeline):
    """Images of given classes, from a U-Net in an autoencoder's latents or in pixels.

    Args:
        unet: takes ``class_labels``, or the embedder's token as ``encoder_hidden_states``.
        scheduler: any that diffusers' latent pipelines take.
        vqvae: a `VQModel` or `AutoencoderKL`; None in pixel space.
        class_embedder: for a U-Net with cross-attention.
        null_class: number, of a U-Net that embeds classes itself, that stands for no class; None allows no guidance.
        id2label: the names of the classes by their numbers, as in diffusers' `DiTPipeline`.
        guidance_scale: by default; None is 1.5, and 1 that of a network that has learnt guided outputs.
    """

    model_cpu_offload_seq = "class_embedder->unet->vqvae"
    _optional_components = ["vqvae", "class_embedder"]  # noqa: RUF012 -- diffusers' own form

    # Without annotations: diffusers compares what it loads with them, and up to 0.35 fails at those that are text.
    def __init__(
        self, unet, scheduler, vqvae=None, class_embedder=None, null_class=None, id2label=None, guidance_scale=None
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vqvae=vqvae, class_embedder=class_embedder)
        self.register_to_config(null_class=null_class, id2label=id2label, guidance_scale=guidance_scale)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        *,
        batch_size: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """One image for each label, or as many as are asked for.

        Args:
            class_labels: numbers or names; by default all classes in turn.
            batch_size: how many images, of these labels in turn; by default one of each, without labels one.
            guidance_scale: 1 is no guidance; by default the pipeline's if the network knows a null class.
            guidance_interval: the lowest and the highest noise level ``σ = √((1 − ᾱ) / ᾱ)`` with guidance; by default
                all have it.
            num_inference_steps: of the scheduler.
            generator: of the noise, one or one for each image.
            output_type: ``"pil"``, ``"np"`` float in [0, 1] ``(B, H, W, C)``, or ``"pt"`` ``(B, C, H, W)``.
            return_dict: False gives a tuple.

        Raises:
            SlimdpmError: for a class that there is not, guidance without a null class, or an interval without a level.
        """
        told = () if class_labels is None else class_labels
        labels = [told] if isinstance(told, (int, str)) else list(told)
        count = batch_size or len(labels) or 1
        device = self._execution_device
        request, conditioning = Request(classes=labels, guidance=guidance_scale), class_labels_of(self, self.unet)
        if conditioning is None:
            raise SlimdpmError("the U-Net takes no classes: it has no num_class_embeds, and there is no class_embedder")
        guidance = conditioning.sampling_inputs(range(count), request, device)
        guidance = guidance.within(guidance_interval, Process.of_scheduler(self.scheduler))
        shape = (count, self.unet.config.in_channels, *sides(sample_size(self.unet.config)))
        sample = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        predict = partial(guidance.predict, self.unet)
        sample = denoise(predict, self.scheduler, sample, num_inference_steps, generator, self.progress_bar)
        if self.vqvae is not None:
            sample = self.vqvae.decode(sample / self.vqvae.config.scaling_factor).sample
        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


# `DiffusionPipeline.from_pretrained` looks for the class that a folder's model_index.json names in diffusers itself.
diffusers.ClassConditionalLDMPipeline = ClassConditionalLDMPipeline
