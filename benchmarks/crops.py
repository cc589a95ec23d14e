"""The crops' students: recipes/demo-crops.yaml and the paper's Lite beside it, which several benchmarks train."""

from __future__ import annotations

from pathlib import Path

from slimdpm.demo.students import demo_recipe, lite_recipe
from slimdpm.recipe import Recipe

FILE = Path(__file__).parents[1] / "recipes/demo-crops.yaml"


def crops_recipe(seed: int = 0, steps: int | None = None) -> Recipe:
    """The recipe of the Spectral student."""
    return demo_recipe(seed, steps, FILE)


def crops_lite(recipe: Recipe) -> Recipe:
    """The baseline: a plain U-Net of the same budget, from random weights, trained plainly for as many steps."""
    return lite_recipe(recipe, fair=False)
