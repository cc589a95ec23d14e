"""One run from its recipe to its results: plan everything, then do it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import nn

from slimdpm.data import Decoder, Images, prepare_images
from slimdpm.display import Display
from slimdpm.errors import SlimdpmError
from slimdpm.features import FeaturePair, match_features
from slimdpm.parallel import make_accelerator, tracking
from slimdpm.presets import find_network
from slimdpm.profile import Cost, measure
from slimdpm.recipe import Recipe
from slimdpm.results import Results
from slimdpm.run import RunFolder
from slimdpm.slimming import Budget, Plan, plan_student
from slimdpm.sources import Source, open_source
from slimdpm.teachers import Shell, Teacher, load_teacher, new_shell
from slimdpm.training import Trainer

DEFAULT_RATIO = 12.0  # teacher's MACs over the student's when a recipe for slimming names no budget


@dataclass(frozen=True)
class Job:
    """A run that is checked and planned; nothing is written yet.

    Attributes:
        recipe: resolved: what was left to a default that depends on the teacher is filled in.
        shell: the student's pipeline without its U-Net.
        plan: the student's config and cost, and what it is measured against.
        teacher: None for training without distillation.
        origin: the U-Net from whose weights the student starts; None for a random start.
        pairs: feature pairs for distillation.
        source: the images.
    """

    recipe: Recipe
    shell: Shell
    plan: Plan
    teacher: Teacher | None
    origin: nn.Module | None
    pairs: list[FeaturePair]
    source: Source

    def describe(self) -> list[str]:
        """What will run, in a few lines."""
        plan, recipe = self.plan, self.recipe
        widths = "-".join(str(c) for c in plan.config["block_out_channels"])
        lines = [f"student: {plan.config['_class_name']}, channels {widths}, {cost_line(plan.cost)}"]
        if self.teacher is not None or plan.cost != plan.teacher_cost:
            name = self.teacher.name if self.teacher else recipe.teacher or recipe.student.base
            lines.append(f"teacher: {name}, {cost_line(plan.teacher_cost)}: {plan.ratio:.2f} times the student's MACs")
        if self.origin is not None:
            lines.append("first weights: the teacher's most important channels")
        if self.teacher is not None:
            compared = "; ".join(str(pair) for pair in self.pairs) or "none, outputs only"
            lines.append(f"feature pairs: {compared}")
        size = self.shell.image_size
        lines.append(f"data: {len(self.source)} images of {recipe.data.path} as {size}x{size}")
        return lines


def plan_job(recipe: Recipe, *, teacher: DiffusionPipeline | None = None, data: Any = None) -> Job:
    """Check a recipe against its teacher and data, and plan the student.

    Args:
        recipe: of the run.
        teacher: a pipeline at hand instead of the one that the recipe names.
        data: images at hand instead of those that the recipe names, see `slimdpm.sources.open_source`.

    Raises:
        SlimdpmError: for whatever is missing, unsupported or impossible.
    """
    source = open_source(recipe.data if data is None else data)
    if recipe.task == "slim" and teacher is None and recipe.teacher is None:
        raise SlimdpmError("slimming needs a teacher: give a diffusers folder, a hub id or a pipeline")
    if recipe.student.init == "teacher" and teacher is None and recipe.teacher is None:
        raise SlimdpmError(
            "student.init is teacher, but this run has none: name one (train: --like) or set it to random"
        )
    loaded = load_teacher(teacher if teacher is not None else recipe.teacher) if teacher or recipe.teacher else None
    if loaded is not None:
        recipe = recipe.model_copy(update={"teacher": loaded.name})
        base = {**loaded.unet.config, "_class_name": type(loaded.unet).__name__}
        shell = loaded.shell
    else:
        base = _base_config(recipe)
        prediction = recipe.student.prediction or "epsilon"
        process = recipe.process
        shell = new_shell(
            base,
            timesteps=process.timesteps,
            beta_schedule=process.beta_schedule,
            prediction=prediction,
            autoencoder=recipe.autoencoder,
        )
    if shell.image_channels not in (1, 3):
        raise SlimdpmError(f"images of {shell.image_channels} channels are not supported: 3 (RGB) or 1 (greyscale)")
    recipe = _resolved(recipe, shell)
    shell, base = _sized(shell, base, recipe.data.size or shell.image_size)
    plan = _plan(recipe, base)
    distilled = loaded if recipe.task == "slim" else None
    pairs = _pairs(recipe, plan, base) if distilled else []
    origin = loaded.unet if loaded and recipe.student.init == "teacher" else None
    return Job(recipe, shell, plan, distilled, origin, pairs, source)


def run_job(job: Job, folder: str | Path, display: Display | None = None, *, report: bool = True) -> DiffusionPipeline:
    """Train, and leave the results in the run's folder; resumes what is there.

    Args:
        job: the run.
        folder: its folder.
        display: where progress is shown.
        report: sample and write the report at the end.

    Returns:
        the student's pipeline with the averaged weights.

    Raises:
        SlimdpmError: for a folder that holds something else, unreadable images, a full disk, a loss gone wrong.
        slimdpm.training.Stopped: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    display = display or Display()
    run = RunFolder(folder)
    run.check(job.recipe)
    accelerator = make_accelerator(job.recipe, run)
    if not accelerator.is_main_process:
        display = Display()
    if accelerator.is_main_process:
        run.open(job.recipe)
    accelerator.wait_for_everyone()
    try:
        for line in job.describe():
            display.say(line)
        try:
            images = _prepare(job, run, accelerator, display)
        except SlimdpmError:
            run.discard_if_new()
            raise
        return _train(job, run, images, accelerator, display, report)
    finally:
        run.close()


def _train(
    job: Job, run: RunFolder, images: Images, accelerator: Accelerator, display: Display, report: bool
) -> DiffusionPipeline:
    trainer = Trainer(
        job.recipe,
        job.plan.config,
        job.shell,
        images,
        run,
        accelerator,
        teacher=job.teacher,
        origin=job.origin,
        pairs=job.pairs,
        display=display,
    )
    results = Results(job.recipe, run, job.plan.config, job.shell, job.teacher, accelerator.device, display)
    with tracking(accelerator, job.recipe):
        weights = trainer.train(on_checkpoint=results.save_student, on_sample=results.save_grid)
    if report and accelerator.is_main_process:
        from slimdpm.report import write_run_report  # here: matplotlib is slow to import and only this needs it

        write_run_report(job.recipe, run, job.plan, results, weights, images)
        display.say(f"student: {run.student}")
        display.say(f"report:  {run.report}")
    accelerator.wait_for_everyone()
    return results.pipeline(weights)


def _prepare(job: Job, run: RunFolder, accelerator: Accelerator, display: Display) -> Images:
    """The main process decodes first, the others read what it cached."""
    data = job.recipe.data
    decoder = Decoder(job.shell.image_size, job.shell.image_channels, data.crop, data.interpolation)

    def track(items, total):
        return display.track(items, total, "reading images", "images")

    with accelerator.main_process_first():
        images = prepare_images(
            job.source, decoder, cache=run.cache if data.cache else None, workers=data.workers, track=track
        )
    skipped = images.report_broken()
    if skipped:
        display.say(f"warning: {skipped}")
    return images


def _resolved(recipe: Recipe, shell: Shell) -> Recipe:
    """The recipe with the defaults that depend on the task and the teacher filled in."""
    student = recipe.student
    kind = student.kind or ("spectral" if recipe.task == "slim" else "lite")
    ratio = student.ratio
    if recipe.task == "slim" and not (student.width or ratio or student.max_macs or student.max_params):
        ratio = None if "block_out_channels" in student.overrides else DEFAULT_RATIO
    size = recipe.data.size or shell.image_size
    return recipe.model_copy(
        update={
            "student": student.model_copy(update={"kind": kind, "ratio": ratio}),
            "data": recipe.data.model_copy(update={"size": size}),
        }
    )


def _sized(shell: Shell, base: dict[str, Any], size: int) -> tuple[Shell, dict[str, Any]]:
    """Shell and config at an image size; it must be one that the autoencoder and the U-Net can halve."""
    factor = shell.image_size // shell.size
    halvings = len(base["block_out_channels"]) - 1
    step = factor * 2**halvings
    if size % step:
        lower, upper = max(size // step, 1) * step, (size // step + 1) * step
        raise SlimdpmError(
            f"images of {size}x{size} do not fit: this network halves them to the end only if their size is a multiple "
            f"of {step}; set data.size to {lower} or {upper}"
        )
    return replace(shell, size=size // factor), {**base, "sample_size": size // factor}


def _plan(recipe: Recipe, base: dict[str, Any]) -> Plan:
    s = recipe.student
    budget = Budget(s.width, s.ratio, s.max_macs, s.max_params)
    assert s.kind is not None
    if budget == Budget() and "block_out_channels" not in s.overrides:  # train: the base itself
        config = {**base, **s.overrides}
        cost = measure(config)
        return Plan(config, cost, cost)
    return plan_student(base, budget, kind=s.kind, overrides=s.overrides)


def _pairs(recipe: Recipe, plan: Plan, base: dict[str, Any]) -> list[FeaturePair]:
    d = recipe.distill
    if not d.lambda_spatial and not d.lambda_freq:
        return []
    return match_features(plan.config, base, pairs=d.pairs, levels=d.levels)


def _base_config(recipe: Recipe) -> dict[str, Any]:
    """The network to train without a teacher: a preset, a diffusers folder or a config.json."""
    base = recipe.student.base
    if base is None:
        raise SlimdpmError(
            "training needs a network: --model with a preset, a config.json or a folder, or --like TEACHER"
        )
    config = dict(find_network(base).config)
    if config.get("sample_size") is None:
        if recipe.data.size is None:
            raise SlimdpmError(f"the config of {base} has no sample_size; set data.size")
        config["sample_size"] = recipe.data.size
    return config


def cost_line(cost: Cost) -> str:
    return f"{cost.params / 1e6:.2f} M parameters, {cost.macs / 1e9:.3f} G MACs (conv+linear)"
