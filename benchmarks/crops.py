"""The crops' students: recipes/demo-crops.yaml and the Lite beside it, which several benchmarks train."""

from __future__ import annotations

from pathlib import Path

from slimdpm.recipe import Recipe
from slimdpm.recipe_file import load_recipe

FILE = Path(__file__).parents[1] / "recipes/demo-crops.yaml"


def crops_recipe(seed: int = 0, steps: int | None = None) -> Recipe:
    """The recipe of the Spectral student."""
    return load_recipe(FILE, values={"train": {"seed": seed, **({"steps": steps} if steps else {})}})


def crops_lite(recipe: Recipe) -> Recipe:
    """The baseline: a plain U-Net of the same budget, from random weights, trained plainly for as many steps."""
    student = {"kind": "lite", "init": "random"}
    return recipe.model_copy(
        update={
            "task": "train",
            "student": recipe.student.model_copy(update=student),
            "train": recipe.train.model_copy(update={"snr_gamma": "none"}),
        }
    )
