"""What a training step takes: ours beside a plain loop, and what each measure brings.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py
    python benchmarks/train_step.py --device cuda --batch 256 --peak 989

The plain loop is written as one would write it from the paper: the teacher is asked at each step, both outputs are
transformed in the whole plane, AdamW and the average as they come. Its loss is compared with ours before anything is
timed. Teachers are the demo's and the ablation's, students as `slimdpm slim --ratio 8` plans them, images random: what
they show costs nothing. All rows take turns in one process, a group of steps each, and the median counts; on a CPU the
processor's time of one thread. Saves train_step.json, or train_step_cuda.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.run import kept_teacher
from ablation.tables import markdown
from diffusers.training_utils import EMAModel
from torch import Tensor

import slimdpm
from slimdpm.api import planned
from slimdpm.data.images import to_model_range
from slimdpm.method.cost import measure
from slimdpm.method.distiller import TappedStudent
from slimdpm.method.inherit import inherited_weights
from slimdpm.method.latency import step_seconds
from slimdpm.method.networks import build
from slimdpm.run_folder import RunFolder
from slimdpm.system.devices import synchronize
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.training.accelerator import make_accelerator
from slimdpm.training.job import Job
from slimdpm.training.run import new_trainer

RESULTS = Path(__file__).parent / "results"
TEACHERS = {"demo": "demo:teacher", "ablation": str(kept_teacher("32"))}
GROUP, ROUNDS = 8, 7  # steps between two looks at the clock: whole groups of every reuse; one round more comes first
PLAIN = "plain loop"
ROWS: dict[str, dict[str, Any]] = {
    "slimdpm, reuse 1": {"distill.reuse": 1},
    "slimdpm, reuse 4 (default)": {},
    "slimdpm, reuse 8": {"distill.reuse": 8},
    "images alone": {},  # the fair Lite: no teacher is asked
}
ON_CUDA: dict[str, dict[str, Any]] = {
    "slimdpm, bf16": {"train.precision": "bf16"},
    "slimdpm, bf16, compiled": {"train.precision": "bf16", "train.compile": True},
}


class PlainLoop:
    """Distillation as one would write it from the paper, on the networks of a job."""

    def __init__(self, job: Job, images: np.ndarray, device: torch.device):
        assert job.teacher is not None
        self.job, self.device, self.settings = job, device, job.recipe.losses
        self.images = to_model_range(torch.from_numpy(images).permute(0, 3, 1, 2)).to(device)
        self.teacher = job.teacher.unet.to(device).eval()
        self.student = build(job.plan.config)
        self.student.load_state_dict(inherited_weights(job.teacher.unet, self.student), strict=False)
        self.student.to(device).train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=job.recipe.train.lr)
        self.ema = EMAModel(self.student.parameters(), decay=job.recipe.train.ema)
        self.alpha_bar = job.teacher.shell.process.alphas_cumprod.to(device)

    def loss(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """L_DDPM, λ_s L_spatial and λ_f L_freq, of the outputs, all by min-SNR."""
        s, kind = self.settings, self.job.shell.process.prediction
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        with torch.no_grad():
            truth = self.teacher(x_t, t).sample
        prediction = self.student(x_t, t).sample
        snr = self.alpha_bar / (1 - self.alpha_bar)
        if kind == "epsilon":
            target, weight = noise, snr.clamp(max=s.snr_gamma) / snr
        else:
            target = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0
            weight = snr.clamp(max=s.snr_gamma) / (snr + 1)
        weight = (weight / weight.mean())[t]
        denoising = (weight * ((prediction - target) ** 2).mean(dim=(1, 2, 3))).mean()
        power = (torch.fft.fft2(x0, norm="ortho").abs() ** 2).mean(dim=1, keepdim=True)
        floor = 1e-6 * power.mean(dim=(-2, -1), keepdim=True)
        omega = torch.maximum(power, floor) ** (s.alpha / 2)
        omega = omega / omega.mean(dim=(-2, -1), keepdim=True)
        weight = weight.view(-1, 1, 1, 1) if kind == "v_prediction" else 1
        spatial = (weight * (prediction - truth) ** 2).mean()
        ours, theirs = (torch.fft.fft2(x, norm="ortho") for x in (prediction, truth))
        frequency = (weight * omega * (ours - theirs).abs() ** 2).mean()
        return denoising + s.lambda_spatial * spatial + s.lambda_freq * frequency

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        size = self.job.recipe.train.batch_size
        x0 = self.images[torch.randint(len(self.images), (size,), device=self.device)]
        t = torch.randint(len(self.alpha_bar), (size,), device=self.device)
        return x0, torch.randn_like(x0), t

    def steps(self) -> Iterator[None]:
        while True:
            self.loss(*self.batch()).backward()
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.step(self.student.parameters())
            synchronize(self.device)
            yield


def job_of(name: str, teacher: str, row: Mapping[str, Any], images: np.ndarray, batch: int) -> Job:
    """A job of `slimdpm slim`, or of `slimdpm train` from the same start and with the same weighting."""
    settings = {"train.batch_size": batch, "train.trackers": [], "data.workers": 0, **row}
    alone = name == "images alone"
    if alone:
        settings |= {"student.init": "teacher", "student.kind": "lite"}
    return planned(
        "train" if alone else "slim", teacher, slimdpm.Arrays(images), {"ratio": 8.0}, steps=10**6, settings=settings
    )


def check(plain: PlainLoop, job: Job) -> float:
    """How far the plain loop's loss is off ours, on one batch and the same networks."""
    distiller = job.distiller(TappedStudent(plain.student), plain.teacher, plain.device)
    torch.manual_seed(0)
    batch = plain.batch()
    with torch.no_grad():
        ours, theirs = distiller.losses(*batch)["loss"].item(), plain.loss(*batch).item()
    off = abs(ours - theirs) / abs(ours)
    if off > 1e-4:
        raise SystemExit(f"the plain loop computes another loss: {theirs:g}, ours is {ours:g}")
    return off


def walks(family: str, device: torch.device, batch: int, work: Path) -> tuple[dict[str, Iterator[Any]], Job, float]:
    """Each row's steps, one after the other."""
    images = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), np.uint8)
    rows = ROWS | (ON_CUDA if device.type == "cuda" else {})
    found: dict[str, Iterator[Any]] = {}
    first: Job | None = None
    for name, row in rows.items():
        job = job_of(name, TEACHERS[family], row, images, batch)
        first = first or job
        run = RunFolder(work / family / name.replace(" ", "-").replace(",", ""))
        run.open(job.recipe)
        found[name] = new_trainer(job, run, make_accelerator(job.recipe, run)).rehearsal()
    assert first is not None
    plain = PlainLoop(first, images, device)
    off = check(plain, first)
    return {PLAIN: plain.steps(), **found}, first, off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, help="the device's TFLOP/s, of which the result says the share")
    parser.add_argument("--only", nargs="+", choices=TEACHERS, default=list(TEACHERS), help="teachers")
    parser.add_argument("--output", type=Path, help="by default beside the other results")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    result: dict[str, Any] = {"hardware": machine_facts(), "batch": options.batch, "group": GROUP, "rounds": ROUNDS}
    result["families"] = {}
    with tempfile.TemporaryDirectory() as work:
        for family in options.only:
            steps, job, off = walks(family, device, options.batch, Path(work))
            seconds = step_seconds(steps, device, group=GROUP, rounds=ROUNDS, clock=clock)
            macs = {"teacher": job.plan.teacher_cost.macs, "student": measure(job.plan.config).macs}
            result["families"][family] = {"macs": macs, "loss off": off, "seconds": seconds}
            print(family, table(seconds, macs, options), sep="\n", flush=True)
    name = "train_step" if device.type == "cpu" else f"train_step_{device.type}"
    write_json(options.output or RESULTS / f"{name}.json", result)


def table(seconds: Mapping[str, float], macs: Mapping[str, int], options: argparse.Namespace) -> str:
    """Milliseconds of a step, and how many times the plain loop's steps fit; the arithmetic that a step needs at least
    is the teacher's pass and three of the student's."""
    rows = []
    for name, value in seconds.items():
        row = [name, f"{value * 1e3:.1f}", f"{seconds[PLAIN] / value:.2f}"]
        if options.peak:
            flops = 2 * options.batch * (macs["teacher"] + 3 * macs["student"])
            row.append(f"{flops / value / options.peak / 1e12:.1%}" if name in (PLAIN, "slimdpm, reuse 1") else "–")
        rows.append(row)
    heads = ["", "ms a step", "times the plain loop's steps", *(["share of the peak"] if options.peak else [])]
    return markdown(heads, rows)


if __name__ == "__main__":
    main()
