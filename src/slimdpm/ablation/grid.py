"""What is compared: the sizes at which the ablation runs, and its cells.

A cell is a student's recipe. All cells of one seed see the same images, noise and timesteps in the same order, for
equally many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from slimdpm.inherit import MIXING
from slimdpm.presets import PRESETS
from slimdpm.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from slimdpm.training import Trainer

SEEDS = (0, 1, 2)
# How gated resamplers mix channels. The paper's way is the grouped expansion, and nothing after WG-Down.
GROUPED = {"wavelet_expansion": "grouped", "wavelet_down_mix": False}
DENSE = {**GROUPED, "wavelet_expansion": "dense"}
GROUPED_MIXED = {**GROUPED, "wavelet_down_mix": True}
DENSE_MIXED = MIXING
UNEXPANDED = {**GROUPED, "wavelet_expansion": "none"}
STAGES = 3  # of the choices that come before the grid, see `slimdpm.ablation.choices`
FROM_TEACHER = {"student.init": "teacher"}
NO_TEACHER = {"distill.lambda_spatial": 0.0, "distill.lambda_freq": 0.0}


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


@dataclass(frozen=True)
class Idea:
    """A change to a student that no setting makes, on trial.

    Attributes:
        network: changes its U-Net in place, and keeps the parameters: they are being trained.
        trainer: changes its training, before the first step.
    """

    network: Callable[[nn.Module], object] = lambda network: None
    trainer: Callable[[Trainer], object] = lambda trainer: None


@dataclass(frozen=True)
class Cell:
    """One student of the comparison.

    Attributes:
        name: unique.
        group: cells that are read together, and trained side by side.
        about: what it is, in a table's words.
        kind: ``"lite"`` or ``"spectral"``: plain or gated resampling.
        distilled: from the teacher, or trained on the images alone.
        settings: of the recipe, on top of the size's.
        overrides: of the student's config.
        width: position in the size's widths; None is the main one.
        rate: the learning rate; None is the one that was chosen for its kind.
        stage: of the choices; a cell of the grid comes after all of them.
        idea: what else it changes.
    """

    name: str
    group: str
    about: str
    kind: str = "spectral"
    distilled: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    rate: float | None = None
    stage: int = STAGES
    idea: Idea = Idea()

    @property
    def tuning(self) -> bool:
        """Judged on the images that are held out for choices, and not sampled."""
        return self.stage < STAGES


def lambdas(spatial: float, frequency: float, **more: Any) -> dict[str, Any]:
    """Distillation from outputs alone, unless `more` says else."""
    return {"distill.lambda_spatial": spatial, "distill.lambda_freq": frequency, "distill.pairs": "none", **more}


def core_cells() -> list[Cell]:
    """Gating, spatial and frequency distillation, each alone and together: two by two by two."""
    cells = []
    for kind, gating in (("lite", ""), ("spectral", "gating")):
        for losses, settings in (
            ("", None),
            ("spatial", {"distill.lambda_freq": 0.0}),
            ("frequency", {"distill.lambda_spatial": 0.0}),
            ("spatial + frequency", {}),
        ):
            name = " + ".join(part for part in (gating, losses) if part) or "lite"
            name = {"gating + spatial + frequency": "spectral"}.get(name, name)
            cells.append(Cell(name, f"core-{kind}", name, kind, settings is not None, settings or {}))
    return cells


def further_cells() -> list[Cell]:
    """One change at a time to the Spectral student."""
    cells = [
        Cell(f"alpha {alpha:g}", "omega", f"α = {alpha:g}", settings={"distill.alpha": alpha})
        for alpha in (0.0, -0.5, -2.0)
    ]
    cells.append(Cell("omega unscaled", "omega", "ω as it is", settings={"distill.weight_scaling": "none"}))
    cells += [
        Cell("lambda 0.1", "losses", "λ = 0.1 each, outputs alone", settings=lambdas(0.1, 0.1)),
        Cell("lambda 2", "losses", "λ = 2 each, outputs alone", settings=lambdas(2.0, 2.0)),
        Cell(
            "all pairs",
            "losses",
            "λ = 0.1 each, all feature pairs (the paper's)",
            settings=lambdas(0.1, 0.1, **{"distill.pairs": "auto"}),
        ),
        Cell(
            "up pairs",
            "losses",
            "λ = 0.1 each, the way up alone",
            settings=lambdas(0.1, 0.1, **{"distill.pairs": ["up_blocks.0", "up_blocks.1", "up_blocks.2"]}),
        ),
    ]
    cells += [
        Cell("grouped", "gating", "the paper's reading: a grouped expansion, no mixing", overrides=GROUPED),
        Cell("dense", "gating", "a dense expansion", overrides=DENSE),
        Cell("grouped and mixed", "gating", "a 1x1 convolution after WG-Down", overrides=GROUPED_MIXED),
        Cell("dense and mixed", "gating", "both", overrides=DENSE_MIXED),
        Cell("no expansion", "gating", "WG-Up without expansion", overrides=UNEXPANDED),
        Cell("gates equal", "gating", "gates start at ½", overrides={"wavelet_gate_init": [0.5, 0.5, 0.5, 0.5]}),
        Cell("gates fixed", "gating", "gates fixed at their start", settings={"train.freeze": ["*.gate.*"]}),
        Cell("reduction 1", "gating", "the gates' FFN not reduced", overrides={"wavelet_gate_reduction": 1}),
        Cell("reduction 16", "gating", "the gates' FFN reduced 16 times", overrides={"wavelet_gate_reduction": 16}),
    ]
    return cells


def start_cells() -> list[Cell]:
    """A start from the teacher's weights: Lite and gating, plain and distilled; and with the paper's resamplers."""
    cells = []
    for kind, name in (("lite", "lite"), ("spectral", "gating")):
        for distilled in (False, True):
            label = {("gating", True): "spectral"}.get((name, distilled), name + (" + distilled" if distilled else ""))
            cells.append(
                Cell(
                    f"{label} from teacher",
                    "start",
                    f"{label}, first weights from the teacher",
                    kind,
                    distilled,
                    FROM_TEACHER,
                )
            )
    about = "spectral, first weights from the teacher, a grouped expansion, no mixing"
    return [*cells, Cell("grouped from teacher", "start-grouped", about, settings=FROM_TEACHER, overrides=GROUPED)]


SLIMMER = "spectral from teacher, 12x"


def pareto_cells(size: Size) -> list[Cell]:
    """Lite and Spectral, which starts from the teacher's weights, at other widths than the grid's."""

    def spectral(name: str, channels: Sequence[int], **more: Any) -> Cell:
        about = f"spectral from teacher, {_channels(channels)}"
        return Cell(name, "pareto", about, settings=FROM_TEACHER, **more)

    cells = []
    if size.slimmer:
        cells.append(spectral(SLIMMER, size.slimmer, overrides={"block_out_channels": list(size.slimmer)}))
    for width, channels in enumerate(size.widths["lite"]):
        if width != size.main:
            about = f"lite, {_channels(channels)}"
            cells += [
                Cell(f"lite width {width}", "pareto", about, "lite", False, width=width),
                spectral(f"spectral width {width}", size.widths["spectral"][width], width=width),
            ]
    return cells


def _channels(channels: Sequence[int]) -> str:
    return f"{'-'.join(map(str, channels))} channels"


def wide_cells(size: Size) -> list[Cell]:
    """Gating alone in the widest networks: does it lack capacity in the grid's?"""
    width = len(size.widths["spectral"]) - 1
    about = f"gating, {_channels(size.widths['spectral'][width])}"
    return [Cell(f"gating width {width}", "gating-wide", about, distilled=False, width=width)]


def cells_of(size: Size) -> list[Cell]:
    """All cells but the tuning's, the most important first."""
    return [*core_cells(), *start_cells(), *pareto_cells(size), *wide_cells(size), *further_cells()]


def recipe_of(
    cell: Cell,
    size: Size,
    seed: int,
    *,
    teacher: Path,
    images: Path,
    rate: float,
    gating: Mapping[str, Any],
    losses: Mapping[str, Any],
) -> Recipe:
    """The recipe of a cell; rate, `gating` (of the config) and `losses` (settings) are what was chosen."""
    levels = list(size.widths[cell.kind][size.main if cell.width is None else cell.width])
    shape = {"block_out_channels": levels, "norm_num_groups": 4, "attention_head_dim": 8}
    gates = GROUPED if cell.kind == "spectral" else {}  # said, since a start from the teacher's weights has others
    settings = {
        "task": "slim" if cell.distilled else "train",
        "teacher": str(teacher),
        "data.path": str(images),
        "data.flip": True,
        "student.kind": cell.kind,
        "student.init": "random",
        "student.overrides": {**shape, **gates, **gating, **cell.overrides},
        "train.schedule": "cosine",
        "train.lr": rate,
        "train.seed": seed,
        "train.log_every": 100,
        "train.sample_every": 0,
        "train.trackers": [],
        "train.keep": 1,
        **size.student_settings,
        **(losses if cell.distilled else NO_TEACHER),
        **cell.settings,
    }
    return load_recipe(None, settings=settings)


def teacher_recipe(size: Size, images: Path) -> Recipe:
    """The teacher's recipe."""
    return load_recipe(
        None,
        settings={
            "task": "train",
            "data.path": str(images),
            "data.size": size.pixels,
            "data.flip": True,
            "student.base": size.base,
            "student.overrides": dict(size.teacher),
            "student.prediction": "v_prediction",
            "train.schedule": "cosine",
            "train.trackers": [],
            **size.teacher_settings,
        },
    )


assert all(size.base in PRESETS for size in SIZES.values())
