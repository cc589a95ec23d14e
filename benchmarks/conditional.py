"""Class-conditional and text-to-image students on real photographs, beside their teachers: samples and accuracy.

    python benchmarks/conditional.py clothing-64.npz --work runs/conditional --output benchmarks/results

A KL autoencoder, then for each kind a teacher in its latents, its Spectral student that starts from the teacher's
weights, and a Lite one of the same budget that is trained plainly for as many steps; all by the command line, as a user
would. A classifier that was fitted to the real photographs then names the class of guided samples. Each stage resumes:
stop the script at any time and start it again; two with different --kind share the work. On one CPU core about an hour
for each kind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ablation.grid import DENSE_MIXED, lambdas
from ablation.tables import markdown
from conditional_parts import (
    HIDDEN,
    TOKENS,
    caption,
    kept_features,
    prepare_photos,
    reconstructed,
    text_pipeline,
    train_autoencoder,
)
from filelock import FileLock
from rich.console import Console

from slimdpm.conditioning import Request
from slimdpm.method.cost import measure
from slimdpm.metrics.classifier import Classifier
from slimdpm.metrics.collect import Generated, collect
from slimdpm.metrics.distances import kernel_distance
from slimdpm.metrics.extractors import Extractor, load_extractor
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.system.files import atomic_file, write_json
from slimdpm.system.machine import machine_facts
from slimdpm.system.progress import Display

SIZE = 32  # pixels
NAMES = ("teacher", "spectral", "lite")
RATIO = 12
EACH = 30  # samples of each class
SAMPLER = {"steps": 25, "scheduler": "dpm++", "seed": 0}
GUIDANCE = 3.0
SHOWN = 5  # samples of each class in the picture
AUTOENCODER_STEPS = 1500

UNET = {
    "sample_size": SIZE // 2,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [40, 80, 120],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
UNETS = {
    "class": {
        **UNET,
        "_class_name": "UNet2DModel",
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 8,
    },
    "text": {
        **UNET,
        "_class_name": "UNet2DConditionModel",
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 4,  # of this class of networks: how many heads there are
        "cross_attention_dim": HIDDEN,
    },
}
COMMON = {
    "data.flip": True,
    "data.held_out": 0,  # as when it ran
    "train.schedule": "cosine",
    "train.sample_every": 0,
    "train.trackers": [],
    "samples.count": 10,
}
TEACHER = {
    "student.prediction": "v_prediction",
    "train.steps": 2000,
    "train.batch_size": 32,
    "train.lr": 1e-3,
    "train.warmup": 200,
    "train.ema": 0.998,
    "train.checkpoint_every": 250,
}
STUDENT = {
    "train.steps": 1000,
    "train.batch_size": 16,
    "train.lr": 8e-3,
    "train.warmup": 50,
    "train.ema": 0.99,
    "train.checkpoint_every": 250,
    "train.snr_gamma": "none",  # as when it ran
    "distill.reuse": 1,
}
SPECTRAL = {  # as the ablation chose
    "student.kind": "spectral",
    "student.init": "teacher",
    "student.overrides": DENSE_MIXED,
    **lambdas(2.0, 2.0),
}


def slimdpm(task: str, *arguments: object, **settings: Any) -> None:
    """A command, as a user gives it."""
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    subprocess.run([sys.executable, "-m", "slimdpm.cli", task, *map(str, arguments), *sets], check=True)


def train(kind: str, work: Path) -> None:
    """Teacher, Spectral and Lite; what is done is not done again."""
    photos, teacher = work / "train.npz", work / f"{kind}-teacher"
    if not (teacher / "report.html").exists():
        if kind == "class":
            write_json(config := work / "class-unet.json", UNETS[kind])
            own = {"autoencoder": str(work / "autoencoder"), "conditioning.kind": "class"}
            slimdpm("train", photos, "-o", teacher, "--model", config, **COMMON, **TEACHER, **own)
        else:
            slimdpm("train", photos, "-o", teacher, "--like", work / "text-base", **COMMON, **TEACHER)
    if not (work / f"{kind}-spectral" / "report.html").exists():
        budget = ("-o", work / f"{kind}-spectral", "--ratio", RATIO)
        slimdpm("slim", teacher, photos, *budget, **COMMON, **STUDENT, **SPECTRAL)
    if not (work / f"{kind}-lite" / "report.html").exists():
        budget = ("-o", work / f"{kind}-lite", "--like", teacher, "--ratio", RATIO)
        slimdpm("train", photos, *budget, **COMMON, **STUDENT)


def main() -> None:
    options = _options()
    work, display = options.work, Display(Console())
    work.mkdir(parents=True, exist_ok=True)
    extractor = load_extractor("efficientnet-lite0")
    with FileLock(work / ".lock"):
        classes = prepare_photos(options.data, SIZE, work)
        (images, labels), (real, truth) = (_photos(work, part, classes) for part in ("train", "evaluation"))
        autoencoder = train_autoencoder(images, work / "autoencoder", AUTOENCODER_STEPS, display)
        text_pipeline(work / "text-base", autoencoder, UNETS["text"], classes)
    for kind in options.kind or UNETS:
        train(kind, work)
    encoded = reconstructed(autoencoder, real)
    with FileLock(work / ".lock"):
        parts = {"training": images, "real": real, "encoded": encoded}
        features = {n: kept_features(extractor, part, work / f"{n}.npy", display) for n, part in parts.items()}
    classifier = Classifier.fit(features["training"], labels)
    error = np.square(encoded / 255.0 - real / 255.0).mean()
    facts = {
        "hardware": machine_facts(),
        "images": {"training": len(images), "evaluation": len(real)},
        "preprocessing": f"centre crop, Lanczos to {SIZE} pixels, half of the training images mirrored",
        "samples": f"{EACH} of each class, guidance {GUIDANCE:g}, {SAMPLER}",
        "teacher": TEACHER,
        "students": STUDENT,
        "spectral": SPECTRAL,
        "accuracy of the classifier": {
            "real photographs": classifier.accuracy(features["real"], truth),
            "the same through the autoencoder": classifier.accuracy(features["encoded"], truth),
        },
        "autoencoder": {"steps": AUTOENCODER_STEPS, "PSNR": float(-10 * np.log10(error))},
    }
    for kind in options.kind or UNETS:
        found, pictures = judge(kind, work, classes, classifier, features["real"], extractor, display)
        pictures = {"real": np.concatenate([real[truth == c][:SHOWN] for c in range(len(classes))]), **pictures}
        write_json(options.output / f"conditional_{kind}.json", {**facts, "networks": found})
        picture(pictures, classes, options.output / f"conditional_{kind}.png")
        print(kind, table(found, facts["accuracy of the classifier"]), sep="\n")


def judge(
    kind: str,
    work: Path,
    classes: list[str],
    classifier: Classifier,
    real: np.ndarray,
    extractor: Extractor,
    display: Display,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Figures of each network, and the samples that the picture shows.

    Args:
        kind: of the networks.
        work: where they lie.
        classes: their names.
        classifier: of features.
        real: features of photographs that nothing was trained on.
        extractor: of the features.
        display: where progress is shown.
    """
    asked = tuple(caption(name) for name in classes) if kind == "text" else tuple(classes)
    request = Request(**{"prompts" if kind == "text" else "classes": asked}, guidance=GUIDANCE)
    found, pictures = {}, {}
    for name in NAMES:
        pipeline = load_pipeline(work / f"{kind}-{name}")
        made = Generated(name, pipeline, EACH * len(classes), request=request, **SAMPLER)
        samples = collect(made, work / "samples" / kind, extractor, display)
        shown = np.concatenate(list(samples.batches()))
        given = np.arange(len(shown)) % len(classes)
        network = {**pipeline.unet.config, "_class_name": type(pipeline.unet).__name__}
        found[name] = {
            **vars(measure(network, tokens=TOKENS)),
            "accuracy": classifier.accuracy(samples.features(), given),
            "kernel distance": kernel_distance(samples.features(), real).value,
        }
        pictures[name] = np.concatenate([shown[given == c][:SHOWN] for c in range(len(classes))])
    return found, pictures


def _photos(work: Path, part: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    with np.load(work / f"{part}.npz") as arrays:
        return arrays["images"], np.array([classes.index(name) for name in arrays["labels"].tolist()])


def table(found: Mapping[str, Any], real: Mapping[str, float]) -> str:
    rows = [[name, "–", "–", f"{value:.1%}", "–"] for name, value in real.items()]
    for name, row in found.items():
        cost = f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e6:.1f}"
        rows.append([name, *cost, f"{row['accuracy']:.1%}", f"{row['kernel distance']:.3f}"])
    return markdown(["network", "M parameters", "M MACs", "accuracy", "kernel distance"], rows)


def picture(blocks: Mapping[str, np.ndarray], classes: list[str], file: Path) -> None:
    """A row for each class, a block of columns for each network, uint8 ``(classes × SHOWN, H, W, 3)``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), dpi=110, layout="constrained")
    for axes, (name, images) in zip(figure.subplots(1, len(blocks)), blocks.items(), strict=True):
        rows = np.pad(
            images.reshape(len(classes), SHOWN, SIZE, SIZE, 3),
            [(0, 0)] * 2 + [(1, 1)] * 2 + [(0, 0)],
            constant_values=255,
        )
        axes.imshow(rows.transpose(0, 2, 1, 3, 4).reshape(len(classes) * (SIZE + 2), SHOWN * (SIZE + 2), 3))
        axes.set_title(name)
        axes.set_xticks([])
        first = name == next(iter(blocks))
        centres = (np.arange(len(classes)) + 0.5) * (SIZE + 2)
        axes.set_yticks(centres if first else [], classes if first else [])
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
    with atomic_file(file) as temporary:
        figure.savefig(temporary, format="png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/conditional"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--kind", action="append", choices=UNETS, help="only this one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
