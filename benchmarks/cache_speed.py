"""Training speed with latents kept on the disk and without, and how well the two agree.

    python benchmarks/cache_speed.py PHOTOS --output benchmarks/results/cache_speed.json

PHOTOS is a folder of photographs (the figures are of the CC0 "clothing dataset (small)" by Alexey Grigorev, its train
split); the first of them are taken. The pipelines are an LDM-4 (VQ) and an LDM-8 (KL) of 128x128 images with about half
the width of the originals at half their size, random weights: speed does not depend on what they have learnt. Two runs
of one recipe train in turns, one from kept latents and one that decodes and encodes each batch. Times are of the
processor, on one core: what else the machine does does not count. About two minutes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DModel, VQModel
from torch.utils.flop_counter import FlopCounterMode

from slimdpm.data.folder import image_files
from slimdpm.recipe import Recipe
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.training.accelerator import make_accelerator
from slimdpm.training.job import Job
from slimdpm.training.plan import plan_job
from slimdpm.training.run import new_trainer
from slimdpm.training.trainer import Trainer

# Levels of the autoencoder, its latents, the teacher's width.
PIPELINES = {
    "LDM-4, VQ": (VQModel, (64, 128, 256), 3, 96),
    "LDM-8, KL": (AutoencoderKL, (64, 128, 256, 256), 4, 96),
}
SIZE = 128
STUDENT = 32  # its width: about 10 times fewer MACs than the teacher's 96


def pipeline_of(kind: type, levels: tuple[int, ...], channels: int, width: int) -> LDMPipeline:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * len(levels), "layers_per_block": 2}
    blocks["up_block_types"] = ("UpDecoderBlock2D",) * len(levels)
    autoencoder = kind(block_out_channels=levels, latent_channels=channels, **blocks)
    unet = UNet2DModel(
        sample_size=SIZE // 2 ** (len(levels) - 1),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(width * m for m in (1, 2, 3, 4)),
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        attention_head_dim=32,
    )
    return LDMPipeline(autoencoder, unet, DDIMScheduler(clip_sample=False))


def encoder_macs(autoencoder: torch.nn.Module) -> int:
    """Of one image, convolutions, linear layers and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        autoencoder.encode(torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops() // 2


def recipe_of(photos: Path, steps: int, batch: int) -> Recipe:
    settings = {
        "data.path": str(photos),
        "data.flip": True,
        "data.workers": 0,
        "student.width": STUDENT,
        "distill.pairs": "auto",
        "distill.lambda_spatial": 0.1,
        "distill.lambda_freq": 0.1,
        "train.snr_gamma": "none",  # as when it ran
        "train.steps": steps,
        "train.batch_size": batch,
        "train.log_every": 1,
        "train.checkpoint_every": steps,
        "train.trackers": [],
        "train.sample_every": 0,
    }
    return load_recipe(None, settings=settings)


def trainer_of(job: Job, folder: Path) -> tuple[Trainer, float]:
    """What trains, and the seconds in which it and its data were made ready."""
    run = RunFolder(folder)
    run.open(job.recipe)
    accelerator = make_accelerator(job.recipe, run)
    start = time.process_time()
    trainer = new_trainer(job, run, accelerator)
    seconds = time.process_time() - start
    run.close()
    return trainer, seconds


def measure(name: str, photos: Path, work: Path, steps: int, batch: int) -> dict:
    pipeline = pipeline_of(*PIPELINES[name])
    job = plan_job(recipe_of(photos, steps, batch), teacher=pipeline)
    kept, build = trainer_of(job, work / "kept")
    _, again = trainer_of(job, work / "kept")
    data = job.recipe.data.model_copy(update={"cache": False})
    anew, _ = trainer_of(replace(job, recipe=job.recipe.model_copy(update={"data": data})), work / "anew")
    seconds: dict[str, list[float]] = {"kept": [], "anew": []}
    walks = {"kept": kept.steps(), "anew": anew.steps()}
    for _ in range(steps):
        for run, walk in walks.items():
            start = time.process_time()
            next(walk)
            seconds[run].append(time.process_time() - start)
    medians = {run: statistics.median(values[1:-1]) for run, values in seconds.items()}  # the last one saves
    curves = [[line["loss"] for line in RunFolder(work / run).metrics()] for run in ("kept", "anew")]
    differences = [abs(one - two) / two for one, two in zip(*curves, strict=True)]
    files = [file.stat().st_size for file in (work / "kept/cache").rglob("*.safetensors")]
    return {
        "macs of an image": {
            "encoder": encoder_macs(pipeline.vqvae),
            "teacher": job.plan.teacher_cost.macs_all,
            "student": job.plan.cost.macs_all,
        },
        "images": len(kept.images),
        "seconds to encode them and their mirror images": round(build - again, 2),
        "seconds to get ready from what is kept": round(again, 2),
        "bytes kept": sum(files),
        "seconds of a step, kept": round(medians["kept"], 4),
        "seconds of a step, encoded anew": round(medians["anew"], 4),
        "times faster": round(medians["anew"] / medians["kept"], 3),
        "loss, first and last": [curves[0][0], curves[0][-1]],
        "largest relative difference of the losses": max(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cache_speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in PIPELINES:
        with tempfile.TemporaryDirectory() as folder:
            few = Path(folder) / "photos"
            few.mkdir()
            for i, file in enumerate(image_files(options.photos)[: options.images]):
                shutil.copy(file, few / f"{i:04d}{file.suffix}")
            results[name] = measure(name, few, Path(folder), options.steps, options.batch)
        print(name, results[name], flush=True)
    settings = {"size": SIZE, "batch": options.batch, "steps": options.steps}
    write_json(options.output, {"hardware": machine_facts(), "settings": settings, "results": results})


if __name__ == "__main__":
    main()
