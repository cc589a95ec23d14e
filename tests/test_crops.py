"""The teacher of crops that comes with the package, and what its students promise."""

import numpy as np
import pytest
import torch
from crops import crops_lite, crops_recipe

from slimdpm.data.arrays import Arrays
from slimdpm.data.demo_photographs import HELD_OUT, TRAINING, demo_source
from slimdpm.data.images import to_model_range
from slimdpm.metrics.denoising import denoising_errors
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.shell import shell_of
from slimdpm.system.packaged import ASSETS
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def students():
    """Both, to be trained for twelve steps."""
    recipe = crops_recipe(steps=12)
    return {"lite": plan_job(crops_lite(recipe)), "spectral": plan_job(recipe)}


def test_the_students_cost_the_same_within_half_a_percent_and_an_eighth_of_the_teacher(students):
    spectral, lite = students["spectral"].plan, students["lite"].plan
    assert spectral.ratio >= 8
    assert lite.cost.macs == pytest.approx(spectral.cost.macs, rel=0.005)
    assert (spectral.config["_class_name"], lite.config["_class_name"]) == ("SpectralUNet2DModel", "UNet2DModel")


def test_the_teacher_ships_with_the_package_and_is_small():
    files = [f for f in (ASSETS / "demo-teacher").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 8e6
    assert {f.suffix for f in files} == {".json", ".safetensors"}
    assert load_pipeline("demo:teacher").unet.config.sample_size == 32


def test_held_out_crops_are_of_other_photographs():
    assert not set(TRAINING) & set(HELD_OUT)
    held_out = demo_source("held-out")
    assert held_out.images.shape == (512, 32, 32, 3)


def crops(source):
    return to_model_range(torch.from_numpy(source.images).permute(0, 3, 1, 2))


def test_after_twelve_steps_spectral_has_half_the_error_of_lite_in_the_upper_half(students, tmp_path):
    few, upper = Arrays(demo_source("held-out").images[::8], "few"), {}
    for name, job in students.items():
        student = run_job(job, tmp_path / name, report=False)
        upper[name] = np.array(denoising_errors(student.unet, shell_of(student).process, crops(few)).upper)
    assert upper["spectral"].mean() < upper["lite"].mean() / 2 < 0.2  # untrained networks have 1
