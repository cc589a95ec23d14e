r"""The teachers of garments: how they begin, and what they are worth.

``slimdpm:garments-teacher-long`` predicts the noise; it begins untrained and takes minutes of a GPU:

    python benchmarks/garments_teacher.py begin runs/long-begin
    slimdpm train slimdpm:garments -o runs/long-first --like runs/long-begin --recipe recipes/garments-teacher-long.yaml
    slimdpm train slimdpm:garments -o runs/long --like runs/long-first --recipe recipes/garments-teacher-long.yaml \
        --steps 1731 --set student.init=teacher --set train.batch_size=512 --set train.lr=7e-4 --set train.warmup=100
    python benchmarks/garments_teacher.py measure runs/long clothing --work runs/long-measured \
        --name garments_teacher_long

``slimdpm:garments-teacher``, that of the packaged students, learns from it to predict v, on a CPU, and trains on with
the photographs, on a GPU:

    slimdpm slim --recipe recipes/garments-teacher-v.yaml -o runs/garments-v
    slimdpm train slimdpm:garments -o runs/teacher --like runs/garments-v --recipe recipes/garments-teacher.yaml
    python benchmarks/garments_teacher.py measure runs/teacher clothing --work runs/teacher-measured

``slimdpm:garments-teacher-small``, the demo's, begins as the ablation's teacher, which knows no classes and has seen
160,000 images: with an embedding of the ten classes that adds nothing at first.

    python benchmarks/garments_teacher.py begin-small runs/small-begin
    slimdpm train clothing/train -o runs/garments-small --like runs/small-begin \
        --recipe recipes/garments-teacher-small.yaml
    python benchmarks/garments_teacher.py measure runs/garments-small clothing --work runs/small-measured \
        --name garments_teacher_small --guidance 1 2

Measured on the photographs of ``validation/`` and ``test/``, which nothing is trained on: kernel distance, the share of
samples whose class a classifier of real photographs names, and whether a teacher remembers: how near its samples are to
photographs that it was trained on, beside as many that it has never seen. Saves garments_teacher.json, and
garments_teacher.png with the nearest training photographs of twenty samples. ``choose`` sets several runs beside each
other, on the photographs of ``validation/`` alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.run import kept_teacher
from ablation.tables import markdown
from diffusers import DDPMScheduler, UNet2DModel
from garments import CLASSES, SAMPLES, Judge
from rich.console import Console

from slimdpm.demo.judge import Photographs
from slimdpm.method.cost import measure_model
from slimdpm.method.networks import build
from slimdpm.pipelines import ClassConditionalLDMPipeline
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.report.figures import gallery_figure
from slimdpm.run_folder import RunFolder
from slimdpm.system.documents import read_json
from slimdpm.system.files import atomic_file, write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display

RESULTS = Path(__file__).parent / "results"
CHOICES = RESULTS / "garments_teacher_long_choices.json"
CHANNELS, DROPOUT = (32, 64, 128), 0.1
SHOWN = 20  # samples beside their nearest training photographs, of the highest guidance


def begin_small(folder: Path) -> None:
    """The ablation's teacher with an embedding of classes, all zeros."""
    unconditional = load_pipeline(kept_teacher("32"))
    unet = build({**unconditional.unet.config, "_class_name": "UNet2DModel", "num_class_embeds": len(CLASSES) + 1})
    unet.load_state_dict(unconditional.unet.state_dict(), strict=False)
    torch.nn.init.zeros_(unet.class_embedding.weight)
    _save(unet, DDPMScheduler.from_config(unconditional.scheduler.config), folder)


def begin(folder: Path, channels: Sequence[int], dropout: float) -> None:
    """An untrained network."""
    lower = len(channels) - 2  # levels with attention
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2 + ("AttnDownBlock2D",) * lower,
        up_block_types=("AttnUpBlock2D",) * lower + ("UpBlock2D",) * 2,
        attention_head_dim=16,
        norm_num_groups=8,
        freq_shift=0,
        dropout=dropout,
        num_class_embeds=len(CLASSES) + 1,
    )
    _save(unet, DDPMScheduler(), folder)


def _save(unet: Any, scheduler: DDPMScheduler, folder: Path) -> None:
    """With the ten classes, and one that stands for none."""
    names = dict(enumerate(CLASSES))
    ClassConditionalLDMPipeline(
        unet=unet, scheduler=scheduler, vqvae=None, class_embedder=None, id2label=names, null_class=len(CLASSES)
    ).save_pretrained(folder)


def judge(
    run: Path, scales: Sequence[float], photographs: Path, work: Path, picture: Path, display: Display
) -> dict[str, Any]:
    """All figures; the picture is drawn besides."""
    judge = Judge(photographs, work, display, ("train",))
    pipeline = load_pipeline(run)
    found: dict[str, Any] = {
        "hardware": machine_facts(),
        "cost": vars(measure_model(pipeline.unet)),
        "training": _training(run),
        "samples": SAMPLES,
        "photographs": {name: len(part) for name, part in judge.parts.items()},
        "photographs named": judge.named,
        "guidance": {},
    }
    for scale in scales:
        images, features = judge.samples("samples", pipeline, scale)
        near = _nearest(features, judge.parts["train"].features, judge.real)
        found["guidance"][f"{scale:g}"] = judge.verdict(features) | {"distance to the nearest photograph": near}
    _draw(images[:SHOWN], features[:SHOWN], judge.parts["train"], picture)
    return found


def choose(
    runs: Sequence[Path], scales: Sequence[float], photographs: Path, work: Path, display: Display
) -> dict[str, Any]:
    """How near guided samples of several runs are to the photographs of ``validation/``; adds to earlier results."""
    judge = Judge(photographs, work, display, unseen=("validation",))
    found: dict[str, Any] = {"hardware": machine_facts(), "samples": SAMPLES, "photographs": len(judge.real)}
    found["candidates"] = read_json(CHOICES)["candidates"] if CHOICES.exists() else {}
    for run in runs:
        pipeline = load_pipeline(run)
        config = pipeline.unet.config
        found["candidates"][run.name] = {
            "channels": list(config.block_out_channels),
            "dropout": config.dropout,
            "cost": vars(measure_model(pipeline.unet)),
            "training": _training(run),
            "guidance": {f"{scale:g}": judge.verdict(judge.samples(run.name, pipeline, scale)[1]) for scale in scales},
        }
        write_json(CHOICES, found)
    return found


def _training(run: Path) -> dict[str, Any]:
    recipe, log = RunFolder(run).recipe(), RunFolder(run).metrics()
    images = log[-1]["step"] * recipe.train.batch_size
    return {"steps": log[-1]["step"], "images": images, "seconds": log[-1]["seconds"], "lr": recipe.train.lr}


def _nearest(features: np.ndarray, trained: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Medians over the samples, to as many photographs of each kind."""
    chosen = np.random.default_rng(0).permutation(len(trained))[: len(unseen)]
    sets = {"trained on": trained[chosen], "never seen": unseen}
    return {name: float(np.median(_distances(features, some).min(axis=1))) for name, some in sets.items()}


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return torch.cdist(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _draw(images: np.ndarray, features: np.ndarray, trained: Photographs, picture: Path) -> None:
    near = trained.images[_distances(features, trained.features).argmin(axis=1)]
    count = len(CLASSES)
    blocks = [
        [("sample", images[i : i + count]), ("nearest", near[i : i + count])] for i in range(0, len(images), count)
    ]
    with atomic_file(picture) as temporary:
        gallery_figure(CLASSES, blocks).savefig(temporary, format="png")


def table(found: dict[str, Any]) -> str:
    rows = [
        [
            scale,
            f"{row['kernel distance']:.3f}",
            f"{row['named']:.1%}",
            " / ".join(f"{value:.2f}" for value in row["distance to the nearest photograph"].values()),
        ]
        for scale, row in found["guidance"].items()
    ]
    return markdown(["guidance", "kernel distance", "class named", "nearest photograph: trained on / never seen"], rows)


def choices_table(found: dict[str, Any]) -> str:
    rows = []
    for name, one in found["candidates"].items():
        told = [f"{scale}: {v['kernel distance']:.3f}, {v['named']:.1%}" for scale, v in one["guidance"].items()]
        rows.append([name, f"{one['training']['steps']:,}", f"{one['training']['seconds']:.0f}", "; ".join(told)])
    return markdown(["candidate", "steps", "seconds", "guidance: kernel distance, class named"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("begin-small").add_argument("folder", type=Path)
    beginning = tasks.add_parser("begin")
    beginning.add_argument("folder", type=Path)
    beginning.add_argument("--channels", type=int, nargs="+", default=CHANNELS)
    beginning.add_argument("--dropout", type=float, default=DROPOUT)
    measuring = tasks.add_parser("measure")
    measuring.add_argument("run", type=Path)
    measuring.add_argument("photographs", type=Path, help="the folder with train, validation and test")
    measuring.add_argument("--work", type=Path, required=True)
    measuring.add_argument("--name", default="garments_teacher", help="of the results")
    measuring.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    choosing = tasks.add_parser("choose", help="of several runs")
    choosing.add_argument("runs", type=Path, nargs="+")
    choosing.add_argument("photographs", type=Path)
    choosing.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.0])
    choosing.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    if options.task == "choose":
        found = choose(options.runs, options.guidance, options.photographs, options.work, Display(Console()))
        print(choices_table(found))
        return
    if options.task == "begin-small":
        begin_small(options.folder)
        return
    if options.task == "begin":
        begin(options.folder, options.channels, options.dropout)
        return
    result = RESULTS / f"{options.name}.json"
    picture = result.with_suffix(".png")
    found = judge(options.run, options.guidance, options.photographs, options.work, picture, Display(Console()))
    write_json(result, found)
    print(table(found))
    print(json.dumps(found["training"]), f"photographs named: {found['photographs named']:.1%}")


if __name__ == "__main__":
    main()
