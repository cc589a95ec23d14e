"""What a machine must install and how long it waits for a first image: an exported folder beside diffusers.

    python benchmarks/cold_start.py --work DIR

One image of `slimdpm:garments-12x`, 20 steps of ddim, no guidance, by a new process: the folder's generate.py with ONNX
Runtime and with OpenVINO, a dozen lines around diffusers' own U-Net and scheduler, and `slimdpm sample`. Each has a
virtual environment of its own (fetched once into DIR) with nothing but what it needs. Bytes are those of the packages
without byte code, pip and setuptools; seconds by the clock and of the processor are medians of runs that take turns,
after one that compiled the byte code; memory is the largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from ablation.tables import markdown

from slimdpm.export.folder import Samplers, export_pipeline
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.packaged import ASSETS

RESULTS = Path(__file__).parent / "results/cold_start.json"
ROOT = Path(__file__).resolve().parents[1]
SOURCE, STEPS, ROUNDS = "slimdpm:garments-12x", 20, 7
PLAIN = """
import sys, torch, numpy as np
from PIL import Image
from diffusers import DDIMScheduler, UNet2DModel
folder, output = sys.argv[1:]
unet = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
scheduler.set_timesteps(20)
x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, class_labels=torch.tensor([0])).sample, t, x).prev_sample
pixels = ((x[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
Image.fromarray(pixels).save(output)
"""
# Starts a command and says what it took. A process of its own: the largest resident set of a child is at least that of
# the process that it was forked from.
LAUNCHER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began
print(json.dumps([status, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""
# By name: what pip is asked for, one call after the other.
PACKAGES: dict[str, list[list[str]]] = {
    "generate.py, ONNX Runtime": [["numpy", "pillow", "onnxruntime"]],
    "generate.py, OpenVINO": [["numpy", "pillow", "openvino"]],
    "diffusers": [["torch==2.13.0"], ["diffusers", "numpy", "pillow"]],
    "slimdpm sample": [["torch==2.13.0"], [str(ROOT)]],
}


def environment(name: str, work: Path) -> Path:
    """Its Python."""
    place = work / name.replace(" ", "-").replace(",", "")
    python, done = place / "bin/python", place / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        for wanted in PACKAGES[name]:
            pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", *wanted]
            subprocess.run(pip, check=True)
        done.touch()
    return python


def installed(python: Path) -> int:
    """Bytes of the packages."""
    packages = next(python.parents[1].glob("lib/python*/site-packages"))
    parts = (part for part in packages.iterdir() if not part.name.startswith(("pip", "setuptools", "_distutils")))
    files = (file for part in parts for file in ([part] if part.is_file() else part.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")


def commands(work: Path) -> dict[str, list[Any]]:
    """What makes the image, by name; the folders are written once."""
    samplers = Samplers(("ddim",), (STEPS,))
    for to in ("onnx", "openvino"):
        if not (work / to).exists():
            export_pipeline(SOURCE, work / to, to=to, samplers=samplers)  # type: ignore[arg-type]
    (work / "plain.py").write_text(PLAIN)
    python = {name: environment(name, work) for name in PACKAGES}
    asked = ["--class", "0", "--guidance", "1", "--steps", STEPS]
    found: dict[str, list[Any]] = {}
    for name, to in (("generate.py, ONNX Runtime", "onnx"), ("generate.py, OpenVINO", "openvino")):
        found[name] = [python[name], work / to / "generate.py", "-n", 1, *asked, "-o", work / "images" / to]
    found["diffusers"] = [python["diffusers"], work / "plain.py", ASSETS / "garments-12x", work / "diffusers.png"]
    sample = python["slimdpm sample"].with_name("slimdpm")
    found["slimdpm sample"] = [sample, "sample", SOURCE, "-n", 1, *asked, "--scheduler", "ddim", "-o", work / "sampled"]
    return found


def run(words: list[Any], work: Path) -> tuple[float, float, int]:
    """Seconds by the clock and of the processor, and bytes of memory, of one new process."""
    for left in (work / "sampled").glob("*"):  # or `slimdpm sample` finds its image made already
        left.unlink()
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    launched = [sys.executable, "-S", "-c", LAUNCHER, *map(str, words)]
    told = subprocess.run(launched, env=kept, stdout=subprocess.PIPE, check=True).stdout
    status, seconds, processor, memory = json.loads(told)
    if status:
        sys.exit(f"{' '.join(map(str, words))} failed")
    return seconds, processor, memory


def measured(work: Path) -> dict[str, Any]:
    words = commands(work)
    for command in words.values():
        run(command, work)
    rounds = [{name: run(words[name], work) for name in words} for _ in range(ROUNDS)]
    found = {}
    for name in words:
        clock, processor, memory = (statistics.median(turn[name][i] for turn in rounds) for i in range(3))
        times = {"seconds": round(clock, 2), "processor seconds": round(processor, 2)}
        found[name] = {"installed": installed(Path(words[name][0]).with_name("python")), **times, "memory": int(memory)}
    return found


def table(results: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{found['installed'] / 1e6:,.0f} MB",
            f"{found['seconds']:.1f}",
            f"{found['processor seconds']:.1f}",
            f"{found['memory'] / 1e6:,.0f} MB",
        ]
        for name, found in results["ways"].items()
    ]
    return markdown(["one image by a new process", "packages", "seconds", "processor seconds", "memory"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the environments, a few GB")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    facts = {"source": SOURCE, "steps": STEPS, "rounds": ROUNDS, "hardware": machine_facts()}
    results = {"ways": measured(options.work.resolve()), **facts}
    write_json(options.output, results)
    print(table(results))


if __name__ == "__main__":
    main()
