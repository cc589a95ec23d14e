"""Ideas beyond the paper, on trial in the ablation: each is judged at equal cost, what may win by three seeds.

What wins becomes a setting of slimdpm; what loses lives here alone. `benchmarks/ablation.py --group ideas --group
features` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from ablation.grid import Cell, Idea, changed
from torch import Tensor, nn

from slimdpm.method.distiller import Distiller
from slimdpm.method.losses import Omega, Pairs, half_plane_count, spatial_loss
from slimdpm.training.trainer import Trainer
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp


class WienerWeighted(Distiller):
    """ω by timestep: a frequency counts when the noise level is the one at which it comes back.

    The Wiener gain (section 3) of a frequency of power P at signal-to-noise ratio s = ᾱ/(1 − ᾱ) is q = sP/(sP + 1);
    it changes fastest, by q(1 − q), where sP is 1. That times |F(x₀)|^α is ω, scaled to a mean of 1.
    """

    def weights(self, x0: Tensor, pairs: Pairs, t: Tensor) -> list[Tensor]:
        maps = []
        for (student, _), weight in zip(pairs, super().weights(x0, pairs, t), strict=True):
            height, width = student.shape[-2:]
            resized = F.interpolate(x0.float(), size=(height, width), mode="area")
            power = torch.fft.rfft2(resized, norm="ortho").abs().square().mean(dim=(0, 1))  # (H, W//2+1)
            alpha_bar = self.process.alphas_cumprod[t][:, None, None, None]
            ratio = alpha_bar / (1 - alpha_bar) * power
            changed = weight * (ratio / (1 + ratio).square() + 1e-3)  # (B, 1, H, W//2+1)
            count = half_plane_count(width, x0.device)
            maps.append(changed / ((changed * count).sum(dim=(-2, -1), keepdim=True) / (height * width)))
        return maps


class OutputFrequencies(Distiller):
    """L_freq of the outputs alone: what is done with the features is a matter of L_spatial."""

    def weights(self, x0: Tensor, pairs: Pairs, t: Tensor) -> list[Tensor]:
        outputs, *features = super().weights(x0, pairs, t)
        return [outputs, *(torch.zeros_like(weight) for weight in features)]


class AttentionTransfer(OutputFrequencies):
    """Attention maps (arXiv 1612.03928) in place of raw features: mean square over the channels, normalised."""

    def term(self, name: str, pairs: Pairs, omega: Omega) -> Tensor:
        if name != "spatial":
            return super().term(name, pairs, omega)
        maps = [(_attention(student), _attention(teacher)) for student, teacher in pairs[1:]]
        return spatial_loss([*pairs[:1], *maps])


class NormalisedFeatures(OutputFrequencies):
    """Each feature pair over the teacher's variance, averaged over the pairs and weighed by `share`.

    Features are larger than outputs, and there are many of them: a plain sum drowns the rest.
    """

    share: float

    def term(self, name: str, pairs: Pairs, omega: Omega) -> Tensor:
        if name != "spatial":
            return super().term(name, pairs, omega)
        relative = [F.mse_loss(s.float(), t.float()) / t.float().var() for s, t in pairs[1:]]
        return spatial_loss(pairs[:1]) + self.share * torch.stack(relative).mean()


def _attention(features: Tensor) -> Tensor:
    energy = features.float().square().mean(dim=1, keepdim=True)  # (B, 1, H, W)
    return energy / energy.mean(dim=(-2, -1), keepdim=True)


class Annealed(Distiller):
    """λ by the progress of training: ``scale`` of it, from 0 to 1, is set by the trial."""

    trainer: Trainer
    scale: Callable[[float], float]

    def losses(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        scale = self.scale(self.trainer.state.step / self.trainer.settings.steps)
        parts = super().losses(*args, **kwargs)
        distilled = parts["loss"] - parts["denoising"]
        return {**parts, "loss": parts["denoising"] + scale * distilled}


def _use(kind: type[Distiller], **attributes: Any) -> Idea:
    """Another distiller of the same networks, taps and settings."""

    def change(trainer: Trainer) -> None:
        vars(trainer.distiller).update(attributes, **({"trainer": trainer} if kind is Annealed else {}))

    return Idea(distiller=kind, trainer=change)


# Daubechies' wavelet of two vanishing moments: low-pass, and the high-pass that belongs to it.
_LOW = torch.tensor([1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5]) / (4 * 2**0.5)
_HIGH = _LOW.flip(0) * torch.tensor([1.0, -1.0, 1.0, -1.0])


def _filters(like: Tensor) -> Tensor:
    """LL, LH, HL, HH ``(4, 4, 4)``; the first letter along the width, the second along the height."""
    pairs = [(_LOW, _LOW), (_LOW, _HIGH), (_HIGH, _LOW), (_HIGH, _HIGH)]
    return torch.stack([torch.outer(height, width) for width, height in pairs]).to(like)


class DaubechiesDown(WaveletGatingDown):
    """WG-Down with db2, periodic at the edges."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, channels, height, width = hidden_states.shape
        gates = self.gate(hidden_states)  # (B, 4, C)
        filters = torch.einsum("bic,ihw->bchw", gates, _filters(gates))  # (B, C, 4, 4)
        padded = F.pad(hidden_states, (1, 1, 1, 1), mode="circular")
        out = F.conv2d(
            padded.reshape(1, batch * channels, height + 2, width + 2),
            filters.reshape(batch * channels, 1, 4, 4),
            stride=2,
            groups=batch * channels,
        )
        return out.reshape(batch, channels, height // 2, width // 2)


class DaubechiesUp(WaveletGatingUp):
    """WG-Up with db2: the transpose of the transform, which is its inverse."""

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        assert self.expand is not None and output_size is None
        gates = self.gate(hidden_states)[..., None, None]
        coefficients = self.expand(hidden_states).unflatten(1, (4, self.channels)) * gates  # (B, 4, C, H, W)
        return daubechies_inverse(coefficients)


def daubechies_inverse(coefficients: Tensor) -> Tensor:
    """``(B, 4, C, H, W)`` to ``(B, C, 2H, 2W)``."""
    channels = coefficients.shape[2]
    filters = _filters(coefficients).repeat(channels, 1, 1)[:, None]  # (4C, 1, 4, 4), a channel's four together
    grouped = coefficients.transpose(1, 2).flatten(1, 2)  # (B, 4C, H, W)
    out = F.conv_transpose2d(grouped, filters, stride=2, groups=channels)  # (B, C, 2H+2, 2W+2)
    for dim in (2, 3):  # what reaches beyond an edge comes in at the other
        size = out.shape[dim]
        body = out.narrow(dim, 1, size - 2).clone()
        body.narrow(dim, size - 3, 1).add_(out.narrow(dim, 0, 1))
        body.narrow(dim, 0, 1).add_(out.narrow(dim, size - 1, 1))
        out = body
    return out


def _use_daubechies(network: nn.Module) -> None:
    kinds = {WaveletGatingDown: DaubechiesDown, WaveletGatingUp: DaubechiesUp}
    for module in network.modules():
        module.__class__ = kinds.get(type(module), type(module))  # type: ignore[arg-type]


def idea_cells() -> list[Cell]:
    """Spectral from the teacher's weights with one idea each."""
    falling, rising = (lambda p: (1 + math.cos(math.pi * p)) / 2), (lambda p: (1 - math.cos(math.pi * p)) / 2)
    features = {"distill.pairs": "auto", "distill.lambda_spatial": 0.1}
    ideas: dict[str, tuple[Idea, dict[str, Any]]] = {
        "ω by timestep": (_use(WienerWeighted), {}),
        "attention maps": (_use(AttentionTransfer), features),
        "λ falling": (_use(Annealed, scale=falling), {}),
        "λ rising": (_use(Annealed, scale=rising), {}),
        "db2 wavelet": (Idea(network=_use_daubechies), {}),
    }
    cells = [changed(name, "ideas", name, settings, idea=idea) for name, (idea, settings) in ideas.items()]
    for share in (0.01, 0.1):
        idea = _use(NormalisedFeatures, share=share)
        about = f"features over the teacher's variance, share {share:g}"
        cells.append(changed(f"normalised features {share:g}", "features", about, {"distill.pairs": "auto"}, idea=idea))
    return cells
