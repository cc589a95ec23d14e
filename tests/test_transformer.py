"""A DiT as the teacher of a U-Net: its samples, its student, and distillation from outputs alone."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from helpers import AUTOENCODER, TINY

from slimdpm import ClassConditionalLDMPipeline, Request, SlimdpmError, load_pipeline, sample_images
from slimdpm.data.arrays import Arrays
from slimdpm.method.cost import measure
from slimdpm.method.dit import TransformerDenoiser
from slimdpm.method.presets import PRESETS
from slimdpm.method.slimming import Budget, plan_student
from slimdpm.pipelines.denoise import image_generators
from slimdpm.pipelines.shell import shell_of
from slimdpm.pipelines.teacher import load_teacher
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.hashing import fingerprint
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

pytestmark = pytest.mark.slow

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 3,
    "out_channels": 6,  # ε and a variance
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 1000,  # DiTPipeline knows no other number of classes
}
QUICK = [
    "student.width=8", "train.steps=2", "train.batch_size=4", "train.trackers=[]", "train.sample_every=2",
    "samples.count=2", "samples.steps=2", "data.workers=0",
]  # fmt: skip


def labelled():
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return Arrays(images, classes=np.array([0, 999, 2, 3, 4, 5]))


@pytest.fixture
def pipeline():
    transformer = DiTTransformer2DModel(**CONFIG).eval()
    torch.nn.init.normal_(transformer.proj_out_2.weight, std=0.3)  # a DiT starts by predicting nothing
    names = {number: f"class {number}, thing {number}" for number in range(1000)}
    made = DiTPipeline(transformer, AutoencoderKL(**AUTOENCODER), DDIMScheduler(clip_sample=False), names)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.json").write_text(json.dumps({**TINY, "_class_name": "UNet2DModel"}))
    return tmp_path / "net.json"


def plan(pipeline, net, *more, task="slim"):
    recipe = load_recipe(None, [f"student.base={net}", *QUICK, *more], values={"task": task, "data": {"path": "x"}})
    return plan_job(recipe, teacher=pipeline, data=labelled())


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipeline(pipeline, scale):
    labels, generators = [3, 999], image_generators(2, range(2))
    theirs = pipeline(
        labels, guidance_scale=scale, num_inference_steps=5, generator=generators, output_type="np"
    ).images
    ours = sample_images(pipeline, 2, steps=5, seed=2, request=Request(classes=labels, guidance=scale))
    np.testing.assert_allclose(ours / 255, theirs, atol=0.51 / 255 + 1e-4)
    assert shell_of(pipeline).conditioning.number("thing 7") == 7


def test_its_student_is_a_class_conditional_unet(pipeline, net, tmp_path):
    job = plan(pipeline, net, "student.kind=spectral")
    lines = "\n".join(job.describe())
    assert "feature pairs: none, outputs only: a transformer has no features of a U-Net's scales" in lines
    assert job.recipe.student.init == "random" and job.origin is None
    assert job.plan.teacher_cost == measure(TransformerDenoiser(pipeline.transformer).config)
    run_job(job, tmp_path / "run")
    assert {"spatial", "frequency"} <= set(RunFolder(tmp_path / "run").metrics()[-1])  # of the outputs
    student = load_pipeline(tmp_path / "run")
    assert type(student) is ClassConditionalLDMPipeline and type(student.unet).__name__ == "SpectralUNet2DModel"
    assert (student.unet.config.num_class_embeds, student.config.null_class) == (1001, 1000)
    assert fingerprint(student.vqvae) == fingerprint(pipeline.vae)
    assert (tmp_path / "run/samples/teacher.png").exists()
    assert sample_images(student, 2, steps=2, request=Request(classes=["thing 3"])).shape == (2, 16, 16, 3)


def test_the_teacher_loads_from_its_folder_also_under_its_first_name(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    expected = fingerprint(load_teacher(pipeline).unet)
    assert fingerprint(load_teacher(tmp_path).unet) == expected
    for file, change in [
        (tmp_path / "model_index.json", {"transformer": ["diffusers", "Transformer2DModel"]}),
        (tmp_path / "transformer/config.json", {"_class_name": "Transformer2DModel"}),
    ]:
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert fingerprint(load_teacher(tmp_path).unet) == expected


def test_what_a_transformer_cannot_give(pipeline, net):
    with pytest.raises(SlimdpmError, match="student.base ldm4-imagenet has cross-attention"):
        plan(pipeline, "ldm4-imagenet")
    with pytest.raises(SlimdpmError, match="distill.pairs: a transformer has no blocks to pair"):
        plan(pipeline, net, "distill.pairs=[mid_block]")


def test_a_ratio_refers_to_the_transformer():
    shape = {"in_channels": 4, "out_channels": 8, "attention_head_dim": 72, "num_attention_heads": 16, "num_layers": 28}
    with torch.device("meta"):
        teacher = TransformerDenoiser(DiTTransformer2DModel(**{**CONFIG, **shape, "sample_size": 32}))
    cost = measure(teacher.config)
    assert cost.macs_all == pytest.approx(118.64e9, rel=1e-3)  # the Gflops of DiT-XL/2, arXiv 2212.09748, table 1
    base = {**PRESETS["ldm4"].config, "in_channels": 4, "out_channels": 4, "sample_size": 32, "num_class_embeds": 1001}
    student = plan_student({**base, "layers_per_block": 1}, Budget(ratio=12), reference=cost)
    assert 12 <= student.ratio < 12.5 and student.cost == measure(student.config)
