"""A budget of training time, by clocks that are formulas; and what keeps the steps that it chose."""

import math
import os
from dataclasses import replace
from io import StringIO
from itertools import count

import pytest
from helpers import TRIAL, command, launch
from rich.console import Console
from test_training import assert_equal_checkpoints
from typer.testing import CliRunner

from slimdpm.cli.main import app
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display
from slimdpm.training import timed_training
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job
from slimdpm.training.timed_training import Pace, fitting

PACE = Pace(step=0.5, checkpoint=3.0, student=0.1, teacher=0.4, validation=2.0, start=4.0, measured=20.0)
NONE = replace(PACE, validation=0.0)  # no image is held out


def recipe(held_out=0, **train):
    data = {"path": "x", "held_out": held_out}
    return load_recipe(values={"data": data, "train": {"hours": 1, **train}, "samples": {"count": 20}})


def replayed(asked, pace, steps, count):
    """Seconds of a run event by event, as its loop has them."""
    train = asked.train.model_copy(update={"steps": steps})
    grids = train.sample_every if train.sample_every is not None else max(1, steps // 5)
    seconds = pace.measured + pace.start + timed_training.REPORT + count * (pace.student + pace.teacher)
    seconds += 16 * pace.teacher if grids else 0
    for step in range(1, steps + 1):
        seconds += pace.step
        seconds += pace.checkpoint if step == steps or step % train.checkpoint_every == 0 else 0
        seconds += 16 * pace.student + timed_training.FIGURES if grids and step % grids == 0 else 0
        seconds += pace.validation if train.validates(step, asked.data.held_out) else 0
    return seconds


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"sample_every": 0},
        {"sample_every": 50},
        {"checkpoint_every": 10},
        {"held_out": 256},
        {"held_out": 256, "batch_size": 4},  # seldom, since steps are short
        {"held_out": 256, "validate_every": 7},
    ],
)
def test_what_fits_takes_the_time_that_was_given(train):
    asked, pace = recipe(**train), PACE if "held_out" in train else NONE
    found = fitting(asked, pace, "a machine", "a runtime")
    taken = replayed(asked, pace, found.steps, 20)
    assert 3600 - 5 < taken < 3600 + 5  # to an event
    assert math.isclose(found.steps * found.step_seconds + found.other_seconds, 3600, abs_tol=10)


def test_too_little_time_is_one_line_with_what_a_hundred_steps_take():
    with pytest.raises(SlimdpmError, match=r"0.01 hours are too short on a machine: a step takes 0.5 s") as raised:
        fitting(recipe(hours=0.01), NONE, "a machine", "")
    enough = float(str(raised.value).split()[-2])
    assert 100 <= fitting(recipe(hours=enough), NONE, "", "").steps < 200


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        ({"steps": 800}, "give steps or hours, not both"),
        ({"hours": 0}, "train.hours"),
        ({"hours": -1}, "train.hours"),
        ({"hours": math.nan}, "train.hours"),
        ({"hours": 1e9}, "train.hours"),
        ({"hours": "soon"}, "train.hours"),
        ({"hours": True}, "train.hours"),
    ],
)
def test_nonsense_is_refused_in_one_line(train, complaint):
    with pytest.raises(SlimdpmError, match=complaint) as raised:
        recipe(**train)
    assert "\n" not in str(raised.value)


def test_what_was_measured_belongs_to_its_hours_and_steps():
    timed = fitting(recipe(), NONE, "", "").model_dump()
    kept = {"timed": timed, "steps": timed["steps"]}
    assert recipe(**kept).train.timed.steps == timed["steps"]
    for other, complaint in (({"hours": 2}, "timed is of 1 hours"), ({"steps": 7}, f"hours chose {timed['steps']} st")):
        with pytest.raises(SlimdpmError, match=complaint):
            recipe(**kept | other)


def test_the_average_is_of_the_last_ninth_of_any_number_of_steps():
    def average(steps, **train):
        asked = recipe(**train)
        timed = fitting(asked, NONE, "", "").model_copy(update={"steps": steps})
        return asked.train.within(timed).ema

    assert average(800) == 0.9999  # which a run as short does not reach
    assert 1 / (1 - average(900_000)) == pytest.approx(100_000, rel=1e-3)
    assert average(900_000, ema=0.99) == 0.99


def ticking(monkeypatch, seconds):
    """A clock that is so much later at each look."""
    ticks = count()
    monkeypatch.setattr(timed_training, "clock", lambda: next(ticks) * seconds)


def slim(*words):
    return CliRunner().invoke(app, ["slim", *map(str, words)], catch_exceptions=False)


def options(*settings):
    return [part for setting in (*TRIAL, "student.width=8", *settings) for part in ("--set", setting)]


# At half a second a tick: a step is timed by one; ten seconds for the report, the rest for what the clock was seen at.
SHORT = ("--hours", 25 / 3600)


@pytest.mark.slow
def test_a_run_keeps_its_steps_and_is_the_one_with_these_steps(teacher_folder, image_folder, tmp_path, monkeypatch):
    run, words = tmp_path / "run", (teacher_folder, image_folder)
    ticking(monkeypatch, 0.5)
    assert slim(*words, *SHORT, "-o", run, *options()).exit_code == 0
    kept = RunFolder(run).recipe()
    steps = kept.train.timed.steps
    assert kept.train.timed.step_seconds == 0.5 and kept.train.steps == steps > 2
    assert kept.train.schedule == "cosine" and kept.train.warmup == steps // 10
    assert not list(run.glob(".pace*"))

    ticking(monkeypatch, 50.0)  # the machine is slower now
    last = f"checkpoints/step-{steps:08d}"
    assert slim(*words, *SHORT, "-o", run, *options()).exit_code == 0
    assert slim("--recipe", run / "recipe.yaml", "-o", tmp_path / "again").exit_code == 0
    by_hand = options(f"train.steps={steps}", "train.schedule=cosine", f"train.warmup={steps // 10}")
    assert slim(*words, "-o", tmp_path / "hand", *by_hand).exit_code == 0
    assert RunFolder(run).recipe() == kept
    for other in ("again", "hand"):
        assert_equal_checkpoints(run / last, tmp_path / other / last)

    said = slim(*words, *SHORT, "-o", run, *options(), "--dry-run").stdout
    assert f"{steps:,} of 4 images" in said and "0.5 s" in said
    with pytest.raises(SlimdpmError, match="train.hours"):
        slim(*words, "--hours", 2, "-o", run, *options())


@pytest.mark.slow
def test_what_is_compiled_for_the_clock_is_not_compiled_for_the_run_once_more(
    teacher_folder, image_folder, tmp_path, monkeypatch
):
    starts = iter([60.0, 1.0])
    monkeypatch.setattr(timed_training, "_steps", lambda trainer, allowed, begun: (0.5, next(starts)))
    monkeypatch.setattr("torch.nn.Module.compile", lambda self: None)  # the student
    monkeypatch.setattr("torch.compile", lambda module: module)  # the teacher
    ticking(monkeypatch, 0.5)
    run, words = tmp_path / "run", (teacher_folder, image_folder, *SHORT)
    assert slim(*words, "-o", run, *options("train.compile=true")).exit_code == 0
    timed = RunFolder(run).recipe().train.timed
    assert timed.other_seconds < 25  # and without the 60 of the first start
    assert timed.runtime.startswith("compiled")


@pytest.mark.slow
def test_a_run_that_was_stopped_while_it_measured_measures_again(teacher_folder, image_folder, tmp_path, monkeypatch):
    words = (teacher_folder, image_folder, *SHORT, "-o", tmp_path / "run", *options())

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(timed_training, "fitting", interrupted)
        slim(*words)
    assert RunFolder(tmp_path / "run").recipe().train.undecided
    assert "as many as fit" in slim(*words, "--dry-run").stdout
    ticking(monkeypatch, 0.5)
    assert slim(*words).exit_code == 0
    assert RunFolder(tmp_path / "run").recipe().train.timed.steps > 2


@pytest.mark.slow
def test_of_two_processes_the_first_ones_clock_counts(teacher_folder, image_folder, tmp_path):
    def before():
        ticks, speed = count(), 0.5 if os.environ["RANK"] == "0" else 100.0
        timed_training.clock = lambda: next(ticks) * speed

    words = (teacher_folder, image_folder, "-o", tmp_path / "run", *options("train.batch_size=4"))
    both = launch(command("slim", *words, *SHORT, before=before))
    assert [done.code for done in both] == [0, 0], both
    assert RunFolder(tmp_path / "run").recipe().train.timed.step_seconds == 0.5
    both = launch(command("slim", *words[:2], "-o", tmp_path / "none", "--hours", "1e-4", *options(), before=before))
    assert [done.code for done in both] == [2, 2], both
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_default_number_of_steps_is_said_to_be_long(teacher_folder, image_folder, tmp_path, any_memory):
    said = slim(teacher_folder, image_folder, "-o", tmp_path / "run", *options(), "--dry-run").stdout
    assert "100,000 of 4 images" in said and "the default; --hours 2" in said
    values = {"teacher": str(teacher_folder), "data": {"path": str(image_folder)}, "train": {"steps": 21}}
    job = plan_job(load_recipe(None, [*TRIAL, "student.width=8"], values=values))
    for named in (True, False):
        if not named:
            job.recipe.train.model_fields_set.discard("steps")  # as if 21 were the default
        console = Console(file=StringIO())
        run_job(job, tmp_path / str(named), Display(console), report=False)
        assert console.file.getvalue().count("21 steps, the default, take") == (not named)
