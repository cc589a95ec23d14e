"""Batches that serve several steps, with what the teacher said of them."""

from collections import Counter

import pytest
import torch
from helpers import TRIAL
from test_training import assert_equal_checkpoints, logged

from slimdpm.method.distiller import Distiller
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.training import lessons
from slimdpm.training.dry_run import forecast
from slimdpm.training.lessons import batches_kept, kept_batch
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

SETTINGS = [*TRIAL, "student.width=8", "student.overrides={dropout: 0.1}", "train.log_every=1", "train.warmup=2"]


def job(teacher_folder, image_folder, *more):
    values = {"teacher": str(teacher_folder), "data": {"path": str(image_folder)}}
    return plan_job(load_recipe(None, [*SETTINGS, *more], values=values))


@pytest.mark.parametrize("reuse", [1, 2, 5])
def test_every_batch_serves_as_often_as_asked(reuse):
    steps = 200 * reuse
    numbers = [kept_batch(step, reuse) for step in range(steps)]
    assert numbers[::reuse] == list(range(200))  # the first of each group is fresh
    assert all(step // reuse - batches_kept(reuse) < n <= step // reuse for step, n in enumerate(numbers))
    uses = Counter(numbers)
    full = range(batches_kept(reuse), 200 - batches_kept(reuse))  # neither the start's nor those that the end cuts off
    assert {uses[n] for n in full} == {reuse} and set(uses) == set(range(200))


class Noted(Distiller):
    """Remembers what every step was given, and how often the teacher was asked."""

    def teach(self, *args):
        self.asked = getattr(self, "asked", 0) + 1
        return super().teach(*args)

    def losses(self, x0, noise, t, conditions, *, student, taught):
        self.given = [*getattr(self, "given", []), (x0, noise, t)]
        x_t = self.process.add_noise(x0, noise, t)
        torch.testing.assert_close(taught[:2], super().teach(x_t, t, conditions)[:2], rtol=0, atol=0)
        return super().losses(x0, noise, t, conditions, student=student, taught=taught)


@pytest.mark.slow
def test_a_kept_batch_is_the_one_that_it_was(tmp_path, monkeypatch, teacher_folder, image_folder):
    monkeypatch.setattr(lessons, "SPREAD", 1)
    made = []

    def noted(*args, **options):
        made.append(Noted(*args, **options))
        return made[-1]

    for reuse, steps in ((1, 4), (3, 12)):
        planned = job(teacher_folder, image_folder, f"distill.reuse={reuse}", f"train.steps={steps}")
        run_job(planned, tmp_path / str(reuse), report=False, distiller=noted)
    once, kept = made
    assert once.asked == kept.asked == 4 and len(kept.given) == 12
    for step, given in enumerate(kept.given):
        assert all(map(torch.equal, given, once.given[kept_batch(step, 3)])), step


def train_with_kept_batches(folder, steps, *data):
    settings = ("distill.reuse=3", "train.max_batch_per_device=2", "data.flip=true", f"train.steps={steps}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lessons, "SPREAD", 1)
        run_job(job(*data, *settings), folder, report=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher_folder, image_folder):
    """A run of eleven steps without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_with_kept_batches(folder, 11, teacher_folder, image_folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stop", [6, 7, 8])
def test_a_run_that_keeps_batches_goes_on_exactly(stop, whole, tmp_path, teacher_folder, image_folder):
    for steps in (stop, 11):
        train_with_kept_batches(tmp_path / "run", steps, teacher_folder, image_folder)
    last = "checkpoints/step-00000011"
    assert_equal_checkpoints(whole / last, tmp_path / "run" / last)
    assert logged(whole) == logged(tmp_path / "run")


@pytest.mark.slow
def test_a_run_keeps_the_reuse_and_the_weights_that_it_began_with(tmp_path, teacher_folder, image_folder):
    outputs = "distill.pairs=none"
    planned = job(teacher_folder, image_folder, outputs, "train.steps=1")
    run_job(planned, tmp_path / "new", report=False)
    begun = RunFolder(tmp_path / "new").recipe().distill
    assert (planned.recipe.distill.uses, begun.reuse, begun.snr_weighted) == (4, 4, "auto")
    file = tmp_path / "new/recipe.yaml"  # one that was begun before there were such keys
    file.write_text(file.read_text().replace("  reuse: 4\n", "").replace("  snr_weighted: auto\n", ""))
    run_job(job(teacher_folder, image_folder, outputs, "train.steps=2"), tmp_path / "new", report=False)
    begun = RunFolder(tmp_path / "new").recipe()
    assert begun.distill.reuse == 1 and not begun.losses.snr_weighted
    paired = job(teacher_folder, image_folder, "distill.pairs=auto").recipe
    assert paired.distill.uses == 1 and not paired.losses.snr_weighted


@pytest.mark.slow
def test_a_dry_run_counts_what_is_kept(teacher_folder, image_folder):
    settings = ("train.batch_size=6", "train.max_batch_per_device=2", "distill.pairs=none")
    once, kept = (forecast(job(teacher_folder, image_folder, *settings, f"distill.reuse={n}")) for n in (1, 4))
    sample = 3 * 16 * 16 * 4  # bytes of an image; kept are x₀, ε and the teacher's output, and t
    assert once["memory"]["kept"] == 0 and kept["memory"]["kept"] == (batches_kept(4) - 1) * 6 * (3 * sample + 8)
    assert forecast(job(teacher_folder, image_folder, "task=train", "student.init=random"))["memory"]["kept"] == 0
    assert kept["memory"]["total"] - once["memory"]["total"] == kept["memory"]["kept"]
