"""Class-conditional networks: labels from data to U-Net, guidance, dropping, and what is refused."""

import inspect
import json
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel, VQModel
from helpers import AUTOENCODER, CLASSES, TINY, TINY_CONDITION, TRIAL, class_pipeline, embedded_class_pipeline
from PIL import Image
from safetensors.torch import load_file

from slimdpm import ClassConditionalLDMPipeline, ClassEmbedder, Request, SlimdpmError, load_pipeline, sample_images
from slimdpm.analysis.analyze import Settings as AnalysisSettings
from slimdpm.analysis.analyze import analyze
from slimdpm.analysis.observation import observe
from slimdpm.conditioning import ClassLabels, Guidance
from slimdpm.data.arrays import Arrays
from slimdpm.data.open_source import open_source
from slimdpm.method.cost import measure
from slimdpm.method.distiller import Distiller
from slimdpm.method.presets import find_network
from slimdpm.metrics.collect import Generated
from slimdpm.metrics.evaluate import Settings, _request
from slimdpm.pipelines.denoise import image_generators
from slimdpm.pipelines.sample_files import write_samples
from slimdpm.pipelines.sampling import clean_samples, make_scheduler
from slimdpm.pipelines.shell import shell_of
from slimdpm.recipe_file import load_recipe
from slimdpm.system.hashing import fingerprint
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

QUICK = [*TRIAL, "student.width=8", "train.steps=2"]


def plan(teacher, data, *more):
    return plan_job(load_recipe(None, [*QUICK, *more], values={"teacher": str(teacher), "data": {"path": str(data)}}))


def noise_array(count=6, size=16):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


# -- labels ---------------------------------------------------------------------------------------------------------


def test_class_folders_are_numbered_in_the_order_of_their_names(class_folder):
    source = open_source(str(class_folder))
    labels = source.labels()
    assert labels.names == CLASSES == ("boots", "coat", "dress")
    by_hand = [sorted(p.name for p in class_folder.iterdir()).index(source.name(i).split("/")[0]) for i in range(9)]
    assert labels.numbers.tolist() == by_hand == [0] * 3 + [1] * 3 + [2] * 3


def test_a_flat_folder_has_no_labels_and_a_loose_image_is_named(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert open_source(str(tmp_path)).labels() is None
    (tmp_path / "dress").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "dress" / "b.png")
    with pytest.raises(SlimdpmError, match="a.png of .* has no label: it lies in no class folder"):
        open_source(str(tmp_path)).labels()


@pytest.mark.parametrize("kind", [int, str])
def test_arrays_carry_labels(tmp_path, kind):
    np.savez(tmp_path / "a.npz", images=noise_array(3), labels=np.array([2, 0, 2]).astype(kind))
    labels = open_source(str(tmp_path / "a.npz")).labels()
    assert labels.numbers.tolist() == [2, 0, 2] and labels.names is None
    np.savez(tmp_path / "b.npz", images=noise_array(3), labels=np.zeros((3, 1), int))
    with pytest.raises(SlimdpmError, match=r"b.npz: 3 images, but labels of shape \(3, 1\)"):
        open_source(str(tmp_path / "b.npz")).labels()


def test_columns_of_a_data_set_carry_labels():
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (16, 16)) for _ in range(3)]
    typed = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["z", "a"])})
    told = datasets.Dataset.from_dict({"image": images, "kind": [1, 0, 1]}, features=typed)
    labels = open_source(told).labels()
    assert labels.numbers.tolist() == [1, 0, 1] and labels.names == ("z", "a")  # the data set's own order
    bare = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    assert open_source(bare).labels() is None


def test_labels_meet_the_network_by_name_or_by_order(class_folder):
    source = open_source(str(class_folder))
    named = ClassLabels(5, 4, ("dress", "hat", "boots", "coat"))
    assert named.read(source)[1] == [2] * 3 + [3] * 3 + [0] * 3
    nameless, conditions = ClassLabels(4, 3).read(source)
    assert nameless.names == CLASSES and conditions == [0] * 3 + [1] * 3 + [2] * 3
    first = ClassLabels(4, 0)  # the null class need not come last
    assert first.read(Arrays(noise_array(2), classes=np.array([1, 3])))[1] == [1, 3]
    assert first.read(source)[1] == [1] * 3 + [2] * 3 + [3] * 3
    synonyms = ClassLabels(4, 3, ("frock, dress", "coat", "boots, wellingtons"))
    assert synonyms.read(source)[1] == [2] * 3 + [1] * 3 + [0] * 3 and synonyms.number("frock, dress") == 0


@pytest.mark.parametrize(
    ("network", "labels", "words"),
    [
        (ClassLabels(4, 3), [0, 3], r"label 3 of array\[1\] is out of range: the network has 3 classes, 0 to 2"),
        (ClassLabels(4), [0, -1], r"label -1 of array\[1\] is out of range"),
        (ClassLabels(4), [0, 1.5], r"the label of array\[0\] is neither a whole number nor a name: 0.0"),
        (ClassLabels(2, 1), ["a", "b"], "the data has 2 classes, the network 1"),
        (ClassLabels(3, 2, ("a", "c")), ["a", "b"], "the data's class 'b' is none of the network's: a, c"),
        (ClassLabels(3, 2), None, "the network takes classes and the data has none"),
        (ClassLabels(3, 2), ["a", ""], r"array\[1\] has no label"),
    ],
)
def test_labels_that_do_not_fit(network, labels, words):
    with pytest.raises(SlimdpmError, match=words):
        network.read(Arrays(noise_array(2), classes=None if labels is None else np.array(labels)))


@pytest.mark.slow
def test_a_label_out_of_range_leaves_nothing_behind(class_teacher, tmp_path):
    np.savez(tmp_path / "a.npz", images=noise_array(2), labels=[0, 7])
    with pytest.raises(SlimdpmError, match=r"label 7 of a.npz\[1\] is out of range"):
        run_job(plan(class_teacher, tmp_path / "a.npz"), tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


# -- guidance and dropping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [class_pipeline, embedded_class_pipeline])
def test_guidance_is_the_formula(make):
    pipeline = make()
    shell, unet = shell_of(pipeline), pipeline.unet.eval()
    request = Request(classes=("dress", 0), guidance=3.0)
    guidance = shell.conditioning.sampling_inputs(range(2), request, torch.device("cpu"))
    size = unet.config.sample_size
    x, t = torch.randn(2, 3, size, size), torch.tensor(500)

    def predict(labels):
        labels = torch.tensor(labels)
        if pipeline.class_embedder is None:
            return unet(x, t, class_labels=labels).sample
        return unet(x, t, encoder_hidden_states=pipeline.class_embedder.embedding.weight[labels][:, None]).sample

    with torch.no_grad():
        wanted, without = predict([2, 0]), predict([3, 3])
        torch.testing.assert_close(guidance.predict(unet, x, t), without + 3 * (wanted - without))
        plain = shell.conditioning.sampling_inputs(range(2), Request((2, 0), guidance=1), torch.device("cpu"))
        assert plain.null is None
        torch.testing.assert_close(plain.predict(unet, x, t), wanted)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ddim", "euler"])  # the latter has timesteps between the whole numbers
def test_guidance_within_an_interval_is_a_plain_loop(name):
    pipeline, rows = embedded_class_pipeline(), []
    shell, unet = shell_of(pipeline), pipeline.unet.eval()
    embedding, scheduler = pipeline.class_embedder.embedding.weight, make_scheduler(shell, name)
    scheduler.set_timesteps(10)
    noise = torch.cat([torch.randn(1, *shell.shape, generator=g) for g in image_generators(1, range(2))])
    x, guided = noise * scheduler.init_noise_sigma, []
    for number, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t)
        given, null = (
            unet(seen, t, encoder_hidden_states=embedding[which][:, None]).sample for which in ([2, 0], [3, 3])
        )
        alpha = shell.process.alphas_cumprod[t.long()]
        sigma = scheduler.sigmas[number] if name == "euler" else ((1 - alpha) / alpha).sqrt()
        guided.append(0.3 < sigma < 3)
        x = scheduler.step(null + 3 * (given - null) if guided[-1] else given, t, x).prev_sample
    unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    request = Request((2, 0), guidance=3.0, guidance_interval=(0.3, 3.0))
    ours = clean_samples(unet, shell, range(2), steps=10, scheduler=name, seed=1, request=request)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)
    assert rows == [4 if within else 2 for within in guided] and set(rows) == {2, 4}


def test_an_interval_of_guidance_is_told_and_must_have_a_level(class_teacher, tmp_path):
    pipeline, given = load_pipeline(class_teacher), Request((1,), guidance=2.0, guidance_interval=(0.3, 3.0))
    write_samples(str(class_teacher), tmp_path / "given", count=2, steps=2, device="cpu", request=given)
    facts = json.loads((tmp_path / "given/samples.json").read_text())
    assert facts["guidance_interval"] == [0.3, 3.0]
    assert "guidance_interval" not in shell_of(pipeline).conditioning.facts(replace(given, guidance_interval=None))
    for wrong, words in [
        (replace(given, guidance_interval=(3.0, 0.3)), "no timestep has a noise level from 3 to 0.3"),
        (replace(given, guidance=1.0), "needs guidance"),
    ]:
        with pytest.raises(SlimdpmError, match=words):
            write_samples(str(class_teacher), tmp_path / "new", count=1, device="cpu", request=wrong)
    assert not (tmp_path / "new").exists()
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 2.0, "num_inference_steps": 4, "output_type": "np"}
    everywhere, throughout, between = (
        pipeline([1], generator=image_generators(5, range(1)), guidance_interval=interval, **options).images
        for interval in (None, (0.0, 1e9), (0.3, 3.0))
    )
    np.testing.assert_array_equal(everywhere, throughout)
    assert (everywhere != between).any()


def test_a_number_of_images_goes_through_the_classes():
    pipeline = class_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def made(*labels, **number):
        generators = image_generators(5, range(4))
        options = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 3.0, "generator": generators}
        return pipeline(*labels, **number, **options).images

    np.testing.assert_array_equal(made(batch_size=4), made([0, 1, 2, 0]))
    np.testing.assert_array_equal(made("coat", batch_size=4), made([1, 1, 1, 1]))
    assert (made(batch_size=4) != made("coat", batch_size=4)).any()
    assert len(pipeline(num_inference_steps=1).images) == 1


def test_guidance_joins_nested_inputs():
    class Network(torch.nn.Module):
        def forward(self, sample, t, added, return_dict):
            return (sample * added["a"],)

    one, two = ({"added": {"a": torch.full((1, 1), value)}} for value in (2.0, 3.0))
    assert Guidance(one, two, 4.0).predict(Network(), torch.ones(1, 1), torch.tensor(0)).item() == 3 + 4 * (2 - 3)


def labels_seen(monkeypatch, tmp_path, *arguments):
    """The labels that teacher and student get, step by step; neither has to do anything with them."""
    seen = []

    def losses(self, x0, noise, t, conditions, **kwargs):
        seen.extend(conditions["class_labels"].tolist())
        nothing = 0 * sum(p.sum() for p in self.student.parameters())
        return {"loss": nothing, "denoising": nothing.detach()}

    with monkeypatch.context() as patched:
        patched.setattr(Distiller, "losses", losses)
        run_job(plan(*arguments), tmp_path, report=False)
    return seen


@pytest.mark.slow
def test_dropping_follows_the_seed_and_not_the_accumulation(class_teacher, class_folder, tmp_path, monkeypatch):
    def seen(name, *more):
        steps = ("train.steps=5", "train.batch_size=16")
        return labels_seen(monkeypatch, tmp_path / name, class_teacher, class_folder, *steps, *more)

    whole = seen("whole", "conditioning.drop=0.3")
    assert 10 < whole.count(3) < 40  # of 80, the null class
    assert seen("parts", "conditioning.drop=0.3", "train.max_batch_per_device=4") == whole
    kept = seen("none", "conditioning.drop=0")
    assert kept.count(3) == 0 and all(a in (b, 3) for a, b in zip(whole, kept, strict=True))  # nothing else moves
    assert seen("other", "conditioning.drop=0.3", "train.seed=1") != whole


@pytest.mark.slow
def test_teacher_and_student_get_the_same_condition(class_teacher, class_folder, tmp_path, monkeypatch):
    job = plan(class_teacher, class_folder, "conditioning.drop=0.5", "student.kind=spectral")
    got, true_forward = [], UNet2DModel.forward

    def forward(self, *args, **kwargs):
        got.append((type(self).__name__, kwargs["class_labels"].tolist()))
        return true_forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DModel, "forward", forward)
    run_job(job, tmp_path / "run", report=False)
    students, teachers = (
        [labels for kind, labels in got if kind == which] for which in ("SpectralUNet2DModel", "UNet2DModel")
    )
    assert students == teachers and len(students) == 2


@pytest.mark.slow
def test_without_a_null_class_nothing_is_dropped_or_guided(class_folder, tmp_path):
    DDPMPipeline(UNet2DModel(**TINY, num_class_embeds=3), DDPMScheduler()).save_pretrained(tmp_path / "teacher")
    job = plan(tmp_path / "teacher", class_folder, "conditioning.drop=0.9")
    assert "conditioning: 3 classes: boots, coat, dress; no null class, so no guidance" in job.describe()
    inputs = job.shell.conditioning.training_inputs({"conditions": torch.tensor([1])}, torch.tensor([True]))
    assert inputs["class_labels"].tolist() == [1]
    pipeline = run_job(job, tmp_path / "run", report=False)
    assert type(pipeline) is ClassConditionalLDMPipeline
    with pytest.raises(SlimdpmError, match="knows no null class: it cannot be guided"):
        pipeline([0], guidance_scale=2.0)


# -- pipelines and runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [class_pipeline, embedded_class_pipeline])
def test_the_pipeline_is_saved_loaded_and_samples_like_ours(make, tmp_path, monkeypatch):
    # The nearest entry of a codebook jumps with the last bit of a latent, which is another on each kind of processor.
    monkeypatch.setattr(VQModel, "decode", partialmethod(VQModel.decode, force_not_quantize=True))
    pipeline = make()
    pipeline.save_pretrained(tmp_path)
    own, ours = ClassConditionalLDMPipeline.from_pretrained(tmp_path), load_pipeline(tmp_path)
    for loaded in (own, ours):
        loaded.set_progress_bar_config(disable=True)
        assert shell_of(loaded).conditioning.names == CLASSES
        assert [fingerprint(m) for m in shell_of(loaded).frozen] == [fingerprint(m) for m in shell_of(pipeline).frozen]
    images = own(["dress", 1, 0], guidance_scale=2.0, num_inference_steps=4, output_type="np",
                 generator=image_generators(5, range(3))).images  # fmt: skip
    sampled = sample_images(ours, 3, steps=4, seed=5, request=Request(classes=(2, "coat", "0"), guidance=2.0))
    np.testing.assert_allclose(sampled / 255, images, atol=0.51 / 255)
    assert not np.array_equal(sampled[0], sample_images(ours, 1, steps=4, seed=5)[0])  # of the first class


@pytest.mark.slow
@pytest.mark.parametrize("make", [class_pipeline, embedded_class_pipeline])
def test_a_class_conditional_teacher_is_slimmed(make, class_folder, tmp_path):
    teacher = make(names=None)
    teacher.save_pretrained(tmp_path / "teacher")
    job = plan(tmp_path / "teacher", class_folder, "student.kind=spectral")
    counted = find_network(str(tmp_path / "teacher"))
    assert measure(counted.config, tokens=counted.tokens) == job.plan.teacher_cost
    assert "conditioning: 3 classes: boots, coat, dress; 10% are dropped for guidance" in job.describe()
    run_job(job, tmp_path / "run")
    student = load_pipeline(tmp_path / "run")
    assert type(student.unet).__name__ == f"Spectral{type(teacher.unet).__name__}"
    assert student.config.id2label == {"0": "boots", "1": "coat", "2": "dress"}
    frozen = [shell_of(p).frozen for p in (student, teacher)]
    assert [fingerprint(m) for m in frozen[0]] == [fingerprint(m) for m in frozen[1]]  # untouched
    card = (tmp_path / "run/student/README.md").read_text()
    assert "ClassConditionalLDMPipeline" in card
    assert sample_images(student, 4, steps=2).shape == (4, 16, 16, 3)


@pytest.mark.slow
def test_a_resumed_class_conditional_run_is_the_run_without_a_stop(class_teacher, class_folder, tmp_path):
    steps = ("train.steps=4", "train.checkpoint_every=2", "conditioning.drop=0.4")
    run_job(plan(class_teacher, class_folder, *steps), tmp_path / "whole", report=False)
    run_job(plan(class_teacher, class_folder, *steps, "train.steps=2"), tmp_path / "parts", report=False)
    run_job(plan(class_teacher, class_folder, *steps), tmp_path / "parts", report=False)
    one, two = (load_file(tmp_path / n / "checkpoints/step-00000004/student.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("config", [{**TINY, "_class_name": "UNet2DModel"}, {**TINY_CONDITION, "in_channels": 3,
                         "out_channels": 3, "_class_name": "UNet2DConditionModel"}])  # fmt: skip
def test_a_class_conditional_network_is_trained_from_nothing(config, class_folder, tmp_path):
    (tmp_path / "net.json").write_text(json.dumps(config))
    values = {"task": "train", "student": {"base": str(tmp_path / "net.json")}, "data": {"path": str(class_folder)}}
    settings = [s for s in QUICK if not s.startswith("student")]
    run_job(plan_job(load_recipe(None, [*settings, "conditioning.kind=class"], values=values)), tmp_path / "run")
    pipeline = load_pipeline(tmp_path / "run")
    conditioning = shell_of(pipeline).conditioning
    assert (conditioning.rows, conditioning.null, conditioning.names) == (4, 3, CLASSES)
    again = plan_job(load_recipe(None, [*settings, "conditioning.kind=class"], values=values))
    same = [fingerprint(m) for s in (again.shell, shell_of(pipeline)) for m in s.frozen]
    assert len(set(same)) == len(same) // 2  # the tokens of a cross-attention network follow from the seed
    if "cross_attention_dim" in config:
        with pytest.raises(SlimdpmError, match="has cross-attention: set conditioning.kind=class"):
            plan_job(load_recipe(None, settings, values=values))


def test_samples_go_through_the_classes_and_say_which(class_teacher, tmp_path):
    write_samples(str(class_teacher), tmp_path / "all", count=4, steps=2, device="cpu")
    facts = json.loads((tmp_path / "all/samples.json").read_text())
    assert facts["classes"] == "all" and facts["guidance"] == 1.5
    dress = Request(classes=("dress",), guidance=1.0)
    write_samples(str(class_teacher), tmp_path / "dress", count=3, steps=2, device="cpu", request=dress)
    for wrong, words in [
        (Request(classes=("hat",)), "there is no class 'hat'; the classes are boots, coat, dress"),
        (Request(classes=("3",)), "there is no class '3'"),
        (Request(prompts=("a hat",)), "it takes a class, no prompt"),
    ]:
        with pytest.raises(SlimdpmError, match=words):
            write_samples(str(class_teacher), tmp_path / "new", count=1, device="cpu", request=wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(classes=(1,)), "it takes no class"),
        (Request(prompts=("x",)), "it takes no prompt"),
        (Request(guidance=2.0), "it takes no guidance"),
        (Request(guidance_interval=(0.3, 5.0)), "it takes no guidance"),
    ],
)
def test_an_unconditional_pipeline_takes_no_request(teacher_folder, request_, words):
    with pytest.raises(SlimdpmError, match=words):
        sample_images(load_pipeline(teacher_folder), 1, steps=1, request=request_)


def test_networks_that_nothing_feeds_are_refused():
    pipeline = ClassConditionalLDMPipeline(
        UNet2DConditionModel(**TINY_CONDITION), DDIMScheduler(), VQModel(**{**AUTOENCODER, "latent_channels": 4})
    )
    with pytest.raises(SlimdpmError, match="has cross-attention, and nothing in the pipeline feeds it"):
        shell_of(pipeline)


def test_evaluation_draws_classes_as_the_real_images_have_them(class_teacher):
    pipeline = load_pipeline(class_teacher)
    real = Arrays(noise_array(4), classes=np.array([0, 2, 2, 2]))
    request = _request(pipeline, real, Settings(count=400, guidance=1.0))
    assert len(request.classes) == 400 and set(request.classes) == {0, 2}
    assert 250 < sum(label == 2 for label in request.classes) < 350
    assert _request(pipeline, Arrays(noise_array(4)), Settings()).classes == ()  # no labels: all in turn
    keys = {Generated("x", pipeline, 4, request=r).key for r in (request, Request(), Request(guidance=3.0))}
    assert len(keys) == 3


@pytest.mark.slow
def test_analysis_gives_real_images_their_classes(class_teacher, class_folder, tmp_path, monkeypatch):
    """At the lowest noise level one sees which image it is, and so in whose folder it lies."""
    shown = []

    def watched(unet, *args, **options):
        def hook(network, args, kwargs):
            shown.append(inspect.signature(network.forward).bind(*args, **kwargs).arguments)

        handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            return observe(unet, *args, **options)
        finally:
            handle.remove()

    monkeypatch.setattr("slimdpm.analysis.analyze.observe", watched)
    settings = AnalysisSettings(count=9, samples=9, steps=2, device="cpu")
    analyze(str(class_teacher), str(class_folder), tmp_path / "analysis", settings)
    files = sorted(class_folder.rglob("*.png"))
    photos = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files]) / 127.5 - 1
    least = min(shown, key=lambda given: int(torch.as_tensor(given["timestep"]).max()))
    nearest = (least["sample"][:, None] - torch.from_numpy(photos)).square().sum(dim=(2, 3, 4)).argmin(dim=1)
    assert len(set(nearest.tolist())) == 9
    assert least["class_labels"].tolist() == [CLASSES.index(files[i].parent.name) for i in nearest]
    assert {tuple(given["class_labels"].tolist()) for given in shown} == {tuple(least["class_labels"].tolist())}


def test_an_embedders_null_class_is_its_own():
    embedder = ClassEmbedder(5, 12, null_class=4)
    torch.testing.assert_close(embedder(torch.tensor([4, 1])), embedder.embedding.weight[[4, 1]][:, None])
    assert ClassEmbedder().config.null_class == 1000  # the ImageNet model's


@pytest.mark.parametrize("names", [{"0": ["dress"]}, {"a": "dress"}, {"0": None}, ["dress"], 5])
def test_what_names_no_numbers_is_refused(names):
    pipeline = class_pipeline()
    pipeline.register_to_config(id2label=names)
    with pytest.raises(SlimdpmError, match="id2label of the pipeline gives no names to numbers"):
        shell_of(pipeline)


@pytest.mark.parametrize("null", [9, -1, 0.5, True])
def test_a_null_class_without_an_embedding_is_refused(null):
    pipeline = class_pipeline()
    pipeline.register_to_config(null_class=null)
    with pytest.raises(SlimdpmError, match=f"the null_class {null} is none of the classes"):
        shell_of(pipeline)
