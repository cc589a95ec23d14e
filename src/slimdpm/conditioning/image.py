"""Text-to-image networks that see an image besides: inpainting, and editing by instruction (InstructPix2Pix).

What they see of it are channels that follow those of the noisy sample, encoded as diffusers' own pipelines do, but for
the mean of a latent in place of a draw. The image is that of the training batch, so its latents are not kept.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from slimdpm.conditioning.base import EXTRA, Guidance, Inputs, Request
from slimdpm.conditioning.text import Text
from slimdpm.errors import SlimdpmError
from slimdpm.images import pixels, square, upright


class _ImageAndText(Text):
    """What the two have in common."""

    needs: ClassVar[str]  # for people

    def in_turn(self, request: Request) -> Sequence | None:
        raise SlimdpmError(f"the teacher makes images of {self.needs}: it cannot make the data, give images")

    def facts(self, request: Request) -> dict[str, Any]:
        if not len(request.images):
            raise SlimdpmError(f"the pipeline makes images of {self.needs}: give an image")
        shown = {"images": [_digest(image) for image in request.images]}
        return {**super().facts(request), **shown}

    def describe(self, drop: float) -> str | None:
        return f"{super().describe(drop)}; and {self.needs}, of each training image"

    def _asked(self, images: Sequence[Any], indices: range, channels: int) -> Tensor:
        """The images for samples of these numbers as float squares ``(B, C, H, W)`` in [0, 1]."""
        chosen = [images[i % len(images)] for i in indices]
        given = [image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image)) for image in chosen]
        squares = np.stack([pixels(square(upright(image, channels), self.size)) for image in given])
        return torch.from_numpy(squares).permute(0, 3, 1, 2) / 255

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        """Means of the latents ``(B, C, h, w)`` of images in [−1, 1], unscaled."""
        autoencoder = self.encoder.vae
        return autoencoder.encode(images.to(autoencoder.device, autoencoder.dtype)).latent_dist.mode()


class Inpainting(_ImageAndText):
    """A mask, and the latents of the image without what it covers.

    Training draws masks of its own, see `random_mask`; samples without one get a box in the middle.
    """

    needs = "an image and a mask"

    @property
    def extra(self) -> int:
        return 1 + self.encoder.vae.config.latent_channels

    def training_inputs(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> Inputs:
        size = batch["images"].shape[-2:]
        masks = np.stack([random_mask(*size, np.random.default_rng(int(draw))) for draw in batch["draws"]])
        shown = self._masked(batch["images"], torch.from_numpy(masks)[:, None])
        return {**super().training_inputs(batch, dropped), EXTRA: shown}

    def sampling_inputs(self, indices: range, request: Request, device: torch.device) -> Guidance:
        guidance = super().sampling_inputs(indices, request, device)
        images = self._asked(request.images, indices, 3) * 2 - 1
        masks = self._asked(request.masks, indices, 1) if len(request.masks) else _box(images)
        shown = {EXTRA: self._masked(images, masks >= 0.5)}
        null = None if guidance.null is None else {**guidance.null, **shown}
        return replace(guidance, given={**guidance.given, **shown}, null=null)

    def facts(self, request: Request) -> dict[str, Any]:
        return {**super().facts(request), "masks": [_digest(mask) for mask in request.masks]}

    def card(self) -> dict[str, str]:
        return {**super().card(), "tag": "inpainting", "call": '"a prompt", image=image, mask_image=mask, '}

    def _masked(self, images: Tensor, masks: Tensor) -> Tensor:
        """``(B, 1 + C, h, w)`` for images ``(B, 3, H, W)`` in [−1, 1] and bool masks ``(B, 1, H, W)``."""
        latents = self._latents(images.masked_fill(masks, 0)) * self.encoder.vae.config.scaling_factor
        small = functional.interpolate(masks.float(), size=latents.shape[-2:]).to(latents)  # (B, 1, h, w)
        return torch.cat([small, latents], dim=1)


class Editing(_ImageAndText):
    """The latents of the image that a text says how to change. A training image stands for its own original."""

    needs = "an image and an instruction"

    @property
    def extra(self) -> int:
        return self.encoder.vae.config.latent_channels

    def training_inputs(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> Inputs:
        shown = self._latents(batch["images"])
        if dropped is not None:  # guidance asks for: text and image, the image alone, neither
            neither = dropped.to(shown.device) & (batch["draws"].to(shown.device) % 2 == 0)
            shown = shown.masked_fill(neither[:, None, None, None], 0)
        return {**super().training_inputs(batch, dropped), EXTRA: shown}

    def sampling_inputs(self, indices: range, request: Request, device: torch.device) -> Guidance:
        guidance = super().sampling_inputs(indices, request, device)
        shown = self._latents(self._asked(request.images, indices, 3) * 2 - 1)
        given = {**guidance.given, EXTRA: shown}
        if guidance.null is None:
            return Guidance(given)
        image = {**guidance.null, EXTRA: shown}
        scale = inspect.signature(type(self.encoder).__call__).parameters["image_guidance_scale"].default
        return Guidance(given, {**guidance.null, EXTRA: torch.zeros_like(shown)}, guidance.scale, image, scale)

    def facts(self, request: Request) -> dict[str, Any]:
        if len(request.masks):
            raise SlimdpmError("the pipeline edits whole images: it takes no mask")
        return super().facts(request)

    def card(self) -> dict[str, str]:
        return {**super().card(), "tag": "image-to-image", "call": '"an instruction", image=image, '}


def random_mask(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """What is to be painted anew, bool ``(H, W)``: all in a quarter of the cases, else one to four boxes or strokes."""
    if rng.random() < 0.25:
        return np.ones((height, width), bool)
    canvas, sides = Image.new("1", (width, height)), np.array([width, height])
    draw, strokes = ImageDraw.Draw(canvas), rng.random() < 0.5
    for _ in range(rng.integers(1, 5)):
        if strokes:
            points = rng.random((rng.integers(2, 7), 2)) * sides
            brush = max(1, round(rng.uniform(1 / 16, 1 / 6) * min(sides)))
            draw.line([tuple(point) for point in points], fill=1, width=brush, joint="curve")
        else:
            corner, extent = rng.random(2) * 0.9 * sides, rng.uniform(0.1, 0.6, 2) * sides
            draw.rectangle([tuple(corner), tuple(corner + extent)], fill=1)
    return np.asarray(canvas)


def _box(images: Tensor) -> Tensor:
    """Masks ``(B, 1, H, W)`` of half the height and half the width."""
    masks = torch.zeros_like(images[:, :1])
    height, width = masks.shape[-2:]
    masks[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return masks


def _digest(image: Any) -> str:
    array = np.asarray(image)
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:12]
