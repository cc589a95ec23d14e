"""Recipes: what is read, what is refused and in which words, and what may change between two sittings."""

import pytest
import yaml

from slimdpm.recipe_file import differences, load_recipe, validate
from slimdpm.system.errors import SlimdpmError

DATA = {"data": {"path": "photos"}}


def test_defaults_are_what_the_ablation_chose():
    recipe = validate(DATA)
    assert (recipe.distill.lambda_spatial, recipe.distill.lambda_freq, recipe.distill.alpha) == (2.0, 2.0, -1.0)
    assert recipe.distill.weight_scaling == "mean" and recipe.distill.pairs == "none"
    assert recipe.train.snr_gamma is None  # the task decides


def test_gamma_of_min_snr_is_positive_or_none():
    assert load_recipe(None, ["train.snr_gamma=3"], values=DATA).train.snr_gamma == 3
    assert load_recipe(None, ["train.snr_gamma=none"], values=DATA).train.snr_gamma == "none"
    for wrong in ("0", "never", "[5]"):
        with pytest.raises(SlimdpmError, match=r"^recipe: train\.snr_gamma: input should be"):
            load_recipe(None, [f"train.snr_gamma={wrong}"], values=DATA)


def test_file_options_and_assignments_in_this_order(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {path: a}\ntrain: {steps: 1, lr: 1e-3, batch_size: 8}\n")
    recipe = load_recipe(
        file,
        ["train.lr=3e-4", "distill.levels=[1, 2]", "student.max_macs=6.7G"],
        values={"train": {"steps": 2, "lr": 2e-4}},
        settings={"train.seed": 5},
    )
    assert (recipe.train.batch_size, recipe.train.steps, recipe.train.lr, recipe.train.seed) == (8, 2, 3e-4, 5)
    assert recipe.distill.levels == [1, 2] and recipe.student.max_macs == 6.7e9


def test_a_recipe_survives_being_written():
    recipe = validate({**DATA, "student": {"ratio": 12, "overrides": {"layers_per_block": 1}}, "train": {"clip": None}})
    assert validate(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.stepz=3", "recipe: unknown key train.stepz; did you mean steps?"),
        ("trainer=3", "recipe: unknown key trainer; did you mean train?"),
        ("zzz=3", "recipe: unknown key zzz; known here: task, teacher"),
        ("train.steps=many", "recipe: train.steps: input should be a valid integer, .* got 'many'"),
        ("train.steps=0", "recipe: train.steps: input should be greater than or equal to 1, got 0"),
        ("train.lr=-1", "recipe: train.lr: input should be greater than 0, got -1"),
        ("student.ratio=0", "recipe: student.ratio: input should be greater than 1, got 0"),
        ("student.ratio=1000", "recipe: student.ratio: input should be less than 1000, got 1000"),
        ("student.max_macs=lots", "recipe: student.max_macs: 'lots' is no amount"),
        ("data.crop=middle", "recipe: data.crop: input should be 'center' or 'random', got 'middle'"),
        ("distill.weight_scaling=x", "recipe: distill.weight_scaling: input should be 'mean' or 'none'"),
        ("train.precision=fp8", "recipe: train.precision: input should be 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ("train", "--set train: write it as key=value"),
        ("train.betas=[1", "--set train.betas=.1: the value is no YAML"),
    ],
)
def test_a_mistake_is_one_clear_line(assignment, words):
    with pytest.raises(SlimdpmError, match=words) as error:
        load_recipe(None, [assignment], values=DATA)
    assert "\n" not in str(error.value)


def test_two_budgets_are_one_too_many():
    with pytest.raises(SlimdpmError, match="student: give one budget, not width and ratio"):
        validate({**DATA, "student": {"ratio": 2, "width": 8}})


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(SlimdpmError, match="recipe .*recipe.yaml (must hold|is no valid YAML)"):
        load_recipe(file)
    with pytest.raises(SlimdpmError, match="does not exist"):
        load_recipe(tmp_path / "other.yaml")


def test_python_objects_in_yaml_are_not_made(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("data: !!python/object/apply:os.system ['touch made']\n")
    with pytest.raises(SlimdpmError, match="no valid YAML"):
        load_recipe(file)
    assert not (tmp_path / "made").exists()


def test_what_may_change_when_a_run_is_resumed():
    old = validate({**DATA, "train": {"steps": 10}})
    free = {
        "train": {"steps": 20, "log_every": 5, "keep": 9},
        "samples": {"count": 4},
        "data": {"path": "photos", "workers": 0},
    }
    assert differences(old, validate(free)) == []
    assert differences(old, validate({**DATA, "train": {"steps": 10, "lr": 1e-3}, "student": {"width": 8}})) == [
        "student.width",
        "train.lr",
    ]
    cosine = validate({**DATA, "train": {"steps": 10, "schedule": "cosine"}})
    longer = validate({**DATA, "train": {"steps": 20, "schedule": "cosine"}})
    assert differences(cosine, longer) == ["train.steps"]
