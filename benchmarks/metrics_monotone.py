"""Do the metrics grow with the damage? Blur, JPEG and noise of growing strength on real photographs.

    python benchmarks/metrics_monotone.py PHOTOS.npz --work runs/monotone --output benchmarks/results

PHOTOS.npz holds uint8 images (N, 64, 64, 3); one half is damaged and measured against the other half. Everything runs
through `slimdpm.metrics.evaluate`, with EfficientNet-lite0's features; it resumes. Saves metrics_monotone.json.
"""

from __future__ import annotations

import argparse
import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from slimdpm.metrics.evaluate import Settings, evaluate
from slimdpm.system.files import atomic_file, write_json
from slimdpm.system.progress import Display

STRENGTHS = {"blur": (0.5, 1.0, 2.0), "jpeg": (75, 30, 10), "noise": (5, 15, 40)}
SHOWN = (
    "Fréchet (efficientnet-lite0)",
    "kernel distance (efficientnet-lite0)",
    "precision",
    "recall",
    "log-spectral distance, dB",
    "upper-half error, dB",
    "power ratio 0.25-0.5",
    "SWD 64px",
    "SWD 32px",
    "SWD 16px",
)


def damaged(images: np.ndarray, kind: str, strength: float) -> np.ndarray:
    if kind == "blur":  # standard deviation in pixels
        return np.rint(gaussian_filter(images.astype(np.float32), (0, strength, strength, 0))).astype(np.uint8)
    if kind == "noise":  # standard deviation of 255
        noise = np.random.default_rng(1).normal(0, strength, images.shape)
        return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)
    result = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(strength))
        result.append(np.asarray(Image.open(buffer)))
    return np.stack(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("-n", type=int, default=1000, help="images in each half")
    parser.add_argument("--work", type=Path, default=Path("runs/monotone"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with np.load(options.photos) as archive:
        images = archive["images"]
    order = np.random.default_rng(0).permutation(len(images))
    real, others = images[order[: options.n]], images[order[options.n : 2 * options.n]]
    sets = {"real": real, "undamaged": others}
    for kind, strengths in STRENGTHS.items():
        sets |= {f"{kind}-{strength:g}": damaged(others, kind, strength) for strength in strengths}
    for name, array in sets.items():
        with atomic_file(options.work / f"{name}.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, array)
    files = [str(options.work / f"{name}.npy") for name in sets if name != "real"]
    from rich.console import Console

    result = evaluate(
        files,
        str(options.work / "real.npy"),
        options.work / "evaluation",
        Settings(count=options.n, extractor="efficientnet-lite0", size=64),
        display=Display(Console()),
    )
    values = {name.removesuffix(".npy"): metrics for name, metrics in result.models.items()}
    table = {name: {m: metrics[m].as_json() for m in SHOWN} for name, metrics in values.items()}
    grows = {}
    for kind, strengths in STRENGTHS.items():
        rows = [table["undamaged"], *(table[f"{kind}-{s:g}"] for s in strengths)]
        for metric in SHOWN:
            numbers = [row[metric]["value"] for row in rows]
            grows[f"{kind}: {metric}"] = all(b > a for a, b in itertools.pairwise(numbers))
    facts = {key: result.facts[key] for key in ("extractor", "intervals", "hardware")}
    about = {"images": options.n, "seed": 0, "photos": options.photos.name, "strengths": STRENGTHS, **facts}
    write_json(options.output / "metrics_monotone.json", {**about, "grows": grows, "table": table})
    for metric in SHOWN:
        print(f"{metric:40}", *(f"{name} {row[metric]['value']:.4g}" for name, row in table.items()), sep="  ")


if __name__ == "__main__":
    main()
