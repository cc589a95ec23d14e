"""``slimdpm demo``: a teacher of garments slimmed on a CPU in minutes, three ways that are trained as long.

The teacher and the photographs come with the package, see `slimdpm.system.packaged`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimdpm.conditioning import Request
from slimdpm.demo.judge import EACH, GUIDANCE, SCHEDULER, STEPS, Judge, Verdict
from slimdpm.demo.students import MAIN, demo_recipe, train_students
from slimdpm.method.cost import Cost, measure_model
from slimdpm.method.latency import brief_latencies
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.sampling import sample_images
from slimdpm.report.figures import gallery_figure
from slimdpm.report.page import Entry, Gallery, Report, Row, Table, write_report
from slimdpm.run_folder import RunFolder
from slimdpm.system import amounts
from slimdpm.system.files import atomic_file, write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display, figures_table
from slimdpm.training.job import Job

ROWS = 3  # of samples of each network in the report
BLOCKS = 3  # of the report's in comparison.png: photographs, the package's networks, a row of samples of each of ours
NAMES = {"teacher": "teacher", "lite": "Lite", "spectral": "Spectral", "plain": "plain"}
APART = "from the teacher's"  # of a student's figures, see `Verdict.apart`
HEADINGS = (
    "network", "parameters", "MACs", "ms", "training", "error of ε", "upper half", "kernel distance", APART,
    "class named",
)  # fmt: skip
BRIEF = (0, 2, 3, 5, 7, 9)  # which of these a terminal of 80 columns has room for
LONGER = ("garments-teacher", "garments-12x")  # of the package: a teacher and its student that were trained for longer
LONGER_GUIDANCE = 3.0


def run_demo(folder: Path, *, seed: int = 0, steps: int | None = None, display: Display | None = None) -> list[Entry]:
    """Train both students, measure, write ``report.html``, ``comparison.png`` and ``results.json``.

    A demo that was stopped goes on.

    Args:
        folder: of all that.
        seed: of the training.
        steps: optimiser steps of the plain student, by default those of the recipe; the others have as many as fit into
            its seconds.
        display: where progress is shown.

    Returns:
        the teacher and the three students as the report shows them.
    """
    display = display or Display()
    judge = Judge(folder / "measured", display)  # what is missing is said before anything is trained
    jobs, students = train_students(demo_recipe(seed, steps), folder, display)
    recipe = jobs[MAIN].recipe
    pipelines = {"teacher": load_pipeline(recipe.teacher or ""), **students}
    display.say("measuring milliseconds of all networks")
    seconds = brief_latencies({name: p.unet for name, p in pipelines.items()}, seconds=4)
    costs = {"teacher": jobs[MAIN].plan.teacher_cost, **{name: job.plan.cost for name, job in jobs.items()}}
    curves = {name: RunFolder(folder / name).metrics() for name in students}
    verdicts = {name: judge.verdict(NAMES[name], pipeline) for name, pipeline in pipelines.items()}
    entries = [
        Entry(name, costs[name], verdict.samples, seconds[name], curves.get(name, ()), verdict.errors)
        for name, verdict in verdicts.items()
    ]
    results = {entry.name: _figures(entry, verdicts[entry.name]) for entry in entries}
    for name in students:
        results[name][APART] = verdicts[name].apart(verdicts["teacher"])
    write_json(folder / "results.json", {"networks": results, "photographs": {"named": judge.named}, **_facts(judge)})
    table = results_table(results, judge.named)
    gallery = _gallery(entries, judge, [_longer(name, judge.photographs.classes) for name in LONGER])
    write_report(folder / "report.html", _report(jobs, entries, judge, gallery, table, folder))
    blocks = [[(f"{name}\n{beside}", images) for name, beside, images in block] for block in gallery.blocks[:BLOCKS]]
    with atomic_file(folder / "comparison.png") as temporary:
        gallery_figure(gallery.columns, blocks).savefig(temporary, format="png")
    if display.console is not None:
        headings, *rows = ([row[column] for column in BRIEF] for row in (table.headings, *table.rows))
        display.console.print(figures_table(headings, rows))
    display.say(
        f"look at {folder / 'report.html'}; then try: slimdpm sample {folder / MAIN} --class dress, slimdpm sample "
        f"slimdpm:{LONGER[-1]} --class pants --guidance {LONGER_GUIDANCE:g} (which was trained for longer), slimdpm "
        f"export {folder / MAIN} --to web --teacher {recipe.teacher} -o site, slimdpm slim TEACHER PHOTOS"
    )
    return entries


def _figures(entry: Entry, verdict: Verdict) -> dict[str, Any]:
    """What was measured of a network."""
    last = entry.curve[-1] if entry.curve else None
    return {
        "params": entry.cost.params,
        "macs": entry.cost.macs,
        "milliseconds": 1000 * entry.seconds,
        "steps": last and last["step"],
        "seconds": last and last["seconds"],
        **verdict.figures(),
    }


def _facts(judge: Judge) -> dict[str, Any]:
    return {
        "samples": f"{EACH} of each class, guidance {GUIDANCE:g}, {SCHEDULER}, {STEPS} steps, seed 0",
        "photographs to measure with": len(judge.photographs),
        "hardware": machine_facts(),
    }


def results_table(results: Mapping[str, Mapping[str, Any]], real: float) -> Table:
    """What ``results.json`` says of each network, and which part of the photographs the classifier names."""
    rows = [
        [
            NAMES[name],
            amounts.parameters(row["params"]),
            amounts.macs(row["macs"]),
            f"{row['milliseconds']:.1f}",
            "" if row["steps"] is None else f"{row['steps']:,} steps, {row['seconds']:.0f} s",
            f"{row['error']:.4f}",
            f"{row['upper half']:.4f}",
            f"{row['kernel distance']:.3f} ± {row['its standard error']:.3f}",
            f"{row[APART]:.1f}" if APART in row else "",
            f"{row['named']:.0%}",
        ]
        for name, row in results.items()
    ]
    photographs = ["photographs", *[""] * (len(HEADINGS) - 2), f"{real:.0%}"]
    text = (
        "Error: of the noise that a network finds in noisy photographs of the test, and of its finer half; means over "
        f"five noise levels. Kernel distance: of {10 * EACH} samples' EfficientNet-lite0 features to those of these "
        "photographs, ± its standard error. From the teacher's: how far samples are from its own of the same noise, "
        "root of the mean squared difference of the pixels, which go to 255. Class named: part of the samples in which "
        "a classifier of real photographs finds the class that was asked for. Less is better but for this last one."
    )
    return Table("How good they are", text, HEADINGS, [*rows, photographs])


def _longer(name: str, classes: Sequence[str]) -> Row:
    """What a network of the package makes, one sample of each class."""
    pipeline, request = load_pipeline(f"slimdpm:{name}"), Request(classes=classes, guidance=LONGER_GUIDANCE)
    price = f"{amounts.macs(measure_model(pipeline.unet).macs)} MACs"
    return name, price, sample_images(pipeline, len(classes), steps=STEPS, scheduler=SCHEDULER, request=request)


def _gallery(entries: list[Entry], judge: Judge, longer: list[Row]) -> Gallery:
    """Photographs above, what longer training gives, then a block of all networks for each noise."""
    columns = len(judge.photographs.classes)
    upper, lower = judge.photographs.shown(2).reshape(2, columns, *judge.photographs.images.shape[1:])
    blocks: list[list[Row]] = [[("photographs", "", upper), ("", "", lower)], longer]
    for i in range(0, min(ROWS * columns, len(entries[0].samples)), columns):
        blocks.append([(NAMES[e.name], _price(e.cost, e.seconds), e.samples[i : i + columns]) for e in entries])
    text = (
        "Below photographs of the test, two networks of the package: what minutes of a GPU make of a teacher, and an "
        f"hour or two of a CPU of a student of a twelfth of its MACs (guidance {LONGER_GUIDANCE:g}). Then what was "
        "trained here, in a minute each; the same noise in each column of a block: what the teacher makes of it, and "
        "what three networks do that are many times smaller. Beside the names MACs and milliseconds of a step. Nothing "
        "is chosen among photographs or samples."
    )
    return Gallery(text, judge.photographs.classes, blocks)


def _price(cost: Cost, seconds: float) -> str:
    return f"{amounts.macs(cost.macs)} MACs, {seconds * 1e3:.1f} ms"


def _report(
    jobs: Mapping[str, Job], entries: list[Entry], judge: Judge, gallery: Gallery, table: Table, folder: Path
) -> Report:
    job = jobs[MAIN]
    recipe = job.recipe
    told = ", ".join(f"{NAMES[name]} {each.recipe.train.steps:,}" for name, each in jobs.items())
    return Report(
        title="A diffusion model of garments, made slim",
        summary=f"{job.plan.ratio:.1f} times fewer MACs, three ways, each with as many seconds of training: distilled, "
        "with the teacher's own resampling (plain) or with wavelet gates (Spectral), and trained on the photographs "
        "alone (Lite). All start from the teacher's most important channels.",
        gallery=gallery,
        tables=[table],
        entries=entries,
        real=judge.photographs.images,
        facts={
            "training": f"{told} steps of {recipe.train.batch_size} photographs: as many as take the same seconds",
            "seed": str(recipe.train.seed),
            "data": f"{len(job.source):,} photographs of garments at 32×32 (CC0), {len(judge.photographs)} others to "
            "measure with",
            "samples": str(_facts(judge)["samples"]),
            **machine_facts(),
        },
        recipe=recipe.to_yaml(),
        card=job.card(),
        student=str(folder / MAIN / "student"),
    )
