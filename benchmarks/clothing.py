"""A whole life of a run on real photographs: train a teacher, slim it 12 times, kill it twice on the way, sample.

    python benchmarks/clothing.py PHOTOS --work runs/clothing --output benchmarks/results

PHOTOS is a folder of photographs as people took them (the figures are of the CC0 "clothing dataset (small)" by Alexey
Grigorev, its train split). Everything runs through the command line, as a user would. Each stage resumes: stop the
script at any time and start it again. Saves clothing.json (settings, times, costs) and clothing.png (samples of teacher
and student from the same noise).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from slimdpm.data.images import grid, save_picture
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.training.checkpoint import checkpoints

# The teacher's steps, the student's steps, settings of both, and of the student alone.
SIZES: dict[str, tuple[int, int, dict[str, object], dict[str, object]]] = {
    "cpu": (
        1600,
        1000,
        {
            "train.batch_size": 16,
            "train.lr": 1e-3,
            "train.ema": 0.995,
            "train.checkpoint_every": 100,
            "train.warmup": 50,
            "distill.pairs": "none",  # as in the demo, for as few steps
            "distill.lambda_spatial": 0.5,
            "distill.lambda_freq": 0.5,
            "train.snr_gamma": "none",  # as when it ran
            "distill.reuse": 1,
        },
        {"train.lr": 4e-3},  # of 12 channels and more; after 500 steps a seventh less error than with 1e-3
    ),
    "gpu": (60_000, 60_000, {"train.batch_size": 128, "train.ema": 0.9995, "train.precision": "bf16"}, {}),
}
COMMON = {
    "data.flip": "true",
    "data.held_out": 0,  # as when it ran
    "train.lr": 4e-4,
    "train.schedule": "cosine",
    "train.sample_every": 0,
    "samples.steps": 25,
}
SAMPLES = 64


def sets(values: dict[str, object]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "slimdpm.cli", *map(str, arguments)]


def run(*arguments: object) -> None:
    subprocess.run(command(*arguments), check=True)


def run_and_kill(folder: Path, after: int, *arguments: object) -> int:
    """Start a run, and send it SIGKILL once a checkpoint of step `after` or later is there. Returns that step."""
    process = subprocess.Popen(command(*arguments))
    while process.poll() is None:
        found = checkpoints(folder / "checkpoints")
        step = int(found[-1].name.removeprefix("step-")) if found else 0
        if step >= after:
            time.sleep(5)  # somewhere between two checkpoints
            process.send_signal(signal.SIGKILL)
            process.wait()
            return step
        time.sleep(0.5)
    raise SystemExit(f"the run ended by itself with {process.returncode} before it could be killed")


def slim(photos: Path, work: Path, steps: int, common: list[str]) -> list[int]:
    """Slim the teacher, with two kills on the way. Returns the steps of the newest checkpoints at the kills."""
    arguments = ["slim", work / "teacher", photos, "-o", work / "student", "--ratio", 12, "--gated", "--init", "random"]
    arguments += ["--steps", steps, *common]
    kills_file = work / "kills.json"
    kills = json.loads(kills_file.read_text()) if kills_file.exists() else []
    for part in (3, 6)[len(kills) :]:
        kills.append(run_and_kill(work / "student", steps * part // 10, *arguments))
        write_json(kills_file, kills)
    run(*arguments)
    return kills


def sheet(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / f"{i:05d}.png")) for i in range(SAMPLES)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--scale", choices=SIZES, default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/clothing"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    teacher_steps, student_steps, settings, student_settings = SIZES[options.scale]
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    common = sets({**COMMON, **settings})
    velocity = ["--set", "student.prediction=v_prediction"]  # the student takes it from its teacher
    model = ["--model", "pixel-64", *velocity]
    run("train", options.photos, "-o", work / "teacher", *model, "--steps", teacher_steps, *common)
    kills = slim(options.photos, work, student_steps, [*common, *sets(student_settings)])
    for name in ("teacher", "student"):
        run("sample", work / name, "-n", SAMPLES, "--steps", 50, "--scheduler", "dpm++", "-o", work / f"{name}-samples")
    teacher, student = (sheet(work / f"{name}-samples") for name in ("teacher", "student"))
    save_picture(options.output / "clothing.png", grid(np.concatenate([teacher[:24], student[:24]]), 12, zoom=1))
    profiles = {}
    for name in ("teacher", "student"):
        out = subprocess.run(command("profile", work / name, "--json"), check=True, capture_output=True, text=True)
        profiles[name] = next(iter(json.loads(out.stdout).values()))
    lines = {n: (work / n / "metrics.jsonl").read_text().splitlines()[-1] for n in ("teacher", "student")}
    result = {
        "hardware": machine_facts(),
        "scale": options.scale,
        "preprocessing": "shorter side to 64 (bilinear, antialiased), center crop, random flip",
        "seed": 0,
        "settings": {**COMMON, **settings},
        "settings_of_the_student": student_settings,
        "steps": {"teacher": teacher_steps, "student": student_steps},
        "killed_after_checkpoint": kills,
        "cost": profiles,
        "ratio": profiles["teacher"]["macs"] / profiles["student"]["macs"],
        "last": {name: json.loads(line) for name, line in lines.items()},
        "sampler": "dpm++, 50 steps, seed 0",
        "images": "the first 24 of 64 of each, teacher above student",
    }
    write_json(options.output / "clothing.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
