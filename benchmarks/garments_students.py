"""The students of garments that come with the package, and a fair Lite beside the middle one.

    python benchmarks/garments_students.py train --work runs/garments-students
    python benchmarks/garments_students.py measure clothing --work runs/garments-students
    python benchmarks/garments_students.py pack --work runs/garments-students

`recipes/garments-students.yaml` at three ratios. The Lite has the same start and weighting as the 12 times smaller one,
the photographs alone, and as many seconds: processor time of one thread, steps of both taken in turn before it is
trained. Those of the result were trained on a GPU instead, for as many seconds of that: they are ``12-plain-0`` and
``12-lite-0`` of garments_seconds.py, copied to ``garments-12x-gpu`` and ``garments-12x-lite``. The packaged ones were
trained for longer: ``--set train.steps=6000`` (8 times smaller), ``9000`` (12 times) and ``7500`` (18 times). All are
measured beside their teacher on the photographs of ``validation/`` and ``test/``, which nothing is trained on.
Everything resumes; saves garments_students.json, and the samples and the picture of the README.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.tables import markdown
from garments import CLASSES, SAMPLES, Judge
from pack_assets import pack_pipeline
from PIL import Image
from rich.console import Console

from slimdpm.demo.run import APART
from slimdpm.demo.students import demo_recipe, lasting, lite_recipe, seconds_per_step
from slimdpm.method.cost import measure_model
from slimdpm.method.latency import brief_latencies
from slimdpm.metrics.pairs import pixels_apart
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.report.figures import gallery_figure
from slimdpm.run_folder import RunFolder
from slimdpm.system import amounts
from slimdpm.system.files import atomic_file, write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.packaged import ASSETS
from slimdpm.system.progress import Display
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

HERE = Path(__file__).parent
CARD = """---
library_name: diffusers
license: cc0-1.0
tags: [slimdpm, class-conditional-image-generation]
---
# slimdpm:{name}

Garments of ten classes at 32x32 pixels, from a network with {ratio} times fewer multiply-adds than its teacher,
slimdpm:garments-teacher.

```bash
slimdpm sample slimdpm:{name} --class dress
```

**Training**: distilled by recipes/garments-students.yaml, {steps} steps of {batch} images, from 3,068 photographs of
"Clothing dataset (small)" by Alexey Grigorev and those who gave photographs (CC0 1.0).

**Measured** beside {unseen} photographs that nothing is trained on: {samples},
guidance {guidance:g}. A classifier names the class of {real} of the photographs:

{table}
*From the teacher's*: root mean square of the difference of the pixels, of 255, to the teacher's samples of the same
noise; in brackets what two of its own samples of a class are apart.

**Limits**: a small network after a short training, at 32x32 pixels. Most garments can be made out, hats and shoes
hardly; it is here to try what slimdpm makes, not to make pictures. Weights are in half precision.
"""
RECIPE = HERE.parent / "recipes/garments-students.yaml"
RESULTS = HERE / "results/garments_students.json"
SHEET = HERE / "results/garments_students.png"  # samples as they are: a row of classes for each of `SHOWN`, twice
PICTURE = HERE.parent / "docs/figures/slimmed.png"
TEACHER = "slimdpm:garments-teacher"
RATIOS = (12, 8, 18)
MIDDLE = "garments-12x"
LITE = f"{MIDDLE}-lite"
EQUAL = f"{MIDDLE}-gpu"  # trained for as many seconds as Lite
GUIDANCE = (1.0, 3.0)
SHOWN_AT = GUIDANCE[-1]
SHOWN = {"photographs": "photographs", "teacher": "teacher", LITE: "plain small\nnetwork (Lite)", EQUAL: "our student"}
ROWS = 2
COLUMNS = ("longsleeve", "outwear", "pants", "shirt", "t-shirt")  # of the README's picture


def students() -> dict[str, float]:
    return {f"garments-{ratio}x": float(ratio) for ratio in RATIOS}


def train(work: Path, names: list[str], display: Display) -> None:
    """What is left of the three students and the Lite."""
    recipes = {}
    for name, ratio in students().items():
        recipe = demo_recipe(file=RECIPE)
        recipes[name] = recipe.model_copy(update={"student": recipe.student.model_copy(update={"ratio": ratio})})
    recipes[LITE] = lite_recipe(recipes[MIDDLE])
    jobs = {name: plan_job(recipe, folder=work / name) for name, recipe in recipes.items()}
    pair = {name: jobs[name] for name in (MIDDLE, LITE)}
    seconds = seconds_per_step(pair, work, display)
    jobs[LITE] = lasting(jobs[LITE], round(jobs[MIDDLE].recipe.train.steps * seconds[MIDDLE] / seconds[LITE]))
    for name in names:
        run_job(jobs[name], work / name, display, report=False)


def measured(photographs: Path, work: Path, display: Display) -> dict[str, Any]:
    """All figures; the samples that are shown are kept besides."""
    judge = Judge(photographs, work / "measured", display)
    pipelines = {
        "teacher": load_pipeline(TEACHER),
        **{name: load_pipeline(work / name) for name in [*students(), EQUAL, LITE]},
    }
    display.say("measuring milliseconds")
    seconds = brief_latencies({name: pipeline.unet for name, pipeline in pipelines.items()}, seconds=10)
    networks: dict[str, Any] = {}
    shown = {"photographs": judge.parts["test"].shown(ROWS)}
    teachers: dict[float, np.ndarray] = {}  # samples, by guidance
    for name, pipeline in pipelines.items():
        networks[name] = {
            "cost": vars(measure_model(pipeline.unet)),
            "milliseconds": 1000 * seconds[name],
            "training": None if name == "teacher" else _training(work / name),
            "guidance": {},
        }
        for scale in GUIDANCE:
            images, features = judge.samples(name, pipeline, scale)
            # The teacher's own stand beside the next of their class, which have nothing to do with them.
            others = teachers.setdefault(scale, images)
            off = pixels_apart(images, np.roll(images, len(CLASSES), axis=0) if others is images else others)
            networks[name]["guidance"][f"{scale:g}"] = {**judge.verdict(features), APART: float(off.mean())}
            if scale == SHOWN_AT and name in SHOWN:
                shown[name] = images[: ROWS * len(CLASSES)]
    sheet = np.concatenate([np.concatenate([*row], axis=1) for name in SHOWN for row in np.split(shown[name], ROWS)])
    with atomic_file(SHEET) as temporary:
        Image.fromarray(sheet).save(temporary, "PNG", optimize=True)
    return {
        "hardware": machine_facts(),
        "samples": SAMPLES,
        "photographs": {name: len(part) for name, part in judge.parts.items()},
        "photographs named": judge.named,
        "networks": networks,
    }


def _training(run: Path) -> dict[str, Any]:
    recipe, last = RunFolder(run).recipe(), RunFolder(run).metrics()[-1]
    told = {"steps": last["step"], "batch size": recipe.train.batch_size, "seconds": last["seconds"]}
    return {**told, **{key: last[key] for key in ("held_out", "held_out_teacher") if key in last}}


def pack(work: Path, found: dict[str, Any]) -> None:
    """The three students into the package, in half precision, each with its card."""
    for name in students():
        pack_pipeline(work / name, ASSETS / name)
        (ASSETS / name / "README.md").write_text(card(name, found), encoding="utf-8")


def apart(network: dict[str, Any]) -> str:
    """How far a student's guided samples are from the teacher's; the teacher's own from each other, in brackets."""
    pixels = f"{network['guidance'][f'{SHOWN_AT:g}'][APART]:.1f}"
    return pixels if network["training"] else f"({pixels})"


def card(name: str, found: dict[str, Any]) -> str:
    """What is to be known of a student by those who use it."""
    ours, teacher = found["networks"][name], found["networks"]["teacher"]
    ratio = teacher["cost"]["macs"] / ours["cost"]["macs"]
    rows = [
        [
            who,
            amounts.parameters(network["cost"]["params"]),
            amounts.macs(network["cost"]["macs"]),
            f"{network['milliseconds']:.1f} ms",
            f"{guided['kernel distance']:.3f}",
            f"{guided['named']:.0%}",
            apart(network),
        ]
        for who, network in (("this student", ours), ("its teacher", teacher))
        for guided in [network["guidance"][f"{SHOWN_AT:g}"]]
    ]
    heads = ["", "parameters", "MACs", "a step, one CPU thread", "kernel distance", "class named", APART]
    return CARD.format(
        name=name,
        guidance=SHOWN_AT,
        ratio=f"{ratio:.1f}",
        steps=f"{ours['training']['steps']:,}",
        batch=ours["training"]["batch size"],
        unseen=found["photographs"]["validation"] + found["photographs"]["test"],
        real=f"{found['photographs named']:.0%}",
        samples=found["samples"],
        table=markdown(heads, rows),
    )


def draw(found: dict[str, Any]) -> None:
    """The README's picture, of the first sample of each class."""
    sheet = np.asarray(Image.open(SHEET).convert("RGB"))
    size = sheet.shape[1] // len(CLASSES)
    rows = []
    for number, (name, title) in enumerate(SHOWN.items()):
        top = number * ROWS * size
        tiles = [sheet[top : top + size, (at := CLASSES.index(c) * size) : at + size] for c in COLUMNS]
        network = found["networks"].get(name)
        price = network and f"\n{amounts.macs(network['cost']['macs'])} MACs, {network['milliseconds']:.0f} ms"
        rows.append((title + (price or ""), np.stack(tiles)))
    with atomic_file(PICTURE) as temporary:
        gallery_figure(COLUMNS, [rows]).savefig(temporary, format="png")


def table(found: dict[str, Any]) -> str:
    worth = ["kernel distance", "guided", "class named", "guided", f"{APART}, guided"]
    heads = ["network", "parameters", "MACs", "ms", "steps", "images", *worth]
    rows = []
    for name, network in found["networks"].items():
        free, guided = (network["guidance"][f"{scale:g}"] for scale in GUIDANCE)
        training = network["training"]
        seen = [training["steps"], training["steps"] * training["batch size"]] if training else []
        rows.append(
            [
                name,
                amounts.parameters(network["cost"]["params"]),
                amounts.macs(network["cost"]["macs"]),
                f"{network['milliseconds']:.1f}",
                *([f"{number:,}" for number in seen] or ["", ""]),
                *(f"{v['kernel distance']:.3f} ± {v['its standard error']:.3f}" for v in (free, guided)),
                *(f"{v['named']:.0%}" for v in (free, guided)),
                apart(network),
            ]
        )
    return markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    training = tasks.add_parser("train")
    training.add_argument("--work", type=Path, required=True)
    training.add_argument("--only", nargs="+", choices=[*students(), LITE], default=[*students(), LITE])
    measuring = tasks.add_parser("measure")
    measuring.add_argument("photographs", type=Path, help="the folder with train, validation and test")
    measuring.add_argument("--work", type=Path, required=True)
    tasks.add_parser("pack").add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task == "train":
        train(options.work, options.only, Display(Console()))
        return
    if options.task == "measure":
        write_json(RESULTS, measured(options.photographs, options.work, Display(Console())))
    found = json.loads(RESULTS.read_text())
    if options.task == "pack":
        pack(options.work, found)
        return
    draw(found)
    print(table(found))


if __name__ == "__main__":
    main()
