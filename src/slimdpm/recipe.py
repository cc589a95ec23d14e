"""The recipe: everything that decides a run, as a small validated YAML. docs/recipe.md is made of what stands here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from slimdpm.method.inherit import MIXING
from slimdpm.method.losses import AUTO, RESIZE_FILTERS, WEIGHT_SCALINGS, LossSettings
from slimdpm.student_recipe import StudentRecipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import SMALLEST, Size, sides, size_of
from slimdpm.system.validation import Batch, Count, Number, Section, Seed
from slimdpm.train_recipe import TrainRecipe


def _image_size(value: Any) -> Size:
    size = size_of(value)
    if min(sides(size)) < SMALLEST:
        raise ValueError(f"images have at least {SMALLEST} pixels a side")
    return size


DEFAULT_RATIO = 12.0  # teacher's MACs over the student's when a recipe for slimming names no budget
DEFAULT_GAMMA = 5.0  # of min-SNR weighting, for slim
DEFAULT_REUSE = 4  # of each of the teacher's answers
HELD_OUT = 256  # images at most, by default


TEACHER = "teacher"  # as `data.path`: the teacher makes the images; a folder of that name is ./teacher


class TeacherSamples(Section):
    """Images that the teacher makes, for `data.path` teacher."""

    count: Count = 10_000
    """samples that the teacher makes, if `data.path` is `teacher`"""
    steps: Count = 50
    """of their sampler"""
    scheduler: str = "ddim"
    """see `slimdpm sample --help`"""
    seed: Seed = 1
    """of them; another one than that of the samples in the report"""
    guidance: float = Field(1.0, ge=1, le=1e6)
    """scale of classifier-free guidance; 1 is none"""
    prompts: str | None = None
    """a text file with a prompt on each line, for a text-to-image teacher"""
    batch_size: Batch = 64
    """samples made at once"""


class DataRecipe(Section):
    """Where the images come from and how they become squares, or rectangles."""

    path: str
    """folder of images (searched deep), `.npz` or `.npy` of uint8 images, a `.tar` or a folder of them, `hf:NAME` for
    a Hugging Face data set; or `teacher`, which makes the images itself, see [slimming without
    images](cache.md#slimming-without-images)"""
    size: Annotated[Size, BeforeValidator(_image_size)] | None = None
    """squares of this many pixels; or `[height, width]`, on the command line `--size 48x64`, see [sizes and
    channels](#sizes-and-channels); by default the network's"""
    crop: Literal["center", "random"] = "center"
    """`center` or `random` (along the side that is too long)"""
    flip: bool = False
    """mirror half of the images"""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    """`bilinear`, `bicubic`, `lanczos`; antialiased"""
    split: str = "train"
    """of a Hugging Face data set"""
    column: str | None = None
    """of a Hugging Face data set; by default the first image column"""
    label_column: str | None = None
    """where the classes are, see [conditioning](conditioning.md)"""
    text_column: str | None = None
    """where the captions are, see [conditioning](conditioning.md)"""
    cache: bool | str = True
    """keep decoded squares, latents and text embeddings ([what is computed once](cache.md)): `true` in the run folder,
    a path in that folder, `false` nowhere"""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """of latents, embeddings and samples on the disk; or `float16`"""
    workers: int = Field(2, ge=0, le=256)
    """processes that decode images, on a GPU also those that read what is cached; for the cache of latents, threads"""
    held_out: int | None = Field(None, ge=0, le=10**9)
    """images that are kept back from training, drawn by `train.seed`: [the error on them](#good-enough) is measured
    during the run; by default a fiftieth of the images, at most 256 and of fewer than 1,000 none"""
    samples: TeacherSamples = TeacherSamples()

    def kept_back(self, images: int) -> int:
        """How many of so many images are held out.

        Raises:
            SlimdpmError: if none is left to train on.
        """
        default = min(HELD_OUT, images // 50) if images >= 1000 else 0
        count = default if self.held_out is None else self.held_out
        if count >= images:
            raise SlimdpmError(f"data.held_out {count} leaves none of {images} images to train on; give fewer")
        return count

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


class ConditioningRecipe(Section):
    """What the network is given beside the noisy sample."""

    kind: Literal["auto", "class"] = "auto"
    """of a network without a teacher: `class` makes it class-conditional, `auto` does what its config says"""
    drop: float = Field(0.1, ge=0, lt=1)
    """part of the conditions that the null condition replaces, for classifier-free guidance; by default none where
    `distill.guidance` is learnt"""


class DistillRecipe(Section):
    """Spectrum-aware distillation; the paper has λ = 0.1 and pairs auto, the defaults are what the ablation chose."""

    lambda_denoising: Number = LossSettings.lambda_denoising
    """weight of L_DDPM; 0 leaves the images' own target out"""
    lambda_spatial: Number = LossSettings.lambda_spatial
    """λ_s; the paper's is 0.1, see above"""
    lambda_freq: Number = LossSettings.lambda_freq
    """λ_f; the paper's is 0.1"""
    alpha: float = Field(LossSettings.alpha, ge=-10, le=10)
    """exponent of ω; 0 weighs all frequencies alike"""
    weight_scaling: Literal[WEIGHT_SCALINGS] = LossSettings.weight_scaling  # type: ignore[valid-type]
    """`mean`: each map of ω has mean 1; `none`: the bare power"""
    resize: Literal[RESIZE_FILTERS] = LossSettings.resize  # type: ignore[valid-type]
    """filter that brings x₀ to a feature's size: `area`, `bilinear`, `bicubic`, `nearest`"""
    pairs: Literal["auto", "none"] | list[str] = "none"
    """`none` (outputs only), `auto` (all blocks at the same scale, the paper's), or a list of `block` or
    `student_block:teacher_block`"""
    levels: Literal["all"] | list[int] = "all"
    """scales that take part, `[1, 2]` for full and half resolution"""
    reuse: int | None = Field(None, ge=1, le=64)
    """steps that each of the teacher's answers serves: its images, noise and timesteps come again with it; by default
    4, with feature pairs 1"""
    snr_weighted: bool | Literal["auto"] | None = None
    """whether L_spatial and L_freq weigh timesteps by min-SNR as L_DDPM does, with `train.snr_gamma`; `auto`: where
    outputs are compared in v, which is where it was better; by default `auto`, with feature pairs `false`"""
    guidance: float = Field(LossSettings.guidance, ge=1, le=100)
    """scale of classifier-free guidance in the teacher's answers: the student learns the guided output, which takes
    it one call in place of two; 1 is none"""

    @property
    def guides(self) -> bool:
        """Whether the answers are guided."""
        return self.guidance > 1

    @property
    def uses(self) -> int:
        """`reuse` or its default: features are too large to be kept without being asked."""
        return self.reuse or (DEFAULT_REUSE if self.pairs == "none" else 1)

    @property
    def weighs(self) -> bool | str:
        """`snr_weighted` or its default, which was tried for outputs alone."""
        return (AUTO if self.pairs == "none" else False) if self.snr_weighted is None else self.snr_weighted


class ProcessRecipe(Section):
    """The forward process of a pipeline that starts without a teacher; a teacher brings its own."""

    timesteps: int = Field(1000, ge=2, le=100_000)
    """of a pipeline that starts without a teacher"""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    """the same; `linear`, `scaled_linear`, `squaredcos_cap_v2`"""


class SampleRecipe(Section):
    """The samples of a run: its grids and its report."""

    count: Count = 64
    """samples in the report"""
    steps: Count | None = None
    """of the sampler; what it cannot take is refused before the run; by default 50, or all of a process of fewer than
    100"""
    scheduler: str = "ddim"
    """see `slimdpm sample --help`"""
    seed: Seed = 0
    """of the samples"""
    batch_size: Batch = 64
    """samples made at once"""
    prompts: list[str] = Field([])
    """what the samples of a text-to-image network show, in turn; without any, eight of the data's captions"""
    negative_prompt: str | None = None
    """takes the place of the null condition"""
    guidance: float | None = Field(None, ge=1, le=1e6)
    """scale of classifier-free guidance; 1 is none; by default the pipeline's"""
    guidance_interval: tuple[float, float] | None = None
    """lowest and highest noise level √((1 − ᾱ) / ᾱ) with guidance; by default all"""


def _kind(task: str, kind: str | None) -> str | None:
    """What a student is called: without gates by what it learns from."""
    return kind if kind in (None, "spectral") else {"slim": "plain", "train": "lite"}[task]


class Recipe(Section):
    """One run of ``slimdpm slim`` (a teacher is distilled) or ``slimdpm train`` (on the images alone)."""

    task: Literal["slim", "train"] = "slim"
    """`slim` distils a teacher, `train` trains on the images alone"""
    teacher: str | None = None
    """diffusers folder, run folder or hub id; for `train`: the pipeline whose U-Net, scheduler and autoencoder are
    taken"""
    autoencoder: str | None = None
    """for `train` without a teacher: diffusers folder of an autoencoder, to train in its latent space"""
    data: DataRecipe
    student: StudentRecipe = StudentRecipe()
    process: ProcessRecipe = ProcessRecipe()
    conditioning: ConditioningRecipe = ConditioningRecipe()
    distill: DistillRecipe = DistillRecipe()
    train: TrainRecipe = TrainRecipe()
    samples: SampleRecipe = SampleRecipe()

    @property
    def losses(self) -> LossSettings:
        gamma = None if self.train.snr_gamma == "none" else self.train.snr_gamma
        values = self.distill.model_dump(exclude={"pairs", "levels", "reuse"}) | {"snr_weighted": self.distill.weighs}
        return LossSettings(**values, snr_gamma=gamma)

    def resolved(
        self, *, teacher: str | None, inherits: bool, size: Size, sample_steps: int, images: int, prompts: Sequence[str]
    ) -> Recipe:
        """The recipe with every default filled in that depends on the task, on the teacher (its name, whether a
        student can inherit its weights, its images' size) or on the data (how many images, prompts).

        Raises:
            SlimdpmError: if no image is left to train on.
        """
        slim, student, samples = self.task == "slim", self.student, self.samples
        kind = _kind(self.task, student.kind or ("plain" if slim else "lite"))
        init = student.init or ("teacher" if slim and inherits else "random")
        free = slim and not student.budgets and "block_out_channels" not in student.overrides
        ratio = DEFAULT_RATIO if free else student.ratio
        decays = self.train.hours is not None and "schedule" not in self.train.model_fields_set
        schedule = "cosine" if decays else self.train.schedule
        overrides = {**(MIXING if init == "teacher" and kind == "spectral" else {}), **student.overrides}
        drops = not (slim and self.distill.guides) or "drop" in self.conditioning.model_fields_set
        sections: dict[str, dict[str, Any]] = {
            "conditioning": {} if drops else {"drop": 0.0},
            "student": {"kind": kind, "init": init, "ratio": ratio, "overrides": overrides},
            "data": {"size": self.data.size or size, "held_out": self.data.kept_back(images)},
            "train": {"snr_gamma": self.train.snr_gamma or (DEFAULT_GAMMA if slim else "none"), "schedule": schedule},
            "samples": {"steps": samples.steps or sample_steps, "prompts": samples.prompts or list(prompts)},
        }
        changed = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update={**changed, "teacher": teacher or self.teacher})

    @property
    def renamed(self) -> Recipe:
        """The recipe of a run of an earlier version, whose distilled students without gates were called `lite`, too."""
        kind = _kind(self.task, self.student.kind)
        return self.model_copy(update={"student": self.student.model_copy(update={"kind": kind})})

    def plain(self) -> dict[str, Any]:
        """Plain values, without a number of steps that is still to be measured."""
        return self.model_dump(mode="json", exclude={"train": {"steps"}} if self.train.undecided else None)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)
