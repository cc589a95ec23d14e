"""Spectrum-aware distillation, section 4.2 of arXiv 2211.17106: teacher and student give one loss and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimdpm.method.features import FeaturePair, FeatureTaps
from slimdpm.method.forward_process import Process, comparison_kind
from slimdpm.method.losses import (
    AUTO,
    TERMS,
    LossSettings,
    Omega,
    Pairs,
    denoising_loss,
    min_snr_weight,
    spectral_weight,
)
from slimdpm.method.networks import call

DOUBT = 0.02  # a prediction is half trusted where conversion makes the square of its error 50 times as large


class Taught(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
        output: as compared, ``(B, C, H, W)``.
        features: of the pairs, each ``(B, C_T^i, H_i, W_i)``.
        guidance: what guidance has added to the output; None without guidance.
    """

    output: Tensor
    features: list[Tensor]
    guidance: Tensor | None = None

    def trusted(self, trust: Tensor, target: Tensor) -> Taught:
        """With the true value in place of the output as far as it is not trusted, `trust` being ``(B, 1, 1, 1)``."""
        guidance = None if self.guidance is None else trust * self.guidance
        return self._replace(output=target + trust * (self.output - target), guidance=guidance)


def trust_in(process: Process, source: str, target: str) -> Tensor | None:
    """How far a prediction of kind `source` is to be believed as one of kind `target` at each timestep, ``(T,)``.

    ``1 / (1 + DOUBT g²)``, with g how many times larger its error is there: ``1 / √ᾱ_t`` from ε to v,
    ``1 / √(1 − ᾱ_t)`` from x₀ to v and hardly less to ε. None if it grows nowhere.
    """
    if target == source or source == "v_prediction":
        return None
    power = process.alphas_cumprod if source == "epsilon" else 1 - process.alphas_cumprod
    return power / (power + DOUBT)


class TappedStudent(nn.Module):
    """The trainable part: the student's U-Net and one 1x1 aligner for each feature pair.

    One module, so that it can be wrapped once for multi-process training and every parameter's gradient is reduced.
    It holds nothing of the teacher. Without pairs it is the bare student.
    """

    def __init__(self, unet: nn.Module, pairs: Sequence[FeaturePair] = ()):
        super().__init__()
        self.unet = unet
        self.aligners = nn.ModuleList(nn.Conv2d(p.student.channels, p.teacher.channels, 1) for p in pairs)
        self.taps = FeatureTaps(unet, [p.student.name for p in pairs])

    def forward(self, x_t: Tensor, t: Tensor, **conditions: Any) -> tuple[Tensor, list[Tensor]]:
        """The prediction ``(B, C, H, W)`` and the aligned features, each ``(B, C_T^i, H_i, W_i)``."""
        prediction = call(self.unet, x_t, t, conditions)
        features = [align(f) for align, f in zip(self.aligners, self.taps.take(), strict=True)]
        return prediction, features


class Distiller:
    """Owns the frozen teacher and gives the losses of a training step.

    What is compared: both outputs in the kind of prediction named by `comparison_kind` for the student (ε or v), each
    converted from what its network predicts; and the aligned features of each pair. The outputs count as one more
    pair, at full resolution. Without a teacher only ``L_DDPM`` is left: this trains a teacher or the Lite baseline.

    A teacher's small error of ε is a large one of v where there is hardly a signal, and one of x₀ is a large one of ε
    and v where there is hardly noise. There the true value stands in for what it says, see `trust_in`.

    A subclass changes L_DDPM by `denoising`, another term by `term`, and ω by `weights`.

    Args:
        process: the forward process, its `prediction` being the student's.
        teacher: the teacher's U-Net; it is frozen and set to evaluation here.
        teacher_prediction: what the teacher predicts.
        pairs: the feature pairs that `student` was built with.
    """

    def __init__(
        self,
        student: TappedStudent,
        process: Process,
        *,
        teacher: nn.Module | None = None,
        teacher_prediction: str | None = None,
        pairs: Sequence[FeaturePair] = (),
        settings: LossSettings | None = None,
    ):
        self.student = student
        self.process = process
        self.kind = comparison_kind(process.prediction)
        self.settings = settings or LossSettings()
        gamma = self.settings.snr_gamma
        self.timestep_weight = min_snr_weight(process.alphas_cumprod, self.kind, gamma) if gamma else None  # (T,)
        weighted = self.settings.snr_weighted
        weighs = self.kind == "v_prediction" if weighted == AUTO else weighted
        self.pair_weight = self.timestep_weight if weighs else None  # (T,)
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self._asked: Any = self.teacher
        self.teacher_prediction = teacher_prediction or process.prediction
        self.trust = trust_in(process, self.teacher_prediction, self.kind)  # (T,)
        self.teacher_taps = FeatureTaps(teacher, [p.teacher.name for p in pairs]) if teacher is not None else None

    def losses(
        self,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        conditions: Mapping[str, Any] | None = None,
        *,
        student: nn.Module | None = None,
        taught: Taught | None = None,
        null: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """The loss of one batch and its parts.

        Args:
            x0: clean samples (images in [−1, 1] or scaled latents) ``(B, C, H, W)``.
            t: timesteps ``(B,)``.
            conditions: further inputs of both U-Nets.
            student: the student as wrapped for training (`DistributedDataParallel`, compiled), by default as given.
            taught: what `teach` said of this very batch, if it is known.
            null: see `teach`.

        Returns:
            ``loss`` to be minimised, and its parts unweighted: ``denoising``, and those of `TERMS` whose λ is not 0;
            float32 scalars.
        """
        conditions = conditions or {}
        x_t = self.process.add_noise(x0, noise, t)  # (B, C, H, W)
        if taught is None and self.teaches:  # first: what it needs on the way is gone before the student's is kept
            taught = self.teach(x_t, t, conditions, null)
        prediction, features = (student or self.student)(x_t, t, **conditions)
        prediction = self._compared(prediction, x_t, t, self.process.prediction)
        target = self.process.target(self.kind, x0, noise, t)
        if taught is not None and self.trust is not None:
            taught = taught.trusted(self.trust[t][:, None, None, None], target)
        if taught is not None and taught.guidance is not None:
            target = target + taught.guidance  # images know of none
        parts = {"denoising": self.denoising(prediction, target, t)}
        if taught is None:
            return {"loss": parts["denoising"], **parts}
        pairs = self._weighed([(prediction, taught.output), *zip(features, taught.features, strict=True)], t)
        loss = self.settings.lambda_denoising * parts["denoising"]
        for name, factor in self.settings.terms.items():
            parts[name] = self.term(name, pairs, lambda: self.weights(x0, pairs, t))
            loss = loss + factor * parts[name]
        return {"loss": loss, **parts}

    def denoising(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """L_DDPM."""
        weight = self.timestep_weight[t] if self.timestep_weight is not None else None  # (B,)
        return denoising_loss(prediction, target, weight)

    def term(self, name: str, pairs: Pairs, omega: Omega) -> Tensor:
        """One of `TERMS`, such as L_spatial and L_freq."""
        return TERMS[name][1](pairs, omega)

    def _weighed(self, pairs: Pairs, t: Tensor) -> Pairs:
        """Both of a pair times the root of the timestep's weight: the square of what they differ by has the weight."""
        if self.pair_weight is None:
            return pairs
        root = self.pair_weight[t].sqrt()[:, None, None, None]  # (B, 1, 1, 1)
        return [(root * ours, root * theirs) for ours, theirs in pairs]

    def compile(self, **options: Any) -> None:
        """Have the teacher compiled for `teach`; who else has its U-Net has it as it was.

        Args:
            options: of `torch.compile`.
        """
        if self.teacher is not None:
            self._asked = torch.compile(self.teacher, **options)

    @property
    def teaches(self) -> bool:
        """Whether a teacher takes part in the losses."""
        return self.teacher is not None and bool(self.settings.terms)

    @torch.no_grad()
    def teach(
        self, x_t: Tensor, t: Tensor, conditions: Mapping[str, Any], null: Mapping[str, Any] | None = None
    ) -> Taught:
        """The teacher's output, as compared, and its features. No gradient ever reaches the teacher.

        Args:
            x_t: noisy samples ``(B, C, H, W)``.
            t: timesteps ``(B,)``.
            conditions: further inputs of the teacher.
            null: the same for the null condition; with it the output is the guided one, ``null + w (given − null)``
                with w the settings' `guidance` (arXiv 2207.12598, equation 6; as a target arXiv 2210.03142).
        """
        assert self.teacher_taps is not None
        output = self._compared(call(self._asked, x_t, t, conditions), x_t, t, self.teacher_prediction)
        features = self.teacher_taps.take()
        if null is None:
            return Taught(output, features)
        without = self._compared(call(self._asked, x_t, t, null), x_t, t, self.teacher_prediction)
        self.teacher_taps.take()
        guidance = (self.settings.guidance - 1) * (output - without)
        return Taught(output + guidance, features, guidance)

    def _compared(self, output: Tensor, x_t: Tensor, t: Tensor, source: str) -> Tensor:
        return self.process.convert(output.float(), x_t, t, source, self.kind)

    def weights(self, x0: Tensor, pairs: Pairs, t: Tensor) -> list[Tensor]:
        """ω for each pair; pairs of one size share it."""
        s = self.settings
        sizes = [(ours.shape[-2], ours.shape[-1]) for ours, _ in pairs]
        maps = {
            size: spectral_weight(x0, size, alpha=s.alpha, scaling=s.weight_scaling, resize=s.resize)
            for size in dict.fromkeys(sizes)
        }
        return [maps[size] for size in sizes]
