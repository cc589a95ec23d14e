"""Recipes read, checked and compared; what is wrong with one is said in a line that names the key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimdpm.recipe import Recipe
from slimdpm.system.documents import parse_yaml, read_yaml
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.validation import validated

_DATA = "the images, a folder, an .npz or .npy, hf:NAME, or teacher"
# What may change between two runs in one folder: none of it alters the result of a step already taken.
_FREE = re.compile(
    r"train\.(steps|checkpoint_every|keep|log_every|sample_every|validate_every|until|trackers)|data\.(workers|cache)|samples\..*"
)


def load_recipe(
    file: Path | None = None,
    assignments: Sequence[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """A validated recipe from a file and what overrides it, each the ones before it.

    Args:
        assignments: of ``--set``, ``"train.steps=1000"``, the value in YAML; they come last.
        values: nested values, for example from the command line's own options.
        settings: values under dotted keys.

    Raises:
        SlimdpmError: with one line that names the key and what is wrong with it.
    """
    recipe: dict[str, Any] = _mapping(file) if file else {}
    _merge(recipe, values or {})
    for key, value in (settings or {}).items():
        _merge(recipe, _nested(key, value))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise SlimdpmError(f"--set {assignment}: write it as key=value, for example train.steps=1000")
        try:
            _merge(recipe, _nested(key.strip(), parse_yaml(text, "it")))
        except SlimdpmError as error:
            raise SlimdpmError(f"--set {assignment}: the value is no YAML ({error})") from None
    return validate(recipe)


def validate(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested values. Raises `SlimdpmError` with one line about the first thing that is wrong."""
    return validated(Recipe, values, "recipe", {"data": _DATA, "data.path": _DATA})


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The keys that differ and may not: a run cannot go on under another recipe.

    Intervals, trackers and sampling may change. The number of steps may too, unless the learning rate follows it.
    """
    flat_old, flat_new = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    changed = [key for key in flat_new if flat_old.get(key) != flat_new[key]]
    changed += [key for key in flat_old if key not in flat_new]
    steps_matter = old.train.schedule != "constant"
    return [k for k in changed if not _FREE.fullmatch(k) or (k == "train.steps" and steps_matter)]


def read_recipe(file: Path) -> Recipe:
    """A recipe that stands whole in a file. Raises `SlimdpmError` as `load_recipe`, naming the file."""
    try:
        return validate(_mapping(file))
    except SlimdpmError as error:
        raise SlimdpmError(f"{file} is damaged or of another version ({error})") from None


def _mapping(file: Path) -> dict[str, Any]:
    values = read_yaml(file, f"recipe {file}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SlimdpmError(f"recipe {file} must hold keys and values")
    return values


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
