"""The demo end to end with few steps: two students of equal cost and seconds, measured beside their teacher."""

import json

import numpy as np
import pytest
import torch
from helpers import drawn
from PIL import Image

from slimdpm.data.images import to_model_range
from slimdpm.data.open_source import open_source
from slimdpm.data.shards import Shards
from slimdpm.demo import judge, run, students
from slimdpm.demo.run import run_demo
from slimdpm.demo.students import demo_recipe, lite_recipe, plain_recipe
from slimdpm.metrics.denoising import denoising_errors
from slimdpm.metrics.extractors import Extractor
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.shell import shell_of
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import write_json
from slimdpm.system.packaged import data_sets
from slimdpm.system.stop_signals import Stopped
from slimdpm.training.plan import plan_job

pytestmark = pytest.mark.slow
CLASSES = 10


class Few(Shards):
    """Two photographs of each class."""

    def __init__(self, files):
        super().__init__(files)
        numbers = super().labels().numbers
        chosen = np.concatenate([np.flatnonzero(numbers == number)[:2] for number in range(CLASSES)])
        self.samples = [self.samples[i] for i in chosen]


def small(x):
    """Features that are quickly made, as many as the classifier takes."""
    return torch.nn.functional.adaptive_avg_pool2d(x / 255, (20, 22)).flatten(1)[:, :1280], None


@pytest.fixture
def brief(monkeypatch):
    """Few photographs, samples, and steps of samplers, and an extractor that takes no time."""
    extractor = Extractor("small", "small", small, torch.device("cpu"))
    monkeypatch.setattr(judge, "load_extractor", lambda name: extractor)
    few = Few([data_sets()["slimdpm:garments-test"]])
    monkeypatch.setattr(judge, "open_source", lambda path: few)
    monkeypatch.setattr(students, "TURNS", 1)
    for place in (judge, run):
        monkeypatch.setattr(place, "EACH", 1)
        monkeypatch.setattr(place, "STEPS", 2)
    return few


def test_all_students_have_the_same_macs_start_and_weighting():
    recipe = demo_recipe(steps=12)
    spectral, lite, plain = (plan_job(r) for r in (recipe, lite_recipe(recipe), plain_recipe(recipe)))
    assert spectral.plan.ratio >= 8
    assert lite.plan.cost.macs == pytest.approx(spectral.plan.cost.macs, rel=0.01)
    ours, theirs = spectral.recipe, lite.recipe
    assert (ours.student.init, ours.train.snr_gamma, ours.train.steps) == ("teacher", 5, 12)
    assert (theirs.student.init, theirs.train) == ("teacher", ours.train)
    assert lite.teacher is None and lite.origin is not None  # photographs alone, from the teacher's channels
    assert ours.data == theirs.data
    assert (plain.plan.config, plain.origin is not None) == (lite.plan.config, True)
    assert (plain.recipe.train, plain.recipe.distill) == (ours.train, ours.distill) and plain.teacher is not None


def test_the_demo_compares_its_networks_and_reports(tmp_path, brief):
    seconds = {"lite": 1.0, "plain": 0.75, "spectral": 1.5}  # as another machine might have them
    write_json(tmp_path / "seconds.json", seconds)
    with drawn():
        entries = run_demo(tmp_path, steps=2)
    assert [e.name for e in entries] == ["teacher", "lite", "plain", "spectral"]
    assert all(e.samples.shape == (CLASSES, 32, 32, 3) and e.seconds > 0 for e in entries)
    steps = {name: RunFolder(tmp_path / name).recipe().train.steps for name in ("lite", "plain", "spectral")}
    assert steps == {"lite": 3, "plain": 4, "spectral": 2}
    x = to_model_range(torch.from_numpy(np.stack([np.asarray(brief.image(i)) for i in range(20)])).permute(0, 3, 1, 2))
    inputs = {"class_labels": torch.arange(CLASSES).repeat_interleave(2)}
    for entry in entries[1:]:
        assert entry.cost.macs * 8 <= entries[0].cost.macs
        again = load_pipeline(tmp_path / entry.name)  # the errors are those of the student that is kept
        found = denoising_errors(again.unet, shell_of(again).process, x, inputs=lambda batch: inputs)
        assert entry.errors.upper == pytest.approx(found.upper, rel=1e-4)
        assert entry.errors.overall == pytest.approx(found.overall, rel=1e-4)
    page = (tmp_path / "report.html").read_text()
    told = ("dress</b>", "t-shirt</b>", "photographs", "Spectral: dress", "class named", "kernel distance", "<svg")
    for words in (*told, "How good they are", "3 steps", "upper half", "faster a step"):
        assert words in page, words
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["networks"]["lite"]["steps"] == 3 and 0 <= results["networks"]["teacher"]["named"] <= 1
    assert Image.open(tmp_path / "comparison.png").width > 900
    again = run_demo(tmp_path, steps=2)  # nothing is trained twice
    assert [e.errors for e in again] == [e.errors for e in entries]
    assert all((a.samples == b.samples).all() for a, b in zip(again, entries, strict=True))


def test_a_demo_that_was_stopped_goes_on_as_it_began(tmp_path, brief, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    begun = students.run_job

    def cut(job, folder, *arguments, **options):
        if folder.name == "spectral":
            raise Stopped(2, 1)
        return begun(job, folder, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(students, "run_job", cut)
        with pytest.raises(Stopped):
            run_demo(stopped, steps=2)
    seconds = (stopped / "seconds.json").read_bytes()
    found = run_demo(stopped, steps=2)
    assert (stopped / "seconds.json").read_bytes() == seconds  # nor timed twice
    whole.mkdir()
    (whole / "seconds.json").write_bytes(seconds)
    for one, other in zip(found, run_demo(whole, steps=2), strict=True):
        assert one.errors == other.errors and (one.samples == other.samples).all()
    with pytest.raises(SlimdpmError, match=r"train\.steps differs"):
        run_demo(stopped, steps=3)


def test_the_test_photographs_are_none_of_the_training_ones():
    training, test = open_source("slimdpm:garments"), open_source("slimdpm:garments-test")
    seen = {training.image(i).tobytes() for i in range(len(training))}
    assert len(seen) == len(training) and not seen & {test.image(i).tobytes() for i in range(len(test))}
