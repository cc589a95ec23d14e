"""Put what comes with slimdpm into the package: a trained pipeline at half precision, photographs at 32×32.

    slimdpm train --recipe recipes/demo-teacher.yaml -o runs/demo-teacher
    python benchmarks/pack_assets.py pipeline runs/demo-teacher demo-teacher

    python benchmarks/pack_assets.py pipeline runs/teacher garments-teacher
    python benchmarks/pack_assets.py pipeline runs/garments-small garments-teacher-small
    python benchmarks/pack_assets.py images clothing

The images are those of a folder with ``train/`` and ``test/``, which hold a folder for each class: cut and shrunk as
slimdpm prepares a folder of images, and written without loss. The same images give the same files.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from slimdpm.data.dataset import Decoder
from slimdpm.data.folder import Folder
from slimdpm.data.images import picture, pixels
from slimdpm.data.shards import Shards
from slimdpm.metrics.classifier import Classifier
from slimdpm.metrics.extractors import load_extractor
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.system.files import atomic_file, atomic_folder
from slimdpm.system.packaged import ASSETS
from slimdpm.system.progress import Display

PARTS = ("train", "test")  # the validation photographs would be 0.8 MB more, and no command needs them
NOTE = """Photographs of garments at 32x32 pixels, ten classes: 3,068 for training, 372 to test with.

From "Clothing dataset (small)" by Alexey Grigorev and those who gave photographs,
https://github.com/alexeygrigorev/clothing-dataset-small, dedicated to the public domain (CC0 1.0):
https://creativecommons.org/publicdomain/zero/1.0/

Cut to the centre square, shrunk with an antialiased bilinear filter, kept without loss by
benchmarks/pack_assets.py. In slimdpm they are slimdpm:garments and slimdpm:garments-test.

classifier.safetensors names the class of an image: a logistic regression on EfficientNet-lite0's features, fitted to
the training photographs.
"""


def pack_pipeline(source: Path, target: Path) -> None:
    """The pipeline of a run with its U-Net in half precision, without the paths that it came from."""
    pipeline = load_pipeline(source)
    pipeline.unet.to(torch.float16)
    pipeline.unet.register_to_config(dropout=0.0)  # was for its training; its students do not take it over
    shutil.rmtree(target, ignore_errors=True)
    with atomic_folder(target) as temporary:
        pipeline.save_pretrained(temporary)
        for file in temporary.rglob("*.json"):
            values = {k: v for k, v in json.loads(file.read_text()).items() if k != "_name_or_path"}
            file.write_text(json.dumps(values, indent=2) + "\n")


def pack_images(folder: Path, target: Path, size: int = 32) -> None:
    """A folder of images as a tar file: below each class, images numbered in the order of their paths."""
    source, decoder = Folder(folder), Decoder(size)
    labels = source.labels()
    assert labels is not None and labels.names is not None
    counts = dict.fromkeys(labels.names, 0)
    with atomic_file(target) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, number in enumerate(labels.numbers):
            name = labels.names[number]
            counts[name] += 1
            member = tarfile.TarInfo(f"{name}/{counts[name]:04d}.webp")
            data = io.BytesIO()
            picture(decoder(source, index)).save(data, "WEBP", lossless=True, quality=100, method=6)
            member.size = len(data.getvalue())
            tar.addfile(member, io.BytesIO(data.getvalue()))


def pack_classifier(photographs: Path, target: Path) -> None:
    """The classifier that judges samples, fitted to the packed photographs; their features take minutes."""
    source, extractor, display = Shards([photographs]), load_extractor("efficientnet-lite0"), Display(Console())
    labels = source.labels()
    assert labels is not None
    images = np.stack([pixels(source.image(index)) for index in range(len(source))])
    parts = np.array_split(images, len(images) // 64)
    features = np.concatenate([extractor(part)[0] for part in display.track(parts, len(parts), "features", "batches")])
    Classifier.fit(features, labels.numbers).save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    pipeline = kinds.add_parser("pipeline", help="a run's student, or any pipeline")
    pipeline.add_argument("source", type=Path)
    pipeline.add_argument("name", help="of its folder in the package: slimdpm:NAME")
    images = kinds.add_parser("images", help="train/ and test/ of a folder, as slimdpm:garments")
    images.add_argument("source", type=Path)
    options = parser.parse_args()
    target = ASSETS / (options.name if options.kind == "pipeline" else "garments")
    if options.kind == "pipeline":
        pack_pipeline(options.source, target)
    else:
        target.mkdir(exist_ok=True)
        for part in PARTS:
            pack_images(options.source / part, target / f"{part}.tar")
        pack_classifier(target / "train.tar", target / "classifier.safetensors")
        (target / "README.md").write_text(NOTE)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
