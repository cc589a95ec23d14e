"""What the batch gives the U-Net besides the noisy sample. The one place that knows which case it is.

Only the unconditional case exists so far; class and text will be further classes with the same two methods.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Unconditional:
    """Nothing: images are drawn from one distribution."""

    def training_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Keyword arguments of the U-Net for a training batch."""
        return {}

    def sampling_inputs(self, indices: range) -> dict[str, Tensor]:
        """Keyword arguments of the U-Net for the images of these indices."""
        return {}
