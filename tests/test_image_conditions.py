"""Networks that see an image beside the noisy sample, inpainting and InstructPix2Pix, against diffusers' pipelines."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from helpers import TINY_CONDITION, TRIAL, text_pipeline, xl_pipeline
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from slimdpm import Request, SlimdpmError, load_pipeline, sample_images
from slimdpm.cli.main import app
from slimdpm.conditioning import Guidance
from slimdpm.conditioning.image import random_mask
from slimdpm.data.arrays import Arrays
from slimdpm.method.networks import EXTRA
from slimdpm.method.presets import find_network
from slimdpm.metrics.evaluate import Settings, _request
from slimdpm.pipelines.denoise import image_generators
from slimdpm.pipelines.sample_files import write_samples
from slimdpm.pipelines.shell import shell_of
from slimdpm.recipe_file import load_recipe
from slimdpm.system.hashing import fingerprint
from slimdpm.training.dry_run import forecast
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

pytestmark = pytest.mark.slow

pytest.importorskip("transformers")

QUICK = [*TRIAL, "student.width=8", "train.steps=2", "data.flip=true"]
PROMPTS = ["a dress", "boots"]


def around(kind, parts, unet, **options):
    """A pipeline of this class with another U-Net in what surrounds one of another class."""
    given = {**parts.components, "unet": unet, **options}
    pipeline = kind(**{name: part for name, part in given.items() if name != "image_encoder"})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unet_of(channels, **options):
    return UNet2DConditionModel(**{**TINY_CONDITION, "sample_size": 8, "in_channels": channels, **options}).eval()


def inpainting(folder, scheduler=None):
    parts = text_pipeline(folder, scheduler)
    return around(StableDiffusionInpaintPipeline, parts, unet_of(9), requires_safety_checker=False)


def editing(folder, scheduler=None):
    parts = text_pipeline(folder, scheduler)
    return around(StableDiffusionInstructPix2PixPipeline, parts, unet_of(8), requires_safety_checker=False)


def xl_inpainting(folder, scheduler=None):
    parts = xl_pipeline(folder)
    config = {**parts.unet.config, "in_channels": 9}
    unet = UNet2DConditionModel.from_config(config).eval()
    return around(StableDiffusionXLInpaintPipeline, parts, unet, add_watermarker=False)


def captioned(count=6):
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return Arrays(images, texts=np.array([f"photo {'ab'[i % 2]}" for i in range(count)]))


def plan(teacher, *more, data=None):
    recipe = load_recipe(None, [*QUICK, *more], values={"data": {"path": "captioned"}})
    return plan_job(recipe, teacher=teacher, data=data or captioned())


def pictures(count=2):
    return [captioned().image(i) for i in range(count)]


def masks(count=2):
    """Each a box of its own, white where to paint."""
    found = []
    for i in range(count):
        array = np.zeros((16, 16), np.uint8)
        array[4 * i : 4 * i + 6, 2:11] = 255
        found.append(Image.fromarray(array))
    return found


def mean_latents(pipeline, images):
    """What `vae.encode(...).latent_dist.mode()` makes of images as diffusers prepares them."""
    return pipeline.vae.encode(pipeline.image_processor.preprocess(images)).latent_dist.mode()


# -- what samples are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [inpainting, xl_inpainting])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@torch.no_grad()
def test_inpainted_samples_are_those_of_diffusers(make, guidance, tmp_path):
    pipeline = make(tmp_path, EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading"))

    grey = pipeline.image_processor.preprocess(pictures())
    grey = grey * (pipeline.mask_processor.preprocess(masks()) < 0.5)
    latents = pipeline.vae.encode(grey).latent_dist.mode() * pipeline.vae.config.scaling_factor
    options = {"guidance_scale": guidance, "num_inference_steps": 5, "generator": image_generators(3, range(2))}
    theirs = pipeline(
        PROMPTS,
        image=pictures(),
        mask_image=masks(),
        masked_image_latents=latents,  # it would draw them
        height=16,
        width=16,
        strength=1.0,
        output_type="np",
        **options,
    ).images
    request = Request(prompts=PROMPTS, guidance=guidance, images=pictures(), masks=masks())
    ours = sample_images(pipeline, 2, steps=5, seed=3, request=request)
    np.testing.assert_allclose(ours / 255, theirs, atol=0.51 / 255 + 1e-4)
    others = sample_images(pipeline, 2, steps=5, seed=3, request=Request((), PROMPTS, None, guidance, pictures()))
    assert not np.array_equal(ours, others)  # the box in the middle is another mask


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (4.0, None), (4.0, "rain")])
def test_edited_samples_are_those_of_diffusers(guidance, negative, tmp_path):
    pipeline = editing(tmp_path, EulerDiscreteScheduler(steps_offset=1))
    theirs = pipeline(
        PROMPTS,
        image=pictures(),
        negative_prompt=None if negative is None else [negative] * 2,
        guidance_scale=guidance,
        num_inference_steps=5,
        generator=image_generators(3, range(2)),
        output_type="np",
    ).images
    request = Request((), PROMPTS, negative, guidance, [np.asarray(image) for image in pictures()])
    ours = sample_images(pipeline, 2, steps=5, seed=3, request=request)
    np.testing.assert_allclose(ours / 255, theirs, atol=0.51 / 255 + 1e-4)


def test_guidance_by_two_scales_is_the_formula():
    def network(x, t, return_dict, encoder_hidden_states):
        return (x[:, :1] + 10 * x[:, 1:] + 100 * encoder_hidden_states,)

    text, image = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 2.0)
    given, between, null = ({"encoder_hidden_states": a * text, EXTRA: b * image} for a, b in ((1, 1), (0, 1), (0, 0)))
    found = Guidance(given, null, 5.0, between, 1.5).predict(network, torch.ones(2, 1, 1, 1), torch.tensor(1))
    assert found.flatten().tolist() == [1 + 1.5 * 20 + 5 * 300] * 2


# -- what training gives -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_training_gives_a_mask_and_what_it_leaves(tmp_path):
    pipeline = inpainting(tmp_path)
    images = pipeline.image_processor.preprocess(pictures(3))
    batch = {"images": images, "draws": torch.tensor([5, 6, 5]), "conditions": ["a", "b", "c"]}
    shown = shell_of(pipeline).conditioning.training_inputs(batch, torch.tensor([True, False, False]))[EXTRA]
    for image, draw, found in zip(images, (5, 6, 5), shown, strict=True):
        mask = torch.tensor(random_mask(16, 16, np.random.default_rng(draw)))[None, None].float()
        expected = pipeline.vae.encode(image[None] * (mask < 0.5)).latent_dist.mode() * 0.18215
        torch.testing.assert_close(found[1:], expected[0])
        torch.testing.assert_close(found[:1], mask[0, :, ::2, ::2])


@torch.no_grad()
def test_training_drops_the_image_of_half_the_dropped_instructions(tmp_path):
    pipeline = editing(tmp_path)
    batch = {"images": pipeline.image_processor.preprocess(pictures(4)), "draws": torch.tensor([0, 1, 2, 3])}
    inputs = shell_of(pipeline).conditioning.training_inputs
    batch["conditions"] = ["a"] * 4
    expected = mean_latents(pipeline, pictures(4))  # unscaled
    torch.testing.assert_close(inputs(batch)[EXTRA], expected)
    expected[2] = 0
    torch.testing.assert_close(inputs(batch, torch.tensor([False, True, True, False]))[EXTRA], expected)


@pytest.mark.parametrize("make", [inpainting, editing])
def test_conditions_lie_where_the_networks_are(make, tmp_path):
    pipeline, place = make(tmp_path).to("meta"), torch.device("meta")
    conditioning = shell_of(pipeline).conditioning
    batch = {"images": torch.zeros(2, 3, 16, 16), "draws": torch.tensor([1, 2]), "conditions": PROMPTS}
    trained = conditioning.training_inputs(batch, torch.tensor([True, True], device=place))
    sampled = conditioning.sampling_inputs(range(2), Request(prompts=PROMPTS, images=pictures()), place)
    for inputs in (trained, sampled.given, sampled.null):
        assert inputs[EXTRA].shape == (2, conditioning.extra, 8, 8)
        assert {tensor.device.type for tensor in inputs.values()} == {"meta"}


def test_masks_are_boxes_strokes_or_everything():
    drawn = [random_mask(24, 32, np.random.default_rng(i)) for i in range(400)]
    assert all(mask.shape == (24, 32) and mask.dtype == bool for mask in drawn)
    whole = np.mean([mask.all() for mask in drawn])
    assert 0.15 < whole < 0.35
    parts = [mask.mean() for mask in drawn if not mask.all()]
    assert 0.1 < np.mean(parts) < 0.6 and min(parts) < 0.1 and max(parts) > 0.6


# -- runs --------------------------------------------------------------------------------------------------------------

CALLS = {inpainting: {"mask_image": masks(1)[0], "height": 16, "width": 16}, editing: {}}


@pytest.mark.parametrize("make", [inpainting, editing])
def test_a_teacher_that_sees_images_is_slimmed_and_loads_in_diffusers(make, tmp_path):
    teacher = make(tmp_path)
    run_job(plan(teacher, "student.kind=spectral"), tmp_path / "run")
    student = type(teacher).from_pretrained(tmp_path / "run/student")
    student.set_progress_bar_config(disable=True)
    assert type(student.unet).__name__ == "SpectralUNet2DConditionModel"
    assert student.unet.config.in_channels == teacher.unet.config.in_channels and student.unet.config.out_channels == 4
    assert fingerprint(student.vae) == fingerprint(teacher.vae)
    made = student("a dress", image=pictures(1)[0], num_inference_steps=2, output_type="np", **CALLS[make]).images
    assert made.shape == (1, 16, 16, 3) and np.isfinite(made).all()
    assert "image=image" in (tmp_path / "run/student/README.md").read_text()
    assert not list((tmp_path / "run/cache").glob("latents-*")) and list((tmp_path / "run/cache").glob("text-*"))
    # The run knows prompts and images: of each caption the first image.
    given = sorted((tmp_path / "run/given").glob("*.png"))
    captions = plan(teacher).recipe.samples.prompts
    for file, caption in zip(given, captions, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), captioned().images["ab".index(caption[-1])])
    write_samples(str(tmp_path / "run"), tmp_path / "out", count=2, steps=2, device="cpu")
    one = json.loads((tmp_path / "out/samples.json").read_text())
    assert one["prompts"] == captions and len(one["images"]) == 2
    pictures(1)[0].save(tmp_path / "image.png")
    options = ["-o", str(tmp_path / "one"), "-n", "1", "--steps", "1", "--image", str(tmp_path / "image.png")]
    done = CliRunner().invoke(app, ["sample", str(tmp_path / "run"), *options])
    assert done.exit_code == 0 and (tmp_path / "one/00000.png").exists()
    request = Request(images=pictures(1))
    with pytest.raises(SlimdpmError, match="holds samples of another network or of other settings"):
        write_samples(str(tmp_path / "run"), tmp_path / "out", count=2, steps=2, device="cpu", request=request)


@pytest.mark.parametrize(("make", "size"), [(inpainting, "16"), (editing, "24x32")])
def test_a_resumed_run_is_the_run_without_a_stop(make, size, tmp_path):
    teacher = make(tmp_path)
    steps = (f"data.size={size}", "train.steps=4", "train.checkpoint_every=2", "conditioning.drop=0.4")
    run_job(plan(teacher, *steps), tmp_path / "whole", report=False)
    run_job(plan(teacher, *steps, "train.steps=2"), tmp_path / "parts", report=False)
    run_job(plan(teacher, *steps), tmp_path / "parts", report=False)
    one, two = (load_file(tmp_path / n / "checkpoints/step-00000004/student.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_student_of_the_teachers_width_starts_as_the_teacher(tmp_path):
    teacher = inpainting(tmp_path)
    more = ("student.kind=lite", "student.width=16", "train.lr=1e-12", "train.steps=1")
    student = run_job(plan(teacher, *more), tmp_path / "run", report=False)
    torch.testing.assert_close(student.unet.conv_in.weight, teacher.unet.conv_in.weight)  # all nine channels


def test_the_plan_of_a_full_size_inpainting_teacher(tmp_path):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({**find_network("sd-v1").config, "in_channels": 9})
    parts = text_pipeline(tmp_path)
    teacher = around(StableDiffusionInpaintPipeline, parts, unet, requires_safety_checker=False)
    recipe = load_recipe(None, ["student.width=96"], values={"data": {"path": "captioned"}})
    job = plan_job(recipe, teacher=teacher, data=captioned(), weights=False)
    assert job.plan.teacher_cost.params == 859_520_964 + 320 * 5 * 9  # v1's, and five more channels in
    assert job.plan.config["in_channels"] == 9 and job.plan.config["out_channels"] == 4


def test_a_dry_run_counts_the_autoencoder_that_stays(tmp_path):
    teacher = inpainting(tmp_path)
    told = forecast(plan(teacher))
    assert "an image and a mask at each step" in told["conditioning"]
    assert told["memory"]["frozen"] == 4 * sum(p.numel() for p in teacher.vae.parameters())  # and no text encoder


# -- what does not go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [inpainting, editing])
def test_what_networks_that_see_images_refuse(make, tmp_path):
    pipeline = make(tmp_path)
    with pytest.raises(SlimdpmError, match="makes images of an image and .*: sample takes them as --image"):
        sample_images(pipeline, 1, steps=1, request=Request(prompts=PROMPTS))
    values = {"data": {"path": "teacher", "samples": {"prompts": str(tmp_path / "p.txt")}}}
    (tmp_path / "p.txt").write_text("a\nb\n")
    with pytest.raises(SlimdpmError, match="the teacher makes images of an image and .*: it cannot make the data"):
        plan_job(load_recipe(None, [s for s in QUICK if "flip" not in s], values=values), teacher=pipeline)
    with pytest.raises(SlimdpmError, match="evaluate and analyze do not"):
        _request(pipeline, captioned(), Settings(count=2))
    request = Request(prompts=PROMPTS, images=[tmp_path / "none.png"])
    with pytest.raises(SlimdpmError, match="the image .*none.png cannot be read: No such file"):
        sample_images(pipeline, 1, steps=1, request=request)


def test_images_and_masks_for_networks_that_take_none(tmp_path):
    with pytest.raises(SlimdpmError, match="it takes a prompt, no class and no image"):
        sample_images(text_pipeline(tmp_path), 1, steps=1, request=Request(prompts=PROMPTS, images=pictures()))
    request = Request(prompts=PROMPTS, images=pictures(), masks=masks())
    with pytest.raises(SlimdpmError, match="edits whole images: it takes no mask"):
        sample_images(editing(tmp_path), 1, steps=1, request=request)


def test_networks_with_other_channels_in_than_their_pipelines_show_them(tmp_path):
    wide = text_pipeline(tmp_path)
    wide.register_modules(unet=unet_of(9))
    with pytest.raises(SlimdpmError, match="StableDiffusionPipeline has 9 channels in and 4 out; 4 in would be right"):
        shell_of(wide)
    with pytest.raises(SlimdpmError, match="not 24x32: diffusers' StableDiffusionInpaintPipeline knows squares alone"):
        plan(inpainting(tmp_path), "data.size=24x32")
    plain = around(StableDiffusionInpaintPipeline, text_pipeline(tmp_path), unet_of(4), requires_safety_checker=False)
    assert shell_of(plain).conditioning.extra == 0
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**find_network("ldm4").config, "in_channels": 6}))
    values = {"task": "train", "student": {"base": str(config)}, "data": {"path": "captioned"}}
    with pytest.raises(SlimdpmError, match="other channels in than out"):
        plan_job(load_recipe(None, values=values), data=captioned())


@pytest.mark.parametrize("name", ["LDMSuperResolutionPipeline", "StableDiffusionUpscalePipeline"])
def test_super_resolution_is_refused_with_a_reason(name, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(SlimdpmError, match=f"is a {name}; it enlarges images .*; supported are DDPMPipeline"):
        load_pipeline(tmp_path)
