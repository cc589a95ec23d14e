"""Recipes: their values and their text, and the values of ``--set``."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import yaml

from .base import QUICK, Base, sets
from .case import Case, Outcome, kind
from .mutate import mutated, nested, places, scarred, wild, wild_word


def recipe(base: Base) -> dict[str, Any]:
    """Every key, with its default or a value that fits the tiny teacher."""
    from slimdpm.recipe_file import load_recipe

    file = load_recipe(None, [*QUICK, f"teacher={base.teacher('pixel')}", f"data.path={base.images}", "train.steps=1"])
    return file.model_dump(mode="json")


def run_of(file: Path, folder: Path, rng: Random, base: Base, dry: float = 0.85) -> list[Any]:
    """The command that takes a recipe; most often it only says what it would do."""
    return [
        "slim",
        "--recipe",
        file,
        "-o",
        folder / "out",
        *(["--dry-run"] if rng.random() < dry or base.quick else []),
    ]


@kind(50)
def recipe_values(rng: Random, folder: Path, base: Base) -> Case:
    values, note = mutated(recipe(base), rng)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=rng.random() < 0.5), "utf-8", "surrogatepass")
    words, compiles = run_of(file, folder, rng, base), note.startswith("train.compile")
    return Case([*words, "--dry-run"] if compiles else words, note=note)  # a compiler takes minutes


def _bomb(rng: Random) -> str:
    width, levels = rng.choice([(9, 9), (2, 40), (20, 6)])
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + f"\nstudent: {{overrides: {{x: *a{levels - 1}}}}}\n"


REFUSED = {
    "python": "teacher: !!python/object/apply:os.system ['touch CANARY']\n",
    "python name": "teacher: !!python/name:os.system\n",
    "python module": "teacher: !!python/module:evilmod\n",
    "int tag": "train: {steps: !!int abc}\n",
    "float tag": "train: {lr: !!float abc}\n",
    "bool tag": "data: {flip: !!bool maybe}\n",
    "timestamp": "teacher: 2024-13-45\n",
    "timestamp tag": "teacher: !!timestamp soon\n",
    "binary tag": "teacher: !!binary '*'\n",
    "set": "train: !!set {a, b}\n",
    "omap": "train: !!omap [a: 1]\n",
    "pairs": "train: !!pairs [a: 1]\n",
    "digits": f"train: {{steps: {'9' * 5000}}}\n",
    "sexagesimal": f"train: {{steps: 1{':59' * 3000}}}\n",
    "hex": f"train: {{steps: 0x{'f' * 6000}}}\n",
    "deep": f"student: {{overrides: {{x: {'[' * 500}{']' * 500}}}}}\n",
    "very deep": f"student: {{overrides: {{x: {'{a: ' * 3000}1{'}' * 3000}}}}}\n",
    "self": "student: &s {overrides: {x: *s}}\n",
    "twice": "train: {steps: 5, steps: 6}\n",
    "twice above": "train: {steps: 5}\ntrain: {lr: 1}\n",
    "list": "- 1\n- 2\n",
    "text": "just text\n",
    "two documents": "train: {steps: 5}\n---\ntrain: {steps: 6}\n",
    "no end": "train: {steps: [\n",
    "tab": "train:\n\tsteps: 5\n",
    "escape": '"tra\\e[31min": 5\n',
    "long key": f"{'k' * 20_000}: 5\n",
    "list as key": "? [a, b]\n: 5\n",
    "mapping as key": "? {a: b}\n: 5\n",
    "unknown anchor": "train: *nothing\n",
    "merge": "train: {<<: 5}\n",
    "directive": "%YAML 9.9\n---\ntrain: {steps: 5}\n",
    "value of nothing": "data: =\n",
    "nan": "train: {lr: .nan}\n",
    "inf": "distill: {lambda_freq: .inf}\n",
}


@kind(30)
def recipe_text(rng: Random, folder: Path, base: Base) -> Case:
    name = rng.choice([*REFUSED, "bomb"])
    text = _bomb(rng) if name == "bomb" else REFUSED[name]
    if rng.random() < 0.3:  # amid what is right
        text = yaml.safe_dump({"teacher": str(base.teacher("pixel")), "data": {"path": str(base.images)}}) + text
    (folder / "recipe.yaml").write_text(text)
    return Case(run_of(folder / "recipe.yaml", folder, rng, base), "refused", note=name)


@kind(30)
def recipe_bytes(rng: Random, folder: Path, base: Base) -> Case:
    data = yaml.safe_dump(recipe(base)).encode()
    encoding = rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "utf-8-sig"])
    data, note = scarred(data.decode().encode(encoding), rng, len(data))
    (folder / "recipe.yaml").write_bytes(data)
    return Case(run_of(folder / "recipe.yaml", folder, rng, base), note=f"{encoding} {note}")


@kind(50)
def set_values(rng: Random, folder: Path, base: Base) -> Case:
    paths = [".".join(map(str, path)) for path in places(recipe(base)) if all(isinstance(p, str) for p in path)]
    words = []
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(paths) if rng.random() < 0.9 else wild_word(rng)
        value = rng.choice(
            [wild_word(rng), yaml.safe_dump(wild(rng), default_flow_style=True), "!!int x", "[", "*a", "&a"]
        )
        words.append(f"{key}={value}".replace("\x00", "")[:100_000])
    real = [] if rng.random() < 0.15 and not base.quick else ["--dry-run"]
    command = ["slim", base.teacher("pixel"), base.images, "-o", folder / "out", "--steps", 1, *sets(*QUICK, *words)]
    return Case([*command, *real], note=repr(words)[:300])


NUMBERS = ["train.steps", "train.batch_size", "train.lr", "data.size", "samples.count", "train.seed", "student.width"]


@kind(8)
def truth_for_a_number(rng: Random, folder: Path, base: Base) -> Case:
    """YAML reads ``yes`` as true: no number."""
    key = rng.choice(NUMBERS)
    words = sets(*QUICK, f"{key}={rng.choice(['true', 'yes', 'on', 'false'])}")
    command = ["slim", base.teacher("pixel"), base.images, "-o", folder / "out", *words, "--dry-run"]
    return Case(command, "refused", note=key)


@kind(50)
def overrides(rng: Random, folder: Path, base: Base) -> Case:
    """Values of the student's network config."""
    import json

    name = rng.choice(["pixel", "pixel", "latent", "class", "text"])
    config = json.loads((base.teacher(name) / "unet" / "config.json").read_text())
    key = rng.choice([key for key in config if not key.startswith("_")])
    value = mutated({key: config[key]}, rng)[0].get(key, wild(rng)) if rng.random() < 0.5 else wild(rng)
    if rng.random() < 0.1:
        key = rng.choice(["_class_name", "nothing", "__class__", "\x1b[2J", "_name_or_path"])
    if rng.random() < 0.05:
        value = nested(rng.choice([20, 100, 300]))
    file = folder / "recipe.yaml"
    settings = {"teacher": str(base.teacher(name)), "data": {"path": str(base.labelled)}, "train": {"steps": 1}}
    settings["student"] = {"overrides": {key: value}}
    file.write_text(yaml.safe_dump(settings), "utf-8", "surrogatepass")
    quick = sets(*QUICK)
    return Case([*run_of(file, folder, rng, base, 0.7), *quick], note=f"{name} {key} = {value!r}"[:300])


@kind(10, slow=True)
def recipe_that_works(rng: Random, folder: Path, base: Base) -> Case:
    """A control: nothing is wrong with it."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(base)))
    real = rng.random() < 0.2

    def check(outcome: Outcome) -> None:
        assert not real or (outcome.folder / "out" / "report.html").exists(), "no report"

    words = ["slim", "--recipe", folder / "recipe.yaml", "-o", folder / "out"]
    return Case([*words, *([] if real else ["--dry-run"])], "works", check)
