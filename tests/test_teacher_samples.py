"""Data that the teacher makes: what it is, that it is made once, and that it survives a kill."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from helpers import (
    TRIAL,
    Forked,
    class_pipeline,
    command,
    embedded_class_pipeline,
    latent_pipeline,
    launch,
    struck,
    text_pipeline,
)
from safetensors.torch import load_file
from typer.testing import CliRunner

import slimdpm
from slimdpm import Request, SlimdpmError, load_pipeline, sample_images
from slimdpm.cache import teacher_samples as samples
from slimdpm.cache.teacher_samples import prepare_samples
from slimdpm.cli.main import app
from slimdpm.method.distiller import Distiller
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.progress import Display
from slimdpm.system.tensor_store import Store
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

pytestmark = pytest.mark.slow

QUICK = [*TRIAL, "student.width=8", "train.steps=3", "data.samples.count=10", "data.samples.steps=2"]
CPU = torch.device("cpu")
MAKERS = [
    lambda: latent_pipeline(VQModel),
    lambda: latent_pipeline(AutoencoderKL),
    class_pipeline,
    embedded_class_pipeline,
]


def plan(teacher, *more):
    return plan_job(load_recipe(None, [*QUICK, *more], values={"data": {"path": "teacher"}}), teacher=teacher)


def made(job, root):
    root.mkdir(exist_ok=True)
    return prepare_samples(job.source, job.shell, root, device=CPU, display=Display())


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).rglob("*.safetensors"))}


@pytest.mark.parametrize("make", MAKERS, ids=["vq", "kl", "class", "embedded class"])
def test_samples_are_those_of_the_pipeline(make, tmp_path, monkeypatch):
    teacher = make()
    for kind in (VQModel, AutoencoderKL):
        monkeypatch.setattr(kind, "encode", lambda *a: pytest.fail("encoded"))
    job = plan(teacher, "data.samples.seed=5", "data.samples.batch_size=4")
    images = made(job, tmp_path / "cache")
    request = Request(guidance=1.0)  # all classes in turn, if there are any
    expected = sample_images(teacher, 10, steps=2, scheduler="ddim", seed=5, batch_size=4, request=request)
    assert len(images) == len(expected) == 10
    for number, image in enumerate(expected):
        np.testing.assert_allclose(images.square(number).astype(int), image, atol=1)


def test_guidance_and_conditions_are_as_asked(tmp_path):
    teacher = class_pipeline()
    job = plan(teacher, "data.samples.guidance=3", "data.samples.scheduler=dpm++")
    assert job.conditions == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]  # equally often, and the null class never
    images = made(job, tmp_path / "cache")
    coats = Request(classes=["coat"], guidance=3.0)
    expected = sample_images(teacher, 5, steps=2, scheduler="dpm++", seed=1, request=coats)
    for number in (1, 4):
        np.testing.assert_allclose(images.square(number).astype(int), expected[number], atol=1)


def test_training_sees_samples_with_their_conditions(tmp_path, monkeypatch):
    job, seen = plan(class_pipeline(), "conditioning.drop=0.0"), []
    plain = Distiller.losses

    def noted(self, x0, noise, t, inputs, **options):
        seen.extend(zip(x0.clone(), inputs["class_labels"].tolist(), strict=True))
        return plain(self, x0, noise, t, inputs, **options)

    monkeypatch.setattr(Distiller, "losses", noted)
    run_job(job, tmp_path / "run", report=False)
    store = made(job, tmp_path / "run/cache").latents  # there already
    assert len(seen) == 12
    for x0, label in seen:
        numbers = [i for i in range(10) if torch.equal(store.row(i)["sample"][0], x0)]
        assert [i % 3 for i in numbers] == [label]


def test_pixels_are_mirrored_and_latents_are_not(tmp_path):
    images = made(plan(class_pipeline(), "data.flip=true"), tmp_path / "cache")
    plain, mirrored = images.moments(3, False)["sample"], images.moments(3, True)["sample"]
    assert torch.equal(plain.flip(-1), mirrored) and not torch.equal(plain, mirrored)
    with pytest.raises(SlimdpmError, match=r"data.flip: latents do not mirror"):
        plan(latent_pipeline(VQModel), "data.flip=true")


def test_the_same_bytes_each_time_and_more_samples_begin_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_SHARD", 4)
    teacher = latent_pipeline(VQModel)
    made(plan(teacher), tmp_path / "one")
    made(plan(teacher), tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 3 and contents(tmp_path / "one") == contents(tmp_path / "two")
    made(plan(teacher, "data.samples.count=14"), tmp_path / "whole")
    calls, plain = [], samples.clean_samples
    monkeypatch.setattr(samples, "clean_samples", lambda *a, **k: calls.append(a[2]) or plain(*a, **k))
    made(plan(teacher, "data.samples.count=14"), tmp_path / "one")
    assert calls == [range(8, 12), range(12, 14)]
    assert contents(tmp_path / "one") == contents(tmp_path / "whole")
    teacher.save_pretrained(tmp_path / "teacher")
    made(plan(load_pipeline(tmp_path / "teacher"), "data.samples.count=14"), tmp_path / "one")
    assert len(calls) == 2  # a copy of the teacher is the same one
    for other in ("steps=3", "seed=2", "scheduler=euler", "batch_size=3"):
        made(plan(teacher, f"data.samples.{other}"), tmp_path / "one")
    made(plan(latent_pipeline(VQModel)), tmp_path / "one")  # other weights
    assert len(list((tmp_path / "one").glob("samples-*"))) == 6


def words(teacher, folder, *more):
    sets = [*QUICK, "data.samples.count=192", *more]
    return ["slim", teacher, "teacher", "-o", folder, *[p for s in sets for p in ("--set", s)]]


def test_a_kill_costs_a_shard(tmp_path, teacher_folder):
    second = struck(signal.SIGKILL, Store, "_write", lambda store, place, *args: place[0] == 64)
    killed = Forked(command(*words(teacher_folder, tmp_path / "run"), before=second)).wait()
    assert killed.code == -9, killed
    there = contents(tmp_path / "run/cache")
    assert len(there) == 1
    job = plan(load_pipeline(teacher_folder), "data.samples.count=192")
    run_job(plan_job(job.recipe.model_copy(update={"teacher": str(teacher_folder)})), tmp_path / "run", report=False)
    after = contents(tmp_path / "run/cache")
    assert len(after) == 3 and all(after[name] == data for name, data in there.items())
    made(job, tmp_path / "whole")
    assert contents(tmp_path / "whole") == after


def test_two_processes_of_a_launch_make_and_use_the_data_of_one(tmp_path):
    class_pipeline().save_pretrained(tmp_path / "teacher")
    settings = [*QUICK, "data.samples.count=192", f"teacher={tmp_path / 'teacher'}", "data.path=teacher"]
    run_job(plan_job(load_recipe(None, settings)), tmp_path / "one", report=False)
    both = launch(command(*words(tmp_path / "teacher", tmp_path / "two")))
    assert [done.code for done in both] == [0, 0], both
    assert "192 samples of the teacher: 0.6 MB will be kept in" in both[0].out
    assert RunFolder(tmp_path / "one").recipe() == RunFolder(tmp_path / "two").recipe()
    assert contents(tmp_path / "one/cache") == contents(tmp_path / "two/cache")
    weights = [load_file(tmp_path / n / "checkpoints/step-00000003/student.safetensors") for n in ("one", "two")]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=2e-4, rtol=0, msg=name)


def test_prompts_come_from_a_file_in_turn(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "prompts.txt").write_text("a dress\n\n  boots \n", encoding="utf-8")
    job = plan(text_pipeline(tmp_path), f"data.samples.prompts={tmp_path / 'prompts.txt'}")
    assert job.conditions == ["a dress", "boots"] * 5
    assert "data: 10 samples of the teacher (ddim, 2 steps, guidance 1) as 16x16" in job.describe()
    run_job(job, tmp_path / "run")
    names = {path.parent.name.split("-")[0] for path in (tmp_path / "run/cache").rglob("*.safetensors")}
    assert names == {"samples", "text"}
    page = (tmp_path / "run/report.html").read_text()
    assert "10 samples of the teacher" in page


@pytest.mark.parametrize(
    ("make", "setting", "words"),
    [
        (text_pipeline, None, "text-to-image: it needs prompts, of its samples data.samples.prompts"),
        (text_pipeline, "prompts=nowhere.txt", "data.samples.prompts: nowhere.txt does not exist"),
        (text_pipeline, "prompts=EMPTY", "holds no prompt; write one on each line"),
        (text_pipeline, "prompts=PIPE", "PIPE is no regular file"),
        (text_pipeline, "prompts=BYTES", "line 1 is not valid UTF-8"),
        (class_pipeline, "prompts=GOOD", "class-conditional: it takes a class, no prompt"),
        (latent_pipeline, "prompts=GOOD", "unconditional: it takes no prompt"),
        (latent_pipeline, "guidance=2", "unconditional: it takes no guidance"),
        (latent_pipeline, "scheduler=fast", "unknown scheduler 'fast'"),
        (latent_pipeline, "count=0", "data.samples.count: input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_asked_of_the_teacher_is_one_line(make, setting, words, tmp_path):
    for name, data in {"EMPTY": b"\n \n", "BYTES": b"\xff\xfe", "GOOD": b"a dress"}.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "PIPE")
    for name in ("EMPTY", "BYTES", "GOOD", "PIPE"):
        setting = setting and setting.replace(name, str(tmp_path / name))
    if make is text_pipeline:
        pytest.importorskip("transformers")
    teacher = make({text_pipeline: tmp_path, class_pipeline: {}, latent_pipeline: VQModel}[make])
    with pytest.raises(SlimdpmError, match=words):
        plan(teacher, *([] if setting is None else [f"data.samples.{setting}"]))


def test_settings_without_a_teacher_or_without_a_cache(tmp_path):
    for values, words in (
        ({"data": {"path": "x", "samples": {"count": 5}}}, "samples are of data that the teacher makes"),
        ({"data": {"path": "teacher", "cache": False}}, "what the teacher makes has to be kept"),
    ):
        with pytest.raises(SlimdpmError, match=words):
            load_recipe(None, values=values)
    recipe = load_recipe(None, values={"task": "train", "data": {"path": "teacher"}, "student": {"base": "pixel-32"}})
    with pytest.raises(SlimdpmError, match="there is no teacher to make the data: name one"):
        plan_job(recipe)


def test_a_baseline_takes_the_samples_of_the_teacher_too(tmp_path):
    teacher = class_pipeline()
    sets = [s for s in QUICK if s.partition("=")[0] != "student.width"]
    recipe = load_recipe(None, sets, values={"task": "train", "data": {"path": "teacher"}, "student": {"ratio": 2}})
    lite = plan_job(recipe, teacher=teacher)
    made(plan(teacher), tmp_path / "cache")
    made(lite, tmp_path / "cache")
    assert lite.teacher is None and len(list((tmp_path / "cache").glob("samples-*"))) == 1


def test_the_word_teacher_and_a_folder_of_that_name(tmp_path, monkeypatch, teacher_folder, image_folder, any_memory):
    (tmp_path / "teacher").symlink_to(image_folder)
    monkeypatch.chdir(tmp_path)
    arguments = ["slim", str(teacher_folder), "--width", "8", "--dry-run"]
    said = {
        data: CliRunner().invoke(app, [*arguments[:2], data, *arguments[2:]], catch_exceptions=False).output
        for data in ("teacher", "./teacher")
    }
    assert "data           10,000 samples of the teacher (ddim, 50 steps, guidance 1) as 16x16" in said["teacher"]
    assert "data           12 images of ./teacher as 16x16" in said["./teacher"]


def test_from_python_by_word_and_by_path(tmp_path, monkeypatch, teacher_folder, image_folder):
    (tmp_path / "teacher").symlink_to(image_folder)
    monkeypatch.chdir(tmp_path)
    settings = dict(s.split("=") for s in QUICK if s.split("=")[0].split(".")[0] in ("samples", "data"))
    settings |= {"train.trackers": [], "train.batch_size": 4, "train.sample_every": 0}
    options = {"width": 8, "steps": 2, "progress": False}
    slimdpm.slim(teacher_folder, "teacher", output=tmp_path / "made", settings=settings, **options)
    assert RunFolder(tmp_path / "made").recipe().data.path == "teacher"
    assert list((tmp_path / "made/cache").glob("samples-*"))
    settings = {k: v for k, v in settings.items() if not k.startswith("data.samples")}
    slimdpm.slim(teacher_folder, Path("teacher"), output=tmp_path / "real", settings=settings, **options)
    assert RunFolder(tmp_path / "real").recipe().data.path == "./teacher"
    assert list((tmp_path / "real/cache").glob("images-*"))
