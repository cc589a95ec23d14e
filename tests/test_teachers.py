"""Teachers from folders and objects, in pixels and behind an autoencoder; and what is no teacher."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from helpers import AUTOENCODER, TINY, class_pipeline, latent_pipeline

from slimdpm import SpectralUNet2DModel, load_pipeline, sample_images
from slimdpm.pipelines.denoise import image_generators
from slimdpm.pipelines.shell import new_shell, shell_of
from slimdpm.pipelines.teacher import load_teacher
from slimdpm.recipe_file import load_recipe
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.hashing import fingerprint
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

QUICK = [
    "student.kind=spectral",
    "distill.pairs=auto",
    "distill.lambda_spatial=0.1",
    "student.width=8",
    "train.steps=2",
    "train.batch_size=4",
    "train.trackers=[]",
    "train.sample_every=0",
    "samples.count=2",
    "samples.steps=2",
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [VQModel, AutoencoderKL])
def test_a_latent_teacher_is_slimmed_sampled_and_loaded(kind, tmp_path, image_folder):
    latent_pipeline(kind).save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    assert (teacher.shell.size, teacher.shell.image_size, teacher.shell.image_channels) == (8, 16, 3)
    values = {"teacher": str(tmp_path / "teacher"), "data": {"path": str(image_folder)}}
    job = plan_job(load_recipe(None, QUICK, values=values))
    run_job(job, tmp_path / "run")
    student = DiffusionPipeline.from_pretrained(tmp_path / "run" / "student")
    assert type(student) is LDMPipeline and type(student.vqvae) is kind and type(student.unet) is SpectralUNet2DModel
    assert fingerprint(student.vqvae) == fingerprint(teacher.shell.autoencoder)  # untouched
    assert sample_images(student, 2, steps=2).shape == (2, 16, 16, 3)


def test_loading_a_good_pipeline_warns_of_nothing(tmp_path):
    logger, warned = logging.getLogger("diffusers.pipelines.pipeline_utils"), []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())
    logger.addHandler(handler)
    try:
        for number, make in enumerate((lambda: latent_pipeline(AutoencoderKL), class_pipeline)):
            make().save_pretrained(tmp_path / str(number))
            load_pipeline(tmp_path / str(number))
            assert not warned
            DiffusionPipeline.from_pretrained(tmp_path / "0")
            assert warned, "diffusers does not warn any more: the filter in slimdpm.pipelines.loading can go"
            warned.clear()
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("kind", [VQModel, AutoencoderKL])
def test_latents_are_scaled_as_the_pipeline_decodes_them(kind):
    pipeline = latent_pipeline(kind)
    shell = shell_of(pipeline)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = shell.encode(images)
    scale = pipeline.vqvae.config.scaling_factor
    assert latents.shape == (2, 3, 8, 8) and not latents.requires_grad
    if kind is VQModel:
        torch.testing.assert_close(latents, pipeline.vqvae.encode(images).latents * scale)
    else:
        assert not torch.equal(latents, shell.encode(images))  # drawn from the posterior
    torch.testing.assert_close(shell.decode(latents), pipeline.vqvae.decode(latents / scale).sample)


@pytest.mark.parametrize(
    ("pipeline_class", "scheduler"), [(DDPMPipeline, DDPMScheduler), (DDIMPipeline, DDIMScheduler)]
)
def test_our_sampling_loop_equals_the_pipelines_own(pipeline_class, scheduler):
    pipeline = pipeline_class(UNet2DModel(**TINY).eval(), scheduler())
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=3, num_inference_steps=5, generator=image_generators(7, range(3)), output_type="np"
    ).images
    ours = sample_images(pipeline, 3, steps=5, seed=7)
    np.testing.assert_allclose(ours / 255, theirs, atol=0.51 / 255)


def test_an_object_is_called_by_its_weights():
    torch.manual_seed(0)
    one, same, other = (DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()) for _ in range(3))
    same.unet.load_state_dict(one.unet.state_dict())
    assert load_teacher(one).name == load_teacher(same).name != load_teacher(other).name
    assert load_teacher(one).name.startswith("DDPMPipeline ")


@pytest.mark.slow
def test_a_student_may_predict_another_thing(tmp_path, teacher_folder, image_folder):
    values = {"teacher": str(teacher_folder), "data": {"path": str(image_folder)}}
    run_job(plan_job(load_recipe(None, [*QUICK, "student.prediction=v_prediction"], values=values)), tmp_path / "run")
    assert load_pipeline(tmp_path / "run").scheduler.config.prediction_type == "v_prediction"


@pytest.mark.slow
def test_a_run_folder_is_a_teacher(tmp_path, teacher_folder, image_folder):
    values = {"teacher": str(teacher_folder), "data": {"path": str(image_folder)}}
    run_job(plan_job(load_recipe(None, QUICK, values=values)), tmp_path / "run")
    assert type(load_teacher(tmp_path / "run").unet) is SpectralUNet2DModel


def damaged(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def drop_a_weight(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("conv_in.weight")
    save_file(tensors, file)


def edit_index(**values):
    def change(folder):
        file = folder / "model_index.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def make_pickle(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(UNet2DModel(**TINY).state_dict(), file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "model_index.json").unlink(), "is no diffusers folder: it has no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("hello"), "model_index.json cannot be read"),
        (lambda f: (f / "model_index.json").write_text("[1]"), "holds no keys and values"),
        (edit_index(_class_name="KandinskyPipeline"), "is a KandinskyPipeline; supported are"),
        (edit_index(unet=["os", "system"]), "the unet of .* is a system of os, which is not supported"),
        (edit_index(unet=["diffusers", "UNet2DConditionModel"]), "the weights in .*unet do not belong to its config"),
        (drop_a_weight, "do not belong to its config: 1 are missing or left over, for example conv_in.weight"),
        (make_pickle, "cannot be loaded"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "cannot be loaded"),
    ],
)
def test_what_is_no_teacher_is_named(teacher_folder, tmp_path, change, words):
    folder = damaged(teacher_folder, tmp_path, change)
    with pytest.raises(SlimdpmError, match=words) as error:
        load_teacher(folder)
    assert "\n" not in str(error.value)


def test_teachers_that_are_not_there(tmp_path):
    (tmp_path / "teacher.txt").write_text("I am a teacher")
    (tmp_path / "model.ckpt").write_text("I am a teacher")
    for source, words in [
        (tmp_path / "teacher.txt", "is a file: give a diffusers folder .* or a hub id$"),
        (tmp_path / "model.ckpt", "is a file: give a diffusers folder .*; slimdpm import makes one"),
        (tmp_path / "none", "does not exist"),
        ("nobody/nothing", "is no folder here, and the hub has not given it"),
    ]:
        with pytest.raises(SlimdpmError, match=words):
            load_teacher(source)


def test_pipelines_of_other_kinds_are_refused():
    class Other(DiffusionPipeline):
        pass

    with pytest.raises(SlimdpmError, match="a Other is not supported; supported are DDPMPipeline"):
        load_teacher(Other())
    learned = DDPMPipeline(UNet2DModel(**{**TINY, "out_channels": 6}), DDPMScheduler())
    with pytest.raises(SlimdpmError, match="3 channels in and 6 out"):
        load_teacher(learned)


@pytest.mark.parametrize("scale", [0, float("inf"), None])
def test_latents_that_cannot_be_scaled(scale):
    teacher = latent_pipeline(VQModel)
    teacher.vqvae.register_to_config(scaling_factor=scale)
    with pytest.raises(SlimdpmError, match=f"scaling_factor is {scale}: latents cannot be scaled by it"):
        load_teacher(teacher)


def test_a_new_shell_behind_an_autoencoder(tmp_path):
    VQModel(**AUTOENCODER).save_pretrained(tmp_path)
    shell = new_shell({"sample_size": 8, "in_channels": 3}, autoencoder=str(tmp_path), beta_schedule="scaled_linear")
    assert shell.pipeline_class is LDMPipeline and shell.image_size == 16
    assert shell.scheduler.config.beta_schedule == "scaled_linear"
    UNet2DModel(**TINY).save_pretrained(tmp_path / "unet")
    with pytest.raises(SlimdpmError, match="is a UNet2DModel; supported autoencoders"):
        new_shell({"sample_size": 8, "in_channels": 3}, autoencoder=str(tmp_path / "unet"))
