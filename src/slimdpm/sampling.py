"""Pipelines to images, with diffusers' own schedulers.

Each image has a random generator of its own, seeded by the seed and the image's number, so an image does not depend
on the batch that it is made in. diffusers' own `DDPMPipeline` and `DDIMPipeline` are tied to one kind of scheduler;
the loop here serves all of them, in pixel and in latent space.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from slimdpm.conditioning import Guidance, Request
from slimdpm.data import to_pixels
from slimdpm.errors import SlimdpmError
from slimdpm.teachers import Shell, network_of, shell_of

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


def make_scheduler(pipeline: DiffusionPipeline | Shell, name: str | None) -> Any:
    """A scheduler by name, with the training process of the pipeline's own.

    Args:
        pipeline: the pipeline, or its shell.
        name: a key of `SCHEDULERS`, the name of a scheduler class of diffusers, or None for the pipeline's own.

    Raises:
        SlimdpmError: for an unknown or incompatible name.
    """
    if name is None:
        return type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    class_name, options = SCHEDULERS.get(name.lower(), (name, {}))
    compatible = {cls.__name__ for cls in DDPMScheduler._get_compatibles()} - _UNFIT
    if class_name not in compatible:
        raise SlimdpmError(
            f"unknown scheduler {name!r}; there are {', '.join(SCHEDULERS)}, or {', '.join(sorted(compatible))}"
        )
    try:
        return getattr(diffusers, class_name).from_config(pipeline.scheduler.config, **options)
    except (ImportError, ValueError, NotImplementedError) as error:
        raise SlimdpmError(
            f"the scheduler {class_name} cannot be used here: {str(error).strip().splitlines()[0]}"
        ) from None


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator for each image. Noise made on a CPU is the same on every device."""
    states = (np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] for i in indices)
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]


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
    progress: Callable[[int], None] = lambda images: None,
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
        progress: called with the number of finished images after each batch.

    Yields:
        uint8 ``(B, H, W, C)``.

    Raises:
        SlimdpmError: for a scheduler that does not fit, or a request that the pipeline cannot meet.
    """
    shell, unet = shell_of(pipeline), network_of(pipeline)
    training = unet.training
    unet.eval()
    try:
        for first in range(indices.start, indices.stop, batch_size):
            batch = range(first, min(first + batch_size, indices.stop))
            samples = clean_samples(unet, shell, batch, steps=steps, scheduler=scheduler, seed=seed, request=request)
            yield to_pixels(shell.decode(samples))
            progress(len(batch))
    finally:
        unet.train(training)


def clean_samples(
    unet: Any,
    shell: Shell,
    indices: range,
    *,
    steps: int = 50,
    scheduler: str | None = None,
    seed: int = 0,
    request: Request | None = None,
) -> torch.Tensor:
    """What a network in this shell denoises to, ``(B, C, H, W)``: pixels, or latents that nothing has decoded.

    The arguments are those of `sample_batches`, of one batch.
    """
    generators = image_generators(seed, indices)
    shape = (len(indices), shell.channels, shell.size, shell.size)
    noise = randn_tensor(shape, generator=generators, device=unet.device, dtype=unet.dtype)
    guidance = shell.conditioning.sampling_inputs(indices, request or Request(), unet.device)
    return denoise(unet, make_scheduler(shell, scheduler), noise, steps, generators, guidance)


def denoise(
    unet: torch.nn.Module,
    scheduler: Any,
    noise: torch.Tensor,
    steps: int,
    generators: list[torch.Generator],
    guidance: Guidance,
) -> torch.Tensor:
    """The reverse process from noise ``(B, C, H, W)`` of unit variance to clean samples."""
    try:
        scheduler.set_timesteps(steps, device=noise.device)
    except ValueError as error:
        raise SlimdpmError(f"{type(scheduler).__name__} cannot take {steps} steps: {error}") from None
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    # randn_tensor treats a list of one as a single generator; so do the schedulers.
    extra = {"generator": generators} if takes_generator else {}
    sample = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(sample, t)
        prediction = guidance.predict(unet, model_input, t)
        sample = scheduler.step(prediction, t, sample, **extra, return_dict=False)[0]
    return sample


def sample_images(pipeline: DiffusionPipeline, count: int, **options: Any) -> np.ndarray:
    """The first `count` images of `sample_batches` as one array, uint8 ``(count, H, W, C)``."""
    return np.concatenate(list(sample_batches(pipeline, range(count), **options)))
