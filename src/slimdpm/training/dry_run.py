"""What a run would be, told without starting it: ``slimdpm slim --dry-run``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from slimdpm.method.cost import Cost
from slimdpm.method.losses import TERMS
from slimdpm.system.amounts import storage
from slimdpm.system.sizes import described
from slimdpm.training.accelerator import split_batch
from slimdpm.training.job import Job
from slimdpm.training.memory import estimate_memory

_MEMORY = {
    "student": "student and aligners",
    "gradients": "their gradients",
    "moments": "AdamW's moments",
    "average": "running average",
    "buckets": "gradients on their way",
    "teacher": "teacher",
    "frozen": "autoencoder, encoders",
    "kept": "the teacher's kept answers",
    "step": "activations of a step",
    "sampling": "or samples in between",
}
_WIDTH = 15  # of the labels


def forecast(job: Job, *, processes: int = 1, resumes_at: int = 0) -> dict[str, Any]:
    """Everything about a run that is known before it: plain values, for JSON.

    Args:
        job: planned, with or without weights.
        processes: that share it.
        resumes_at: the step of the newest checkpoint in its folder.

    Returns:
        networks with their cost (MACs of one forward pass, batch 1), feature pairs, conditioning, data, training, the
        whole recipe, and the memory in bytes on each device.

    Raises:
        SlimdpmError: if the processes cannot share the batch.
    """
    recipe, plan, train = job.recipe, job.plan, job.recipe.train
    micro_batch, accumulation = split_batch(recipe, processes)
    memory = estimate_memory(job, processes)
    seen = None if train.undecided else train.steps * train.batch_size
    return {
        "student": _network(plan.config, plan.cost),
        "reference": _reference(job),
        "first_weights": recipe.student.init,
        "about_first_weights": job.first_weights,
        "time": str(recipe.student.timed) if recipe.student.timed is not None else None,
        "feature_pairs": [str(pair) for pair in job.pairs],
        "conditioning": job.shell.conditioning.describe(recipe.conditioning.drop),
        "data": {
            "about": recipe.data.described(len(job.source)),
            "images": len(job.source),
            "held_out": recipe.data.held_out,
            "size": job.shell.image_size,
        },
        "training": {
            "processes": processes,
            "micro_batch": micro_batch,
            "accumulation": accumulation,
            "uses": job.uses,
            "resumes_at": resumes_at,
            "images_seen": seen,
            "epochs": seen and seen / (len(job.source) - (recipe.data.held_out or 0)),
            "default_steps": "steps" not in train.model_fields_set,
            "time": str(train.timed) if train.timed is not None else None,
        },
        "memory": memory.as_dict(),
        "recipe": recipe.plain(),
    }


def _network(config: Mapping[str, Any], cost: Cost) -> dict[str, Any]:
    channels = config.get("block_out_channels")
    return {"class": config["_class_name"], "channels": channels and list(channels), **asdict(cost)}


def _reference(job: Job) -> dict[str, Any] | None:
    """What the student is measured against: the teacher, or the network that is slimmed without distillation."""
    cost, theirs = job.plan.cost, job.plan.teacher_cost
    if job.teacher is None and cost == theirs:
        return None
    name = job.teacher.name if job.teacher else job.recipe.teacher or job.recipe.student.base
    known = _network(job.teacher.config, theirs) if job.teacher else asdict(theirs)
    return {"name": name, **known, "ratio": theirs.macs / cost.macs, "ratio_all": theirs.macs_all / cost.macs_all}


def lines(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A `forecast` for people: labels and what they say. A label is empty where the one before goes on."""
    student, reference, recipe = values["student"], values["reference"], values["recipe"]
    if reference is not None:
        yield ("teacher" if recipe["task"] == "slim" else "measured by"), f"{reference['name']}: {_cost(reference)}"
    yield "student", _cost(student)
    if reference is not None:
        yield "", f"{reference['ratio']:.2f} times fewer MACs conv+linear, {reference['ratio_all']:.2f} times all"
    if values["time"] is not None:
        yield "time", values["time"]
    yield "first weights", values["about_first_weights"]
    if recipe["task"] == "slim":
        yield from _rows("feature pairs", values["feature_pairs"] or ["none, the outputs only"])
    conditioning = (values["conditioning"] or "none").removeprefix("conditioning: ")
    yield from _rows("conditioning", conditioning.splitlines())
    yield from _training(values)
    yield from _memory(values["memory"])


def _cost(network: Mapping[str, Any]) -> str:
    channels = network.get("channels")
    widths = f" {'-'.join(str(c) for c in channels)}" if channels else ""
    name = f"{network['class']}{widths}, " if "class" in network else ""
    return name + str(Cost(network["params"], network["macs"], network["macs_all"]))


def _training(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    recipe, data, shares = values["recipe"], values["data"], values["training"]
    train, distill = recipe["train"], recipe["distill"]
    yield "data", f"{data['about']} as {described(data['size'])}"
    if data["held_out"]:
        yield "", f"{data['held_out']:,} are held out"
    if train["until"] is not None:
        yield "", f"until the student's error on them is at most {train['until']:g} times the teacher's"
    split = f"{shares['processes']} x {shares['micro_batch']} at once"
    more = f", {shares['accumulation']} times" if shares["accumulation"] > 1 else ""
    count = f"{train['steps']:,}" if "steps" in train else f"as many as fit into {train['hours']:g} hours, each"
    yield "steps", f"{count} of {train['batch_size']} images: {split}{more}"
    if shares["time"] is not None:
        yield "", shares["time"]
    if "steps" not in train:
        yield "", "how many is measured when the run starts and kept in its recipe"
    elif shares["default_steps"]:
        yield "", "the default; --hours 2 takes as many as fit; a run says after 20 steps how long it takes here"
    if shares["resumes_at"]:
        yield "", f"resuming after step {shares['resumes_at']:,}"
    if "steps" in train:
        yield "images seen", f"{shares['images_seen']:,}, {shares['epochs']:,.1f} epochs"
    warmup = "a tenth, at most 500" if train["warmup"] is None else train["warmup"]
    yield "optimiser", f"AdamW, lr {train['lr']:g} {train['schedule']}, {warmup} steps of warm-up"
    yield "", f"running average {train['ema']:g}, gradients clipped to {train['clip']}"
    gamma = train["snr_gamma"]
    denoising = "denoising" + (f" by min-SNR, γ {gamma:g}" if gamma != "none" else "")
    if recipe["task"] == "slim":
        settings = {name[0]: setting for name, (setting, _) in TERMS.items()}
        if distill["lambda_denoising"] != 1:
            settings = {"d": "lambda_denoising", **settings}
        factors = ", ".join(f"λ_{letter} {distill[setting]:g}" for letter, setting in settings.items())
        omega = f"α {distill['alpha']:g}, ω scaled to {distill['weight_scaling']}"
        yield "losses", f"{', '.join((denoising, *TERMS))}: {factors}, {omega}"
        if shares["uses"] > 1:
            yield "", f"each answer of the teacher serves {shares['uses']} steps"
        if distill["guidance"] > 1:
            yield "", f"they are guided, scale {distill['guidance']:g}: the student's samples need no guidance"
    else:
        yield "loss", denoising
    yield "precision", train["precision"]


def _memory(memory: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    yield "memory", f"{storage(memory['total'])} on each device, estimated; workspaces of kernels come on top"
    for part, label in _MEMORY.items():
        if memory[part]:
            yield "", f"{label:<24}{storage(memory[part]):>9}"


def _rows(label: str, rows: list[str]) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(rows):
        yield ("" if number else label), row


def labelled(label: str) -> str:
    """A label, padded so that what it says stands in one column."""
    return f"{label:<{_WIDTH}}"
