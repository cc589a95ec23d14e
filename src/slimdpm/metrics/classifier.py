"""A classifier on features: which part of class-conditional samples shows the class that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slimdpm.system.files import load_tensors, save_tensors


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on standardised features.

    Attributes:
        mean, deviation: of the features that it was fitted to, float32 ``(D,)``.
        weight: float32 ``(classes, D)``.
        bias: float32 ``(classes,)``.
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, decay: float = 1e-3) -> Classifier:
        """The classifier of real images.

        Args:
            features: ``(N, D)``.
            labels: ``(N,)`` int, from 0.
            decay: weight of the squared norm, beside the mean cross entropy.
        """
        mean, deviation = torch.from_numpy(features.mean(0)), torch.from_numpy(features.std(0) + 1e-6)
        x, y = (torch.from_numpy(features) - mean) / deviation, torch.from_numpy(labels)
        linear = torch.nn.Linear(x.shape[1], int(labels.max()) + 1)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(linear(x), y) + decay * linear.weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return cls(mean, deviation, linear.weight.detach(), linear.bias.detach())

    @classmethod
    def load(cls, file: Path) -> Classifier:
        return cls(**load_tensors(file))

    def save(self, file: Path) -> None:
        save_tensors(file, vars(self))

    def named(self, features: np.ndarray) -> np.ndarray:
        """The number of the class of each image ``(N,)``."""
        x = (torch.from_numpy(features) - self.mean) / self.deviation
        return F.linear(x, self.weight, self.bias).argmax(1).numpy()

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Part of the images whose class is named."""
        return float((self.named(features) == labels).mean())
