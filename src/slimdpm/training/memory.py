"""What a run takes of each device's memory, before it runs.

Weights and what belongs to them are counted. For the rest one step is taken with fake tensors, which have shapes and a
device and no numbers: the true code of encoding, teacher, student, losses and backward pass, at the true batch size.
Each storage that comes to life is added, each that dies is taken off; the peak is what counts.

Not in it: what kernels need inside (convolutions have workspaces), the allocator's waste, CUDA's context and the
libraries themselves. docs/paper-tasks.md says how far it was off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from slimdpm.method.distiller import TappedStudent
from slimdpm.method.live_memory import CPU, Live, imagined_network
from slimdpm.method.networks import EXTRA, build, call, example_inputs
from slimdpm.pipelines.shell import Shell
from slimdpm.system.sizes import sides
from slimdpm.training.accelerator import split_batch
from slimdpm.training.job import Job
from slimdpm.training.lessons import batches_kept

FLOAT = 4  # bytes: weights, gradients and moments are float32 in every precision


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        student: weights, with the aligners of distillation.
        gradients: of them.
        moments: AdamW's two.
        average: the running average of the student's weights.
        buckets: gradients on their way to the other processes; 0 in a single one.
        teacher: weights.
        frozen: weights of the class embedder; of autoencoder and text encoder where what they make is not kept.
        kept: batches with the teacher's answers, for further steps; 0 if each serves one.
        step: the most that activations take in a step beyond all these.
        sampling: the most that a grid of samples takes between steps, the copy of the student and the encoders that
            are not there else included; the main process's. Gradients are gone then.
    """

    student: int
    gradients: int
    moments: int
    average: int
    buckets: int
    teacher: int
    frozen: int
    kept: int
    step: int
    sampling: int

    @property
    def total(self) -> int:
        """The peak: in a step, or between steps when samples are made."""
        lasting = self.student + self.moments + self.average + self.buckets + self.teacher + self.frozen + self.kept
        return lasting + max(self.gradients + self.step, self.sampling)

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


def estimate_memory(job: Job, processes: int = 1) -> Memory:
    """The memory that a run takes on each device. No weights are needed: networks may lie on the meta device.

    Args:
        job: the run. What `train.freeze` and `train.compile` spare is not counted off.
        processes: that train together.

    Raises:
        SlimdpmError: if the processes cannot share the batch.
    """
    recipe = job.recipe
    micro_batch, accumulation = split_batch(recipe, processes)
    # Fake tensors of a CPU: its fused attention and its autocast are like a GPU's.
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = imagined_network(build, job.plan.config)
        student = TappedStudent(unet, job.pairs)
        if recipe.train.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        guide = imagined_network(build, job.teacher.config) if job.teacher else None
        shell = _imagined_shell(job.shell)
        job = replace(job, shell=shell)
        trained, averaged = _bytes(student), _bytes(unet)
        step, lesson = _step(job, student, guide, micro_batch, grown=accumulation > 1)
        sampling = _sampling(job, unet, guide)
        resident = shell.encoders(latents=shell.keeps_latents(recipe.data), conditions=recipe.data.keeps)
    return Memory(
        student=trained,
        gradients=trained,
        moments=2 * trained,
        average=averaged,
        buckets=trained if processes > 1 else 0,
        teacher=_bytes(guide) if guide is not None else 0,
        frozen=sum(map(_bytes, resident)),
        kept=(batches_kept(job.uses) - 1) * accumulation * lesson,
        step=max(0, step - trained),
        sampling=averaged + sampling + sum(map(_bytes, shell.frozen)) - sum(map(_bytes, resident)),
    )


def _step(job: Job, student: TappedStudent, teacher: Any, batch: int, *, grown: bool) -> tuple[int, int]:
    """The most that lives in a micro-step beside the weights, gradients included: `grown` ones are there before. And
    the size of its lesson, see `slimdpm.training.lessons.Lesson`."""
    recipe, shell = job.recipe, job.shell
    unet: Any = student.unet
    distiller = job.distiller(student, teacher, CPU)
    lower = recipe.train.precision != "fp32"
    called = convert_outputs_to_fp32(student.forward) if lower else student
    with Live(student, teacher, *shell.frozen) as live:
        if grown:
            for parameter in student.parameters():
                parameter.grad = torch.zeros_like(parameter)
        if shell.keeps_latents(recipe.data):
            x0 = torch.zeros(batch, *shell.shape, device=CPU)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
            if not shell.keeps_latents(recipe.data):
                images = torch.zeros(batch, shell.image_channels, *sides(shell.image_size), device=CPU)
                x0 = shell.encode(images)
                del images
            conditions = _conditions(unet.config, batch, shell.conditioning.tokens)
            t = torch.zeros(batch, dtype=torch.long, device=CPU)
            noise = torch.zeros_like(x0)
            x_t = distiller.process.add_noise(x0, noise, t)
            taught = distiller.teach(x_t, t, conditions) if distiller.teaches else None
            del x_t
            loss = distiller.losses(x0, noise, t, conditions, student=called, taught=taught)["loss"]
        loss.backward()
    student.zero_grad()
    lesson = [value for value in tree_leaves((x0, noise, t, conditions, taught)) if isinstance(value, Tensor)]
    return live.peak, sum(value.nbytes for value in lesson)


@torch.no_grad()
def _sampling(job: Job, unet: Any, teacher: Any) -> int:
    """The most that a batch of samples takes: decoding it, or in pixel space a prediction of the larger network."""
    shell, count = job.shell, min(job.recipe.samples.batch_size, job.recipe.samples.count)
    network = unet if teacher is None else teacher
    with Live(unet, teacher, *shell.frozen) as live:
        x = torch.zeros(count, *shell.shape, device=CPU)
        if shell.autoencoder is None:
            conditions = _conditions(network.config, count, shell.conditioning.tokens)
            call(network, x, torch.zeros(count, dtype=torch.long, device=CPU), conditions)
        else:
            shell.decode(x)
    return live.peak


def _conditions(config: Mapping[str, Any], batch: int, tokens: int) -> dict[str, Any]:
    inputs = example_inputs(config, batch=batch, tokens=tokens)
    extra = inputs.pop("sample")[:, config["out_channels"] :].clone()
    del inputs["timestep"]
    return {**inputs, EXTRA: extra} if extra.shape[1] else inputs


def _imagined_shell(shell: Shell) -> Shell:
    """A shell of fake tensors, one apart in any case: what it remembers is fake, too."""
    if shell.autoencoder is None:
        return replace(shell)
    autoencoder = imagined_network(type(shell.autoencoder).from_config, shell.autoencoder.config)
    return replace(shell, autoencoder=autoencoder.requires_grad_(False).eval())


def _bytes(module: nn.Module) -> int:
    return FLOAT * sum(p.numel() for p in module.parameters())
