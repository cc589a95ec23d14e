"""Images for trials: random crops of the photographs that scikit-image and scikit-learn carry. Nothing is downloaded.

The photographs are split, not the crops: no part of a held-out photograph is ever trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from slimdpm.data.arrays import Arrays
from slimdpm.data.images import pixels, upright
from slimdpm.system.errors import SlimdpmError

TRAINING = (
    "astronaut", "brick", "camera", "coffee", "coins", "flower", "grass", "gravel",
    "hubble_deep_field", "immunohistochemistry", "moon", "motorcycle", "retina", "rocket",
)  # fmt: skip
HELD_OUT = ("chelsea", "china")
SIZE = 32
SHRINK = (2, 4)  # photographs are shrunk by one of these first, so that a crop shows more than a smooth patch


def demo_source(split: str) -> Arrays:
    """The crops, the same ones every time, as uint8 ``(N, 32, 32, 3)``.

    Args:
        split: ``"train"`` (24,000 crops of 14 photographs) or ``"held-out"`` (512 crops of 2 others).

    Raises:
        SlimdpmError: if the split is unknown, or scikit-image or scikit-learn is not installed.
    """
    if split == "train":
        return Arrays(_crops(TRAINING, 24_000, seed=0), "demo:train")
    if split == "held-out":
        return Arrays(_crops(HELD_OUT, 512, seed=1), "demo:held-out")
    raise SlimdpmError(f"the crops are demo:train and demo:held-out, not demo:{split}")


def _crops(names: Sequence[str], count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    photographs = [[_shrunk(_photograph(name), factor) for factor in SHRINK] for name in names]
    crops = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for i in range(count):
        photograph = photographs[rng.integers(len(names))][rng.integers(len(SHRINK))]
        top, left = (int(rng.integers(0, side - SIZE + 1)) for side in photograph.shape[:2])
        crops[i] = photograph[top : top + SIZE, left : left + SIZE]
    return crops


def _shrunk(image: Image.Image, factor: int) -> np.ndarray:
    return pixels(image.resize((image.width // factor, image.height // factor), Image.Resampling.LANCZOS))


def _photograph(name: str) -> Image.Image:
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError:
        raise SlimdpmError(
            "the crops are of photographs in scikit-image and scikit-learn: pip install slimdpm[crops]"
        ) from None
    if name in ("china", "flower"):
        array = load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        array = data.stereo_motorcycle()[0]
    else:
        array = getattr(data, name)()
    return upright(Image.fromarray(array))
