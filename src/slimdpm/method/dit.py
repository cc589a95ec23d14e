"""A diffusion transformer as a teacher: called as a U-Net is, and without the features that a U-Net has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn


class TransformerDenoiser(nn.Module):
    """diffusers' DiT (arXiv 2212.09748) with the signature of a class-conditional `UNet2DModel`.

    A DiT predicts a variance beside ε: that half of its channels is left out. Its tokens all have one scale, so there
    is nothing to pair with a U-Net's features.
    """

    def __init__(self, transformer: DiTTransformer2DModel):
        super().__init__()
        self.transformer = transformer
        given = transformer.config
        self.config = FrozenDict(
            _class_name=type(self).__name__,
            in_channels=given.in_channels,
            out_channels=given.in_channels,
            sample_size=given.sample_size,
            num_class_embeds=given.num_embeds_ada_norm + 1,
            null_class=given.num_embeds_ada_norm,
            transformer=dict(given),
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TransformerDenoiser:
        """As diffusers' models are built, from one's own config."""
        return cls(DiTTransformer2DModel.from_config(config["transformer"]))

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """ε ``(B, C, H, W)``, always in a tuple.

        Args:
            sample: noisy samples ``(B, C, H, W)``.
            timestep: one for all, or ``(B,)``.
            class_labels: ``(B,)``.
            return_dict: as of a U-Net; there is no other form than the tuple.
        """
        timestep = timestep.to(sample.device).expand(sample.shape[0])  # (B,); len() would fix B in an export
        output = self.transformer(sample, timestep=timestep, class_labels=class_labels, return_dict=False)[0]
        return (output[:, : self.config.in_channels],)  # of (B, 2C, H, W)
