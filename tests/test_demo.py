"""The demo end to end with few steps: three students of equal cost and seconds, measured beside their teacher."""

import json
import math

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
from slimdpm.demo.students import demo_recipe, gated_recipe, lite_recipe
from slimdpm.metrics.denoising import denoising_errors
from slimdpm.metrics.extractors import Extractor
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.shell import shell_of
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.files import write_json
from slimdpm.system.packaged import ASSETS, data_sets
from slimdpm.system.stop_signals import Stopped
from slimdpm.training import plan
from slimdpm.training.plan import plan_job

pytestmark = pytest.mark.slow
CLASSES = 10
SECONDS = {"lite": 1.0, "spectral": 0.75, "plain": 1.5}  # of a step, as another machine might have them
SETTINGS = ASSETS / "demo.yaml"


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


@pytest.fixture(scope="module")
def brief():
    """Few photographs, samples, and steps of samplers, small batches, and an extractor that takes no time."""
    extractor = Extractor("small", "small", small, torch.device("cpu"))
    training, test = (Few([data_sets()[name]]) for name in ("slimdpm:garments", "slimdpm:garments-test"))

    def recipe(seed, steps):
        return load_recipe(SETTINGS, ["train.batch_size=4", "distill.reuse=2"], values={"train": {"steps": steps}})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(judge, "load_extractor", lambda name: extractor)
        patched.setattr(judge, "open_source", lambda path: test)
        patched.setattr(plan, "open_source", lambda data: training)
        patched.setattr(run, "demo_recipe", recipe)
        patched.setattr(students, "TURNS", 1)
        for place in (judge, run):
            patched.setattr(place, "EACH", 1)
            patched.setattr(place, "STEPS", 2)
        yield test


@pytest.fixture(scope="module")
def whole(brief, tmp_path_factory):
    """A demo's folder and what came of it, with drawn figures."""
    folder = tmp_path_factory.mktemp("demo")
    write_json(folder / "seconds.json", SECONDS)
    with drawn():
        return folder, run_demo(folder, steps=2)


def test_all_students_have_the_same_macs_start_and_weighting():
    recipe = demo_recipe(steps=12)
    plain, lite, spectral = (plan_job(r) for r in (recipe, lite_recipe(recipe), gated_recipe(recipe)))
    assert plain.plan.ratio >= 8 and lite.plan.config == plain.plan.config
    assert spectral.plan.cost.macs == pytest.approx(plain.plan.cost.macs, rel=0.01)
    ours, theirs = plain.recipe, lite.recipe
    assert (ours.student.init, ours.train.snr_gamma, ours.train.steps) == ("teacher", 5, 12)
    assert (theirs.student.init, theirs.train) == ("teacher", ours.train)
    assert lite.teacher is None and lite.origin is not None  # photographs alone, from the teacher's channels
    assert ours.data == theirs.data
    assert spectral.plan.config["_class_name"] == "SpectralUNet2DModel" and spectral.origin is not None
    assert (spectral.recipe.train, spectral.recipe.distill) == (ours.train, ours.distill)
    assert spectral.teacher is not None and plain.teacher is not None


def test_the_demo_compares_its_networks_and_reports(whole, brief):
    folder, entries = whole
    assert [e.name for e in entries] == ["teacher", "lite", "spectral", "plain"]
    assert all(e.samples.shape == (CLASSES, 32, 32, 3) and e.seconds > 0 for e in entries)
    steps = {name: RunFolder(folder / name).recipe().train.steps for name in SECONDS}
    assert steps == {"lite": 3, "spectral": 4, "plain": 2}
    x = to_model_range(torch.from_numpy(np.stack([np.asarray(brief.image(i)) for i in range(20)])).permute(0, 3, 1, 2))
    inputs = {"class_labels": torch.arange(CLASSES).repeat_interleave(2)}
    for entry in entries[1:]:
        assert entry.cost.macs * 8 <= entries[0].cost.macs
        again = load_pipeline(folder / entry.name)  # the errors are those of the student that is kept
        found = denoising_errors(again.unet, shell_of(again).process, x, inputs=lambda batch: inputs)
        assert entry.errors.upper == pytest.approx(found.upper, rel=1e-4)
        assert entry.errors.overall == pytest.approx(found.overall, rel=1e-4)
    page = (folder / "report.html").read_text()
    told = (
        "dress</b>",
        "t-shirt</b>",
        "photographs",
        "Spectral: dress",
        "garments-12x: dress",
        "class named",
        "kernel distance",
        "<svg",
    )
    for words in (*told, "How good they are", "3 steps", "upper half", "faster a step"):
        assert words in page, words
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    results = json.loads((folder / "results.json").read_text())
    assert results["networks"]["lite"]["steps"] == 3 and 0 <= results["networks"]["teacher"]["named"] <= 1
    samples = {entry.name: entry.samples.astype(float) for entry in entries}
    apart = [
        math.dist(one.ravel(), other.ravel()) / one.size**0.5
        for one, other in zip(samples["teacher"], samples["lite"], strict=True)
    ]
    assert results["networks"]["lite"]["from the teacher's"] == pytest.approx(sum(apart) / len(apart))
    assert Image.open(folder / "comparison.png").width > 900


def test_a_demo_that_was_stopped_goes_on_as_it_began(whole, tmp_path, monkeypatch):
    begun, clocked = students.run_job, students.step_seconds

    def cut(job, folder, *arguments, **options):
        if folder.name == "plain":
            raise Stopped(2, 1)
        return begun(job, folder, *arguments, **options)

    def timed(*arguments, **options):
        found = clocked(*arguments, **options)
        assert found.keys() == SECONDS.keys() and all(seconds > 0 for seconds in found.values())
        return SECONDS

    monkeypatch.setattr(students, "step_seconds", timed)
    with monkeypatch.context() as patched:
        patched.setattr(students, "run_job", cut)
        with pytest.raises(Stopped):
            run_demo(tmp_path, steps=2)
    monkeypatch.delattr(students, "step_seconds")  # nothing is timed twice
    trained = [*tmp_path.glob("lite/checkpoints/*/*"), *tmp_path.glob("spectral/checkpoints/*/*")]
    written = {file: file.stat().st_mtime_ns for file in trained}
    found = run_demo(tmp_path, steps=2)
    assert written and {file: file.stat().st_mtime_ns for file in trained} == written  # nor trained twice
    for one, other in zip(found, whole[1], strict=True):
        assert one.errors == other.errors and (one.samples == other.samples).all()
    with pytest.raises(SlimdpmError, match=r"train\.steps differs"):
        run_demo(tmp_path, steps=3)


def test_the_test_photographs_are_none_of_the_training_ones():
    training, test = open_source("slimdpm:garments"), open_source("slimdpm:garments-test")
    seen = {training.image(i).tobytes() for i in range(len(training))}
    assert len(seen) == len(training) and not seen & {test.image(i).tobytes() for i in range(len(test))}
