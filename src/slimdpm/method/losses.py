"""Spectrum-aware distillation: the losses of section 4.2 as pure functions.

    L = L_DDPM + λ_s L_spatial + λ_f L_freq

Each returns a float32 scalar whatever the precision of its inputs: half precision has neither the range for sums of
squares nor a Fourier transform on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE_FILTERS = ("area", "bilinear", "bicubic", "nearest")
WEIGHT_SCALINGS = ("mean", "none")
FLOOR = 1e-3  # of the map's root mean square amplitude: caps ω where the image has next to no power
NO_POWER = 1e-12  # below any power that an 8-bit image has: a blank image is weighed evenly instead of dividing by 0


def denoising_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_DDPM, the mean squared error of a prediction ``(B, C, H, W)`` (DDPM, equation 14).

    Args:
        prediction, target: of ε or v.
        weight: of each sample, ``(B,)``, such as `min_snr_weight` at its timestep; 1 by default.
    """
    if weight is None:
        return F.mse_loss(prediction.float(), target.float())
    errors = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)  # (B,)
    return (weight * errors).mean()


def min_snr_weight(alphas_cumprod: Tensor, prediction: str, gamma: float) -> Tensor:
    """How much a timestep counts in L_DDPM by min-SNR-γ (arXiv 2303.09556, equation 9).

    With the signal-to-noise ratio ``s = ᾱ / (1 − ᾱ)``: ``min(s, γ) / s`` for ε, ``min(s, γ) / (s + 1)`` for v. Divided
    by its mean over the timesteps, so that L_DDPM keeps its size beside the distillation.

    Args:
        alphas_cumprod: ᾱ of each timestep ``(T,)``.
        prediction: in which the loss is computed, ``"epsilon"`` or ``"v_prediction"``.
        gamma: γ, 5 in the paper.

    Returns:
        ``(T,)`` float32.
    """
    alpha_bar = alphas_cumprod.double()
    ratio = alpha_bar / (1 - alpha_bar)
    weight = (gamma / ratio).clamp_max(1) if prediction == "epsilon" else ratio.clamp_max(gamma) / (ratio + 1)
    return (weight / weight.mean()).float()


def spatial_loss(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """L_spatial, ``Σ_i mean |X_S^i − X_T^i|²``.

    Args:
        pairs: (aligned student, teacher) tensors, each pair ``(B, C_i, H_i, W_i)``.
    """
    return torch.stack([F.mse_loss(s.float(), t.float()) for s, t in pairs]).sum()


def spectral_weight(
    x0: Tensor,
    size: tuple[int, int],
    *,
    alpha: float = -1.0,
    scaling: str = "mean",
    resize: str = "area",
) -> Tensor:
    """ω, the weight of each frequency at one scale: ``|F(x₀ resized)|^α``.

    The power of the sample's channels is averaged, so that one map serves features of any width. A negative α gives
    rare frequencies, which are the high ones in natural images, more weight.

    Args:
        x0: clean samples ``(B, C, H, W)``.
        size: height and width of the features that are weighed.
        alpha: the exponent; −1 in the paper, 0 weighs all frequencies alike.
        scaling: ``"mean"`` gives each map a mean of 1 over all frequencies, so that α changes the balance and not the
            size of the loss; ``"none"`` leaves the bare power, whose size depends on the scale.
        resize: the filter, one of `RESIZE_FILTERS`; bilinear and bicubic are antialiased.

    Returns:
        ``(B, 1, H_i, W_i // 2 + 1)`` float32, in the half-plane layout of `torch.fft.rfft2`.

    Raises:
        ValueError: for an unknown scaling or filter.
    """
    if scaling not in WEIGHT_SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(WEIGHT_SCALINGS)}, got {scaling!r}")
    resized = _resize(x0.float(), size, resize)  # (B, C, H_i, W_i)
    power = torch.fft.rfft2(resized, norm="ortho").abs().square().mean(dim=1, keepdim=True)  # (B, 1, H_i, W_i//2+1)
    count = half_plane_count(size[1], power.device)  # (W_i//2+1)
    total = size[0] * size[1]
    floor = FLOOR**2 * (power * count).sum(dim=(-2, -1), keepdim=True) / total  # (B, 1, 1, 1)
    weight = power.maximum(floor).clamp_min(NO_POWER).pow(alpha / 2)
    if scaling == "mean":
        weight = weight / ((weight * count).sum(dim=(-2, -1), keepdim=True) / total)
    return weight


def frequency_loss(pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Tensor]) -> Tensor:
    """L_freq, ``Σ_i mean ω_i |F(X_S^i) − F(X_T^i)|²`` with the orthonormal 2-D DFT.

    The transform is linear, so one transform of the difference does; the tensors are real, so half of the plane does.
    With all ω = 1 it equals `spatial_loss` (Parseval).

    Args:
        pairs: as in `spatial_loss`.
        weights: ω of each pair, from `spectral_weight`.
    """
    terms = []
    for (student, teacher), weight in zip(pairs, weights, strict=True):
        difference = torch.fft.rfft2(student.float() - teacher.float(), norm="ortho")  # (B, C_i, H_i, W_i//2+1)
        power = difference.real.square() + difference.imag.square()
        power = weight * half_plane_count(student.shape[-1], student.device) * power
        terms.append(power.sum() / student.numel())
    return torch.stack(terms).sum()


def half_plane_count(width: int, device: torch.device | str) -> Tensor:
    """How often each column of `torch.fft.rfft2` stands in the full plane: ``(width // 2 + 1,)`` of ones and twos."""
    count = torch.full((width // 2 + 1,), 2.0, device=device)
    count[0] = 1
    if width % 2 == 0:
        count[-1] = 1
    return count


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if mode not in RESIZE_FILTERS:
        raise ValueError(f"the resize filter must be one of {', '.join(RESIZE_FILTERS)}, got {mode!r}")
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    antialias = mode in ("bilinear", "bicubic")
    return F.interpolate(x, size=size, mode=mode, antialias=antialias)


AUTO = "auto"


@dataclass(frozen=True)
class LossSettings:
    """The weights of the losses and the shape of ω. The paper has λ = 0.1, the defaults are what the ablation chose.

    Attributes:
        lambda_denoising: of L_DDPM; 0 leaves the images' own target out.
        lambda_spatial: λ_s.
        lambda_freq: λ_f.
        alpha: the exponent of ω.
        weight_scaling: see `slimdpm.method.losses.spectral_weight`.
        resize: the filter that brings x₀ to the size of a feature.
        snr_gamma: γ of min-SNR weighting of L_DDPM, see `slimdpm.method.losses.min_snr_weight`; None weighs all alike.
        snr_weighted: whether the other terms weigh timesteps so, too; `AUTO` is where outputs are compared in v, in
            which unweighed errors count most where there is hardly a signal.
        guidance: scale of classifier-free guidance in the teacher's output, see `Distiller.teach`.
    """

    lambda_denoising: float = 1.0
    lambda_spatial: float = 2.0
    lambda_freq: float = 2.0
    alpha: float = -1.0
    weight_scaling: str = "mean"
    resize: str = "area"
    snr_gamma: float | None = None
    snr_weighted: bool | str = AUTO
    guidance: float = 1.0

    @property
    def terms(self) -> dict[str, float]:
        """λ of each of `TERMS` that is not off."""
        factors = {name: getattr(self, setting) for name, (setting, _) in TERMS.items()}
        return {name: factor for name, factor in factors.items() if factor}


Pairs = Sequence[tuple[Tensor, Tensor]]  # (aligned student, teacher): outputs first, then features
Omega = Callable[[], Sequence[Tensor]]  # gives ω of each pair

# The terms of distillation, in the order in which they are added and shown: which λ of `LossSettings` weighs each, and
# what it is.
TERMS: dict[str, tuple[str, Callable[[Pairs, Omega], Tensor]]] = {
    "spatial": ("lambda_spatial", lambda pairs, omega: spatial_loss(pairs)),
    "frequency": ("lambda_freq", lambda pairs, omega: frequency_loss(pairs, omega())),
}
PARTS = ("denoising", *TERMS)  # of a loss, as logs and reports call them
