"""Text-to-image networks that see an image besides: inpainting, and editing by instruction (InstructPix2Pix).

What they see of it are channels behind those of the noisy sample, made as diffusers' own pipelines make them, but with
the mean of a latent in place of a draw. They are made of the pixels at each step, so latents are not kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from slimdpm.conditioning.base import Conditioning, Guidance, Request
from slimdpm.conditioning.text import Text
from slimdpm.data.images import open_image, pixels, square, upright
from slimdpm.method.networks import EXTRA, Inputs
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.hashing import digest
from slimdpm.system.sizes import Size, briefly

_BOX = np.pad(np.full((64, 64), 255, np.uint8), 32)  # the mask where none is given: the middle


class _ImageAndText(Text):
    needs: ClassVar[str]
    masks: ClassVar[int]  # channels of a mask before those of the latents
    told: ClassVar[dict[str, str]]  # see `card`

    @property
    def extra(self) -> int:
        return self.masks + self.encoder.vae.config.latent_channels

    def card(self) -> dict[str, str]:
        return {**super().card(), **self.told}

    def in_turn(self, request: Request) -> Sequence | None:
        raise SlimdpmError(f"the teacher makes images of {self.needs}: it cannot make the data, give some")

    def facts(self, request: Request) -> dict[str, Any]:
        if not len(request.images):
            raise SlimdpmError(
                f"the pipeline makes images of {self.needs}: sample takes them as --image; evaluate and analyze do not"
            )
        if len(request.masks) and not self.masks:
            raise SlimdpmError("the pipeline edits whole images: it takes no mask")
        opened = {"images": map(_opened, request.images), "masks": map(_opened, request.masks)}
        shown = {name: [digest([i.tobytes()], 6) for i in some] for name, some in opened.items()}
        return {**super().facts(request), **shown}

    def describe(self, drop: float) -> str | None:
        return f"{super().describe(drop)}; {self.needs} at each step, so latents are not kept"

    def _squares(self, images: Sequence[Any], indices: range, channels: int) -> Tensor:
        """The images for samples of these numbers, ``(B, C, H, W)`` in [−1, 1]."""
        chosen = [upright(_opened(images[i % len(images)]), channels) for i in indices]
        squares = np.stack([pixels(square(image, self.size)) for image in chosen])
        return torch.from_numpy(squares).permute(0, 3, 1, 2) / 127.5 - 1

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        """Means of the latents ``(B, C, h, w)`` of images in [−1, 1], unscaled."""
        autoencoder = self.encoder.vae
        return autoencoder.encode(images.to(autoencoder.device, autoencoder.dtype)).latent_dist.mode()


class Inpainting(_ImageAndText):
    """A mask, and the latents of the image where it is grey under the mask. Training draws its masks."""

    needs, masks = "an image and a mask", 1
    told: ClassVar[dict[str, str]] = {"tag": "inpainting", "call": '"a prompt", image=image, mask_image=mask, '}

    def sized(self, size: Size) -> Conditioning:
        if not isinstance(size, int) and type(self.encoder).__name__ == "StableDiffusionInpaintPipeline":
            raise SlimdpmError(f"not {briefly(size)}: diffusers' StableDiffusionInpaintPipeline knows squares alone")
        return super().sized(size)

    def training_inputs(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> Inputs:
        images, streams = batch["images"], map(np.random.default_rng, batch["draws"].tolist())
        masks = np.stack([random_mask(images.shape[-2], images.shape[-1], rng) for rng in streams])  # (B, H, W)
        shown = self._masked(images, torch.from_numpy(masks)[:, None])
        return {**super().training_inputs(batch, dropped), EXTRA: shown}

    def sampling_inputs(self, indices: range, request: Request, device: torch.device) -> Guidance:
        guidance = super().sampling_inputs(indices, request, device)
        masks = self._squares(request.masks if len(request.masks) else [_BOX], indices, 1) >= 0
        shown = {EXTRA: self._masked(self._squares(request.images, indices, 3), masks)}
        null = None if guidance.null is None else {**guidance.null, **shown}
        return replace(guidance, given={**guidance.given, **shown}, null=null)

    def _masked(self, images: Tensor, masks: Tensor) -> Tensor:
        """``(B, 1 + C, h, w)`` of images ``(B, 3, H, W)`` and bool masks ``(B, 1, H, W)``."""
        latents = self._latents(images.masked_fill(masks.to(images.device), 0))
        small = functional.interpolate(masks.float(), size=latents.shape[-2:]).to(latents)  # (B, 1, h, w)
        return torch.cat([small, latents * self.encoder.vae.config.scaling_factor], dim=1)


class Editing(_ImageAndText):
    """The latents of the image that the text says how to change. A training image stands for its own original."""

    needs, masks = "an image and an instruction", 0
    told: ClassVar[dict[str, str]] = {"tag": "image-to-image", "call": '"an instruction", image=image, '}

    def guided(self) -> Conditioning:
        raise SlimdpmError("distill.guidance is one scale, and InstructPix2Pix is guided by two; leave it at 1")

    def training_inputs(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> Inputs:
        shown = self._latents(batch["images"])
        if dropped is not None:  # guidance asks with text and image, with the image alone, and with neither
            neither = dropped.to(shown.device) & (batch["draws"].to(shown.device) % 2 == 0)
            shown = shown.masked_fill(neither[:, None, None, None], 0)
        return {**super().training_inputs(batch, dropped), EXTRA: shown}

    def sampling_inputs(self, indices: range, request: Request, device: torch.device) -> Guidance:
        guidance = super().sampling_inputs(indices, request, device)
        shown = self._latents(self._squares(request.images, indices, 3))
        if guidance.null is None:
            return Guidance({**guidance.given, EXTRA: shown})
        image, neither = {**guidance.null, EXTRA: shown}, {**guidance.null, EXTRA: torch.zeros_like(shown)}
        return Guidance({**guidance.given, EXTRA: shown}, neither, guidance.scale, image, self.image_scale)

    @property
    def image_scale(self) -> float:
        """How strongly the image guides: the default of diffusers' pipeline."""
        return inspect.signature(type(self.encoder).__call__).parameters["image_guidance_scale"].default


def random_mask(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """What is to be painted anew, bool ``(H, W)``: all in a quarter of the cases, else one to four boxes or strokes."""
    canvas = Image.new("1", (width, height), int(rng.random() < 0.25))
    draw, strokes = ImageDraw.Draw(canvas), rng.random() < 0.5
    for _ in range(rng.integers(1, 5)):
        points = rng.random((4, 2)) * (width, height)
        if strokes:
            brush = max(1, round(rng.uniform(0.05, 0.2) * min(width, height)))
            draw.line(points.flatten().tolist(), fill=1, width=brush, joint="curve")
        else:
            draw.rectangle((*points[:2].min(0), *points[:2].max(0)), fill=1)
    return np.asarray(canvas)


def _opened(image: Any) -> Image.Image:
    if isinstance(image, Path):
        with blamed(f"the image {image} cannot be read"):
            return open_image(image)
    return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
