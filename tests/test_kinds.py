"""Each kind of teacher of the paper, small: its student trains, resumes, is saved, and samples in plain diffusers."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    VQModel,
)
from helpers import AUTOENCODER, TINY_RESNET, TRIAL, embedded_class_pipeline, latent_pipeline, text_pipeline
from safetensors.torch import load_file

from slimdpm import ClassConditionalLDMPipeline, Request, load_pipeline, sample_images
from slimdpm.data.arrays import Arrays
from slimdpm.pipelines.denoise import image_generators
from slimdpm.recipe_file import load_recipe
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job
from slimdpm.unet import FixedHeadsUNet2DModel

pytestmark = pytest.mark.slow

QUICK = [*TRIAL, "train.checkpoint_every=2", "student.kind=spectral"]  # plain ones are in test_plain.py


def church():
    """LDM-8 in small: a KL autoencoder, resampling inside residual blocks, heads of a fixed number."""
    unet = FixedHeadsUNet2DModel(**{**TINY_RESNET, "sample_size": 8}, num_attention_heads=2)
    return LDMPipeline(AutoencoderKL(**AUTOENCODER), unet, DDIMScheduler(clip_sample=False))


def transformer():
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}
    network = DiTTransformer2DModel(**size, in_channels=3, out_channels=6, num_embeds_ada_norm=1000)
    return DiTPipeline(network, AutoencoderKL(**AUTOENCODER), DDIMScheduler(clip_sample=False))


# The teacher, the pipeline class that loads its student, what the student is asked, and settings.
KINDS = {
    "LDM-4, VQ": (lambda folder: latent_pipeline(VQModel), DiffusionPipeline, {}, ["student.width=8"]),
    "LDM-8, KL": (lambda folder: church(), DiffusionPipeline, {}, ["student.width=8"]),
    "LDM-4, class": (
        lambda folder: embedded_class_pipeline(),
        ClassConditionalLDMPipeline,
        {"class_labels": [1, 2]},
        ["student.width=8"],
    ),
    "Stable Diffusion": (text_pipeline, DiffusionPipeline, {"prompt": ["a", "b"]}, ["student.width=8"]),
    "DiT": (
        lambda folder: transformer(),
        ClassConditionalLDMPipeline,
        {"class_labels": [1, 999]},
        ["student.overrides={block_out_channels: [16, 16, 16, 16], norm_num_groups: 4, attention_head_dim: 8}"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_one_trains_resumes_is_saved_and_samples(kind, tmp_path):
    make, loader, asked, settings = KINDS[kind]
    if kind == "Stable Diffusion":
        pytest.importorskip("transformers")
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    data, teacher = Arrays(images, classes=np.arange(6) % 3, texts=np.array(["a", "b"] * 3)), make(tmp_path)

    def run(folder, steps):
        sets = [*QUICK, *settings, f"train.steps={steps}"]
        job = plan_job(load_recipe(None, sets, values={"data": {"path": "x"}}), teacher=teacher, data=data)
        run_job(job, tmp_path / folder, report=False)

    run("whole", 4)
    run("parts", 2)
    run("parts", 4)
    whole, parts = (load_file(tmp_path / n / "checkpoints/step-00000004/ema.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    student = loader.from_pretrained(tmp_path / "parts/student")
    student.set_progress_bar_config(disable=True)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in student.unet.state_dict().items())
    count = {} if asked else {"batch_size": 2}
    scale = {"guidance_scale": 2.0} if asked else {}
    made = student(
        **asked, **count, **scale, num_inference_steps=2, generator=image_generators(0, range(2)), output_type="np"
    )
    request = Request(asked.get("class_labels", ()), asked.get("prompt", ()), None, 2.0 if asked else None)
    ours = sample_images(load_pipeline(tmp_path / "parts"), 2, steps=2, request=request)
    np.testing.assert_allclose(ours / 255, made.images, atol=0.51 / 255 + 1e-4)
