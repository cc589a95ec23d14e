"""What weights of fewer bits cost in an exported folder: bytes, how far samples move, and their kernel distance.

    python benchmarks/export_bits.py --work runs/export-bits

The demo's teacher, whose weights come with slimdpm, is exported with weights of 32, 16 and 8 bits; each folder's
generate.py makes the same images (20 steps of dpm++, seed 0). Kernel distance (EfficientNet-lite0 features) to 1,000 of
the crops that the teacher was trained on, and the mean difference of pixels to the images of 32 bits. Five minutes
on one core; what is made already is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ablation.tables import markdown
from PIL import Image
from rich.console import Console

from slimdpm.data.demo_photographs import demo_source
from slimdpm.export import runner
from slimdpm.export.folder import Samplers, export_pipeline
from slimdpm.export.storage import Weights
from slimdpm.metrics.distances import kernel_distance
from slimdpm.metrics.extractors import Extractor, load_extractor
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display

WIDTHS: tuple[Weights, ...] = ("float32", "float16", "int8")
COUNT, REAL, STEPS = 128, 1000, 20


def made(weights: Weights, work: Path, display: Display) -> tuple[int, np.ndarray]:
    """Bytes of the network's file, and the images, uint8 ``(N, H, W, 3)``."""
    folder, images = work / weights, work / f"{weights}-images"
    if not folder.exists():
        samplers = Samplers(("dpm++",), (STEPS,))
        export_pipeline("demo:teacher", folder, samplers=samplers, weights=weights, display=display)
    if not (images / f"{COUNT - 1:05d}.png").exists():
        assert runner.main(["-n", str(COUNT), "--batch-size", "64", "--threads", "1", "-o", str(images)], folder) == 0
    pixels = np.stack([np.asarray(Image.open(images / f"{i:05d}.png")) for i in range(COUNT)])
    return (folder / "unet" / "model.onnx").stat().st_size, pixels


def features(extractor: Extractor, images: np.ndarray) -> np.ndarray:
    return np.concatenate([extractor(images[i : i + 64])[0] for i in range(0, len(images), 64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/export_bits.json")
    options = parser.parse_args()
    display, extractor = Display(Console()), load_extractor("efficientnet-lite0")
    crops = demo_source("train")
    real = features(extractor, np.stack([np.asarray(crops.image(i)) for i in range(REAL)]))
    found: dict[str, dict[str, float]] = {}
    first: np.ndarray | None = None
    for weights in WIDTHS:
        size, images = made(weights, options.work, display)
        first = images if first is None else first
        moved = np.abs(images.astype(int) - first).mean()
        distance = kernel_distance(features(extractor, images), real).value
        found[weights] = {"bytes": size, "pixels moved": float(moved), "kernel distance": float(distance)}
    sampler = f"dpm++, {STEPS} steps, seed 0"
    facts = {"hardware": machine_facts(), "images": COUNT, "real images": REAL, "sampler": sampler}
    write_json(options.output, {**facts, "weights": found})
    print(table(found))


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [name, f"{v['bytes'] / 1e6:.1f}", f"{v['pixels moved']:.2f}", f"{v['kernel distance']:.4f}"]
        for name, v in found.items()
    ]
    return markdown(["weights", "MB", "mean difference of pixels, of 255", "kernel distance"], rows)


if __name__ == "__main__":
    main()
