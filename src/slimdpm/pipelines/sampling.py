"""Pipelines to images, with diffusers' own schedulers.

Each image has a random generator of its own, seeded by the seed and the image's number, so an image does not depend
on the batch that it is made in. diffusers' own `DDPMPipeline` and `DDIMPipeline` are tied to one kind of scheduler;
the loop here serves all of them, in pixel and in latent space.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from slimdpm.conditioning import Request
from slimdpm.data.images import to_pixels
from slimdpm.method.forward_process import config_of
from slimdpm.pipelines.denoise import denoise, image_generators, trajectory
from slimdpm.pipelines.shell import Shell, network_of, shell_of
from slimdpm.system.errors import SlimdpmError, blamed, first_line
from slimdpm.system.sizes import Size

# The usual short names; any class of diffusers' compatible schedulers may be named in full.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
}
# One draws noise for the whole batch from no generator of ours, the other belongs to networks of another process.
_UNFIT = {"DPMSolverSDEScheduler", "EDMEulerScheduler"}
MOST_STEPS = 10_000
Compiler = Callable[[Callable], Any]


def make_scheduler(pipeline: DiffusionPipeline | Shell, name: str | None) -> Any:
    """A scheduler by name, with the training process of the pipeline's own.

    Args:
        pipeline: the pipeline, or its shell.
        name: a key of `SCHEDULERS`, the name of a scheduler class of diffusers, or None for the pipeline's own.

    Raises:
        SlimdpmError: for an unknown or incompatible name.
    """
    shell = pipeline if isinstance(pipeline, Shell) else shell_of(pipeline)
    config = config_of(shell.scheduler, latent=shell.autoencoder is not None)
    if name is None:
        return type(shell.scheduler).from_config(config)
    class_name, options = SCHEDULERS.get(name.lower(), (name, {}))
    compatible = {cls.__name__ for cls in DDPMScheduler._get_compatibles()} - _UNFIT
    if class_name not in compatible:
        raise SlimdpmError(
            f"unknown scheduler {name!r}; there are {', '.join(SCHEDULERS)}, or {', '.join(sorted(compatible))}"
        )
    with blamed(f"the scheduler {class_name} cannot be used here"):
        return getattr(diffusers, class_name).from_config(config, **options)


def probe(pipeline: DiffusionPipeline | Shell, scheduler: str | None, steps: int, what: str = "steps") -> None:
    """Try a scheduler with so many steps, on one pixel of noise: what cannot work is told before anything is made.

    Raises:
        SlimdpmError: if they do not work together, with `what` is at fault and a number of steps that works.
    """
    made = make_scheduler(pipeline, scheduler)
    reason = _failure(made, steps)
    if reason is None:
        return
    trained = len(made.alphas_cumprod)
    others = (*range(steps + 1, 10), trained, trained - 1)
    works = next((n for n in others if 0 < n != steps and _failure(made, n) is None), None)
    wrong = "cannot be used here" if works is None else f"cannot take {steps} step{'s' * (steps > 1)} ({works} work)"
    raise SlimdpmError(f"{what}: {type(made).__name__} {wrong}: {reason}")


def default_steps(shell: Shell, scheduler: str) -> int:
    """50; but a short process is walked whole, or all but a step with a scheduler that cannot take all."""
    trained = len(shell.process)
    if trained >= 100:
        return 50
    return trained if _failure(make_scheduler(shell, scheduler), trained) is None else max(trained - 1, 1)


def _failure(scheduler: Any, steps: int) -> str | None:
    """Why a scheduler does not get from noise to a sample in so many steps; None if it does."""
    if steps > MOST_STEPS:
        return f"{MOST_STEPS:,} steps at most"
    generators = image_generators(0, range(1))
    noise = torch.randn(1, 1, 1, 1, generator=generators[0])
    try:
        sample = denoise(lambda x, t: noise, scheduler, noise, steps, generators)
    except Exception as error:  # a scheduler says in many ways that it cannot
        return first_line(error)
    order = scheduler.timesteps
    if not sample.isfinite().all() or (steps > 1 and order[0] <= order[-1]):
        return "a timestep comes twice, or has no signal: the samples are not finite"
    return None


@torch.inference_mode()
def sample_batches(
    pipeline: DiffusionPipeline,
    indices: range,
    *,
    steps: int = 50,
    scheduler: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    request: Request | None = None,
    size: Size | None = None,
    progress: Callable[[int], None] = lambda images: None,
    compiler: Compiler | None = None,
) -> Iterator[np.ndarray]:
    """Images by number, batch by batch.

    Args:
        pipeline: teacher's or student's, on its device.
        indices: the numbers of the images; number i is the same image in any range.
        steps: of the scheduler.
        scheduler: see `make_scheduler`.
        seed: of all images.
        batch_size: how many are made at once.
        request: what they shall show, of a class-conditional or text-to-image pipeline.
        size: of the images in pixels, by default the pipeline's own.
        progress: called with the number of finished images after each batch.
        compiler: makes of network and decoder what is called instead, see `slimdpm.pipelines.compiled.Compiled`.

    Yields:
        uint8 ``(B, H, W, C)``.

    Raises:
        SlimdpmError: for a scheduler that does not fit, or a request that the pipeline cannot meet.
    """
    shell, unet = shell_of(pipeline), network_of(pipeline)
    if size is not None:
        shell = shell.sized(size)
    probe(shell, scheduler, steps)
    called, decode = unet, shell.decode
    if compiler is not None:
        called, decode = compiler(unet), decode if shell.autoencoder is None else compiler(decode)
    with as_they_sample(unet, *([] if shell.autoencoder is None else [shell.autoencoder])):
        for first in range(indices.start, indices.stop, batch_size):
            batch = range(first, min(first + batch_size, indices.stop))
            samples = clean_samples(called, shell, batch, steps=steps, scheduler=scheduler, seed=seed, request=request)
            yield to_pixels(decode(samples))
            progress(len(batch))


@contextmanager
def as_they_sample(*networks: nn.Module) -> Iterator[None]:
    """Networks as they sample: in eval mode, on a CPU with weights in channels-last order, in which convolutions are
    faster there (by up to a fifth, the more the larger the batch; rarely slower). Afterwards they are as they were."""
    training = [network.training for network in networks]
    turned = [network for network in networks if all(p.is_cpu and p.is_contiguous() for p in network.parameters())]
    for network in networks:
        network.eval()
    _lay_out(turned, torch.channels_last)
    try:
        yield
    finally:
        _lay_out(turned, torch.contiguous_format)
        for network, before in zip(networks, training, strict=True):
            network.train(before)


@torch.inference_mode(False)  # what is trained later must be no tensor of inference
def _lay_out(networks: Iterable[nn.Module], layout: torch.memory_format) -> None:
    for network in networks:
        network.to(memory_format=layout)  # type: ignore[call-overload]


def forming_samples(
    unet: Any,
    shell: Shell,
    indices: range,
    *,
    steps: int = 50,
    scheduler: str | None = None,
    seed: int = 0,
    request: Request | None = None,
) -> Iterator[torch.Tensor]:
    """What a network in this shell makes of noise, after each step, ``(B, C, H, W)``: pixels, or latents that nothing
    has decoded; the last are clean.

    The arguments are those of `sample_batches`, of one batch.
    """
    generators = image_generators(seed, indices)
    noise = randn_tensor((len(indices), *shell.shape), generator=generators, device=unet.device, dtype=unet.dtype)
    request = request or Request()
    guidance = shell.conditioning.sampling_inputs(indices, request, unet.device)
    guidance = guidance.within(request.guidance_interval, shell.process)
    predict = partial(guidance.predict, unet)
    samples = noise
    for samples in trajectory(predict, make_scheduler(shell, scheduler), noise, steps, generators):
        yield samples
    if not samples.isfinite().all():
        raise SlimdpmError(f"the samples {indices.start} to {indices[-1]} are not finite: the network is damaged")


def clean_samples(unet: Any, shell: Shell, indices: range, **options: Any) -> torch.Tensor:
    """The last of `forming_samples`, whose arguments these are."""
    return deque(forming_samples(unet, shell, indices, **options), maxlen=1).pop()


def sample_images(pipeline: DiffusionPipeline, count: int, **options: Any) -> np.ndarray:
    """The first `count` images of `sample_batches` as one array, uint8 ``(count, H, W, C)``."""
    return np.concatenate(list(sample_batches(pipeline, range(count), **options)))
