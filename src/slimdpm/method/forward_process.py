"""The forward process and what a network predicts about it: noise (ε), velocity (v) or the clean sample (x₀).

With ``ᾱ_t`` the cumulative product of the noise schedule::

    x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε            v = √ᾱ_t ε − √(1 − ᾱ_t) x₀

(DDPM, arXiv 2006.11239, equation 4; v as in arXiv 2202.00512, section 4.)
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from slimdpm.system.errors import SlimdpmError, blamed

PREDICTIONS = ("epsilon", "v_prediction", "sample")  # diffusers' names
_TINY = 1e-7  # of ᾱ: cosine schedules end below it


@dataclass(frozen=True)
class Process:
    """The forward process of a diffusers scheduler.

    Attributes:
        alphas_cumprod: ``ᾱ_t`` for each of the T training timesteps, float32 ``(T,)``.
        prediction: what the network that belongs to it predicts, one of `PREDICTIONS`.
    """

    alphas_cumprod: Tensor
    prediction: str

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Process:
        """Read the training process off any diffusers scheduler that has one.

        Raises:
            SlimdpmError: for a scheduler without discrete ``ᾱ_t`` (flow matching, EDM), or an unknown prediction.
        """
        prediction = scheduler.config.get("prediction_type", "epsilon")
        if getattr(scheduler, "alphas_cumprod", None) is None or prediction not in PREDICTIONS:
            raise SlimdpmError(
                f"{type(scheduler).__name__} with prediction {prediction!r} is not supported: slimdpm distils "
                f"discrete-time diffusion with {', '.join(PREDICTIONS)} prediction"
            )
        # DDPMScheduler is the training-time view, as in diffusers' own examples: samplers may rescale or reorder.
        with blamed(f"the scheduler's config is no noise schedule ({type(scheduler).__name__})"):
            return cls(DDPMScheduler.from_config(config_of(scheduler)).alphas_cumprod.float(), prediction)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> Process:
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def check(self) -> None:
        """Raise a `SlimdpmError` if ``ᾱ_t`` are no list of numbers between 0 and 1, or there are none."""
        alphas = self.alphas_cumprod
        if alphas.ndim != 1 or not len(alphas) or not ((alphas >= 0) & (alphas <= 1)).all():
            raise SlimdpmError("the scheduler's betas are no noise schedule: numbers between 0 and 1 are needed")

    def check_training(self, *predictions: str) -> None:
        """That networks which predict these can be trained and compared at every timestep.

        Raises:
            SlimdpmError: for ε where there is no signal (``ᾱ_T = 0``), and for x₀ where there is no noise: there the
                other predictions do not follow.
        """
        least = self.alphas_cumprod.min()
        if "epsilon" in predictions and (least == 0 or (least < _TINY and len(set(predictions)) > 1)):
            raise SlimdpmError(
                f"the scheduler ends without signal (terminal SNR {least.item():.1g}): there nothing follows from a "
                "prediction of epsilon; teacher and student must both predict v_prediction or sample"
            )
        if self.alphas_cumprod.max() == 1 and "sample" in predictions:
            raise SlimdpmError("the scheduler begins without any noise (beta 0): no noise follows from a sample there")

    def timesteps_within(self, low: float, high: float) -> tuple[float, float]:
        """Between which timesteps the noise level ``σ_t = √((1 − ᾱ_t) / ᾱ_t)`` lies from `low` to `high`.

        Between two timesteps σ goes in a line, as in the schedulers whose timesteps are no whole numbers.

        Raises:
            SlimdpmError: if no timestep is there.
        """
        alphas = self.alphas_cumprod.double().cpu()
        sigmas = ((1 - alphas) / alphas).sqrt().numpy()
        if not ((sigmas >= low) & (sigmas <= high)).any():
            raise SlimdpmError(
                f"no timestep has a noise level from {low:g} to {high:g}: they go from {sigmas[0]:.3g} to "
                f"{sigmas[-1]:.3g}"
            )
        steps = np.arange(len(sigmas))
        first = np.interp(low, sigmas, steps, left=-np.inf)
        return float(first), float(np.interp(high, sigmas, steps, right=np.inf))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``√ᾱ_t`` and ``√(1 − ᾱ_t)`` for timesteps ``(B,)``, each ``(B, 1, 1, 1)``."""
        alpha_bar = self.alphas_cumprod[t][:, None, None, None]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``x_t`` for samples and noise ``(B, C, H, W)`` at timesteps ``(B,)``."""
        signal, sigma = self.coefficients(t)
        return signal * x0 + sigma * noise

    def target(self, kind: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The true value of a prediction of this kind, ``(B, C, H, W)``."""
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return x0
        signal, sigma = self.coefficients(t)
        return signal * noise - sigma * x0

    def convert(self, prediction: Tensor, x_t: Tensor, t: Tensor, source: str, target: str) -> Tensor:
        """A prediction of kind `source` expressed as kind `target`, ``(B, C, H, W)``.

        Raises:
            ValueError: for an unknown kind.
        """
        if source not in PREDICTIONS or target not in PREDICTIONS:
            raise ValueError(f"unknown prediction: {source!r} to {target!r}; known are {', '.join(PREDICTIONS)}")
        if source == target:
            return prediction
        signal, sigma = self.coefficients(t)
        if source == "epsilon":
            x0, noise = (x_t - sigma * prediction) / signal, prediction
        elif source == "sample":
            x0, noise = prediction, (x_t - signal * prediction) / sigma
        else:
            x0, noise = signal * x_t - sigma * prediction, sigma * x_t + signal * prediction
        return {"epsilon": noise, "sample": x0, "v_prediction": signal * noise - sigma * x0}[target]


def comparison_kind(prediction: str) -> str:
    """The kind in which losses compare two networks, by what the student predicts.

    A network that predicts v is compared in v. Those that predict ε or x₀ are compared in ε: for x₀ this is the
    squared error weighted by the signal-to-noise ratio, as in diffusers' own training example.
    """
    return "v_prediction" if prediction == "v_prediction" else "epsilon"


def config_of(scheduler: Any, *, latent: bool = False) -> dict[str, Any]:
    """A scheduler's config, from which diffusers makes another one of the same process.

    diffusers leaves out what was not given by name, and so the arguments that were given by place. In latent space
    nothing bounds a clean sample: it is clipped only if the config itself says so, not by a class's default.
    """
    config, known = dict(scheduler.config), inspect.signature(type(scheduler).__init__).parameters
    left = config.pop("_use_default_values", ())
    given = {k: v for k, v in config.items() if k not in left or str(v) != str(known[k].default)}
    return {"clip_sample": False, **given} if latent else given
