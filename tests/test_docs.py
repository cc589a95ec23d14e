"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest
import yaml

from slimdpm.method.presets import find_network
from slimdpm.recipe_file import flatten, load_recipe, validate

ROOT = Path(__file__).parent.parent
BY_TASK = {"student.kind", "student.ratio", "student.init", "train.snr_gamma"}  # their defaults depend on the task


def test_every_key_of_a_recipe_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `([a-z._]+)` \| (.*?) \|", (ROOT / "docs/recipe.md").read_text(), re.MULTILINE))
    defaults = flatten(validate({"data": {"path": "x"}}).model_dump(mode="json"))
    assert rows.keys() == defaults.keys()
    for key, default in defaults.items():
        stated = re.match(r"`([^`]*)`", rows[key])
        if stated and key not in BY_TASK:
            assert yaml.safe_load(stated[1]) == default, key
        else:
            assert default is None or key == "data.path", key


@pytest.mark.parametrize("file", [*sorted(ROOT.glob("recipes/*.yaml")), ROOT / "src/slimdpm/assets/demo.yaml"])
def test_every_recipe_is_valid(file):
    recipe = load_recipe(file)
    if recipe.student.base is not None:
        find_network(recipe.student.base)
