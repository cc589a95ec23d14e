"""Exported folders beside the pipelines that they were made of: each kind, each runtime, each sampler.

    python benchmarks/exports_agree.py

Small pipelines with random weights of each kind that slimdpm knows. Graphs run beside their networks in batches of 1,
3 and 16 and, where they take it, at another size: the largest difference, relative to the largest number. Then two
images of twenty steps of each sampler by the folder's generate.py and by `sample_images`, the same seed: the mean
difference of pixels, of 255. A kind that is in the result is not tried again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.tables import markdown
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel, VQModel
from PIL import Image

from slimdpm import Request, SpectralUNet2DModel, load_pipeline, sample_images
from slimdpm.export import runner
from slimdpm.export.checks import check_graph
from slimdpm.export.folder import Samplers, export_pipeline
from slimdpm.export.graphs import graphs_of
from slimdpm.method.networks import network_config
from slimdpm.pipelines.fitting import size_step
from slimdpm.pipelines.sampling import SCHEDULERS
from slimdpm.pipelines.shell import network_of, shell_of
from slimdpm.pipelines.teacher import open_pipeline
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers import (
    TINY,
    class_pipeline,
    embedded_class_pipeline,
    latent_pipeline,
    text_pipeline,
    xl_pipeline,
)
from test_kinds import church, transformer

RESULTS = Path(__file__).parent / "results/exports_agree.json"
BATCHES, STEPS, COUNT, SEED = (1, 3, 16), 20, 2, 5
LABELS, PROMPT = (1, 2), "a coat"
KINDS: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "pixels": (lambda _: DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()), None),
    "pixels, gated": (lambda _: DDPMPipeline(SpectralUNet2DModel(**TINY), DDPMScheduler()), None),
    "latents of a VQ autoencoder": (lambda _: latent_pipeline(VQModel), None),
    "latents of a KL autoencoder": (lambda _: latent_pipeline(AutoencoderKL), None),
    "latents, resampling in residual blocks (LSUN churches)": (lambda _: church(), None),
    "class, embedded": (lambda _: class_pipeline(), "class"),
    "class, a token": (lambda _: embedded_class_pipeline(), "class"),
    "DiT": (lambda _: transformer(), "class"),
    "Stable Diffusion": (lambda place: text_pipeline(place, DDIMScheduler(clip_sample=False, steps_offset=1)), "text"),
    "Stable Diffusion XL": (xl_pipeline, "text"),
}


def differences(source: Path, folder: Path, to: Any) -> dict[str, float]:
    """Of the graphs of a pipeline from its networks, by the networks' names; the folder is left."""
    export_pipeline(source, folder, to=to, samplers=Samplers(tuple(SCHEDULERS), (STEPS,)))
    pipeline = open_pipeline(source)
    shell, network = shell_of(pipeline), network_of(pipeline)
    file = "model.onnx" if to == "onnx" else "openvino_model.xml"
    graphs = graphs_of(network, shell, size_step(shell, network_config(network)))
    return {graph.name: check_graph(graph, folder / graph.name / file, "float32", BATCHES) for graph in graphs}


def off_samples(source: Path, folder: Path, scheduler: str, asked: str | None) -> float:
    """Mean difference of the pixels of two images from those of `sample_images`."""
    words = ["-n", COUNT, "--seed", SEED, "--steps", STEPS, "--scheduler", scheduler, "-o", folder / scheduler]
    words += [word for label in LABELS for word in ("--class", label)] if asked == "class" else []
    words += ["--prompt", PROMPT] if asked == "text" else []
    assert runner.main(list(map(str, words)), folder) == 0
    made = np.stack([np.asarray(Image.open(folder / scheduler / f"{i:05d}.png")) for i in range(COUNT)])
    request = Request(classes=LABELS if asked == "class" else (), prompts=(PROMPT,) if asked == "text" else ())
    options: Any = {"steps": STEPS, "scheduler": scheduler, "seed": SEED, "request": request}
    wanted = sample_images(load_pipeline(source), COUNT, **options)
    return float(np.abs(made.astype(int) - wanted.reshape(made.shape)).mean())


def tried(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each runtime's folder of a pipeline of this kind is off."""
    make, asked = KINDS[kind]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "pipeline"
        make(Path(place)).save_pretrained(source)
        for to in ("onnx", "openvino"):
            graphs = differences(source, Path(place) / to, to)
            images = {name: off_samples(source, Path(place) / to, name, asked) for name in SCHEDULERS}
            yield to, {"graphs": graphs, "images": images}


def table(results: dict[str, Any]) -> str:
    rows = []
    for kind, found in results["kinds"].items():
        graphs = (f"{max(found[to]['graphs'].values()):.0e}" for to in ("onnx", "openvino"))
        images = (f"{max(found[to]['images'].values()):.3f}" for to in ("onnx", "openvino"))
        rows.append([kind, *graphs, *images])
    heads = ["pipeline", "graphs off, ONNX Runtime", "OpenVINO", "images off, of 255, ONNX Runtime", "OpenVINO"]
    return markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    output = parser.parse_args().output
    results = json.loads(output.read_text()) if output.exists() else {"kinds": {}}
    for kind in (kind for kind in KINDS if kind not in results["kinds"]):
        try:
            results["kinds"][kind] = dict(tried(kind))
        except SlimdpmError as error:
            sys.exit(f"{kind}: {error}")
        facts = {"batches": BATCHES, "steps": STEPS, "seed": SEED, "images": COUNT}
        write_json(output, {**results, **facts, "hardware": machine_facts()})
    print(table(results))


if __name__ == "__main__":
    main()
