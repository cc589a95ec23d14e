"""Two gloo processes on a CPU do what one does with the joined batch, feature taps included."""

import os
import signal
import threading

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from helpers import TINY, TRIAL, Forked, class_pipeline, command, launch
from safetensors.torch import load_file, save_file

from slimdpm import SpectralUNet2DModel
from slimdpm.method.distiller import Distiller, TappedStudent
from slimdpm.method.features import match_features
from slimdpm.method.forward_process import Process
from slimdpm.recipe_file import load_recipe, validate
from slimdpm.system import processes
from slimdpm.system.errors import SlimdpmError
from slimdpm.training.accelerator import split_batch
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job

pytestmark = pytest.mark.slow

STUDENT = {**TINY, "block_out_channels": (8, 16)}


def gradients(rank: int = 0, world: int = 1):
    """Gradients of the distillation loss for this process's share of a batch of four."""
    torch.manual_seed(0)
    pairs = match_features({**STUDENT, "_class_name": "SpectralUNet2DModel"}, {**TINY, "_class_name": "UNet2DModel"})
    student = TappedStudent(SpectralUNet2DModel(**STUDENT), pairs)
    teacher = UNet2DModel(**TINY)
    distiller = Distiller(student, Process.of_scheduler(DDPMScheduler()), teacher=teacher, pairs=pairs)
    x0, noise, t = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.tensor([1, 200, 500, 900])
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    wrapped = torch.nn.parallel.DistributedDataParallel(student) if world > 1 else student
    losses = distiller.losses(x0[share], noise[share], t[share], student=wrapped)
    losses["loss"].backward()
    return {name: p.grad for name, p in student.named_parameters()}


def test_two_processes_give_the_gradients_of_one(tmp_path):
    def share():
        torch.distributed.init_process_group("gloo")
        rank = int(os.environ["RANK"])
        save_file(gradients(rank, 2), tmp_path / f"{rank}.safetensors")
        torch.distributed.destroy_process_group()

    both = launch(share)
    assert [done.code for done in both] == [0, 0], both
    expected = gradients()
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("told", "reuse"), [(False, 1), (True, 1), (True, 2)], ids=["unconditional", "class", "kept"])
def test_a_run_on_two_processes_is_the_run_on_one(told, reuse, tmp_path, teacher_folder, image_folder, class_folder):
    teacher, data = teacher_folder, image_folder
    if told:
        teacher, data = tmp_path / "teacher", class_folder
        class_pipeline().save_pretrained(teacher)
    settings = [
        *TRIAL, f"teacher={teacher}", f"data.path={data}", "conditioning.drop=0.5", "student.width=8", "train.steps=4",
        "train.checkpoint_every=2", "train.log_every=1", f"distill.reuse={reuse}",
    ]  # fmt: skip
    options = [part for s in settings for part in ("--set", s)]
    # First the one: what it counts of its networks, the forked two need not count again.
    run_job(plan_job(load_recipe(None, settings)), tmp_path / "one", report=False)
    both = launch(command("slim", "-o", tmp_path / "two", *options))
    assert [done.code for done in both] == [0, 0], both
    assert "student:" in both[0].out and both[1].out == ""  # one of them speaks
    weights = [load_file(tmp_path / n / "checkpoints/step-00000004/student.safetensors") for n in ("one", "two")]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=2e-4, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("batch", "most", "processes", "expected"),
    [(64, None, 1, (64, 1)), (64, 20, 2, (16, 2)), (12, 5, 1, (4, 3)), (7, 2, 1, (1, 7))],
)
def test_batches_are_split_over_processes_and_micro_steps(batch, most, processes, expected):
    recipe = validate({"data": {"path": "x"}, "train": {"batch_size": batch, "max_batch_per_device": most}})
    assert split_batch(recipe, processes) == expected


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(SlimdpmError, match="batch_size 64 cannot be shared evenly by 3 processes"):
        split_batch(validate({"data": {"path": "x"}}), 3)


def interrupted_while_waiting():
    true = processes.hearing

    def hearing():
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return true()

    processes.hearing = hearing


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ctrl_c_ends_a_process_that_waits_for_others_to_come(rank, tmp_path, teacher_folder, image_folder):
    words = ("slim", teacher_folder, image_folder, "-o", tmp_path / "run", "--steps", 1, "--width", 16)
    alone = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29717"}
    done = Forked(command(*words, before=interrupted_while_waiting), alone).wait()
    assert done.code == 130 and done.err.endswith("stopped\n")  # after what torch says of the connection
