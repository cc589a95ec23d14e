"""Exported Stable Diffusion folders in optimum, whose packages want older versions of transformers than slimdpm's day.

    python benchmarks/optimum_loads.py make FOLDER              # in slimdpm's environment; FOLDER xl, or inpainting
    python benchmarks/optimum_loads.py load FOLDER onnx         # in one with optimum-onnx
    python benchmarks/optimum_loads.py load FOLDER openvino     # in one with optimum-intel

The first makes a small text-to-image pipeline with random weights, exports it for both runtimes and draws an image of
each of two sizes with each folder's generate.py; the others draw them with `ORTDiffusionPipeline` and
`OVDiffusionPipeline` from the same noise and print the difference, which was 0 each time. Tried with optimum-onnx 0.1.0
(optimum 2.1.0, transformers 4.57.3, diffusers 0.35.2) and optimum-intel 2.2.0 (optimum 2.3.0).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROMPT, STEPS, GUIDANCE, SEED = "a coat", 4, 3.0, 5
SIZES = ((16, 16), (24, 16))  # the pipeline's own, and another
RUNTIMES: tuple[Any, ...] = ("onnx", "openvino")


def make(folder: Path, kind: str = "sd") -> None:
    """The pipeline (``"xl"``: Stable Diffusion XL), its two exports, images of each and the noise of both."""
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from helpers import text_pipeline, xl_pipeline
    from test_image_conditions import inpainting

    from slimdpm.export import runner
    from slimdpm.export.folder import Samplers, export_pipeline

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    pipeline = {"sd": text_pipeline, "xl": xl_pipeline, "inpainting": inpainting}[kind](folder)
    with torch.no_grad():  # optimum draws an image's latents, and generate.py takes their means: here they are the same
        pipeline.vae.quant_conv.weight[4:], pipeline.vae.quant_conv.bias[4:] = 0, -30
    pipeline.save_pretrained(folder / "pipeline")
    seen = [] if kind != "inpainting" else ["--image", "image", "--mask", "mask"]
    for to in RUNTIMES:
        export_pipeline(folder / "pipeline", folder / to, to=to, samplers=Samplers((None,), (STEPS,)))
    for height, width in SIZES:
        name = f"{height}x{width}"
        draws = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(draws).save(folder / f"image-{name}.png")
        Image.fromarray(np.uint8(255 * (draws[..., 0] > 127))).save(folder / f"mask-{name}.png")
        np.save(folder / f"noise-{name}.npy", runner.random_stream(SEED, 0)((4, height // 2, width // 2))[None])
        shown = [folder / f"{word}-{name}.png" if i % 2 else word for i, word in enumerate(seen)]
        for to in RUNTIMES:
            asked = ["--steps", STEPS, "--seed", SEED, "--prompt", PROMPT, "--guidance", GUIDANCE, "--size", name]
            words = [*asked, *shown, "-o", folder / f"by-{to}-{name}"]
            assert runner.main(list(map(str, words)), folder / to) == 0


def load(folder: Path, to: str) -> None:
    """The same images by optimum."""
    import torch

    if to == "onnx":
        from optimum.onnxruntime import ORTDiffusionPipeline as Pipeline
    else:
        from optimum.intel import OVDiffusionPipeline as Pipeline
    pipeline = Pipeline.from_pretrained(folder / to)
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    for height, width in SIZES:
        name = f"{height}x{width}"
        if "Inpaint" in type(pipeline).__name__:
            images = (Image.open(folder / f"{which}-{name}.png") for which in ("image", "mask"))
            options |= dict(zip(("image", "mask_image"), images, strict=True))
        noise = torch.from_numpy(np.load(folder / f"noise-{name}.npy"))
        made = pipeline(prompt=PROMPT, latents=noise, height=height, width=width, **options).images[0]
        with Image.open(folder / f"by-{to}-{name}" / "00000.png") as image:
            off = np.abs(np.rint(made * 255) - np.asarray(image).astype(float))
        means = f"{off.mean():.4f} of 255 off generate.py's image, {off.max():.0f} at most"
        print(f"{type(pipeline).__name__}, {name}: {means}")


if __name__ == "__main__":
    {"make": make, "load": load}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
