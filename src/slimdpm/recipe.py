"""The recipe: everything that decides a run, as a small validated YAML.

A key is documented where it is declared; ``slimdpm slim --help`` and ``recipes/`` show them in use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from slimdpm.method.inherit import MIXING
from slimdpm.method.losses import RESIZE_FILTERS, WEIGHT_SCALINGS, LossSettings
from slimdpm.system.sizes import SMALLEST, Size, sides, size_of

_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_amount(value: Any) -> Any:
    """``"6.7G"`` as 6.7e9; what is no text passes through."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)\s*", value, re.IGNORECASE)
    if not match:
        raise ValueError(f"{value!r} is no amount; write for example 500M or 6.7G")
    return float(match[1]) * _UNITS.get(match[2].upper(), 1.0)


Amount = Annotated[float, BeforeValidator(parse_amount), Field(gt=0)]
# Numbers beyond these are slips of the finger: they would fail late, or fill a memory.
Count = Annotated[int, Field(ge=1, le=10**9)]  # of steps and images
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Batch = Annotated[int, Field(ge=1, le=2**20)]  # images at once
Number = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]  # of AdamW


def _image_size(value: Any) -> Size:
    size = size_of(value)
    if min(sides(size)) < SMALLEST:
        raise ValueError(f"images have at least {SMALLEST} pixels a side")
    return size


DEFAULT_RATIO = 12.0  # teacher's MACs over the student's when a recipe for slimming names no budget
DEFAULT_GAMMA = 5.0  # of min-SNR weighting, for slim


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4096)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError(f"{str(value).lower()} is neither a number nor text")
        return value


TEACHER = "teacher"  # as `data.path`: the teacher makes the images; a folder of that name is ./teacher


class TeacherSamples(Section):
    """Images that the teacher makes, for `data.path` teacher."""

    count: Count = 10_000
    steps: Count = 50  # of the sampler
    scheduler: str = "ddim"
    seed: Seed = 1  # another one than that of the samples in the report: these are no training data
    guidance: float = Field(1.0, ge=1, le=1e6)  # 1 is none: the distribution that the teacher was trained for
    prompts: str | None = None  # a text file with a prompt on each line, for a text-to-image teacher
    batch_size: Batch = 64  # samples made at once


class DataRecipe(Section):
    """Where the images come from and how they become squares, or rectangles."""

    # A folder, an .npz or .npy of uint8 images, .tar shards, hf:NAME for a Hugging Face data set; or teacher.
    path: str
    # Of the squares in pixels, or [height, width]; by default what the pipeline needs.
    size: Annotated[Size, BeforeValidator(_image_size)] | None = None  # by default the pipeline's
    crop: Literal["center", "random"] = "center"
    flip: bool = False  # mirror half of the images
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    split: str = "train"  # of a Hugging Face data set
    column: str | None = None  # of a Hugging Face data set; by default its first image column
    label_column: str | None = None  # where the classes are: a column, an array in an .npz, an extension in .tar
    text_column: str | None = None  # where the captions are, in the same way
    # What is computed once: decoded squares, latents, text embeddings (images: center crops only). True keeps it in the
    # run folder, a path in that folder, for several runs; false computes it anew each time.
    cache: bool | str = True
    cache_dtype: Literal["float32", "float16"] = "float32"  # of latents and text embeddings on the disk
    workers: int = Field(2, ge=0, le=256)  # processes that decode images
    samples: TeacherSamples = TeacherSamples()

    @property
    def keeps(self) -> bool:
        """Whether anything is kept of what is computed once."""
        return self.cache is not False

    @property
    def keeps_latents(self) -> bool:
        """Whether training reads the latents of a pipeline with an autoencoder, and does without the autoencoder."""
        return self.keeps and (self.path == TEACHER or self.crop == "center")

    def described(self, count: int) -> str:
        """So many images, for people."""
        if self.path != TEACHER:
            return f"{count:,} images of {self.path}"
        s = self.samples
        return f"{count:,} samples of the teacher ({s.scheduler}, {s.steps} steps, guidance {s.guidance:g})"

    @model_validator(mode="after")
    def _samples_of_a_teacher(self) -> DataRecipe:
        if self.path != TEACHER and self.samples != TeacherSamples():
            raise ValueError("samples are of data that the teacher makes: give teacher as the data's path")
        if self.path == TEACHER and self.cache is False:
            raise ValueError("what the teacher makes has to be kept: leave data.cache (--no-cache) as it is")
        return self


class StudentRecipe(Section):
    """The network that is trained."""

    kind: Literal["spectral", "lite"] | None = (
        None  # wavelet-gated or plain; by default spectral for slim, lite for train
    )
    base: str | None = None  # without a teacher, or with a transformer: a preset, a diffusers folder, or a config.json
    width: int | None = Field(None, ge=1, le=2**16)
    ratio: float | None = Field(None, gt=1, lt=1000)
    max_macs: Amount | None = None
    max_params: Amount | None = None
    overrides: dict[str, Any] = {}  # values of the diffusers config, for example layers_per_block
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = None  # by default the teacher's
    init: Literal["random", "teacher"] | None = None  # first weights; by default a U-Net teacher's for slim

    @model_validator(mode="after")
    def _one_budget(self) -> StudentRecipe:
        given = [k for k in ("width", "ratio", "max_macs", "max_params") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give one budget, not {' and '.join(given)}")
        return self


class ConditioningRecipe(Section):
    """What the network is given beside the noisy sample."""

    kind: Literal["auto", "class"] = "auto"  # of a network that starts without a teacher; auto: what its config says
    drop: float = Field(0.1, ge=0, lt=1)  # part of the conditions replaced by the null one, for guidance


class DistillRecipe(Section):
    """Spectrum-aware distillation; the paper has λ = 0.1 and pairs auto, the defaults are what the ablation chose."""

    lambda_spatial: Number = LossSettings.lambda_spatial  # λ_s
    lambda_freq: Number = LossSettings.lambda_freq  # λ_f
    alpha: float = Field(LossSettings.alpha, ge=-10, le=10)  # exponent of ω; negative values favour rare frequencies
    weight_scaling: Literal[WEIGHT_SCALINGS] = LossSettings.weight_scaling  # type: ignore[valid-type]
    resize: Literal[RESIZE_FILTERS] = LossSettings.resize  # type: ignore[valid-type]
    pairs: Literal["auto", "none"] | list[str] = "none"  # or ["up_blocks.2", "down_blocks.0:down_blocks.1"]
    levels: Literal["all"] | list[int] = "all"  # scales that take part: 1 is full resolution, 2 half of it


class ProcessRecipe(Section):
    """The forward process of a pipeline that starts without a teacher; a teacher brings its own."""

    timesteps: int = Field(1000, ge=2, le=100_000)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"


class TrainRecipe(Section):
    """The loop."""

    steps: Count = 100_000  # optimiser steps
    batch_size: Batch = 64  # images in an optimiser step, over all processes
    max_batch_per_device: Batch | None = None  # more are accumulated
    lr: float = Field(2e-4, gt=0, le=1e3)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    # Steps in which the rate rises; by default 500, of a short run a tenth.
    warmup: int | None = Field(None, ge=0, le=10**9)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: Number = 0.0
    clip: float | None = Field(1.0, gt=0, le=1e6)  # norm of the gradient
    # γ of min-SNR weighting of L_DDPM; by default 5 for slim, as the ablation chose, none for train
    snr_gamma: Literal["none"] | Annotated[float, Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float = Field(0.9999, ge=0, lt=1)
    freeze: list[str] = []  # parameters of the student that stay as they start, by patterns such as "*.gate.*"
    seed: Seed = 0
    compile: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: Count = 1000
    keep: Count = 2  # checkpoints
    log_every: Count = 50
    sample_every: int | None = Field(
        None, ge=0, le=10**9
    )  # steps between grids of samples; five in a run by default, 0: none
    trackers: list[str] = ["tensorboard"]

    @property
    def warmup_steps(self) -> int:
        return min(500, self.steps // 10) if self.warmup is None else self.warmup


class SampleRecipe(Section):
    """The samples of a run: its grids and its report."""

    count: Count = 64
    steps: Count | None = None  # by default 50, or all of a process that has fewer than 100
    scheduler: str = "ddim"
    seed: Seed = 0
    batch_size: Batch = 64
    prompts: list[str] = []  # of a text-to-image network; by default some of the data's captions
    negative_prompt: str | None = None
    guidance: float | None = Field(
        None, ge=1, le=1e6
    )  # of a class-conditional or text-to-image network; by default its own


class Recipe(Section):
    """One run of ``slimdpm slim`` (a teacher is distilled) or ``slimdpm train`` (on the images alone)."""

    task: Literal["slim", "train"] = "slim"
    teacher: str | None = None  # for train: the pipeline whose autoencoder, scheduler and topology are taken
    autoencoder: str | None = None  # for train without a teacher: a diffusers folder, to train in its latent space
    data: DataRecipe
    student: StudentRecipe = StudentRecipe()
    process: ProcessRecipe = ProcessRecipe()
    conditioning: ConditioningRecipe = ConditioningRecipe()
    distill: DistillRecipe = DistillRecipe()
    train: TrainRecipe = TrainRecipe()
    samples: SampleRecipe = SampleRecipe()

    @property
    def losses(self) -> LossSettings:
        d, gamma = self.distill, self.train.snr_gamma
        gamma = None if gamma == "none" else gamma
        return LossSettings(d.lambda_spatial, d.lambda_freq, d.alpha, d.weight_scaling, d.resize, snr_gamma=gamma)

    def resolved(
        self, *, teacher: str | None, inherits: bool, size: Size, sample_steps: int, prompts: Sequence[str]
    ) -> Recipe:
        """The recipe with every default that depends on the task, the teacher or the data filled in.

        Args:
            teacher: its name.
            inherits: whether a student can start from its weights.
            size: of its images.
            sample_steps: for samples.
            prompts: for samples, from the data.
        """
        slim, student, samples = self.task == "slim", self.student, self.samples
        kind = student.kind or ("spectral" if slim else "lite")
        init = student.init or ("teacher" if slim and inherits else "random")
        budget = any((student.width, student.ratio, student.max_macs, student.max_params))
        ratio = (
            DEFAULT_RATIO if slim and not budget and "block_out_channels" not in student.overrides else student.ratio
        )
        mixing = MIXING if init == "teacher" and kind == "spectral" else {}
        gamma = self.train.snr_gamma or (DEFAULT_GAMMA if slim else "none")
        sections: dict[str, dict[str, Any]] = {
            "student": {"kind": kind, "init": init, "ratio": ratio, "overrides": {**mixing, **student.overrides}},
            "data": {"size": self.data.size or size},
            "train": {"snr_gamma": gamma},
            "samples": {"steps": samples.steps or sample_steps, "prompts": samples.prompts or list(prompts)},
        }
        changed = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update={**changed, "teacher": teacher or self.teacher})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
