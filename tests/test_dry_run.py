"""``--dry-run``: what it tells, that it needs no weights, and that its memory is what a step really takes."""

import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel, VQModel
from helpers import TINY, class_pipeline, embedded_class_pipeline, latent_pipeline, text_pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from slimdpm import SlimdpmError
from slimdpm.cli.main import app
from slimdpm.data.arrays import Arrays
from slimdpm.method.cost import measure
from slimdpm.method.distiller import Distiller, TappedStudent
from slimdpm.method.live_memory import GRADIENTS, peak_bytes
from slimdpm.method.networks import build
from slimdpm.recipe_file import load_recipe
from slimdpm.training.dry_run import forecast, labelled, lines
from slimdpm.training.memory import estimate_memory
from slimdpm.training.plan import plan_job


def invoke(*arguments):
    """What it prints; a mistake is raised."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False).stdout


BATCH = ["distill.pairs=auto", "train.batch_size=8", "train.max_batch_per_device=2", "samples.count=2"]


@pytest.fixture
def outline_folder(teacher_folder, tmp_path):
    """The teacher's folder without its weights."""
    folder = shutil.copytree(teacher_folder, tmp_path / "outline")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


def data():
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return Arrays(images, classes=np.arange(6) % 3, texts=np.array(["a", "b"] * 3))


def plan(teacher, *settings, task="slim"):
    values = {"task": task, "data": {"path": "x"}, "student": {"width": 8}, "distill": {"pairs": "auto"}}
    return plan_job(load_recipe(None, settings, values=values), teacher=teacher, data=data(), weights=False)


@pytest.mark.slow
def test_it_tells_everything_reads_no_weights_and_writes_nothing(outline_folder, image_folder, tmp_path):
    sets = [word for setting in BATCH for word in ("--set", setting)]
    command = ["slim", outline_folder, image_folder, "-o", tmp_path / "run", "--ratio", "3", *sets, "--dry-run"]
    before = sorted(tmp_path.rglob("*"))
    values = json.loads(invoke(*command, "--json"))
    said = "\n".join(labelled(label) + text for label, text in lines(values))
    assert sorted(tmp_path.rglob("*")) == before
    cost = measure({**TINY, "_class_name": "UNet2DModel"})
    assert (values["reference"]["params"], values["reference"]["macs_all"]) == (cost.params, cost.macs_all)
    assert values["training"] == {
        "processes": 1, "micro_batch": 2, "accumulation": 4, "uses": 1, "resumes_at": 0,
        "images_seen": 800_000, "epochs": pytest.approx(800_000 / 12),
        "default_steps": True, "time": None,
    }  # fmt: skip
    assert values["recipe"]["teacher"] == str(outline_folder) and len(values["feature_pairs"]) == 5
    for words in (
        f"teacher        {outline_folder}: UNet2DModel 16-32, {cost.params / 1e6:.2f} M parameters, ",
        f"{cost.macs / 1e6:.1f} M MACs conv+linear, {cost.macs_all / 1e6:.1f} M all",
        f"{values['reference']['ratio']:.2f} times fewer MACs conv+linear",
        "feature pairs  down_blocks.0 (",
        f"12 images of {image_folder} as 16x16",
        "steps          100,000 of 8 images: 1 x 2 at once, 4 times",
        "images seen    800,000, 66,666.7 epochs",
        "losses         denoising by min-SNR, γ 5, spatial, frequency: λ_s 2, λ_f 2, α -1, ω scaled to mean",
        "precision      fp32",
        "MB on each device, estimated",
        "conditioning   none",
    ):
        assert words in said


@pytest.mark.usefixtures("any_memory")
def test_gates_are_made_where_they_are_asked_for(outline_folder, image_folder, tmp_path):
    (tmp_path / "gated.yaml").write_text("student: {kind: spectral}")
    command = ["slim", outline_folder, image_folder, "-o", tmp_path / "run", "--width", 8, "--dry-run", "--json"]
    recipe = ["--recipe", tmp_path / "gated.yaml"]
    asked = [([], "plain"), (["--gated"], "spectral"), (recipe, "spectral"), ([*recipe, "--plain"], "plain")]
    for words, kind in asked:
        assert json.loads(invoke(*command, *words))["recipe"]["student"]["kind"] == kind


@pytest.mark.usefixtures("any_memory")
def test_the_command_for_a_plain_student(outline_folder, image_folder, tmp_path):
    command = ["slim", outline_folder, image_folder, "-o", tmp_path / "run", "--dry-run"]
    for budget in (["--ratio", "3"], ["--width", "8"], ["--max-macs", "3M"], ["--max-params", "60K"]):
        values = json.loads(invoke(*command, *budget, "--json"))
        assert values["student"]["class"] == "UNet2DModel" and values["recipe"]["student"]["kind"] == "plain"
        assert values["first_weights"] == "teacher"


def test_the_plan_without_weights_is_the_plan_with_them(teacher_folder, outline_folder, tmp_path):
    values = {"data": {"path": "x"}, "student": {"ratio": 3}}
    jobs = [
        plan_job(load_recipe(None, values={**values, "teacher": str(folder)}), data=data(), weights=weights)
        for folder, weights in ((teacher_folder, True), (outline_folder, False))
    ]
    assert jobs[0].plan == jobs[1].plan and jobs[0].pairs == jobs[1].pairs
    assert jobs[1].teacher.unet.device.type == "meta" and jobs[0].teacher.unet.device.type == "cpu"


@pytest.mark.slow
def test_timesteps_weigh_by_min_snr_when_slimming_unless_the_recipe_says_else():
    def gamma(*settings, task="slim"):
        return plan(DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()), *settings, task=task).recipe.train.snr_gamma

    assert (gamma(), gamma(task="train")) == (5.0, "none")
    assert (gamma("train.snr_gamma=none"), gamma("train.snr_gamma=3", task="train")) == ("none", 3.0)


@pytest.mark.slow
def test_of_several_processes_one_speaks(outline_folder, image_folder, monkeypatch, request):
    monkeypatch.setenv("WORLD_SIZE", "4")
    command = ["slim", outline_folder, image_folder, "--ratio", "3", "--set", "train.batch_size=8", "--dry-run"]
    said = invoke(*command)
    assert "4 x 2 at once" in said and "gradients on their way" in said
    request.getfixturevalue("any_memory")
    monkeypatch.setenv("RANK", "1")
    assert invoke(*command) == ""
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SlimdpmError, match="10 cannot be shared evenly by 4 processes"):
        invoke(*command, "--set", "train.batch_size=10")


@pytest.mark.slow
def test_it_knows_what_is_in_the_folder(teacher_folder, image_folder, tmp_path, any_memory):
    quick = ["--width", "8", "--steps", "2"]
    for setting in ("train.sample_every=0", "train.batch_size=4", "train.trackers=[]", "samples.count=2"):
        quick += ["--set", setting]
    invoke("slim", teacher_folder, image_folder, "-o", tmp_path / "run", *quick, "--set", "samples.steps=2")
    command = ["slim", teacher_folder, image_folder, "-o", tmp_path / "run", *quick, "--dry-run"]
    assert "resuming after step 2" in invoke(*command, "--steps", "5")
    with pytest.raises(SlimdpmError, match="holds a run of another recipe, train.lr differs"):
        invoke(*command, "--set", "train.lr=1e-3")
    with pytest.raises(SlimdpmError, match="--json belongs to --dry-run"):
        invoke(*command[:-1], "--json")


@pytest.mark.slow
def test_training_without_a_teacher_has_a_dry_run_too(image_folder, tmp_path, request):
    VQModel(**latent_pipeline(VQModel).vqvae.config).save_pretrained(tmp_path / "autoencoder")
    for file in (tmp_path / "autoencoder").glob("*.safetensors"):
        file.unlink()
    config = {**TINY, "sample_size": 8, "_class_name": "UNet2DModel"}
    (tmp_path / "net.json").write_text(json.dumps(config))
    command = ["train", image_folder, "--model", tmp_path / "net.json", "--dry-run"]
    values = json.loads(invoke(*command, "--set", f"autoencoder={tmp_path}/autoencoder", "--json"))
    assert values["reference"] is None and values["feature_pairs"] == [] and values["data"]["size"] == 16
    assert values["memory"]["teacher"] == values["memory"]["frozen"] == 0  # its latents are kept
    values = json.loads(invoke(*command, "--set", f"autoencoder={tmp_path}/autoencoder", "--no-cache", "--json"))
    assert values["memory"]["teacher"] == 0 < values["memory"]["frozen"]
    request.getfixturevalue("any_memory")
    said = invoke(*command)
    assert "losses" not in said and "loss           denoising\n" in said


# -- memory ---------------------------------------------------------------------------------------------------------


class RealStorages(TorchDispatchMode):
    """Independent of ours: real tensors, whose storages are told apart by their place in memory."""

    def __init__(self, module):
        super().__init__()
        self.alive = {p.data_ptr(): 0 for p in module.parameters()}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in (t for t in tree_leaves(result) if isinstance(t, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.alive:
                self.alive[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_real_tensors_take(checkpointing):
    teacher = latent_pipeline(VQModel)
    job = plan(teacher, f"train.gradient_checkpointing={checkpointing}", "data.cache=false", "train.batch_size=4")
    estimated = estimate_memory(job)
    unet = build(job.plan.config)
    student = TappedStudent(unet, job.pairs)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    distiller = Distiller(student, job.shell.process, teacher=teacher.unet, pairs=job.pairs)
    everything = torch.nn.ModuleList([student, teacher.unet, teacher.vqvae.requires_grad_(False)])
    with RealStorages(everything) as real:
        x0 = job.shell.encode(torch.randn(4, 3, 16, 16))
        distiller.losses(x0, torch.randn_like(x0), torch.tensor([1, 2, 3, 4]))["loss"].backward()
    assert estimated.gradients + estimated.step == pytest.approx(real.peak, rel=0.02)
    counted = sum(p.numel() for p in student.parameters()) * 4
    assert (estimated.student, estimated.gradients, estimated.moments) == (counted, counted, 2 * counted)
    assert estimated.teacher == sum(p.numel() for p in teacher.unet.parameters()) * 4


def test_a_call_takes_what_real_tensors_take():
    config = {**TINY, "_class_name": "UNet2DModel"}
    network = build(config)
    with RealStorages(network) as real, torch.no_grad():
        network(torch.randn(3, 3, 16, 16), torch.zeros(3, dtype=torch.long))
    weights = sum(p.nbytes for p in network.parameters())
    assert peak_bytes(config, batch=3) == pytest.approx(weights + real.peak, rel=0.02)


def test_gradients_have_the_shapes_that_torch_gives_them():
    norm, silu = torch.ops.aten.native_group_norm_backward.default, torch.ops.aten.silu_backward.default
    x, weight, mean = torch.randn(2, 8, 3, 5), torch.randn(8), torch.randn(2, 4)
    arguments = {norm: (x, x, mean, mean, weight, 2, 8, 15, 4, [True, True, True]), silu: (x, x)}
    assert arguments.keys() == GRADIENTS.keys()
    for function, given in arguments.items():
        for ours, theirs in zip(tree_leaves(GRADIENTS[function](*given)), tree_leaves(function(*given)), strict=True):
            assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)


IMAGES = 64 * 3 * 16 * 16 * 4  # bytes of a batch of them alone


@pytest.mark.slow
def test_a_class_embedder_is_counted():
    job = plan(embedded_class_pipeline(), "data.cache=false")
    memory = forecast(job)["memory"]
    assert memory["frozen"] == sum(p.numel() for module in job.shell.frozen for p in module.parameters()) * 4
    assert memory["step"] > IMAGES


@pytest.mark.slow
def test_kept_embeddings_spare_the_text_encoder_until_samples_are_made(tmp_path):
    teacher = text_pipeline(tmp_path)
    encoder, autoencoder = (sum(p.numel() for p in m.parameters()) * 4 for m in (teacher.text_encoder, teacher.vae))
    kept, cropped, anew = (
        forecast(plan(teacher, *settings))["memory"] for settings in ((), ("data.crop=random",), ("data.cache=false",))
    )
    assert (kept["frozen"], cropped["frozen"], anew["frozen"]) == (0, autoencoder, autoencoder + encoder)
    assert kept["sampling"] == anew["sampling"] + autoencoder + encoder and anew["step"] > IMAGES


@pytest.mark.slow
def test_kept_latents_spare_the_autoencoder_until_samples_are_made():
    teacher = latent_pipeline(AutoencoderKL)
    weights = sum(p.numel() for p in teacher.vqvae.parameters()) * 4
    kept, anew = (forecast(plan(teacher, f"data.cache={cache}"))["memory"] for cache in ("true", "false"))
    assert (kept["frozen"], anew["frozen"]) == (0, weights)
    assert kept["sampling"] == anew["sampling"] + weights and kept["step"] <= anew["step"] > IMAGES
    samples = forecast(plan_job(
        load_recipe(None, values={"data": {"path": "teacher"}, "student": {"width": 8}}), teacher=teacher, weights=False
    ))  # fmt: skip
    assert samples["memory"]["frozen"] == 0 and "10,000 samples of the teacher" in samples["data"]["about"]


@pytest.mark.slow
def test_precision_and_batch_change_the_step_alone():
    whole, half = (
        forecast(plan(class_pipeline(), *settings))["memory"]
        for settings in (["train.batch_size=64"], ["train.batch_size=32", "train.precision=bf16"])
    )
    assert 0.2 < half["step"] / whole["step"] < 0.45  # a half for the batch, and less than one for the precision
    lasting = ("student", "gradients", "moments", "average", "teacher", "sampling")
    assert [half[part] for part in lasting] == [whole[part] for part in lasting]


@pytest.mark.slow
def test_accumulated_gradients_and_two_processes_add_up():
    teacher, batch = latent_pipeline(VQModel), "train.batch_size={}"
    one = estimate_memory(plan(teacher, batch.format(1)))
    more = estimate_memory(plan(teacher, batch.format(2), "train.max_batch_per_device=1"))
    two = estimate_memory(plan(teacher, batch.format(2)), processes=2)
    assert one.step < more.step <= one.step + one.gradients  # they are there before the step's activations are
    assert two.total == one.total + one.gradients == one.total + two.buckets


def test_an_estimate_leaves_the_runs_schedule_real(outline_folder):
    job = plan(outline_folder, *BATCH)
    job = replace(job, shell=replace(job.shell))  # which has not looked at its schedule yet
    estimate_memory(job)
    schedule = job.shell.process.alphas_cumprod
    assert type(schedule) is torch.Tensor and 0 < schedule[-1] < schedule[0] < 1
