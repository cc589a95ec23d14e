"""Published teachers in the layout of their repositories, scaled down; benchmarks/published.py has all of them."""

import pytest
import torch
from diffusers import DiffusionPipeline
from published import CONFIGS, write_images, write_pipeline

from slimdpm import slim
from slimdpm.method.cost import measure_model
from slimdpm.pipelines.loading import load_pipeline

pytestmark = pytest.mark.slow

SMALL = {
    "train.batch_size": 2, "train.trackers": [], "samples.count": 1, "samples.steps": 2, "data.workers": 0,
    "data.size": 32, "train.sample_every": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("hub_id", "pipeline", "unet"),
    [
        ("google/ddpm-cifar10-32", "DDPMPipeline", "SpectralUNet2DModel"),  # U-Net and scheduler in the root
        ("CompVis/ldm-celebahq-256", "LDMPipeline", "SpectralUNet2DModel"),  # class names of the first version
        ("stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline", "SpectralUNet2DConditionModel"),
    ],  # the last one in half precision only
)
def test_a_published_teacher_is_slimmed(hub_id, pipeline, unet, tmp_path):
    write_pipeline(hub_id, tmp_path / "teacher", weights=True)
    images = write_images(tmp_path / "images", size=32)
    slim(
        tmp_path / "teacher",
        images,
        output=tmp_path / "run",
        width=32,
        gated=True,
        steps=2,
        settings=SMALL,
        progress=False,
    )
    student = DiffusionPipeline.from_pretrained(tmp_path / "run" / "student")
    assert type(student).__name__ == pipeline and type(student.unet).__name__ == unet
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in student.unet.parameters())


@pytest.mark.parametrize(
    ("hub_id", "millions"),  # as published
    [("google/ddpm-cifar10-32", 35.75), ("google/ddpm-cat-256", 113.67), ("CompVis/ldm-celebahq-256", 274.06)],
)
def test_full_size_needs_no_weights(hub_id, millions, tmp_path):
    write_pipeline(hub_id, tmp_path / "teacher", weights=False)
    assert measure_model(load_pipeline(tmp_path / "teacher", weights=False).unet).params / 1e6 == pytest.approx(
        millions, abs=0.01
    )


def test_a_pipeline_with_an_image_processor_is_read_again(tmp_path):
    """transformers saves it under the name of the backend that is installed."""
    write_pipeline("runwayml/stable-diffusion-v1-5", tmp_path / "teacher", weights=True)
    pipeline = load_pipeline(tmp_path / "teacher")
    pipeline.save_pretrained(tmp_path / "student")
    again = load_pipeline(tmp_path / "student")
    assert type(again.feature_extractor) is type(pipeline.feature_extractor) and again.safety_checker is not None


def test_every_published_teacher_is_of_a_supported_kind():
    from slimdpm.pipelines.loading import _RENAMED, PIPELINES

    for entry in CONFIGS.values():
        name = entry["files"]["model_index.json"]["_class_name"]
        assert _RENAMED.get(name, name) in PIPELINES
