"""What an image takes in seconds, part by part: the condition's encoder, the network at each step, the decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from slimdpm.conditioning.base import Request
from slimdpm.conditioning.text import Text
from slimdpm.method.latency import timings
from slimdpm.pipelines.sampling import as_they_sample
from slimdpm.pipelines.shell import Shell
from slimdpm.system.errors import SlimdpmError

_PROMPT = "a photograph"


@dataclass(frozen=True)
class ImageTime:
    """Seconds of one image.

    Attributes:
        condition: encoding what it shall show; with guidance the null condition, too.
        step: the network in one step; with guidance it is called with two or three samples.
        decoder: from latents to pixels, 0 in pixel space.
        steps: of the sampler, whose own arithmetic is left out.
    """

    condition: float
    step: float
    decoder: float
    steps: int

    @property
    def whole(self) -> float:
        return self.condition + self.steps * self.step + self.decoder

    def as_dict(self) -> dict[str, float]:
        return {**vars(self), "whole": self.whole}


def image_times(
    pipelines: Mapping[str, tuple[Shell, Any]],
    *,
    steps: int = 50,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, ImageTime]:
    """Seconds of one image of each pipeline; all their parts take turns in being measured.

    Args:
        pipelines: by name, shell and network, all on one device. Networks are laid out as `sample_batches` does.
        steps: of the sampler.
        rounds: of each part, after one that is not counted; the median counts.
        clock: see `slimdpm.method.latency.timings`.

    Raises:
        SlimdpmError: for a network that sees an image: there is none to show it.
    """
    networks = [network for _, network in pipelines.values()]
    networks += [shell.autoencoder for shell, _ in pipelines.values() if shell.autoencoder is not None]
    device = next(networks[0].parameters()).device
    calls = {name: _parts(shell, network, device) for name, (shell, network) in pipelines.items()}
    flat = {f"{name} {part}": function for name, parts in calls.items() for part, function in parts.items()}
    with as_they_sample(*{id(network): network for network in networks}.values()):
        found = timings(flat, device, rounds=rounds, clock=clock)
    return {
        name: ImageTime(steps=steps, **{part: found[f"{name} {part}"].median for part in parts})
        for name, parts in calls.items()
    }


def _parts(shell: Shell, network: Any, device: torch.device) -> dict[str, Callable[[], object]]:
    if shell.conditioning.extra:
        raise SlimdpmError("a pipeline that sees an image (inpainting, pix2pix) has no time without one")
    request = Request(prompts=[_PROMPT]) if isinstance(shell.conditioning, Text) else Request()
    encode = partial(shell.conditioning.sampling_inputs, range(1), request, device)
    latents = torch.randn(1, *shell.shape, device=device)
    t = torch.tensor(shell.scheduler.config.num_train_timesteps // 2, device=device)
    return {
        "condition": encode,
        "step": partial(encode().predict, network, latents, t),
        "decoder": partial(shell.decode, latents),
    }
