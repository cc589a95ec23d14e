"""The README's picture: photographs, teacher, plain small network and student side by side, with labels.

    python benchmarks/readme_picture.py

Its tiles are cut from ``results/conditional_class.png``, which ``conditional.py`` makes, and the figures beside them
are those of ``results/conditional_class.json``. The first sample of each
class is shown: nothing is chosen among samples.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from slimdpm.system.files import atomic_file

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "docs/figures/slimmed.png"
CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
SHOWN = ("dress", "outwear", "pants", "shirt", "skirt", "t-shirt")
ROWS = {"real": "photographs", "teacher": "teacher", "lite": "plain small\nnetwork (Lite)", "spectral": "our student"}
BLOCKS = ("real", "teacher", "spectral", "lite")  # of the picture that is cut
SAMPLES = 5  # of a class in each of them


def blocks(picture: np.ndarray) -> dict[str, np.ndarray]:
    """The four blocks of a picture ``(H, W, 3)``, each without what is white around it."""
    ink = (picture < 250).any(axis=2)  # (H, W)
    rows = np.flatnonzero(ink.mean(axis=1) > 0.3)  # titles have less
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(ink[top:bottom].mean(axis=0) > 0.3)  # labels have less
    starts = np.flatnonzero(np.diff(columns, prepend=-100) > 6)  # tiles are nearer to each other than blocks
    edges = [(columns[a], columns[b - 1] + 1) for a, b in zip(starts, [*starts[1:], len(columns)], strict=True)]
    return {name: picture[top:bottom, left:right] for name, (left, right) in zip(BLOCKS, edges, strict=True)}


def tile(block: np.ndarray, label: str) -> np.ndarray:
    """The first sample of a class."""
    height, width = block.shape[0] / len(CLASSES), block.shape[1] / SAMPLES
    top = round(CLASSES.index(label) * height)
    return block[top + 1 : top + round(height) - 1, 1 : round(width) - 2]


def main() -> None:
    found = json.loads((HERE / "results/conditional_class.json").read_text())["networks"]
    parts = blocks(np.asarray(Image.open(HERE / "results/conditional_class.png").convert("RGB")))
    figure = Figure(figsize=(7.2, 4.25), dpi=140, facecolor="white")  # of its own, for readers in the dark
    axes = figure.subplots(
        len(ROWS),
        len(SHOWN),
        gridspec_kw={"wspace": 0.04, "hspace": 0.04, "left": 0.24, "right": 0.985, "bottom": 0.02, "top": 0.92},
    )
    for row, (name, title) in zip(axes, ROWS.items(), strict=True):
        cost = f"\n{found[name]['macs'] / 1e6:.1f} M MACs" if name in found else ""
        row[0].set_ylabel(title + cost, rotation=0, ha="right", va="center", fontsize=13, labelpad=8)
        for axis, label in zip(row, SHOWN, strict=True):
            axis.imshow(tile(parts[name], label), interpolation="lanczos")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, label in zip(axes[0], SHOWN, strict=True):
        axis.set_title(label, fontsize=14)
    with atomic_file(OUTPUT) as temporary:
        figure.savefig(temporary, format="png")


if __name__ == "__main__":
    main()
