"""What the three cases of conditioning share, and the case of none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slimdpm.method.forward_process import Process
from slimdpm.method.networks import Inputs, call, map_inputs
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.sizes import Size


@dataclass(frozen=True)
class Request:
    """What samples shall show. Image i takes the i-th entry, and they start again when they are used up.

    Attributes:
        classes: by number or name; without any, all classes in turn.
        prompts: texts.
        negative_prompt: takes the place of the null condition.
        guidance: scale of classifier-free guidance, 1 is none; by default the conditioning's own.
        images: for a network that sees one: paths, PIL or uint8 ``(H, W, 3)``; they are cut to the samples' size.
        masks: white where inpainting paints anew, in the same way; by default a box in the middle.
        guidance_interval: noise levels ``σ = √((1 − ᾱ) / ᾱ)``, the lowest and the highest at which there is guidance
            (arXiv 2404.07724); by default all.
    """

    classes: Sequence[int | str] = ()
    prompts: Sequence[str] = ()
    negative_prompt: str | None = None
    guidance: float | None = None
    images: Sequence[Any] = ()
    masks: Sequence[Any] = ()
    guidance_interval: tuple[float, float] | None = None

    @property
    def interval(self) -> dict[str, Any]:
        """The interval as a fact of the samples; nothing without one."""
        return {} if self.guidance_interval is None else {"guidance_interval": list(self.guidance_interval)}


@dataclass(frozen=True)
class Guidance:
    """What a batch of samples gives the network, and how predictions with and without it are combined.

    Attributes:
        given: the network's further inputs.
        null: the same for the null condition; None predicts without guidance.
        scale: 1 is no guidance.
        between: the same with a part of the conditions (an image and no text); None if there is only one.
        first_scale: of this part.
        during: the timesteps between which there is guidance; at others the network is called with all conditions
            alone. None is always.
    """

    given: Inputs
    null: Inputs | None = None
    scale: float = 1.0
    between: Inputs | None = None
    first_scale: float = 1.0
    during: tuple[float, float] | None = None

    def within(self, interval: tuple[float, float] | None, process: Process) -> Guidance:
        """With guidance at these noise levels of a process only, see `Request.guidance_interval`; None is all.

        Raises:
            SlimdpmError: if there is no guidance, or no such level.
        """
        if interval is None:
            return self
        if self.null is None:
            raise SlimdpmError("guidance within an interval needs guidance: a scale above 1")
        return replace(self, during=process.timesteps_within(*interval))

    def predict(self, network: nn.Module, sample: Tensor, t: Tensor) -> Tensor:
        """The guided prediction, ``(B, C, H, W)``: ``null + scale (given − null)``, or ``null + first_scale
        (between − null) + scale (given − between)``; `t` is of all samples, or of each ``(B,)``."""
        if self.null is None or (self.during is not None and not self.during[0] <= t <= self.during[1]):
            return call(network, sample, t, self.given)
        rows = [self.null, *([] if self.between is None else [self.between]), self.given]
        joined = reduce(partial(map_inputs, lambda first, second: torch.cat([first, second])), rows)
        times = t.repeat(len(rows)) if t.ndim else t
        null, *between, given = call(network, torch.cat([sample] * len(rows)), times, joined).chunk(len(rows))
        for part in between:
            return null + self.first_scale * (part - null) + self.scale * (given - part)
        return null + self.scale * (given - null)


class Embeddings(Protocol):
    """Encoded texts by the texts themselves."""

    def know(self, texts: Sequence[str]) -> bool:
        """Whether all of these are kept."""

    def of(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``(N, ...)`` of each part, float32."""


class Keeper(Protocol):
    """Keeps what is made of different texts: see `slimdpm.cache.text_embeddings.prepare_embeddings`."""

    def embeddings(
        self, texts: Sequence[str], encode: Callable, encoders: Sequence[nn.Module], name: str
    ) -> Embeddings: ...


class Conditioning(Protocol):
    """One of the three cases.

    Attributes:
        pipeline: the pipeline class that such a network needs whatever the teacher's is; None is the teacher's.
        tokens: length of the sequence that cross-attention sees.
        modules: frozen networks that encode conditions.
        keepable: whether `kept` keeps what they make, so that training does without them.
        extra: channels of an image that follow the noisy sample's; 0 for a network that sees none.
    """

    @property
    def pipeline(self) -> str | None: ...

    @property
    def tokens(self) -> int: ...

    @property
    def modules(self) -> list[nn.Module]: ...

    @property
    def keepable(self) -> bool: ...

    @property
    def extra(self) -> int: ...

    def parts(self) -> dict[str, Any]:
        """What the pipeline is made with beside network, scheduler and autoencoder."""

    def sized(self, size: Size) -> Conditioning:
        """For images of this size in pixels."""

    def describe(self, drop: float) -> str | None:
        """For the start of a run, in lines."""

    def knows(self, source: Any) -> bool:
        """Whether a source says anything of its images' conditions."""

    def read(self, source: Any) -> tuple[Conditioning, Sequence | None]:
        """The condition of each image of a source, and the conditioning with what the source told about it.

        Raises:
            SlimdpmError: for a condition that is missing or that the network cannot take.
        """

    def ask(self, request: Request, conditions: Iterable) -> Request:
        """The request with these conditions for its images."""

    def examples(self, conditions: Sequence | None, seed: int) -> list[str]:
        """Prompts for samples, from the data's conditions; none if samples do without."""

    def kept(self, conditions: Sequence | None, keeper: Keeper) -> Conditioning:
        """For training: what frozen networks make of these conditions is computed once and kept, if it is worth it."""

    def in_turn(self, request: Request) -> Sequence | None:
        """The conditions that samples of a request take in turn, None if there is nothing to tell.

        Raises:
            SlimdpmError: if the request asks for what this network cannot be given.
        """

    def training_inputs(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> Inputs:
        """What a batch gives the network.

        Args:
            batch: with ``"conditions"``, a tensor or a list of B; see `slimdpm.data.stream.TrainingStream`.
            dropped: bool ``(B,)`` on the network's device: which ones the null condition replaces; None is none.
        """

    def sampling_inputs(self, indices: range, request: Request, device: torch.device) -> Guidance:
        """What the images of these numbers give the network.

        Raises:
            SlimdpmError: if the request asks for what this network cannot be given.
        """

    def guided(self) -> Conditioning:
        """For a student that has learnt guided outputs: by default its samples have no further guidance.

        Raises:
            SlimdpmError: if such a network is never guided, or by several scales.
        """

    def card(self) -> dict[str, str]:
        """For the page that goes with a saved pipeline: its tag, and how the pipeline is imported and called."""

    def facts(self, request: Request) -> dict[str, Any]:
        """What of the request decides the samples, for the file that says what they were made with."""


class Unconditional:
    """Nothing: images are drawn from one distribution."""

    pipeline: str | None = None
    keepable = False
    extra = 0
    tokens = 77  # of no account, but for a cross-attention network's cost

    @property
    def modules(self) -> list[nn.Module]:
        return []

    def parts(self) -> dict[str, Any]:
        return {}

    def sized(self, size: Size) -> Conditioning:
        return self

    def describe(self, drop: float) -> str | None:
        return None

    def knows(self, source: Any) -> bool:
        return True

    def read(self, source: Any) -> tuple[Conditioning, Sequence | None]:
        return self, None

    def ask(self, request: Request, conditions: Iterable) -> Request:
        return request

    def examples(self, conditions: Sequence | None, seed: int) -> list[str]:
        return []

    def kept(self, conditions: Sequence | None, keeper: Keeper) -> Conditioning:
        return self

    def in_turn(self, request: Request) -> Sequence | None:
        asked = {
            "class": bool(request.classes),
            "prompt": bool(request.prompts),
            "negative prompt": request.negative_prompt is not None,
            "image": len(request.images) + len(request.masks) > 0,
            "guidance": request.guidance not in (None, 1) or request.guidance_interval is not None,
        }
        if any(asked.values()):
            first = next(name for name, wanted in asked.items() if wanted)
            raise SlimdpmError(f"the pipeline is unconditional: it takes no {first}")
        return None

    def training_inputs(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> Inputs:
        return {}

    def sampling_inputs(self, indices: range, request: Request, device: torch.device) -> Guidance:
        self.in_turn(request)
        return Guidance({})

    def guided(self) -> Conditioning:
        raise SlimdpmError("distill.guidance: an unconditional teacher has no guidance; leave it at 1")

    def card(self) -> dict[str, str]:
        plain = {"module": "diffusers", "name": "DiffusionPipeline"}
        return {"tag": "unconditional-image-generation", **plain, "call": ""}

    def facts(self, request: Request) -> dict[str, Any]:
        return {}
