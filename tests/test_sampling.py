"""Samples: schedulers, seeds, and the PNGs of ``slimdpm sample``."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
    UNet2DModel,
    VQModel,
)
from helpers import TINY, TRIAL, latent_pipeline
from PIL import Image

from slimdpm.pipelines import sample_files as pictures
from slimdpm.pipelines.loading import load_pipeline
from slimdpm.pipelines.sample_files import write_samples
from slimdpm.pipelines.sampling import SCHEDULERS, make_scheduler, probe, sample_batches, sample_images
from slimdpm.pipelines.shell import new_shell, shell_of
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.shared_work import claim
from slimdpm.training.plan import plan_job
from slimdpm.unet import SpectralUNet2DModel


@pytest.fixture(scope="module")
def pipeline():
    return DDPMPipeline(SpectralUNet2DModel(**TINY), DDPMScheduler())


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS, "KDPM2DiscreteScheduler"])
def test_an_image_does_not_depend_on_its_batch(pipeline, scheduler):
    # Some schedulers go through all timesteps whenever they are made: here there are few.
    pipeline = DDPMPipeline(pipeline.unet, DDPMScheduler(100, beta_start=0.001, beta_end=0.2))
    whole = sample_images(pipeline, 3, steps=5, scheduler=scheduler, seed=3, batch_size=3)
    parts = sample_images(pipeline, 3, steps=5, scheduler=scheduler, seed=3, batch_size=2)
    alone = next(sample_batches(pipeline, range(1, 2), steps=5, scheduler=scheduler, seed=3))
    for other in (parts, np.concatenate([whole[:1], alone, whole[2:]])):
        assert np.abs(whole.astype(int) - other).max() <= 1  # rounding
    assert np.abs(whole[0].astype(int) - whole[1]).max() > 20
    other_seed = sample_images(pipeline, 1, steps=5, scheduler=scheduler, seed=4)
    assert np.abs(other_seed[0].astype(int) - whole[0]).max() > 20


def test_a_network_in_training_is_left_so(pipeline):
    pipeline.unet.train()
    weight = pipeline.unet.conv_in.weight
    strides, channels_last = weight.stride(), []
    handle = pipeline.unet.register_forward_pre_hook(lambda *_: channels_last.append(weight.stride(1) == 1))
    sample_images(pipeline, 1, steps=2)
    handle.remove()
    assert all(channels_last) and weight.stride() == strides
    assert pipeline.unet.training
    pipeline.unet(torch.randn(1, *weight.shape[1:2], 8, 8), 0).sample.sum().backward()
    pipeline.unet.zero_grad()


@pytest.mark.parametrize("name", ["magic", "DPMSolverSDEScheduler", "FlowMatchEulerDiscreteScheduler", "os"])
def test_unknown_schedulers_are_refused(pipeline, name):
    with pytest.raises(SlimdpmError, match=f"unknown scheduler '{name}'; there are ddpm, ddim, dpm"):
        make_scheduler(pipeline, name)


def test_too_many_steps_are_refused(pipeline):
    with pytest.raises(SlimdpmError, match="cannot take 2000 steps"):
        sample_images(pipeline, 1, steps=2000, scheduler="ddim")


@pytest.mark.parametrize("name", ["dpm++", "dpm++sde", "unipc", "deis"])
@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_as_many_steps_as_the_process_has(name, spacing):
    """The multistep solvers would visit a timestep twice and divide by nothing: every pixel had one value."""
    scheduler = DDPMScheduler(num_train_timesteps=20, timestep_spacing=spacing)
    short = DDPMPipeline(SpectralUNet2DModel(**TINY), scheduler)
    with pytest.raises(SlimdpmError, match=r"cannot take 20 steps \(19 work\)"):
        sample_images(short, 1, steps=20, scheduler=name)
    assert sample_images(short, 1, steps=19, scheduler=name).std() > 10


@pytest.mark.parametrize(
    ("scheduler", "name", "steps", "words"),
    [
        (DDIMScheduler(steps_offset=1), None, 1000, r"cannot take 1000 steps \(999 work\)"),
        (DDPMScheduler(num_train_timesteps=20), "ddim", 50, r"cannot take 50 steps \(20 work\)"),
        (DDIMScheduler(prediction_type="sample"), "euler-a", 20, "EulerAncestral.*cannot be used here: .*sample"),
        (DDPMScheduler(), "pndm", 1, r"cannot take 1 step \(4 work\)"),
        (DDPMScheduler(), "pndm", 3, r"cannot take 3 steps \(4 work\)"),
        (DDPMScheduler(), "euler", 10**9, "10,000 steps at most"),
        (DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"), None, 20, "not finite"),
    ],
)
def test_steps_that_a_scheduler_cannot_take_are_one_line_at_once(pipeline, scheduler, name, steps, words):
    shell = replace(shell_of(pipeline), scheduler=scheduler)
    with pytest.raises(SlimdpmError, match=f"^samples.steps: .*{words}"):
        probe(shell, name, steps, "samples.steps")


def plan(teacher, images, *sets):
    values = {"data": {"path": str(images)}, "student": {"width": 8}}
    trial = [s for s in TRIAL if not s.startswith("samples.steps")]
    return plan_job(load_recipe(None, [*trial, *sets], values=values), teacher=teacher)


@pytest.mark.slow
def test_a_run_is_planned_with_steps_that_work(image_folder):
    unet = UNet2DModel(**TINY)
    short = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=60))
    assert plan(DDPMPipeline(unet, DDPMScheduler()), image_folder).recipe.samples.steps == 50
    assert plan(short, image_folder).recipe.samples.steps == 60
    assert plan(short, image_folder, "samples.scheduler=dpm++").recipe.samples.steps == 59
    with pytest.raises(SlimdpmError, match=r"samples.steps: DDIMScheduler cannot take 61 steps \(60 work\)"):
        plan(short, image_folder, "samples.steps=61")
    with pytest.raises(SlimdpmError, match="samples.steps: EulerAncestral.* cannot be used here"):
        plan(short, image_folder, "student.prediction=sample", "samples.scheduler=euler-a")
    with pytest.raises(SlimdpmError, match=r"data.samples.steps: DDIMScheduler cannot take 61 steps \(60 work\)"):
        plan(short, "teacher", "data.samples.steps=61")
    ends = DDPMPipeline(unet, DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(SlimdpmError, match="ends without signal"):
        plan(ends, image_folder, "student.prediction=v_prediction")


def test_nothing_is_clipped_in_latent_space_by_a_default(tmp_path):
    """x₀ of latents has no bounds: only what a config itself says is done."""
    pipeline = latent_pipeline(VQModel)
    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler(), PNDMScheduler()):
        shell = shell_of(LDMPipeline(pipeline.vqvae, pipeline.unet, scheduler))
        for name in (None, "ddpm", "ddim"):
            assert not make_scheduler(shell, name).config.get("clip_sample")
        shell.with_unet(pipeline.unet, "v_prediction").save_pretrained(tmp_path / type(scheduler).__name__)
        saved = load_pipeline(tmp_path / type(scheduler).__name__)
        assert not make_scheduler(saved, "ddim").config.clip_sample
    explicit = shell_of(LDMPipeline(pipeline.vqvae, pipeline.unet, DDIMScheduler(clip_sample=True)))
    assert make_scheduler(explicit, None).config.clip_sample and make_scheduler(explicit, "ddpm").config.clip_sample
    pixels = shell_of(DDPMPipeline(pipeline.unet, DDPMScheduler()))
    assert make_scheduler(pixels, None).config.clip_sample and make_scheduler(pixels, "ddim").config.clip_sample
    pipeline.vqvae.save_pretrained(tmp_path / "vqvae")
    fresh = new_shell(pipeline.unet.config, timesteps=30, autoencoder=str(tmp_path / "vqvae"))
    assert len(fresh.process) == 30 and not make_scheduler(fresh, "ddim").config.clip_sample


def test_samples_that_are_not_finite_are_an_error(pipeline):
    damaged = SpectralUNet2DModel(**TINY)
    torch.nn.init.constant_(damaged.conv_out.bias, float("nan"))
    with pytest.raises(SlimdpmError, match="the samples 0 to 1 are not finite"):
        sample_images(DDPMPipeline(damaged, DDPMScheduler()), 2, steps=2)


def test_pictures_are_written_and_made_once(tmp_path, teacher_folder, monkeypatch):
    folder = tmp_path / "out"
    write_samples(str(teacher_folder), folder, count=3, steps=3, seed=1, device="cpu")
    assert sorted(p.name for p in folder.glob("[!.]*")) == [
        "00000.png",
        "00001.png",
        "00002.png",
        "grid.png",
        "samples.json",
    ]
    first = [np.asarray(Image.open(folder / f"{i:05d}.png")) for i in range(3)]
    (folder / "00002.png").unlink()
    stamp = (folder / "00001.png").stat().st_mtime_ns
    write_samples(str(teacher_folder), folder, count=5, steps=3, seed=1, batch_size=2, device="cpu")
    assert (folder / "00001.png").stat().st_mtime_ns == stamp  # not made again
    again = [np.asarray(Image.open(folder / f"{i:05d}.png")) for i in range(5)]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(first, again, strict=False))
    with pytest.raises(SlimdpmError, match="holds samples of another network or of other settings"):
        write_samples(str(teacher_folder), folder, count=3, steps=4, seed=1, device="cpu")


def test_a_picture_that_is_gone_or_damaged_is_made_again_alone(tmp_path, teacher_folder, monkeypatch):
    folder, made = tmp_path / "out", []

    def counted(pipeline, numbers, **options):
        made.extend(numbers)
        return sample_batches(pipeline, numbers, **options)

    monkeypatch.setattr(pictures, "sample_batches", counted)
    options = {"count": 6, "steps": 2, "device": "cpu"}
    write_samples(str(teacher_folder), folder, **options)
    whole = {file.name: file.read_bytes() for file in folder.glob("*.png")}
    made.clear()
    (folder / "00001.png").unlink()
    (folder / "00003.png").write_bytes(whole["00003.png"][:-30])
    (folder / "00004.png").write_bytes(bytes(b ^ (i == 90) for i, b in enumerate(whole["00004.png"])))
    write_samples(str(teacher_folder), folder, **options)
    assert made == [1, 3, 4]
    assert {file.name: file.read_bytes() for file in folder.glob("*.png")} == whole
    assert Image.open(folder / "grid.png").size == (3 * 98 - 2, 2 * 98 - 2)  # a picture is 96 wide: no empty columns
    made.clear()
    (folder / "00002.png").unlink()
    os.mkfifo(folder / "00002.png")  # opening it would wait for its writer
    write_samples(str(teacher_folder), folder, **options)
    assert made == [2] and (folder / "00002.png").read_bytes() == whole["00002.png"]
    (folder / "samples.json").write_text('{"network": ')
    with pytest.raises(SlimdpmError, match=r"samples.json cannot be read as JSON"):
        write_samples(str(teacher_folder), folder, **options)


def test_one_process_works_in_a_folder(tmp_path, teacher_folder):
    with claim(tmp_path / "out"), pytest.raises(SlimdpmError, match="another process is working in .*out"):
        write_samples(str(teacher_folder), tmp_path / "out", count=1, steps=1, device="cpu")
    write_samples(str(teacher_folder), tmp_path / "out", count=1, steps=1, device="cpu")


def test_pictures_are_not_mixed_with_other_files(tmp_path, teacher_folder):
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(SlimdpmError, match="is not empty"):
        write_samples(str(teacher_folder), tmp_path, count=1, device="cpu")
    with pytest.raises(SlimdpmError, match="is a file"):
        write_samples(str(teacher_folder), tmp_path / "letter.txt", count=1, device="cpu")
    for device in ("abacus", "meta", "hpu", "cuda:99999999999", ""):
        with pytest.raises(SlimdpmError, match=f"device '{device}' is not to be had here"):
            write_samples(str(teacher_folder), tmp_path / "new", count=1, device=device)
    assert not (tmp_path / "new").exists()


def test_greyscale_networks_make_greyscale_pictures(tmp_path):
    unet = UNet2DModel(**{**TINY, "in_channels": 1, "out_channels": 1})
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "teacher")
    write_samples(str(tmp_path / "teacher"), tmp_path / "out", count=2, steps=2, device="cpu")
    assert Image.open(tmp_path / "out" / "00000.png").mode == Image.open(tmp_path / "out" / "grid.png").mode == "L"


def test_a_network_that_loads_and_cannot_run_is_told_before_anything_is_made(tmp_path, teacher_folder):
    """As a config with another padding: its weights fit, its skips do not."""
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    file = tmp_path / "teacher" / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "downsample_padding": 10}))
    with pytest.raises(SlimdpmError, match="the network of .* does not work with the rest of it"):
        write_samples(str(tmp_path / "teacher"), tmp_path / "out", count=2, steps=1)
    assert not (tmp_path / "out").exists()
