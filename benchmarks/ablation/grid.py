"""What is compared: the cells of the ablation.

A cell is a student's recipe. All cells of one seed see the same images, noise and timesteps in the same order, for
equally many steps but for those that train longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from slimdpm.method.distiller import Distiller
from slimdpm.method.inherit import MIXING
from slimdpm.recipe import Recipe
from slimdpm.recipe_file import load_recipe

from .sizes import Size

if TYPE_CHECKING:
    from slimdpm.training.trainer import Trainer

SEEDS = (0, 1, 2)
# How gated resamplers mix channels. The paper's way is the grouped expansion, and nothing after WG-Down.
GROUPED = {"wavelet_expansion": "grouped", "wavelet_down_mix": False}
DENSE = {**GROUPED, "wavelet_expansion": "dense"}
GROUPED_MIXED = {**GROUPED, "wavelet_down_mix": True}
DENSE_MIXED = MIXING
UNEXPANDED = {**GROUPED, "wavelet_expansion": "none"}
STAGES = 3  # of the choices that come before the grid, see `ablation.choices`
FROM_TEACHER = {"student.init": "teacher"}
MIN_SNR = {"train.snr_gamma": 5.0}
SNR = "min-SNR weighting of L_DDPM, γ = 5"
NO_TEACHER = {"distill.lambda_spatial": 0.0, "distill.lambda_freq": 0.0}


@dataclass(frozen=True)
class Idea:
    """A change to a student that no setting makes, on trial.

    Attributes:
        network: changes its U-Net in place, and keeps the parameters: they are being trained.
        distiller: makes its losses.
        trainer: changes its training, before the first step.
    """

    network: Callable[[nn.Module], object] = lambda network: None
    distiller: Callable[..., Distiller] = Distiller
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


FURTHER = ("rate", "omega", "losses", "gating", "features", "ideas")  # groups of changes to `CHANGED`
CHANGED = "spectral from teacher"


def weighed(name: str) -> str:
    """The name of a cell that is another one with min-SNR weighting."""
    return f"{name}, min-SNR"


DEFAULT = weighed(CHANGED)  # what `slimdpm.slim` makes by default, since it won among the changes


def further_cells() -> list[Cell]:
    """One change at a time to Spectral that starts from the teacher's weights.

    Some of them change nothing, whatever the choices were: those repeat another cell, and are not run.
    """
    losses: dict[str, tuple[str, dict[str, Any]]] = {
        "lambda 0.1": ("λ = 0.1 each, outputs alone", lambdas(0.1, 0.1)),
        "lambda 2": ("λ = 2 each, outputs alone", lambdas(2.0, 2.0)),
        "lambda 5": ("λ = 5 each, outputs alone", lambdas(5.0, 5.0)),
        "lambda 10": ("λ = 10 each, outputs alone", lambdas(10.0, 10.0)),
        "all pairs": ("λ = 0.1 each, all feature pairs (the paper's)", lambdas(0.1, 0.1, **{"distill.pairs": "auto"})),
        "up pairs": (
            "λ = 0.1 each, the way up alone",
            lambdas(0.1, 0.1, **{"distill.pairs": ["up_blocks.0", "up_blocks.1", "up_blocks.2"]}),
        ),
    }
    gating: dict[str, tuple[str, Mapping[str, Any]]] = {
        "grouped": ("the paper's reading: a grouped expansion, no mixing", GROUPED),
        "dense": ("a dense expansion, no mixing", DENSE),
        "grouped and mixed": ("a grouped expansion, a 1×1 convolution after WG-Down", GROUPED_MIXED),
        "dense and mixed": ("a dense expansion, a 1×1 convolution after WG-Down", DENSE_MIXED),
        "no expansion": ("WG-Up without expansion, no mixing", UNEXPANDED),
        "gates equal": ("gates start at ½", {"wavelet_gate_init": [0.5, 0.5, 0.5, 0.5]}),
        "reduction 1": ("the gates' FFN not reduced", {"wavelet_gate_reduction": 1}),
        "reduction 16": ("the gates' FFN reduced 16 times", {"wavelet_gate_reduction": 16}),
    }
    fixed = "gates fixed at their start"
    return [
        *(changed(f"rate {rate:g}", "rate", f"learning rate {rate:g}", rate=rate) for rate in (4e-3, 16e-3)),
        *(changed(f"alpha {a:g}", "omega", f"α = {a:g}", {"distill.alpha": a}) for a in (0.0, -0.5, -2.0)),
        changed("omega unscaled", "omega", "ω as it is", {"distill.weight_scaling": "none"}),
        *(changed(name, "losses", about, settings) for name, (about, settings) in losses.items()),
        changed(DEFAULT, "losses", SNR, MIN_SNR),
        changed("min-SNR, lambda 10", "losses", f"{SNR}, and λ = 10 each", {**MIN_SNR, **lambdas(10.0, 10.0)}),
        *(changed(name, "gating", about, overrides=overrides) for name, (about, overrides) in gating.items()),
        changed("gates fixed", "gating", fixed, {"train.freeze": ["*.gate.*"]}),
    ]


def changed(name: str, group: str, about: str, settings: Mapping[str, Any] | None = None, **more: Any) -> Cell:
    """Spectral that starts from the teacher's weights, but for this."""
    return Cell(name, group, about, settings={**FROM_TEACHER, **(settings or {})}, **more)


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
    return [*cells, changed("grouped from teacher", "start-grouped", about, overrides=GROUPED)]


def weighed_cells() -> list[Cell]:
    """Lite with the weighting that `further_cells` tries on Spectral: it is not a part of the method."""
    return [Cell(weighed("lite"), "weighted", f"lite, {SNR}", "lite", distilled=False, settings=MIN_SNR)]


SLIMMER = "spectral from teacher, 12x"


def pareto_cells(size: Size) -> list[Cell]:
    """Lite and Spectral, which starts from the teacher's weights, at other widths than the grid's."""

    def spectral(name: str, channels: Sequence[int], **more: Any) -> Cell:
        about = f"spectral from teacher, {_channels(channels)}"
        return changed(name, "pareto", about, **more)

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


LONGER = 4
LONG_LITE, LONG_SPECTRAL = "lite, long", f"{SLIMMER}, long"


def long_cells(size: Size) -> list[Cell]:
    """Several times the steps: does what was found in a short training last?"""
    steps = {"train.steps": LONGER * size.student_settings["train.steps"]}
    about = f"{LONGER} times the steps"
    channels = {"block_out_channels": list(size.slimmer or size.widths["spectral"][size.main])}
    cells = [Cell("gating, long", "long", f"gating, {about}", distilled=False, settings=steps)]
    for named, settings in ((str, steps), (weighed, {**steps, **MIN_SNR})):
        lite, spectral = named(f"lite, {about}"), named(f"{SLIMMER}, {about}")
        cells += [
            Cell(named(LONG_LITE), "long", lite, "lite", distilled=False, settings=settings),
            changed(named(LONG_SPECTRAL), "long", spectral, settings, overrides=channels),
        ]
    return cells


def cells_of(size: Size) -> list[Cell]:
    """All cells but the tuning's, the most important first."""
    beside = [*pareto_cells(size), *wide_cells(size), *weighed_cells(), *long_cells(size)]
    return [*core_cells(), *start_cells(), *beside, *further_cells()]


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
        "data.held_out": 0,
        "student.kind": cell.kind,
        "student.init": "random",
        "student.overrides": {**shape, **gates, **gating, **cell.overrides},
        "train.schedule": "cosine",
        "train.lr": rate,
        "train.snr_gamma": "none",
        "distill.reuse": 1,
        "distill.snr_weighted": False,
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
            "data.held_out": 0,
            "student.base": size.base,
            "student.overrides": dict(size.teacher),
            "student.prediction": "v_prediction",
            "train.schedule": "cosine",
            "train.trackers": [],
            **size.teacher_settings,
        },
    )
