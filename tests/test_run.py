"""What a run decides for itself: its warm-up, its devices, and how its results are used."""

import html
import io
import json
import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from helpers import (
    AUTOENCODER,
    TINY,
    TRIAL,
    class_pipeline,
    embedded_class_pipeline,
    latent_pipeline,
    text_pipeline,
    xl_pipeline,
)  # fmt: skip
from PIL import Image
from rich.console import Console
from torch.utils._pytree import tree_flatten

from slimdpm import ClassConditionalLDMPipeline
from slimdpm.method.distiller import Distiller
from slimdpm.recipe_file import load_recipe, read_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.progress import Display
from slimdpm.training.accelerator import make_accelerator, where
from slimdpm.training.plan import plan_job
from slimdpm.training.run import new_trainer, run_job

pytestmark = pytest.mark.slow

SETTINGS = [*TRIAL, "student.width=8", "train.log_every=1"]


def job(teacher, data, *more):
    values = {"data": {"path": str(data)}}
    given = {"teacher": str(teacher)} if not hasattr(teacher, "unet") else {}
    recipe = load_recipe(None, [*SETTINGS, *more], values={**values, **given})
    return plan_job(recipe, teacher=teacher if hasattr(teacher, "unet") else None)


def run(folder, *given, report=False):
    told = io.StringIO()
    run_job(job(*given), folder, Display(Console(file=told, width=1000)), report=report)
    return told.getvalue()


def rates(folder):
    return [line["lr"] for line in RunFolder(folder).metrics()]


def test_a_short_run_reaches_its_rate_and_a_longer_one_keeps_its_warmup(tmp_path, teacher_folder, image_folder):
    folder = tmp_path / "run"
    least = "train.batch_size=1"
    assert "warning" not in run(folder, teacher_folder, image_folder, "train.steps=20", least)
    assert rates(folder) == pytest.approx([2e-4 * min(1, step / 2) for step in range(1, 21)])
    assert read_recipe(folder / "recipe.yaml").train.warmup == 2
    run(folder, teacher_folder, image_folder, "train.steps=22", least)  # neither refused nor another warm-up
    assert read_recipe(folder / "recipe.yaml").train.warmup == 2 and len(rates(folder)) == 22
    with pytest.raises(SlimdpmError, match=r"train\.warmup differs"):
        run(folder, teacher_folder, image_folder, "train.steps=22", "train.warmup=3", least)


def test_a_run_of_an_earlier_version_keeps_its_warmup(tmp_path, teacher_folder, image_folder):
    run(tmp_path / "run", teacher_folder, image_folder, "train.steps=3", "train.warmup=500")
    run(tmp_path / "run", teacher_folder, image_folder, "train.steps=4")
    assert rates(tmp_path / "run")[-1] == pytest.approx(2e-4 * 4 / 500)


@pytest.mark.parametrize(("steps", "warmup"), [(9, 0), (20, 2), (800, 80), (5_000, 500), (100_000, 500)])
def test_the_warmup_fits_the_run(steps, warmup):
    recipe = load_recipe(None, [f"train.steps={steps}"], values={"data": {"path": "x"}})
    assert recipe.train.warmup is None and recipe.train.warmup_steps == warmup
    assert RunFolder("nowhere").settled(recipe).train.warmup == warmup


def test_a_given_warmup_that_does_not_fit_is_named(tmp_path, teacher_folder, image_folder):
    said = job(teacher_folder, image_folder, "train.steps=20", "train.warmup=500").describe()
    assert "warning: train.warmup is 500 of 20 steps: the rate ends at 4% of train.lr" in said
    assert not any("warning" in line for line in job(teacher_folder, image_folder, "train.warmup=500").describe())


def test_the_average_of_a_short_run_has_forgotten_the_start():
    """By diffusers' own schedule, whatever the decay: the share of the first weights, and the middle of the rest."""
    weight = torch.nn.Parameter(torch.ones(1))
    ema, weights = EMAModel([weight], decay=0.9999), []
    with torch.no_grad():
        for step in range(1, 21):
            ema.step([weight.fill_(0)])
            weights = [w * ema.cur_decay_value for w in weights] + [1 - ema.cur_decay_value]
            assert ema.cur_decay_value == pytest.approx(step / (9 + step) if step > 1 else 0)
    assert ema.shadow_params[0].item() == 0
    assert np.dot(weights, range(1, 21)) > 16 and sum(weights) == pytest.approx(1)


def test_a_run_says_on_what_it_runs_and_what_its_launcher_did_not_start(tmp_path, monkeypatch):
    recipe = load_recipe(None, ["train.trackers=[]"], values={"data": {"path": "x"}})
    accelerator = make_accelerator(recipe, RunFolder(tmp_path))
    device = accelerator.device.type
    assert where(accelerator) == [f"device: {device}, 1 process"]
    monkeypatch.setenv("MASTER_PORT", "29500")  # what `accelerate launch --num_processes 2` sets without GPUs
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "was asked for several processes and started one" in where(accelerator)[1]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(where(accelerator)) == 1


def unknown_class_pipeline():
    """One that embeds three classes and knows no null class."""
    return ClassConditionalLDMPipeline(UNet2DModel(**TINY, num_class_embeds=3), DDIMScheduler(), null_class=None)


def latent_class_pipeline():
    unet = UNet2DModel(**{**TINY, "sample_size": 8}, num_class_embeds=4)
    scheduler = DDIMScheduler(clip_sample=False)
    return ClassConditionalLDMPipeline(unet, scheduler, AutoencoderKL(**AUTOENCODER), null_class=3)


TEACHERS = {
    "pixels": None,
    "latents": lambda folder: latent_pipeline(AutoencoderKL),
    "class": lambda folder: class_pipeline(),
    "class without null": lambda folder: unknown_class_pipeline(),
    "class in latents": lambda folder: latent_class_pipeline(),
    "class token": lambda folder: embedded_class_pipeline(),
    "text": text_pipeline,
    "XL": xl_pipeline,
}


@pytest.fixture
def data(kind, tmp_path, image_folder, class_folder):
    """Images as a teacher of this kind needs them."""
    if kind not in ("text", "XL"):
        return class_folder if "class" in kind else image_folder
    folder = tmp_path / "captioned"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    lines = []
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "ab"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_step_happens_on_one_device(kind, tmp_path, teacher_folder, data, monkeypatch):
    """With all networks on the meta device, which refuses what was left on the processor."""
    make = TEACHERS[kind]
    teacher = make(tmp_path) if make else teacher_folder
    pairs = "auto" if kind in ("pixels", "text") else "none"  # the features know nothing of what is beside the sample
    settings = ("data.cache=false", "train.batch_size=4", "train.snr_gamma=5", "train.steps=1")
    planned = job(teacher, data, *settings, f"distill.pairs={pairs}")
    folder, adam, losses, places = RunFolder(tmp_path / "run"), torch.optim.AdamW, Distiller.losses, set()

    def noted(self, *args, **options):  # an embedding on the meta device would take labels from anywhere
        places.update(value.device.type for value in tree_flatten(args)[0])
        return losses(self, *args, **options)

    monkeypatch.setattr(Distiller, "losses", noted)
    accelerator = make_accelerator(planned.recipe, folder)
    monkeypatch.setattr(torch.optim, "AdamW", lambda *given, fused, **options: adam(*given, **options))
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    trainer = new_trainer(planned, folder, accelerator)
    trainer._step(trainer._lessons())
    assert places | {value.device.type for value in trainer._pending[0][1].values()} == {"meta"}


@pytest.mark.parametrize("kind", ["pixels", "class", "text"])
def test_the_reports_snippet_makes_images(kind, tmp_path, teacher_folder, data):
    teacher = TEACHERS[kind](tmp_path) if TEACHERS[kind] else teacher_folder
    run(tmp_path / "run", teacher, data, "train.steps=1", report=True)
    page = (tmp_path / "run/report.html").read_text()
    snippet = html.unescape(re.search(r"<h2>Use it</h2>\s*<pre>(.*?)</pre>", page, re.DOTALL)[1])
    names = {}
    exec(snippet.replace("num_inference_steps=50", "num_inference_steps=2"), names)
    assert names["images"][0].size == (16, 16)


def test_losses_of_ones_own_train_a_run(tmp_path, teacher_folder, image_folder):
    class Halved(Distiller):
        def term(self, name, pairs, omega):
            return super().term(name, pairs, omega) / (2 if name == "spatial" else 1)

    planned = job(teacher_folder, image_folder, "train.steps=1")
    for name, kind in (("own", Halved), ("plain", Distiller)):
        run_job(planned, tmp_path / name, report=False, distiller=kind)
    own, plain = (RunFolder(tmp_path / name).metrics()[0] for name in ("own", "plain"))
    assert own["denoising"] == plain["denoising"] and own["spatial"] == plain["spatial"] / 2
    spared = planned.recipe.distill.lambda_spatial * plain["spatial"] / 2
    assert own["loss"] == pytest.approx(plain["loss"] - spared)
