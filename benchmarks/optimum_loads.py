"""Exported Stable Diffusion folders in optimum, whose packages want older versions of transformers than slimdpm's day.

    python benchmarks/optimum_loads.py make FOLDER              # in slimdpm's environment; FOLDER xl for XL
    python benchmarks/optimum_loads.py load FOLDER onnx         # in one with optimum-onnx
    python benchmarks/optimum_loads.py load FOLDER openvino     # in one with optimum-intel

The first makes a small text-to-image pipeline with random weights, exports it for both runtimes and draws an image with
each folder's generate.py; the others draw it with `ORTDiffusionPipeline` and `OVDiffusionPipeline` from the same noise
and print the difference, which was 0 each time. Tried with optimum-onnx 0.1.0 (optimum 2.1.0, transformers 4.57.3,
diffusers 0.35.2) and optimum-intel 2.2.0 (optimum 2.3.0).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

PROMPT, STEPS, GUIDANCE, SEED = "a coat", 4, 3.0, 5


def make(folder: Path, kind: str = "sd") -> None:
    """The pipeline (``"xl"``: Stable Diffusion XL), its two exports, an image of each and the noise of both."""
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from helpers import text_pipeline, xl_pipeline

    from slimdpm.export import runner
    from slimdpm.export.folder import Samplers, export_pipeline

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (xl_pipeline if kind == "xl" else text_pipeline)(folder).save_pretrained(folder / "pipeline")
    for to in ("onnx", "openvino"):
        export_pipeline(folder / "pipeline", folder / to, to=to, samplers=Samplers((None,), (STEPS,)))  # type: ignore[arg-type]
        asked = [
            "--steps",
            STEPS,
            "--seed",
            SEED,
            "--prompt",
            PROMPT,
            "--guidance",
            GUIDANCE,
            "-o",
            folder / f"by-{to}",
        ]
        assert runner.main(list(map(str, asked)), folder / to) == 0
    np.save(folder / "noise.npy", runner.random_stream(SEED, 0)((4, 8, 8))[None])


def load(folder: Path, to: str) -> None:
    """The same image by optimum."""
    import torch

    if to == "onnx":
        from optimum.onnxruntime import ORTDiffusionPipeline as Pipeline
    else:
        from optimum.intel import OVDiffusionPipeline as Pipeline
    pipeline = Pipeline.from_pretrained(folder / to)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": 16, "width": 16, "output_type": "np"}
    made = pipeline(PROMPT, latents=torch.from_numpy(np.load(folder / "noise.npy")), **options).images[0]
    with Image.open(folder / f"by-{to}" / "00000.png") as image:
        off = np.abs(np.rint(made * 255) - np.asarray(image).astype(float))
    print(f"{type(pipeline).__name__}: {off.mean():.4f} of 255 off generate.py's image, {off.max():.0f} at most")


if __name__ == "__main__":
    {"make": make, "load": load}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
