"""Published teachers, rebuilt from their configs: what slimdpm does with each.

    python benchmarks/published.py [PART_OF_A_HUB_ID ...]

Each is made twice, in the layout of its repository: at full size without weights, for a dry run; and with fewer
channels, layers and pixels and random weights, which is slimmed for two steps, sampled, and loaded by diffusers in
another process. Nothing is downloaded. Takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, "tests")
from published import CONFIGS, write_images, write_pipeline

from slimdpm.files import write_json

# A student without wavelet gates is diffusers' own, and needs nothing of ours to load.
PLAIN = """
import sys, torch
from diffusers import DiffusionPipeline
if sys.argv[2] != "plain":
    import slimdpm
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
print(type(pipeline).__name__, type(pipeline.unet).__name__)
"""


def slimdpm(*arguments: object) -> str:
    command = [sys.executable, "-m", "slimdpm.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed without a word"])[-1])
    return done.stdout


def attempt(work: Path, hub_id: str) -> dict[str, Any]:
    """What happened, as a row of the table; the first failure ends it."""
    row: dict[str, Any] = {"pipeline": CONFIGS[hub_id]["files"]["model_index.json"]["_class_name"]}
    images = write_images(work / "images", classes="DiT" in hub_id)
    write_pipeline(hub_id, work / "full", weights=False)
    write_pipeline(hub_id, work / "small", weights=True)
    small = ["--set", "train.batch_size=2", "--set", "train.warmup=0", "--set", "train.trackers=[]",
             "--set", "samples.count=2", "--set", "samples.steps=2", "--set", "data.workers=0"]  # fmt: skip
    steps = {
        "dry run": lambda: slimdpm("slim", work / "full", images, "-o", work / "x", "--dry-run"),
        "slim": lambda: slimdpm("slim", work / "small", images, "-o", work / "run", "--ratio", 2, "--steps", 2, *small),
        "sample": lambda: slimdpm("sample", work / "run", "-n", 2, "--steps", 2, "-o", work / "samples"),
        "diffusers": lambda: loaded(work / "run" / "student"),
    }
    for name, step in steps.items():
        start = time.perf_counter()
        try:
            said = step()
        except RuntimeError as error:
            return {**row, "failed": f"{name}: {error}"}
        row[f"{name}, seconds"] = round(time.perf_counter() - start, 1)
        if name == "dry run":
            row |= {k: line for line in said.splitlines() for k in ("teacher", "student") if line.strip().startswith(k)}
        if name == "diffusers":
            row["loads as"] = said.strip()
    return row


def loaded(folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", PLAIN, str(folder), "ours"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/published.json"))
    options = parser.parse_args()
    rows = json.loads(options.output.read_text())["pipelines"] if options.names and options.output.exists() else {}
    for hub_id in CONFIGS:
        if not options.names or any(name in hub_id for name in options.names):
            with tempfile.TemporaryDirectory() as work:
                rows[hub_id] = {"configs": CONFIGS[hub_id]["from"], **attempt(Path(work), hub_id)}
            print(f"{hub_id:50} {rows[hub_id].get('failed', 'works')}", flush=True)
            rows = {name: rows[name] for name in CONFIGS if name in rows}
            write_json(options.output, {"diffusers": version("diffusers"), "pipelines": rows})


if __name__ == "__main__":
    main()
