"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest
import recipe_keys

from slimdpm.method.presets import find_network
from slimdpm.recipe_file import flatten, load_recipe, validate

ROOT = Path(__file__).parent.parent


def test_every_key_of_a_recipe_is_documented_as_it_is():
    text = recipe_keys.PAGE.read_text(encoding="utf-8")
    assert recipe_keys.page(text) == text, "run python docs/recipe_keys.py"
    defaults = flatten(validate({"data": {"path": "x"}}).model_dump(mode="json"))
    rows = re.findall(r"^\| `([a-z._]+)` \| .+ \| .+ \|$", text, re.MULTILINE)
    assert rows == list(defaults)


@pytest.mark.parametrize("file", [*sorted(ROOT.glob("recipes/*.yaml")), ROOT / "src/slimdpm/assets/demo.yaml"])
def test_every_recipe_is_valid(file):
    recipe = load_recipe(file)
    if recipe.student.base is not None:
        find_network(recipe.student.base)
