"""Published teachers, rebuilt from their configs: what slimdpm does with each.

    python benchmarks/published.py [PART_OF_A_HUB_ID ...]

Each is made twice, in the layout of its repository: at full size without weights, for a dry run; and with fewer
channels, layers and pixels and random weights, which is slimmed for two steps, sampled, and loaded by diffusers' own
`DiffusionPipeline`. Nothing is downloaded. Takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from typer.testing import CliRunner

sys.path.insert(0, "tests")
from published import CONFIGS, write_images, write_pipeline

from slimdpm.cli.main import app
from slimdpm.system.files import write_json

SMALL = ["train.batch_size=2", "train.trackers=[]", "samples.count=2", "samples.steps=2", "data.workers=0"]
COST = re.compile(r"(teacher|student) .*?([\d.,]+ [MG]) .*?([\d.,]+ [MG])")


def slimdpm(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if done.exception:
        raise done.exception
    return done.stdout


def attempt(work: Path, hub_id: str) -> dict[str, Any]:
    """What happened, as a row of the table; the first failure ends it."""
    row: dict[str, Any] = {"pipeline": CONFIGS[hub_id]["files"]["model_index.json"]["_class_name"]}
    stage = "rebuild"
    try:
        images = write_images(work / "images", classes="DiT" in hub_id)
        write_pipeline(hub_id, work / "full", weights=False)
        write_pipeline(hub_id, work / "small", weights=True)
        stage = "dry run"
        said = slimdpm("slim", work / "full", images, "-o", work / "x", "--gated", "--dry-run").replace(
            f" {work / 'full'}:", ":"
        )
        row["dry run"] = [" ".join(line.split()) for line in said.splitlines() if re.search(r"\d [MG]\b", line)][:4]
        stage = "slim"
        settings = [word for setting in SMALL for word in ("--set", setting)]
        slimdpm("slim", work / "small", images, "-o", work / "run", "--gated", "--width", 32, "--steps", 2, *settings)
        stage = "sample"
        slimdpm("sample", work / "run", "-n", 2, "--steps", 2, "-o", work / "samples")
        stage = "load"
        student = DiffusionPipeline.from_pretrained(work / "run" / "student")
        row["student"] = [type(student).__name__, type(student.unet).__name__]
    except Exception as error:
        row["failed"] = f"{stage}: {error}"
    return row


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
