"""The examples run as they are."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import slimdpm
from slimdpm.method.cost import measure_model

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_slim_in_100_lines_gives_a_student_that_loads(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")

    load_example("slim_in_100_lines").main(
        [str(tmp_path / "photos"), "--steps", "2", "--batch", "2", "-o", str(tmp_path / "student")]
    )

    assert "step 1: loss" in capsys.readouterr().out
    student = slimdpm.load_pipeline(tmp_path / "student")
    teacher = slimdpm.load_pipeline("demo:teacher")
    assert measure_model(student.unet).macs * 8 <= measure_model(teacher.unet).macs
    assert (tmp_path / "student" / "samples.png").exists()


def test_slim_in_100_lines_is_as_short_as_its_name():
    assert len((EXAMPLES / "slim_in_100_lines.py").read_text().splitlines()) <= 100
