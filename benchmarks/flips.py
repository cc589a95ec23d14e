"""Flipped bytes and swapped files in all that is kept: each is found and named, or has no effect.

Small runs are made, with checkpoints, decoded squares, latents and the teacher's samples; and an evaluation. Then, one
at a time, a random bit is flipped or two files are swapped, and what is kept is opened as a command opens it.

    python benchmarks/flips.py --work DIR
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import TINY, TRIAL, latent_pipeline
from PIL import Image
from rich.console import Console
from test_files import Numbers

from slimdpm.metrics.collect import collect
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import write_json
from slimdpm.system.progress import Display
from slimdpm.training.accelerator import make_accelerator
from slimdpm.training.checkpoint import checkpoints, load_checkpoint
from slimdpm.training.job import Job
from slimdpm.training.plan import plan_job
from slimdpm.training.run import new_trainer, run_job

SETTINGS = [*TRIAL, "train.steps=4", "train.checkpoint_every=2", "student.width=8"]


def begin(work: Path) -> dict[str, tuple[Job, Path]]:
    """A finished run from pixels, one from latents and one from the teacher's own samples."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    (work / "images").mkdir(parents=True)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(work / "images" / f"{i:02d}.png")
    pixels = DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler())
    wanted = {
        "squares": (pixels, str(work / "images"), []),
        "latents": (latent_pipeline(AutoencoderKL), str(work / "images"), ["data.flip=true"]),
        "samples": (pixels, "teacher", ["data.samples.count=130", "data.samples.steps=2"]),
    }
    jobs = {}
    for name, (teacher, data, more) in wanted.items():
        recipe = load_recipe(None, [*SETTINGS, *more], values={"data": {"path": data}})
        jobs[name] = plan_job(recipe, teacher=teacher), work / name
        run_job(*jobs[name], report=False)
    return jobs


def opened(job: Job, folder: Path) -> str:
    """What is said when a run's data is made ready again."""
    told = io.StringIO()
    run = RunFolder(folder)
    accelerator = make_accelerator(job.recipe, run)
    new_trainer(job, run, accelerator, Display(Console(file=told, width=1000)))
    return told.getvalue()


def resumed(folder: Path) -> str:
    """What is said when the newest checkpoint is opened; one that is whole would be loaded into nothing."""
    try:
        load_checkpoint(checkpoints(folder / "checkpoints")[-1], None)  # type: ignore[arg-type]
    except SlimdpmError as error:
        return str(error)
    except AttributeError:
        return ""
    raise AssertionError("loaded into nothing")


def evaluated(folder: Path) -> str:
    told = io.StringIO()
    numbers = Numbers(256)
    collect(numbers, folder, numbers, Display(Console(file=told, width=1000)))  # type: ignore[arg-type]
    return "\n".join(line for line in told.getvalue().splitlines() if "made again" in line)


def attempt(kept: Path, files: list[Path], look: Callable[[], str], change: Callable[[], None], named: str) -> dict:
    """Change something, look what is said, and bring all back."""
    before = {file: file.read_bytes() for file in files}
    change()
    damaged = {file: file.read_bytes() for file in files if file.exists()}
    said = look()
    outcome = "no effect: the same bytes" if damaged == before else "named" if named in said else "MISSED"
    for file, content in before.items():
        file.write_bytes(content)
    return {"in": kept.name, "named": named, "outcome": outcome, **({"said": said} if outcome == "MISSED" else {})}


def flips(name: str, count: int, files: list[Path], look: Callable[[], str], rng: random.Random) -> list[dict]:
    results = []
    for i in range(count):
        file = files[i % len(files)]
        place, bit = rng.randrange(file.stat().st_size), 1 << rng.randrange(8)

        def flip(file: Path = file, place: int = place, bit: int = bit) -> None:
            content = bytearray(file.read_bytes())
            content[place] ^= bit
            file.write_bytes(content)

        named = file.stem.removesuffix(".") if name == "evaluation" else file.name
        results.append({"change": f"bit {bit} of byte {place}", **attempt(Path(name), files, look, flip, named)})
    return results


def swap(one: Path, two: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def swaps(run: Path, rng: random.Random, count: int) -> list[dict]:
    """Files of one checkpoint in the place of another's, of the same name or not."""
    old, new = checkpoints(run / "checkpoints")[-2:]
    results = []
    for i in range(count):
        mine = rng.choice(sorted(new.iterdir()))
        theirs = old / mine.name if i % 2 else rng.choice([f for f in sorted(old.iterdir()) if f.suffix == mine.suffix])
        files = [*old.iterdir(), *new.iterdir()]
        result = attempt(Path("checkpoints"), files, lambda: resumed(run), partial(swap, mine, theirs), new.name)
        results.append({"change": f"{mine.name} swapped with {theirs.parent.name}/{theirs.name}", **result})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "flips.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(0)
    shutil.rmtree(options.work, ignore_errors=True)
    work = options.work.resolve()
    jobs = begin(work)
    results: dict[str, list[dict]] = {"checkpoints, flipped": [], "checkpoints, swapped": []}
    run = work / "squares"
    newest = checkpoints(run / "checkpoints")[-1]
    assert not resumed(run)
    results["checkpoints, flipped"] = flips("checkpoints", 64, sorted(newest.iterdir()), lambda: resumed(run), rng)
    results["checkpoints, swapped"] = swaps(run, rng, 20)
    for name, (job, folder) in jobs.items():
        files = [f for f in sorted((folder / "cache").rglob("*")) if f.is_file() and "locks" not in str(f)]
        files = [f for f in files if f.suffix in (".safetensors", ".npy") or f.name.startswith("images-")]
        assert "made again" not in opened(job, folder)
        results[f"{name}, flipped"] = flips(name, 8, files, lambda j=job, f=folder: opened(j, f), rng)
    evaluated(work / "evaluation")
    files = sorted((work / "evaluation").rglob("0*.*"))
    assert not evaluated(work / "evaluation")
    results["evaluation, flipped"] = flips("evaluation", 16, files, lambda: evaluated(work / "evaluation"), rng)
    summary = {
        kind: {outcome: sum(r["outcome"] == outcome for r in rows) for outcome in sorted({r["outcome"] for r in rows})}
        for kind, rows in results.items()
    }
    write_json(options.output, {"summary": summary, "results": results})
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
