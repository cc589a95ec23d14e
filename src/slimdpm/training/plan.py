"""A recipe checked against its teacher and data, and its student planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from slimdpm.cache.teacher_samples import Samples, plan_samples
from slimdpm.conditioning import Conditioning, new_class_labels
from slimdpm.data.images import MODES
from slimdpm.data.open_source import open_source
from slimdpm.data.sources import Source
from slimdpm.method.cost import Cost, measure
from slimdpm.method.features import FeaturePair, match_features
from slimdpm.method.inherit import inheritable
from slimdpm.method.networks import interface, known_settings
from slimdpm.method.presets import find_network
from slimdpm.method.slimming import Budget, Plan, plan_student, student_base
from slimdpm.pipelines.fitting import fitted
from slimdpm.pipelines.sampling import default_steps, probe
from slimdpm.pipelines.shell import Shell, new_shell
from slimdpm.pipelines.teacher import Teacher, load_teacher
from slimdpm.recipe import TEACHER, Recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.progress import Display
from slimdpm.training.job import Job
from slimdpm.training.timed_student import timed_recipe


def plan_job(
    recipe: Recipe,
    *,
    teacher: DiffusionPipeline | None = None,
    data: Any = None,
    weights: bool = True,
    folder: str | Path | None = None,
    display: Display | None = None,
) -> Job:
    """Check a recipe against its teacher and data, and plan the student.

    Args:
        recipe: of the run.
        teacher: a pipeline at hand instead of the one that the recipe names.
        data: images at hand instead of those that the recipe names, see `slimdpm.data.open_source.open_source`; or
            ``"teacher"``, as in a recipe.
        weights: False leaves those of the teacher and the autoencoder where they are: such a job is to be looked at
            and cannot run.
        folder: of the run: one that was begun keeps what it began with.
        display: where is said that students are measured.

    Raises:
        SlimdpmError: for whatever is missing, unsupported or impossible.
    """
    recipe = recipe if folder is None else RunFolder(folder).settled(recipe)
    made = recipe.data.path == TEACHER and (data is None or isinstance(data, str))
    source = None if made else open_source(recipe.data if data is None else data)  # before a teacher is downloaded
    found = _find_teacher(recipe, teacher, weights)
    source = source or _samples_of(found, recipe)
    shell, base, conditions = _surroundings(recipe, found, source, weights)
    recipe = recipe.resolved(
        teacher=found.name if found else None,
        inherits=found is not None and found.has_scales and inheritable(found.unet),
        size=shell.image_size,
        sample_steps=default_steps(shell, recipe.samples.scheduler),
        images=len(source),
        prompts=shell.conditioning.examples(conditions, recipe.samples.seed),
    )
    _check_process(recipe, shell)
    _check_until(recipe)
    if recipe.task == "slim" and recipe.distill.guides:
        shell = replace(shell, conditioning=_guided(recipe, shell.conditioning))
    if recipe.student.layout is not None and recipe.student.kind == "spectral":
        raise SlimdpmError("student.layout is of single files, which have no room for wavelet gates: add --plain")
    return _design(recipe, found, shell, base, source, conditions, display or Display())


def _find_teacher(recipe: Recipe, given: DiffusionPipeline | None, weights: bool) -> Teacher | None:
    """The teacher of a recipe, or the one at hand."""
    wanted = given if given is not None else recipe.teacher
    if wanted is not None:
        return load_teacher(wanted, weights=weights)
    if recipe.task == "slim":
        raise SlimdpmError("slimming needs a teacher: give a diffusers folder, a hub id or a pipeline")
    if recipe.student.init == "teacher":
        raise SlimdpmError(
            "student.init is teacher, but this run has none: name one (train: --like) or set it to random"
        )
    return None


def _samples_of(teacher: Teacher | None, recipe: Recipe) -> Samples:
    """The images that a teacher makes."""
    if teacher is None:
        raise SlimdpmError("there is no teacher to make the data: name one (train: --like), or give images")
    return plan_samples(teacher, recipe.data)


def _surroundings(
    recipe: Recipe, teacher: Teacher | None, source: Source, weights: bool
) -> tuple[Shell, dict[str, Any], Sequence | None]:
    """The shell, the config that is slimmed, and what is known of each image."""
    if teacher is None:
        shell, base = _from_nothing(recipe, source, weights)
    else:
        shell, base = teacher.shell, teacher.config if teacher.has_scales else _beside_transformer(recipe, teacher)
    if shell.image_channels not in MODES:
        known = ", ".join(f"{channels} ({mode})" for channels, mode in MODES.items())
        raise SlimdpmError(f"images of {shell.image_channels} channels are not supported: {known} are")
    if isinstance(source, Samples):
        return shell, base, source.conditions()
    conditioning, conditions = shell.conditioning.read(source)
    return replace(shell, conditioning=conditioning), base, conditions


def _design(
    recipe: Recipe,
    teacher: Teacher | None,
    shell: Shell,
    base: dict[str, Any],
    source: Source,
    conditions: Sequence | None,
    display: Display,
) -> Job:
    """The student, and what it learns from."""
    with blamed("no student can be planned"):
        shell, base = _sized(recipe, shell, base, teacher)
    reference = measure(teacher.config) if teacher is not None and not teacher.has_scales else None
    if recipe.student.in_time and recipe.student.timed is None:
        measured = base if teacher is None or reference is None else teacher.config
        recipe = timed_recipe(recipe, base, measured, shell.conditioning.tokens, display)
    plan = _plan(recipe, base, shell.conditioning.tokens, reference)
    distilled = teacher if recipe.task == "slim" else None
    pairs = _pairs(recipe, plan, distilled) if distilled else []
    origin = None
    if teacher is not None and recipe.student.init == "teacher":
        if not teacher.has_scales:
            raise SlimdpmError("student.init: a U-Net cannot start from a transformer's weights; set it to random")
        origin = teacher.unet
    return Job(recipe, shell, plan, distilled, origin, pairs, source, conditions)


def _check_process(recipe: Recipe, shell: Shell) -> None:
    """That networks of these predictions can be trained in this process and sampled as the recipe says."""
    theirs = shell.process.prediction
    ours = recipe.student.prediction or theirs
    predictions = dict.fromkeys((ours, theirs) if recipe.task == "slim" else (ours,))
    shell.process.check_training(*predictions)
    for prediction in predictions:
        assert recipe.samples.steps is not None
        probe(shell.predicting(prediction), recipe.samples.scheduler, recipe.samples.steps, "samples.steps")
    if recipe.samples.guidance_interval is not None:
        shell.process.timesteps_within(*recipe.samples.guidance_interval)  # an error now if there is no such level


def _guided(recipe: Recipe, conditioning: Conditioning) -> Conditioning:
    """Of a student that learns guided outputs."""
    if recipe.distill.pairs != "none":
        raise SlimdpmError("distill.guidance: features are not guided, only outputs are; set distill.pairs to none")
    if not recipe.losses.terms:
        raise SlimdpmError("distill.guidance is of the teacher's answers: λ_spatial and λ_freq cannot both be 0")
    return conditioning.guided()


def _check_until(recipe: Recipe) -> None:
    """That a run which is to stop when it is good enough can know it."""
    if recipe.train.until is None:
        return
    if recipe.task != "slim":
        raise SlimdpmError("train.until compares a student with its teacher, and this run distils none: leave it out")
    if not recipe.data.held_out:
        raise SlimdpmError(
            "train.until needs images that are held out, and this run has none (by default of fewer than 1,000 "
            "images): in a new folder give --held-out 32"
        )
    if recipe.train.validate_every == 0:
        raise SlimdpmError("train.until needs the error on images held out: leave train.validate_every out")


def _sized(recipe: Recipe, shell: Shell, base: dict[str, Any], loaded: Teacher | None) -> tuple[Shell, dict[str, Any]]:
    """Shell and config at the run's size. It must be one that the autoencoder halves and that the networks keep."""
    size = recipe.data.size
    assert size is not None and recipe.student.kind is not None
    student = student_base(base, recipe.student.kind, recipe.student.fixed)
    networks = {"teacher": loaded.config if loaded is not None else base, "student": student}
    resized = fitted(shell, size, networks, "data.size")
    return resized, {**base, "sample_size": resized.size}


def _plan(recipe: Recipe, base: dict[str, Any], tokens: int, reference: Cost | None) -> Plan:
    s = recipe.student
    budget = Budget(s.width, s.ratio, s.max_macs, s.max_params)
    assert s.kind is not None
    with blamed("no student can be planned"):
        if budget == Budget() and "block_out_channels" not in s.fixed:  # train: the base itself
            config = {**base, **s.fixed}
            cost = measure(config, tokens=tokens)
            plan = Plan(config, cost, reference or cost)
        else:
            plan = plan_student(
                base,
                budget,
                kind=s.kind,
                overrides=s.fixed,
                tokens=tokens,
                reference=reference,
                layout=s.layout,
            )
    known = known_settings(plan.config)
    for key in s.fixed.keys() - known:  # diffusers would leave it out without a word
        hint = f"; did you mean {close[0]}?" if (close := get_close_matches(key, known, n=1)) else ""
        raise SlimdpmError(f"student.overrides: a {plan.config['_class_name']} takes no {key}{hint}")
    ours, given = interface(plan.config), interface(base)
    for name in sorted(ours.keys() | given.keys()):
        if ours.get(name) != given.get(name):
            values = f"{ours.get(name, 'none')}, the pipeline has {given.get(name, 'none')}"
            raise SlimdpmError(f"student.overrides: the student would have another {name} ({values})")
    return plan


def _pairs(recipe: Recipe, plan: Plan, teacher: Teacher) -> list[FeaturePair]:
    d = recipe.distill
    if not teacher.has_scales:
        if not isinstance(d.pairs, str):
            raise SlimdpmError("distill.pairs: a transformer has no blocks to pair; leave it to none")
        return []
    if not recipe.losses.terms:
        return []
    base = {**teacher.config, "sample_size": plan.config["sample_size"]}
    return match_features(plan.config, base, pairs=d.pairs, levels=d.levels)


def _beside_transformer(recipe: Recipe, teacher: Teacher) -> dict[str, Any]:
    """The topology of a transformer's student, for the same latents and classes: a transformer has no widths to slim.

    The paper's LDM-4 unless the recipe names another; the U-Net embeds the classes itself, for it cannot take the
    transformer's embedding.
    """
    name = recipe.student.base or "ldm4"
    config = {**find_network(name).config, "out_channels": teacher.unet.config.in_channels}
    if config.get("cross_attention_dim") is not None:
        raise SlimdpmError(
            f"student.base {name} has cross-attention: the student of a transformer embeds classes itself"
        )
    return config | {k: teacher.unet.config[k] for k in ("in_channels", "sample_size", "num_class_embeds")}


def _from_nothing(recipe: Recipe, source: Source, weights: bool) -> tuple[Shell, dict[str, Any]]:
    """Shell and config of a network without a teacher."""
    base, conditioning = _base_config(recipe), None
    if recipe.conditioning.kind == "class" or base.get("num_class_embeds") is not None:
        conditioning, base = new_class_labels(base, source, recipe.train.seed)
    elif base.get("cross_attention_dim") is not None:
        raise SlimdpmError("this network has cross-attention: set conditioning.kind=class, or give --like PIPELINE")
    shell = new_shell(
        base,
        timesteps=recipe.process.timesteps,
        beta_schedule=recipe.process.beta_schedule,
        prediction=recipe.student.prediction or "epsilon",
        autoencoder=recipe.autoencoder,
        conditioning=conditioning,
        weights=weights,
    )
    return shell, base


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
