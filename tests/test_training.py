"""The loop: exact resume, kills, stops, a loss gone wrong, a disk that is full."""

import json
import os
import re
import resource
import signal

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from helpers import TINY, TRIAL, Forked, command, drawn, struck
from safetensors.torch import load_file

from slimdpm.method.distiller import Distiller, TappedStudent
from slimdpm.method.features import match_features
from slimdpm.method.forward_process import Process
from slimdpm.recipe_file import load_recipe
from slimdpm.run_folder import RunFolder
from slimdpm.system.errors import SlimdpmError
from slimdpm.training.checkpoint import checkpoints
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job
from slimdpm.training.trainer import Trainer

pytestmark = pytest.mark.slow

QUICK = [
    *TRIAL,
    "student.width=8", "student.overrides={dropout: 0.1}", "train.steps=6", "train.warmup=3", "train.ema=0.9",
    "train.checkpoint_every=3", "train.log_every=2", "train.keep=3", "data.flip=true",
]  # fmt: skip


def arguments(teacher_folder, image_folder, *more):
    sets = [*QUICK, f"teacher={teacher_folder}", f"data.path={image_folder}", *more]
    return [part for s in sets for part in ("--set", s)]


def run(folder, teacher_folder, image_folder, *more, report=False):
    recipe = load_recipe(
        None, [*QUICK, *more], values={"teacher": str(teacher_folder), "data": {"path": str(image_folder)}}
    )
    return run_job(plan_job(recipe), folder, report=report)


def contents(checkpoint):
    return {file.name: load_file(file) for file in sorted(checkpoint.glob("*.safetensors"))}


def assert_equal_checkpoints(one, two):
    a, b = contents(one), contents(two)
    assert set(a) == set(b) == {f"{n}.safetensors" for n in ("student", "ema", "aligners", "optimizer")}
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key in a[name]:
            assert torch.equal(a[name][key], b[name][key]), f"{name}: {key}"
    states = [json.loads((c / "state.json").read_text()) for c in (one, two)]
    for state in states:
        state.pop("seconds"), state.pop("digest")  # which covers the seconds
    assert states[0] == states[1]


def logged(folder):
    timing = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in timing} for line in RunFolder(folder).metrics()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, teacher_folder, image_folder):
    """A run of six steps without a stop."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with drawn():
        run(folder, teacher_folder, image_folder, report=True)
    return folder


def test_a_run_leaves_what_it_promises(straight):
    assert [c.name for c in checkpoints(straight / "checkpoints")] == ["step-00000003", "step-00000006"]
    assert {p.name for p in straight.iterdir()} >= {"recipe.yaml", "metrics.jsonl", "samples", "student", "report.html"}
    assert [line["step"] for line in logged(straight)] == [2, 3, 4, 6]
    assert {"loss", "denoising", "spatial", "frequency", "lr", "grad_norm"} <= set(logged(straight)[0])
    assert logged(straight)[0]["lr"] == pytest.approx(2e-4 * 2 / 3)
    page = (straight / "report.html").read_text()
    assert "<svg" in page and "data:image/png;base64," in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched from elsewhere


def test_three_and_three_steps_are_six(straight, tmp_path, teacher_folder, image_folder):
    run(tmp_path / "run", teacher_folder, image_folder, "train.steps=3", report=True)
    run(tmp_path / "run", teacher_folder, image_folder, report=True)
    assert_equal_checkpoints(straight / "checkpoints/step-00000006", tmp_path / "run/checkpoints/step-00000006")
    assert logged(tmp_path / "run")[-1] == logged(straight)[-1]
    weights = [load_file(f / "student/unet/diffusion_pytorch_model.safetensors") for f in (straight, tmp_path / "run")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_accumulation_changes_nothing_but_rounding(straight, tmp_path, teacher_folder, image_folder):
    no_dropout = "student.overrides={dropout: 0.0}"
    run(tmp_path / "whole", teacher_folder, image_folder, no_dropout)
    run(tmp_path / "parts", teacher_folder, image_folder, no_dropout, "train.max_batch_per_device=1")
    for one, two in zip(logged(tmp_path / "whole"), logged(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(two, rel=1e-3)


def run_command(folder, *options, before=lambda: None):
    """`slimdpm slim` in another process."""
    return Forked(command("slim", "-o", folder, *options, before=before)).wait()


@pytest.fixture(scope="module")
def ten(tmp_path_factory, teacher_folder, image_folder):
    """A run of ten steps without a stop."""
    folder = tmp_path_factory.mktemp("ten") / "run"
    run(folder, teacher_folder, image_folder, "train.steps=10", "train.checkpoint_every=4")
    return folder


@pytest.mark.parametrize(
    ("number", "code", "last"), [(signal.SIGKILL, -9, 4), (signal.SIGTERM, 143, 6), (signal.SIGINT, 130, 6)]
)
def test_a_killed_or_stopped_run_goes_on_exactly(number, code, last, ten, tmp_path, teacher_folder, image_folder):
    """In another process: stopped once on the way, in the sixth step, then resumed by the same command."""
    options = arguments(teacher_folder, image_folder, "train.steps=10", "train.checkpoint_every=4", "train.keep=9")
    in_the_sixth_step = struck(number, Trainer, "_step", lambda trainer, *args: trainer.state.step == 5)
    done = run_command(tmp_path / "run", *options, before=in_the_sixth_step)
    assert done.code == code, done.err
    assert [int(c.name[5:]) for c in checkpoints(tmp_path / "run/checkpoints")][-1] == last
    if number != signal.SIGKILL:  # the state at the stop was saved
        assert done.err == "stopped after step 6; the same command resumes\n"
    done = run_command(tmp_path / "run", *options)
    assert done.code == 0, done.err
    assert f"resuming after step {last} of 10" in done.out
    assert_equal_checkpoints(ten / "checkpoints/step-00000010", tmp_path / "run/checkpoints/step-00000010")
    if number == signal.SIGKILL:  # a stop logs its last step
        assert logged(tmp_path / "run") == logged(ten)


def test_another_recipe_in_the_same_folder_is_refused(straight, teacher_folder, image_folder):
    before = (straight / "recipe.yaml").read_text()
    with pytest.raises(SlimdpmError, match="run of another recipe, train.lr differs; choose another folder"):
        run(straight, teacher_folder, image_folder, "train.lr=1e-5")
    assert (straight / "recipe.yaml").read_text() == before


def test_a_folder_of_something_else_is_refused(tmp_path, teacher_folder, image_folder):
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(SlimdpmError, match="is not empty and holds no run"):
        run(tmp_path, teacher_folder, image_folder)
    with pytest.raises(SlimdpmError, match="is a file"):
        run(tmp_path / "letter.txt", teacher_folder, image_folder)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_two_processes_cannot_work_in_one_folder(straight, teacher_folder, image_folder):
    folder = RunFolder(straight)
    folder.open(folder.recipe())
    try:
        with pytest.raises(SlimdpmError, match="another process is working in"):
            run(straight, teacher_folder, image_folder)
    finally:
        folder.close()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, teacher_folder, image_folder, monkeypatch):
    true_losses, calls = Distiller.losses, []

    def losses(self, *args, **kwargs):
        calls.append(1)
        values = true_losses(self, *args, **kwargs)
        return {k: v * float("nan") for k, v in values.items()} if len(calls) == 5 else values

    monkeypatch.setattr(Distiller, "losses", losses)
    with pytest.raises(
        SlimdpmError, match=r"not finite at step 5 \(.*denoising nan.*\); the last good .*step-00000003"
    ):
        run(tmp_path / "run", teacher_folder, image_folder)
    assert [c.name for c in checkpoints(tmp_path / "run/checkpoints")] == ["step-00000003"]
    monkeypatch.undo()
    run(tmp_path / "run", teacher_folder, image_folder)  # and it can go on from there
    assert len(checkpoints(tmp_path / "run/checkpoints")) == 2


def test_old_checkpoints_are_pruned(tmp_path, teacher_folder, image_folder):
    run(tmp_path / "run", teacher_folder, image_folder, "train.checkpoint_every=1", "train.keep=2")
    assert [c.name for c in checkpoints(tmp_path / "run/checkpoints")] == ["step-00000005", "step-00000006"]


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path, teacher_folder, image_folder):
    """The system refuses files beyond a limit, as a full disk does."""
    options = arguments(teacher_folder, image_folder)
    run(tmp_path / "run", teacher_folder, image_folder, "train.steps=3")
    kept = {p: p.stat().st_size for p in (tmp_path / "run").rglob("*.safetensors")}
    largest = max(kept.values())

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))

    done = run_command(tmp_path / "run", *options, before=limited)
    assert done.code == 2, done.err
    (message,) = done.err.splitlines()
    assert message.startswith("error: ") and "nothing was half-written" in message
    assert {p: p.stat().st_size for p in (tmp_path / "run").rglob("*.safetensors")} == kept
    assert not list((tmp_path / "run").rglob(".*tmp*"))


def test_a_damaged_checkpoint_is_named(straight, tmp_path, teacher_folder, image_folder):
    run(tmp_path / "run", teacher_folder, image_folder, "train.steps=3")
    (tmp_path / "run/checkpoints/step-00000003/ema.safetensors").write_bytes(b"cut")
    with pytest.raises(SlimdpmError, match="ema.safetensors is damaged"):
        run(tmp_path / "run", teacher_folder, image_folder)


def test_training_without_a_teacher(tmp_path, image_folder):
    (tmp_path / "net.json").write_text(json.dumps({**TINY, "_class_name": "UNet2DModel"}))
    values = {"task": "train", "student": {"base": str(tmp_path / "net.json")}, "data": {"path": str(image_folder)}}
    settings = [s for s in QUICK if not s.startswith("student")]
    pipeline = run_job(plan_job(load_recipe(None, settings, values=values)), tmp_path / "run")
    assert type(pipeline.unet) is UNet2DModel
    assert [p.name for p in (tmp_path / "run/checkpoints/step-00000006").iterdir() if "aligners" in p.name]
    assert set(logged(tmp_path / "run")[0]) == {"step", "loss", "denoising", "lr", "grad_norm"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_weights_in_single(precision, tmp_path, teacher_folder, image_folder):
    run(tmp_path / "run", teacher_folder, image_folder, f"train.precision={precision}")
    assert np.isfinite(logged(tmp_path / "run")[-1]["loss"])
    weights = contents(checkpoints(tmp_path / "run/checkpoints")[-1])["student.safetensors"]
    assert all(w.dtype == torch.float32 for w in weights.values())


def test_taps_work_in_a_compiled_student():
    small = {**TINY, "block_out_channels": (8, 8), "add_attention": False}
    small |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    config = {**small, "_class_name": "UNet2DModel"}
    student = TappedStudent(UNet2DModel(**small), match_features(config, config))
    inputs = torch.randn(2, 3, 16, 16), torch.tensor([5, 9])
    plain = student(*inputs)
    student.compile(backend="eager")
    compiled = student(*inputs)
    torch.testing.assert_close(compiled, plain)


def test_a_compiled_teacher_says_the_same():
    """Its features are caught by hooks, which a graph must not lose; its U-Net itself stays as it was."""
    config = {**TINY, "_class_name": "UNet2DModel"}
    teacher, pairs = UNet2DModel(**TINY), match_features(config, config)
    process = Process(torch.linspace(0.99, 0.01, 10), "epsilon")
    distiller = Distiller(TappedStudent(UNet2DModel(**TINY), pairs), process, teacher=teacher, pairs=pairs)
    batch = torch.randn(2, 3, 16, 16), torch.tensor([5, 9]), {}
    plain = distiller.teach(*batch)
    distiller.compile(backend="eager")
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    for _ in range(2):
        compiled = distiller.teach(*batch)
        torch.testing.assert_close(compiled, plain)
    assert graphs["unique_graphs"] >= 1
    assert distiller.teacher is teacher


def test_the_global_random_state_is_left_alone(tmp_path, teacher_folder, image_folder):
    before = torch.random.get_rng_state()
    run(tmp_path / "run", teacher_folder, image_folder, "train.steps=1")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unknown_trackers_are_refused(tmp_path, teacher_folder, image_folder):
    with pytest.raises(SlimdpmError, match="unknown tracker 'paper'; there are .*tensorboard"):
        run(tmp_path / "run", teacher_folder, image_folder, "train.trackers=[paper]")
    assert not (tmp_path / "run").exists()
    assert os.environ.get("HF_HUB_OFFLINE") == "1"
