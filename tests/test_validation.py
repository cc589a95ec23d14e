"""Images held out: training never sees them, the error on them is the one written out, and a run may stop by it."""

import html
import io
import itertools
import re

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDPMScheduler
from helpers import (
    TRIAL,
    class_pipeline,
    command,
    drawn,
    embedded_class_pipeline,
    latent_pipeline,
    launch,
    text_pipeline,
)
from rich.console import Console
from safetensors.torch import load_file
from test_training import assert_equal_checkpoints, logged
from typer.testing import CliRunner

from slimdpm import load_pipeline
from slimdpm.cli.main import app
from slimdpm.data.arrays import Arrays
from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.folder import Folder
from slimdpm.data.images import to_model_range
from slimdpm.method.distiller import Distiller
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

SETTINGS = [*TRIAL, "student.width=8", "train.log_every=1", "train.checkpoint_every=2", "train.keep=9", "train.ema=0.5"]
LEVELS = (50, 150, 300, 500, 700)


def job(folder, teacher, images, *more):
    named = {"teacher": str(teacher)} if not hasattr(teacher, "unet") else {}
    path = str(images) if not isinstance(images, Arrays) else "x"
    recipe = load_recipe(None, [*SETTINGS, *more], values={"data": {"path": path}, **named})
    return plan_job(
        recipe,
        teacher=teacher if hasattr(teacher, "unet") else None,
        data=images if isinstance(images, Arrays) else None,
        folder=folder,
    )


def run(folder, *given, report=False, **options):
    """Returns what the run said."""
    told = io.StringIO()
    run_job(job(folder, *given), folder, Display(Console(file=told, width=1000)), report=report, **options)
    return told.getvalue()


def all_squares(folder):
    source = Folder(folder)
    squares = prepare_images(source, Decoder(16))
    return to_model_range(torch.from_numpy(np.stack([squares.square(i) for i in range(12)])).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teacher_folder, image_folder):
    """A run of a student that predicts v, five of twelve images being held out, and each x₀ that its losses saw."""
    folder, seen = tmp_path_factory.mktemp("held") / "run", []

    class Seeing(Distiller):
        def losses(self, x0, *args, **options):
            seen.extend(x0)
            return super().losses(x0, *args, **options)

    settings = ("data.held_out=5", "train.steps=8", "train.validate_every=8", "student.prediction=v_prediction")
    told = run(folder, teacher_folder, image_folder, *settings, distiller=Seeing)
    return folder, seen, told


@pytest.mark.slow
def test_training_never_sees_what_is_held_out(trained, image_folder):
    _, seen, told = trained
    found = {next(i for i, x in enumerate(all_squares(image_folder)) if torch.equal(x, x0)) for x0 in seen}
    assert len(seen) == 32 and len(found) == 7
    assert "12 images of" in told and "5 are held out" in told


@pytest.mark.slow
def test_what_is_logged_is_the_error_written_out(trained, teacher_folder, image_folder):
    folder, seen, _ = trained
    held_out = [x for x in all_squares(image_folder) if not any(torch.equal(x, x0) for x0 in seen)]
    assert len(held_out) == 5
    teacher, student = load_pipeline(teacher_folder).unet, load_pipeline(folder).unet
    student.load_state_dict(load_file(folder / "checkpoints/step-00000008/ema.safetensors"))
    alphas = DDPMScheduler().alphas_cumprod

    def error(network, image, t, velocity):
        a, b = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        epsilon = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(t))
        x_t = a * image + b * epsilon
        with torch.no_grad():
            output = network(x_t, t).sample
        return ((a * output + b * x_t if velocity else output) - epsilon).square().mean().item()

    line = RunFolder(folder).metrics()[-1]
    for name, network, velocity in (("held_out", student, True), ("held_out_teacher", teacher, False)):
        errors = np.array([[error(network, image, t, velocity) for image in held_out] for t in LEVELS])
        # Each image is at one level; at which one is not said.
        means = [errors[range(5), order].mean() for order in itertools.permutations(range(5))]
        assert min(abs(mean / line[name] - 1) for mean in means) < 1e-5
    assert [("held_out" in line) for line in RunFolder(folder).metrics()] == [False] * 7 + [True]


STOPPING = ("data.held_out=4", "train.validate_every=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher_folder, image_folder):
    """A run of eight steps, and the ratios of the errors after each second one; the fourth has a new lowest one."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, teacher_folder, image_folder, *STOPPING, "train.steps=8")
    ratios = [line["held_out"] / line["held_out_teacher"] for line in logged(folder) if "held_out" in line]
    assert len(ratios) == 4 and ratios[0] > ratios[1] > ratios[3]
    return folder, ratios


@pytest.mark.slow
def test_a_run_stops_when_it_is_good_enough(whole, tmp_path, teacher_folder, image_folder):
    (straight, ratios), stopped = whole, tmp_path / "run"
    enough = (*STOPPING, f"train.until={ratios[1] * 1.000001}")
    run(stopped, teacher_folder, image_folder, *STOPPING, "train.steps=3")  # and goes on
    with drawn():
        said = run(stopped, teacher_folder, image_folder, *enough, "train.steps=8", report=True)
    assert f"good enough: after step 4 of 8 the held-out error is {ratios[1]:.3f} times the teacher's" in said
    assert_equal_checkpoints(stopped / "checkpoints/step-00000004", straight / "checkpoints/step-00000004")
    lines = logged(stopped)
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[3] == logged(straight)[3]
    page = html.unescape((stopped / "report.html").read_text())
    assert "After step 4 of 8" in page and re.search(rf"at step 4: \d\.\d+, {ratios[1]:.3f} times", page)

    assert "good enough: after step 4 of 8" in run(stopped, teacher_folder, image_folder, *enough, "train.steps=8")
    assert logged(stopped) == lines
    said = run(stopped, teacher_folder, image_folder, *STOPPING, f"train.until={ratios[3] / 2}", "train.steps=8")
    assert f"is not reached: after all 8 steps the held-out error is {ratios[3]:.3f} times the teacher's" in said
    assert_equal_checkpoints(stopped / "checkpoints/step-00000008", straight / "checkpoints/step-00000008")


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(whole, tmp_path, teacher_folder, image_folder):
    sets = [*SETTINGS, *STOPPING, "train.steps=8"]
    options = [part for setting in sets for part in ("--set", setting)]
    words = (teacher_folder, image_folder, "-o", tmp_path / "run", "--until", whole[1][1] * 1.001)
    both = launch(command("slim", *words, *options))
    assert [done.code for done in both] == [0, 0], both
    assert logged(tmp_path / "run")[-1]["step"] == 4


def arrays(count=6):
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return Arrays(images, classes=np.arange(count) % 3, texts=np.array(["a", "b"] * (count // 2)))


TEACHERS = {
    "class": lambda folder: class_pipeline(),
    "class in latents": lambda folder: embedded_class_pipeline(),
    "KL latents": lambda folder: latent_pipeline(AutoencoderKL),
    "text": text_pipeline,
}
KEPT = [("class", True), ("class in latents", False), ("KL latents", True), ("text", False), ("text", True)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kept"), KEPT)
def test_measuring_changes_no_step_and_is_the_same_in_each_sitting(kind, kept, tmp_path):
    teacher, settings = TEACHERS[kind](tmp_path), ["data.held_out=2", "train.steps=2", f"data.cache={kept}"]
    for name, every in (("none", 0), ("each", 1)):
        run(tmp_path / name, teacher, arrays(), *settings, f"train.validate_every={every}")
    run(tmp_path / "two", teacher, arrays(), "data.held_out=2", "train.steps=1", f"data.cache={kept}")
    run(tmp_path / "two", teacher, arrays(), *settings, "train.validate_every=1")
    last = "checkpoints/step-00000002"
    for name in ("each", "two"):
        assert_equal_checkpoints(tmp_path / "none" / last, tmp_path / name / last)
    assert logged(tmp_path / "each") == logged(tmp_path / "two")
    assert "held_out" not in logged(tmp_path / "none")[-1]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_with_all_its_images(tmp_path, teacher_folder):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (1000, 16, 16, 3), dtype=np.uint8))
    given = (teacher_folder, tmp_path / "images.npy")
    run(tmp_path / "old", *given, "data.held_out=0", "train.steps=1")
    file = tmp_path / "old/recipe.yaml"
    recipe = yaml.safe_load(file.read_text())
    del recipe["data"]["held_out"], recipe["train"]["validate_every"], recipe["train"]["until"]
    file.write_text(yaml.safe_dump(recipe))
    assert "held out" not in run(tmp_path / "old", *given, "train.steps=2")
    assert RunFolder(tmp_path / "old").recipe().data.held_out == 0
    assert "20 are held out" in run(tmp_path / "new", *given, "train.steps=2")
    assert RunFolder(tmp_path / "new").recipe().data.held_out == 20
    with pytest.raises(SlimdpmError, match=r"another recipe, data.held_out differs"):
        run(tmp_path / "new", *given, "train.steps=2", "data.held_out=10")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"train.until": 1.05}, "train.until needs images that are held out, and this run has none"),
        ({"train.until": 1.05, "data.held_out": 12}, "data.held_out 12 leaves none of 12 images"),
        ({"train.until": 1.05, "data.held_out": 4, "train.validate_every": 0}, "leave train.validate_every out"),
        ({"train.until": 1.05, "data.held_out": 4, "task": "train"}, "this run distils none"),
        ({"train.until": 0}, "train.until"),
        ({"train.until": "soon"}, "train.until"),
        ({"data.held_out": -1}, "data.held_out"),
        ({"data.held_out": 1.5}, "data.held_out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, complaint, teacher_folder, image_folder):
    values = {"teacher": str(teacher_folder), "data": {"path": str(image_folder)}}
    with pytest.raises(SlimdpmError, match=re.escape(complaint)) as raised:
        plan_job(load_recipe(None, SETTINGS, values=values, settings=settings), weights=False)
    assert "\n" not in str(raised.value)


def test_how_many_are_held_out_and_how_often_they_are_looked_at():
    recipe = load_recipe(values={"data": {"path": "x"}})
    assert [recipe.data.kept_back(count) for count in (12, 999, 1000, 12_800, 10**6)] == [0, 0, 20, 256, 256]

    def looked(held_out, **train):
        train = load_recipe(values={"data": {"path": "x"}, "train": train}).train
        return [step for step in range(1, train.steps + 1) if train.validates(step, held_out)]

    assert looked(256, steps=20_000) == list(range(1000, 20_001, 1000))
    every = looked(256, steps=1000, batch_size=16)  # more often would cost more than a twentieth
    assert every[:2] == [107, 214] and every[-1] == 1000 and 20 * 256 / (3 * 16) <= 107
    assert looked(256, steps=10, validate_every=4) == [4, 8, 10]
    assert not looked(0, steps=10) and not looked(256, steps=10, validate_every=0)


@pytest.mark.usefixtures("any_memory")
def test_a_dry_run_says_how_many_are_held_out(teacher_folder, image_folder, tmp_path):
    words = ["slim", teacher_folder, image_folder, "-o", tmp_path / "run", "--held-out", 4, "--width", 8, "--dry-run"]
    for until in ((), ("--until", 1.05)):
        said = CliRunner().invoke(app, [*map(str, (*words, *until))], catch_exceptions=False).stdout
        assert "4 are held out" in said
        assert ("until the student's error on them is at most 1.05 times the teacher's" in said) == bool(until)
