"""Text-to-image networks: Stable Diffusion v1, v2 and XL, against diffusers' own pipelines."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, PNDMScheduler
from helpers import TRIAL, text_pipeline, xl_pipeline
from safetensors.torch import load_file

from slimdpm import Request, SlimdpmError, load_pipeline, sample_images
from slimdpm.data.arrays import Arrays
from slimdpm.method.distiller import Distiller
from slimdpm.metrics.evaluate import Settings, _request
from slimdpm.pipelines.denoise import image_generators
from slimdpm.pipelines.sample_files import write_samples
from slimdpm.pipelines.shell import shell_of
from slimdpm.recipe_file import load_recipe
from slimdpm.system.hashing import fingerprint
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

pytest.importorskip("transformers")

QUICK = [*TRIAL, "student.width=8", "train.steps=2"]
PROMPTS = ["a dress", "boots", "a coat of a man in the rain"]  # the last one is longer than the encoder takes
V = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": False}


def captioned(count=6):
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return Arrays(images, texts=np.array([f"photo {'ab'[i % 2]}" for i in range(count)]))


@pytest.fixture
def quiet(tmp_path):
    def prepared(make, **options):
        pipeline = make(tmp_path, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return prepared


def plan(teacher, data, *more):
    return plan_job(
        load_recipe(None, [*QUICK, *more], values={"data": {"path": "captioned"}}), teacher=teacher, data=data
    )


SCHEDULERS = [
    PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear"),
    DDIMScheduler(clip_sample=False, steps_offset=1, **V),
    DPMSolverMultistepScheduler(steps_offset=1),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=["v1", "v2", "dpm++"])
@pytest.mark.parametrize("negative", [None, "rain"])
def test_guided_samples_are_those_of_stable_diffusion(quiet, scheduler, negative):
    pipeline = quiet(text_pipeline, scheduler=scheduler)
    theirs = pipeline(
        PROMPTS,
        negative_prompt=None if negative is None else [negative] * 3,
        guidance_scale=4.0,
        num_inference_steps=5,
        generator=image_generators(3, range(3)),
        output_type="np",
    ).images
    request = Request(prompts=PROMPTS, negative_prompt=negative, guidance=4.0)
    ours = sample_images(pipeline, 3, steps=5, seed=3, request=request, batch_size=2)
    np.testing.assert_allclose(ours / 255, theirs, atol=0.51 / 255 + 1e-4)


@pytest.mark.parametrize("negative", [None, "", "rain"])
def test_xl_gets_pooled_text_and_sizes(quiet, negative):
    pipeline = quiet(xl_pipeline)
    options = {"guidance_scale": 4.0, "num_inference_steps": 4, "generator": image_generators(3, range(2))}
    given = None if negative is None else [negative] * 2
    theirs = pipeline(PROMPTS[:2], negative_prompt=given, output_type="np", **options).images
    request = Request(prompts=PROMPTS[:2], negative_prompt=negative, guidance=4.0)
    ours = sample_images(pipeline, 2, steps=4, seed=3, request=request)
    np.testing.assert_allclose(ours / 255, theirs, atol=0.51 / 255 + 1e-4)


def test_the_defaults_of_guidance_are_the_pipelines(quiet):
    assert shell_of(quiet(text_pipeline)).conditioning.scale == 7.5
    assert shell_of(quiet(xl_pipeline)).conditioning.scale == 5.0


def test_what_training_gives_and_drops(quiet):
    pipeline = quiet(text_pipeline)
    inputs = shell_of(pipeline).conditioning.training_inputs
    found = inputs({"conditions": ["a", "b", "a"]}, torch.tensor([False, True, False]))["encoder_hidden_states"]
    with torch.no_grad():
        expected = pipeline.encode_prompt(["a", "", "a"], "cpu", 1, False)[0]
    torch.testing.assert_close(found, expected)


def test_what_training_gives_and_drops_of_xl(quiet):
    pipeline = quiet(xl_pipeline)
    found = shell_of(pipeline).conditioning.training_inputs({"conditions": ["a", "b"]}, torch.tensor([False, True]))
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(["a", "b"], device="cpu", do_classifier_free_guidance=False)
    embeds[1], pooled[1] = 0, 0  # force_zeros_for_empty_prompt
    torch.testing.assert_close(found["encoder_hidden_states"], embeds)
    torch.testing.assert_close(found["added_cond_kwargs"]["text_embeds"], pooled)
    assert found["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("make", [text_pipeline, xl_pipeline])
def test_a_text_to_image_teacher_is_slimmed_and_loads_in_diffusers(quiet, make, tmp_path):
    teacher = quiet(make)
    job = plan(teacher, captioned(), "student.kind=spectral", "train.checkpoint_every=1")
    assert sorted(job.recipe.samples.prompts) == ["photo a", "photo b"]
    assert "12 tokens by CLIPTextModel" in "\n".join(job.describe())
    assert job.plan.cost.macs_all < job.plan.teacher_cost.macs_all
    run_job(job, tmp_path / "run")
    student = DiffusionPipeline.from_pretrained(tmp_path / "run/student")
    student.set_progress_bar_config(disable=True)
    assert type(student) is type(teacher) and type(student.unet).__name__ == "SpectralUNet2DConditionModel"
    assert fingerprint(student.text_encoder) == fingerprint(teacher.text_encoder)
    options = {"num_inference_steps": 3, "generator": image_generators(0, range(1)), "output_type": "np"}
    theirs = student(["a dress"], guidance_scale=3.0, **options).images
    request = Request(prompts=["a dress"], guidance=3.0)
    ours = sample_images(load_pipeline(tmp_path / "run"), 1, steps=3, request=request)
    np.testing.assert_allclose(ours / 255, theirs, atol=0.51 / 255 + 1e-4)
    write_samples(str(tmp_path / "run"), tmp_path / "out", count=2, steps=2, device="cpu")  # the run knows prompts
    assert json.loads((tmp_path / "out/samples.json").read_text())["prompts"] == job.recipe.samples.prompts


@pytest.mark.slow
def test_a_resumed_text_run_is_the_run_without_a_stop(quiet, tmp_path):
    teacher, data = quiet(text_pipeline), captioned()
    steps = ("train.steps=4", "train.checkpoint_every=2", "conditioning.drop=0.4")
    run_job(plan(teacher, data, *steps), tmp_path / "whole", report=False)
    run_job(plan(teacher, data, *steps, "train.steps=2"), tmp_path / "parts", report=False)
    run_job(plan(teacher, data, *steps), tmp_path / "parts", report=False)
    one, two = (load_file(tmp_path / n / "checkpoints/step-00000004/student.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_text_to_image_network_is_trained_like_another(quiet, tmp_path):
    values = {"task": "train", "data": {"path": "captioned"}, "student": {"ratio": 2}}
    recipe = load_recipe(None, [s for s in QUICK if not s.startswith("student")], values=values)
    lite = run_job(plan_job(recipe, teacher=quiet(text_pipeline), data=captioned()), tmp_path / "run", report=False)
    assert type(lite).__name__ == "StableDiffusionPipeline" and type(lite.unet).__name__ == "UNet2DConditionModel"


@pytest.mark.slow
def test_a_v_predicting_teacher_is_distilled_in_v(quiet, tmp_path, monkeypatch):
    teacher = quiet(text_pipeline, scheduler=SCHEDULERS[1])
    kinds, true_losses = [], Distiller.losses

    def losses(self, *args, **kwargs):
        kinds.append((self.kind, self.teacher_prediction, self.process.prediction))
        return true_losses(self, *args, **kwargs)

    monkeypatch.setattr(Distiller, "losses", losses)
    run_job(plan(teacher, captioned()), tmp_path / "run", report=False)
    assert set(kinds) == {("v_prediction",) * 3}


def test_captions_that_are_missing(quiet, tmp_path):
    teacher = quiet(text_pipeline)
    images = captioned().images
    with pytest.raises(SlimdpmError, match="takes captions and the data has none: put a metadata.jsonl"):
        plan(teacher, Arrays(images))
    with pytest.raises(SlimdpmError, match=r"array\[2\] has no caption"):
        plan(teacher, Arrays(images, texts=np.array(["a", "b", " ", "c", "d", "e"])))


def test_requests_that_do_not_fit(quiet):
    pipeline = quiet(text_pipeline)
    with pytest.raises(SlimdpmError, match="give a prompt"):
        sample_images(pipeline, 1, steps=1)
    with pytest.raises(SlimdpmError, match="it takes a prompt, no class"):
        sample_images(pipeline, 1, steps=1, request=Request(classes=(1,), prompts=("a",)))


def test_evaluation_takes_the_captions_of_the_real_images(quiet):
    request = _request(quiet(text_pipeline), captioned(), Settings(count=50))
    assert len(request.prompts) == 50 and set(request.prompts) == {"photo a", "photo b"}


def test_without_transformers_the_extra_is_named(quiet, tmp_path, monkeypatch):
    quiet(text_pipeline).save_pretrained(tmp_path / "teacher")
    monkeypatch.setattr("slimdpm.pipelines.loading.is_transformers_available", lambda: False)
    with pytest.raises(SlimdpmError, match=r"needs the package transformers: pip install slimdpm\[text\]"):
        load_pipeline(tmp_path / "teacher")


def test_a_text_encoder_without_a_weight_is_refused(quiet, tmp_path):
    from safetensors.torch import save_file

    quiet(text_pipeline).save_pretrained(tmp_path / "teacher")
    file = next((tmp_path / "teacher/text_encoder").glob("*.safetensors"))
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if "q_proj.weight" in name))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SlimdpmError, match="text_encoder do not belong to its config: 1 are missing"):
        load_pipeline(tmp_path / "teacher")
