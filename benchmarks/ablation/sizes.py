"""The sizes at which the ablation runs: images, teacher, students and how they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slimdpm.method.presets import PRESETS


@dataclass(frozen=True)
class Size:
    """One scale of the experiment.

    Attributes:
        pixels: of the images.
        teacher: its diffusers config, as ``student.overrides`` of the preset `base`.
        base: a preset.
        teacher_settings, student_settings: of their recipes.
        widths: channels of a student by kind, from the slimmest to the widest; `main` is the pair of the grid.
        main: which of the widths the grid compares.
        slimmer: channels of a gated student with at most a twelfth of the teacher's MACs, if the main one has more.
        images: samples of each cell.
        sampler_steps: of dpm++.
    """

    pixels: int
    base: str
    teacher: Mapping[str, Any]
    teacher_settings: Mapping[str, Any]
    student_settings: Mapping[str, Any]
    widths: Mapping[str, tuple[tuple[int, ...], ...]]
    main: int = 1
    slimmer: tuple[int, ...] | None = None
    images: int = 512
    sampler_steps: int = 20


SIZES = {
    "32": Size(
        pixels=32,
        base="pixel-32",
        teacher={"block_out_channels": [32, 64, 96]},
        teacher_settings={
            "train.steps": 5000,
            "train.batch_size": 32,
            "train.lr": 1e-3,
            "train.warmup": 200,
            "train.ema": 0.998,
            "train.weight_decay": 0.01,
            "train.checkpoint_every": 500,
        },
        student_settings={
            "train.steps": 1000,
            "train.batch_size": 16,
            "train.warmup": 50,
            "train.ema": 0.99,
            "train.checkpoint_every": 200,
        },
        # Equal MACs within 5 %, in Lite's favour: its resampling convolutions take what gating saves.
        widths={
            "spectral": ((8, 16, 24), (12, 20, 24), (16, 20, 32), (16, 36, 56)),
            "lite": ((8, 16, 16), (12, 16, 24), (16, 20, 24), (16, 32, 48)),
        },
        slimmer=(12, 16, 28),
    ),
    "64": Size(
        pixels=64,
        base="pixel-64",
        teacher={"block_out_channels": [64, 128, 192, 256], "layers_per_block": 2},
        teacher_settings={
            "train.steps": 40_000,
            "train.batch_size": 128,
            "train.lr": 3e-4,
            "train.warmup": 1000,
            "train.ema": 0.9995,
            "train.weight_decay": 0.01,
            "train.precision": "bf16",
            "train.checkpoint_every": 1000,
        },
        student_settings={
            "train.steps": 20_000,
            "train.batch_size": 128,
            "train.warmup": 500,
            "train.ema": 0.999,
            "train.precision": "bf16",
            "train.checkpoint_every": 1000,
        },
        widths={
            "spectral": ((12, 24, 36, 48), (16, 36, 56, 72), (24, 44, 64, 88), (32, 64, 88, 120)),
            "lite": ((12, 24, 32, 40), (16, 36, 48, 64), (24, 40, 56, 80), (32, 60, 80, 104)),
        },
        images=3000,
        sampler_steps=50,
    ),
}

assert all(size.base in PRESETS for size in SIZES.values())
