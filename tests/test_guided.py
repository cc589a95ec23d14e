"""Guided answers: what the teacher says with classifier-free guidance becomes what a student says in one call."""

import json

import numpy as np
import pytest
import torch
from helpers import TRIAL, class_pipeline, text_pipeline
from test_image_conditions import editing
from test_validation import LEVELS

from slimdpm import Request, SlimdpmError, load_pipeline, sample_images
from slimdpm.conditioning import Guidance, conditioning_of
from slimdpm.data.dataset import Decoder, prepare_images
from slimdpm.data.folder import Folder
from slimdpm.data.images import to_model_range
from slimdpm.method.distiller import Distiller, TappedStudent
from slimdpm.method.losses import LossSettings
from slimdpm.pipelines.shell import shell_of
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

SCALE = 3.0
NULL, TINY_SHAPE = 3, (3, 16, 16)  # the tiny network's
SETTINGS = [
    *TRIAL,
    "distill.pairs=none",
    "student.width=8",
    "train.steps=4",
    "train.log_every=1",
    f"distill.guidance={SCALE}",
]


def plan(teacher, data, *more):
    values = {"teacher": str(teacher), "data": {"path": str(data)}}
    return plan_job(load_recipe(None, [*SETTINGS, *more], values=values))


def guided(unet, x, t, labels):
    """Two calls, put together in float64."""
    given, null = (unet(x, t, class_labels=c).sample.double() for c in (labels, torch.full_like(labels, NULL)))
    return null + SCALE * (given - null)


@pytest.fixture(scope="module")
def trained(class_teacher, class_folder, tmp_path_factory):
    """A run, and what each of its steps was given: x₀, noise, t, conditions, what the teacher said, and the losses."""
    folder, seen = tmp_path_factory.mktemp("guided") / "run", []

    class Seeing(Distiller):
        def losses(self, x0, noise, t, conditions, *, student, taught):
            found = super().losses(x0, noise, t, conditions, student=student, taught=taught)
            seen.append(
                (x0, noise, t, conditions["class_labels"], taught.output, {k: v.item() for k, v in found.items()})
            )
            return found

    job = plan(class_teacher, class_folder, "data.held_out=2", "train.validate_every=4")
    run_job(job, folder, report=False, distiller=Seeing)
    return folder, seen


@pytest.mark.slow
def test_a_student_is_taught_the_guided_output(trained, class_teacher):
    folder, seen = trained
    unet, process = load_pipeline(class_teacher).unet, shell_of(load_pipeline(class_teacher)).process
    assert len(seen) == 4
    for x0, noise, t, labels, said, losses in seen:
        assert NULL not in labels.tolist()  # nothing is dropped: this student is not to be guided
        with torch.no_grad():
            wanted = guided(unet, process.add_noise(x0, noise, t), t, labels)
        torch.testing.assert_close(said.double(), wanted, rtol=1e-5, atol=1e-5)
        assert losses["loss"] == pytest.approx(losses["denoising"] + 2 * (losses["spatial"] + losses["frequency"]))
    assert RunFolder(folder).recipe().conditioning.drop == 0


def test_the_images_own_target_is_guided_as_the_teachers_output_is():
    torch.manual_seed(0)
    teacher, student = class_pipeline().unet.eval(), class_pipeline().unet.eval()
    process = shell_of(class_pipeline()).process
    settings = LossSettings(guidance=SCALE, lambda_denoising=0.5)
    distiller = Distiller(TappedStudent(student), process, teacher=teacher, settings=settings)
    x0, noise = torch.randn(2, 2, *TINY_SHAPE).unbind(0)
    t, labels = torch.tensor([900, 100]), torch.tensor([0, 2])
    conditions, null = ({"class_labels": c} for c in (labels, torch.full_like(labels, NULL)))
    with torch.no_grad():
        found = distiller.losses(x0, noise, t, conditions, null=null)
        x_t = process.add_noise(x0, noise, t)
        given, said = teacher(x_t, t, class_labels=labels).sample, student(x_t, t, class_labels=labels).sample
        target = noise.double() + guided(teacher, x_t, t, labels) - given
    wanted = (said - target).square().mean()
    assert found["denoising"].item() == pytest.approx(wanted.item(), rel=1e-5)
    rest = 2 * (found["spatial"] + found["frequency"])
    assert found["loss"].item() == pytest.approx((0.5 * wanted + rest).item(), rel=1e-5)


@pytest.mark.slow
def test_its_pipeline_needs_no_guidance(trained, class_teacher):
    folder, _ = trained
    assert json.loads((folder / "student/model_index.json").read_text())["guidance_scale"] == 1
    student = load_pipeline(folder)
    assert shell_of(student).conditioning.sampling_inputs(range(2), Request(), torch.device("cpu")).null is None
    plain, asked = (sample_images(student, 2, steps=2, request=Request(guidance=g)) for g in (None, 1.0))
    np.testing.assert_array_equal(plain, asked)
    assert shell_of(load_pipeline(class_teacher)).conditioning.scale == 1.5


def test_samples_of_different_times_are_guided_each_at_its_own():
    torch.manual_seed(0)
    unet, x = class_pipeline().unet.eval(), torch.randn(3, *TINY_SHAPE)
    labels, t = torch.tensor([0, 2, 1]), torch.tensor([900, 100, 5])
    given, null = ({"class_labels": c} for c in (labels, torch.full_like(labels, NULL)))
    with torch.no_grad():
        found = Guidance(given, null, SCALE).predict(unet, x, t)
        wanted = torch.cat([guided(unet, x[i : i + 1], t[i], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_teachers_held_out_error_is_that_of_its_guided_output(trained, class_teacher, class_folder):
    folder, seen = trained
    source = Folder(class_folder)
    decoded = prepare_images(source, Decoder(16))
    squares = np.stack([decoded.square(i) for i in range(9)])
    x = to_model_range(torch.from_numpy(squares).permute(0, 3, 1, 2))
    trained_on = [i for i in range(9) if any(torch.equal(x[i], x0) for batch in seen for x0 in batch[0])]
    classes = torch.tensor([i // 3 for i in range(9)])
    unet, process = load_pipeline(class_teacher).unet, shell_of(load_pipeline(class_teacher)).process
    pairs = [p for p in np.ndindex(9, 9) if p[0] != p[1] and not {*p} & {*trained_on}]
    found = [line for line in RunFolder(folder).metrics() if "held_out_teacher" in line][-1]["held_out_teacher"]
    errors = []
    for pair in pairs:  # which two of the unseen ones are held out, and in which order, is the run's secret
        each = []
        for level, t in enumerate(LEVELS):
            which = pair[level % 2]
            noise = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(t))
            time = torch.tensor([t])
            with torch.no_grad():
                said = guided(unet, process.add_noise(x[[which]], noise, time), time, classes[[which]])
            each.append((said - noise).square().mean().item())
        errors.append(np.mean(each))
    assert pairs and min(abs(np.array(errors) / found - 1)) < 1e-4


@pytest.mark.slow
def test_what_cannot_be_guided_is_refused(class_teacher, class_folder, teacher_folder, image_folder, tmp_path):
    for given, words in (
        ((class_teacher, class_folder, "distill.pairs=auto"), "features are not guided"),
        ((class_teacher, class_folder, "distill.lambda_spatial=0", "distill.lambda_freq=0"), "cannot both be 0"),
        ((teacher_folder, image_folder), "an unconditional teacher has no guidance"),
    ):
        with pytest.raises(SlimdpmError, match=words):
            plan(*given)
    with pytest.raises(SlimdpmError, match="guided by two"):
        shell_of(editing(tmp_path)).conditioning.guided()


@pytest.mark.slow
def test_a_student_of_text_says_so_where_its_pipeline_cannot(tmp_path):
    pipeline = text_pipeline(tmp_path)
    conditioning = conditioning_of(pipeline, pipeline.unet, (16, 16))
    learnt = conditioning.guided()
    assert (conditioning.scale, learnt.scale, learnt.sized((8, 8)).scale) == (7.5, 1, 1)
    assert learnt.sampling_inputs(range(1), Request(prompts=("a",)), torch.device("cpu")).null is None
    assert learnt.card()["call"] == '"a prompt", guidance_scale=1, '


def test_a_scale_that_is_none_is_refused():
    pipeline = class_pipeline()
    pipeline.register_to_config(guidance_scale="much")
    with pytest.raises(SlimdpmError, match="guidance_scale of the pipeline is 'much'"):
        shell_of(pipeline)
