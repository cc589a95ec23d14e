"""A run goes on from what was written, with the teacher and the images that it began with, or says what has changed."""

import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import TINY, TRIAL, latent_pipeline
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from slimdpm.method.distiller import Distiller
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display
from slimdpm.training.checkpoint import checkpoints, load_checkpoint
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job
from slimdpm.training.student_folder import Results

pytestmark = pytest.mark.slow

STATE = ("student", "ema", "aligners", "optimizer")
SETTINGS = [*TRIAL, "student.width=8", "train.checkpoint_every=2", "train.log_every=1", "train.keep=3"]


def run(folder, teacher, images, *more, report=False):
    """Returns what the run said."""
    told = io.StringIO()
    values = {"teacher": str(teacher), "data": {"path": str(images)}}
    recipe = load_recipe(None, [*SETTINGS, "train.steps=4", *more], values=values)
    run_job(plan_job(recipe), folder, Display(Console(file=told, width=1000)), report=report)
    return told.getvalue()


def weights(folder):
    return load_file(checkpoints(folder / "checkpoints")[-1] / "student.safetensors")


def steps(folder):
    return [line["step"] for line in RunFolder(folder).metrics()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher_folder, image_folder):
    """A run of four steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, teacher_folder, image_folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """A run that may be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def refusal(folder):
    """What resuming from the newest checkpoint says, in one line; nothing is loaded before all is verified."""
    path = checkpoints(folder / "checkpoints")[-1]
    with pytest.raises(SlimdpmError, match=f"checkpoint {path} cannot be used ") as refused:
        load_checkpoint(path, None)
    return str(refused.value)


def flip(file, place, bit=0x40):
    data = bytearray(file.read_bytes())
    data[place] ^= bit
    file.write_bytes(data)


@pytest.mark.parametrize("name", STATE)
def test_a_flipped_bit_anywhere_in_the_tensors_is_found(copy, name):
    file = copy / f"checkpoints/step-00000004/{name}.safetensors"
    size = file.stat().st_size
    for place in (0, 9, size // 3, size // 2, size - 1):
        flip(file, place)
        said = refusal(copy)
        assert f"{file} is damaged" in said and said.endswith("remove it to go on from step-00000002")
        flip(file, place)
    with pytest.raises(AttributeError):  # whole again: it is loaded, into nothing
        load_checkpoint(file.parent, None)


def test_a_flipped_bit_anywhere_in_the_state_is_found(copy):
    file = copy / "checkpoints/step-00000004/state.json"
    for place in np.random.default_rng(0).permutation(file.stat().st_size)[:100]:
        flip(file, place, 1)
        refusal(copy)
        flip(file, place, 1)


@pytest.mark.parametrize("name", [*(f"{name}.safetensors" for name in STATE), "state.json"])
def test_a_file_of_another_step_is_found(copy, name):
    old, new = (copy / f"checkpoints/step-0000000{step}/{name}" for step in (2, 4))
    shutil.copy(old, new)
    assert refusal(copy).endswith("remove it to go on from step-00000002")


def test_a_renamed_missing_or_added_file_is_found(copy):
    folder = copy / "checkpoints"
    shutil.copytree(folder / "step-00000002", folder / "step-00000009")
    assert "(it is of step 2)" in refusal(copy)
    shutil.rmtree(folder / "step-00000009")
    (folder / "step-00000004/extra.safetensors").write_bytes(b"")
    assert "(extra.safetensors is none of its files)" in refusal(copy)
    (folder / "step-00000004/extra.safetensors").rename(folder / "step-00000004/ema.safetensors")
    assert "ema.safetensors is damaged" in refusal(copy)
    (folder / "step-00000004/ema.safetensors").unlink()
    assert "ema.safetensors does not exist" in refusal(copy)
    (folder / "step-00000004/state.json").unlink()
    assert "state.json does not exist" in refusal(copy)
    shutil.rmtree(folder / "step-00000002")
    assert refusal(copy).endswith("remove it to start again: there is none before it")


@pytest.mark.parametrize("change", [("step", 4.0), ("seconds", 9), ("ema_step", 3), ("scaler", {}), ("more", 1)])
def test_changed_numbers_are_found(copy, change):
    file = copy / "checkpoints/step-00000004/state.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, change[0]: change[1]}))
    assert "state.json is damaged" in refusal(copy)
    for key in ("files", "digest"):  # half a seal is no checkpoint of an earlier version
        file.write_text(json.dumps({k: v for k, v in values.items() if k != key}))
        assert "state.json is damaged" in refusal(copy)


def test_the_way_out_is_a_way(copy, whole, teacher_folder, image_folder):
    flip(copy / "checkpoints/step-00000004/student.safetensors", -2)
    with pytest.raises(SlimdpmError, match="remove it to go on from step-00000002"):
        run(copy, teacher_folder, image_folder)
    shutil.rmtree(copy / "checkpoints/step-00000004")
    assert "resuming after step 2 of 4" in run(copy, teacher_folder, image_folder)
    assert all(torch.equal(one, weights(whole)[name]) for name, one in weights(copy).items())
    assert steps(copy) == [1, 2, 3, 4]


def test_a_run_of_an_earlier_version_goes_on_and_says_so(copy, teacher_folder, image_folder):
    file = copy / "checkpoints/step-00000004/state.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in values.items() if k not in ("files", "digest")}))
    (copy / "inputs.json").unlink()
    said = run(copy, teacher_folder, image_folder, "train.steps=5")
    assert "resuming after step 4 of 5" in said
    assert "step-00000004 is of an earlier version and has no digests: taken as it is" in said
    assert steps(copy) == [1, 2, 3, 4, 5] and (copy / "inputs.json").exists()


def test_the_first_steps_stand_once_in_the_log(copy, teacher_folder, image_folder):
    """Killed before the first checkpoint, after three steps were logged."""
    shutil.rmtree(copy / "checkpoints")
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text(
        "\n".join([*lines[:3], "[1, 2]", '{"step": "x"}', '{"step": 1}', "[" * 9999, '{"step": 3, '])
    )
    run(copy, teacher_folder, image_folder)
    assert steps(copy) == [1, 2, 3, 4] and len((copy / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_log_that_would_never_end_is_named(kind, copy, teacher_folder, image_folder):
    log = copy / "metrics.jsonl"
    log.unlink()
    os.mkfifo(log) if kind == "pipe" else log.symlink_to("/dev/zero")
    with pytest.raises(SlimdpmError, match=r"metrics\.jsonl is no regular file"):
        run(copy, teacher_folder, image_folder, "train.steps=5")


def test_a_stop_between_checkpoint_and_grid_loses_no_grid(tmp_path, teacher_folder, image_folder, monkeypatch):
    settings = ["train.sample_every=2"]
    run(tmp_path / "whole", teacher_folder, image_folder, *settings)
    true_grid, made = Results.save_grid, []

    def stopped(self, step, weights):
        raise KeyboardInterrupt

    monkeypatch.setattr(Results, "save_grid", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", teacher_folder, image_folder, *settings)
    monkeypatch.setattr(Results, "save_grid", lambda *given: (made.append(given[1]), true_grid(*given)))
    run(tmp_path / "run", teacher_folder, image_folder, *settings)
    assert made == [2, 4]
    for name in ("step-00000002.png", "step-00000004.png"):
        assert (tmp_path / "run/samples" / name).read_bytes() == (tmp_path / "whole/samples" / name).read_bytes()


@pytest.fixture
def others(tmp_path, teacher_folder, image_folder):
    """A teacher and images of one's own, that may change."""
    return shutil.copytree(teacher_folder, tmp_path / "teacher"), shutil.copytree(image_folder, tmp_path / "images")


def test_another_teacher_at_the_same_path_is_named(others, tmp_path):
    teacher, images = others
    run(tmp_path / "run", teacher, images)
    torch.manual_seed(99)
    DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()).save_pretrained(teacher)
    with pytest.raises(SlimdpmError, match=r"was begun with another content of the teacher; put back what was there"):
        run(tmp_path / "run", teacher, images, "train.steps=6")
    assert steps(tmp_path / "run") == [1, 2, 3, 4]


def test_other_images_in_the_same_folder_are_named(others, tmp_path):
    teacher, images = others
    run(tmp_path / "run", teacher, images)
    file = sorted(images.rglob("*.png"))[3]
    before = file.read_bytes()
    Image.fromarray(np.zeros((24, 20, 3), np.uint8)).save(file)
    with pytest.raises(SlimdpmError, match=r"was begun with another content of the images; put back what was there"):
        run(tmp_path / "run", teacher, images, "train.steps=6")
    file.write_bytes(before)
    run(tmp_path / "run", teacher, images, "train.steps=6")
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_a_run_with_all_its_steps_writes_its_report_whatever_became_of_its_images(others, tmp_path, monkeypatch):
    teacher, images = others
    options = ["data.cache=false", "data.size=16"]
    true_save, files = Results.save_student, sorted(images.rglob("*.png"))

    def save(self, weights):  # at the last checkpoint: nothing is read of the images but for the report
        true_save(self, weights)
        if len(checkpoints(self.run.checkpoints)) == 2:
            for file in files[:11]:
                file.write_bytes(b"gone")

    monkeypatch.setattr(Results, "save_student", save)
    run(tmp_path / "run", teacher, images, *options, "samples.count=12", report=True)
    assert "11 of the images cannot be read any more" in (tmp_path / "run/report.html").read_text()
    (tmp_path / "run/report.html").unlink()
    said = run(tmp_path / "run", teacher, images, *options, "samples.count=3", report=True)
    assert "begun with another content of the images; all steps are taken" in said
    assert (tmp_path / "run/report.html").exists()


def test_latents_are_the_same_in_any_precision(tmp_path, image_folder, monkeypatch):
    seen, true_losses = {}, Distiller.losses

    def losses(self, x0, *args, **kwargs):
        seen.setdefault(precision, []).append(x0.clone())
        return true_losses(self, x0, *args, **kwargs)

    monkeypatch.setattr(Distiller, "losses", losses)
    teacher = latent_pipeline(AutoencoderKL)
    for precision in ("fp32", "bf16"):
        settings = [*SETTINGS, "train.steps=1", "data.cache=false", f"train.precision={precision}"]
        job = plan_job(load_recipe(None, settings, values={"data": {"path": str(image_folder)}}), teacher=teacher)
        run_job(job, tmp_path / precision, report=False)
    assert torch.equal(seen["fp32"][0], seen["bf16"][0]) and seen["bf16"][0].dtype == torch.float32
