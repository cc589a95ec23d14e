"""Class-conditional networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor, nn

from slimdpm.conditioning.base import Conditioning, Guidance, Keeper, Request
from slimdpm.data.labels import labels_of
from slimdpm.method.networks import Inputs
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.sizes import Size
from slimdpm.unet import ClassEmbedder

MISSING_LABELS = (
    "the network takes classes and the data has none: put the images into one folder for each class, or name the "
    "column that has them as data.label_column"
)

SCALE = 1.5  # of guidance by default: the LDM paper's for ImageNet (arXiv 2112.10752, table 3)

_NAMES = TypeAdapter(dict[int, str], config=ConfigDict(coerce_numbers_to_str=True))  # an id2label's
_LISTED = 20  # classes of the data at the start of a run


@dataclass(frozen=True)
class ClassLabels:
    """The number of a class: the network embeds it itself, or sees an embedder's one token through cross-attention.

    Attributes:
        rows: numbers that have an embedding, the null class included.
        null: the number that stands for no class; None if the network knows none, it is then never guided.
        names: of the classes, in the order of their numbers; one may list several, with commas.
        embedder: labels ``(B,)`` to ``(B, 1, D)`` for cross-attention; None if the network takes numbers.
        told: the data's classes by their names there, and which numbers of the network they are.
        scale: of guidance by default, if there is a null class.
    """

    rows: int
    null: int | None = None
    names: tuple[str, ...] | None = None
    embedder: nn.Module | None = None
    told: tuple[tuple[str, int], ...] = ()
    scale: float = SCALE

    pipeline: ClassVar[str | None] = "ClassConditionalLDMPipeline"
    keepable: ClassVar[bool] = False
    extra: ClassVar[int] = 0
    tokens: ClassVar[int] = 1

    @property
    def modules(self) -> list[nn.Module]:
        return [] if self.embedder is None else [self.embedder]

    @property
    def numbers(self) -> list[int]:
        """Of the classes, the null class left out."""
        return [number for number in range(self.rows) if number != self.null]

    def parts(self) -> dict[str, Any]:
        named = None if self.names is None else dict(zip(self.numbers, self.names, strict=True))
        own = {} if self.scale == SCALE else {"guidance_scale": self.scale}
        return {"class_embedder": self.embedder, "null_class": self.null, "id2label": named, **own}

    def sized(self, size: Size) -> Conditioning:
        return self

    def describe(self, drop: float) -> str | None:
        named = f": {', '.join(self.names[:5])}{', ...' if len(self.names) > 5 else ''}" if self.names else ""
        dropped = f"{drop:.0%} are dropped for guidance" if self.null is not None else "no null class, so no guidance"
        line = f"conditioning: {len(self.numbers)} classes{named}; {dropped}"
        told = [f"{name} is {number}" for name, number in self.told]
        if len(told) > _LISTED:
            told = [*told[: _LISTED - 1], f"... ({len(told)} in all)", told[-1]]
        return f"{line}\nclasses of the data: {', '.join(told)}" if told else line

    def knows(self, source: Any) -> bool:
        return labels_of(source) is not None

    def read(self, source: Any) -> tuple[Conditioning, Sequence | None]:
        labels = labels_of(source)
        if labels is None:
            raise SlimdpmError(MISSING_LABELS)
        values = labels.numbers.tolist()
        table = dict(enumerate(self._table(labels.names))) if labels.names else self._by_number(values)
        wrong = next((i for i, value in enumerate(values) if value not in table), None)
        if wrong is not None:
            first, last = min(table), max(table)
            raise SlimdpmError(
                f"label {values[wrong]} of {source.name(wrong)} is out of range: the network has {len(table)} classes, "
                f"{first} to {last}"
            )
        known = labels.names if self.names is None and len(labels.names or ()) == len(self.numbers) else self.names
        seen = sorted(set(values))
        told = tuple((str(value) if labels.names is None else labels.names[value], table[value]) for value in seen)
        return replace(self, names=known, told=told), [table[value] for value in values]

    def _by_number(self, numbers: Sequence[int]) -> dict[int, int]:
        """The network's numbers for a data set's: the same, unless such numbers are the names of the network's."""
        known = self._numbers_by_name()
        if all(str(number) in known for number in set(numbers)):
            return {number: known[str(number)] for number in set(numbers)}
        return {number: number for number in self.numbers}

    def _table(self, names: Sequence[str]) -> list[int]:
        """The network's numbers for a data set's classes: by name if the names meet, else in the same order."""
        known = self._numbers_by_name()
        if set(names) & set(known):
            strange = [name for name in names if name not in known]
            if strange:
                raise SlimdpmError(f"the data's class {strange[0]!r} is none of the network's: {self._listed()}")
            return [known[name] for name in names]
        if len(names) > len(self.numbers):
            raise SlimdpmError(f"the data has {len(names)} classes, the network {len(self.numbers)}")
        return self.numbers[: len(names)]

    def number(self, wanted: int | str) -> int:
        """Of a class by number or name.

        Raises:
            SlimdpmError: if there is no such class.
        """
        known = self._numbers_by_name()
        if wanted in known:
            return known[str(wanted)]
        if str(wanted).isdecimal() and int(wanted) in self.numbers:
            return int(wanted)
        raise SlimdpmError(f"there is no class {wanted!r}; the classes are {self._listed()}")

    def _numbers_by_name(self) -> dict[str, int]:
        """Each class by its whole name and by each of the names in it."""
        named = list(zip(self.numbers, self.names or (), strict=False))
        parts = {part.strip(): number for number, name in named for part in name.split(",")}
        return parts | {name: number for number, name in named}

    def _listed(self) -> str:
        if self.names is None:
            return f"{self.numbers[0]} to {self.numbers[-1]}"
        return ", ".join(self.names[:10]) + (f" and {len(self.names) - 10} more" if len(self.names) > 10 else "")

    def ask(self, request: Request, conditions: Iterable) -> Request:
        return replace(request, classes=tuple(conditions))

    def examples(self, conditions: Sequence | None, seed: int) -> list[str]:
        return []

    def kept(self, conditions: Sequence | None, keeper: Keeper) -> Conditioning:
        return self  # an embedder's one token is looked up as fast as a kept one

    def in_turn(self, request: Request) -> Sequence | None:
        if request.prompts or request.negative_prompt is not None or len(request.images) + len(request.masks):
            raise SlimdpmError("the pipeline is class-conditional: it takes a class, no prompt and no image")
        self._scale(request)
        return [self.number(wanted) for wanted in request.classes] or self.numbers

    def training_inputs(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> Inputs:
        labels = batch["conditions"]
        if dropped is not None:
            labels = labels.to(dropped.device, non_blocking=True)
            labels = labels if self.null is None else torch.where(dropped, self.null, labels)
        return self._inputs(labels)

    def _inputs(self, labels: Tensor) -> Inputs:
        if self.embedder is None:
            return {"class_labels": labels}
        with torch.no_grad():
            return {"encoder_hidden_states": self.embedder(labels)}  # (B, 1, D)

    def sampling_inputs(self, indices: range, request: Request, device: torch.device) -> Guidance:
        classes = self.in_turn(request)
        assert classes is not None
        labels = torch.tensor([classes[i % len(classes)] for i in indices], device=device)
        scale = self._scale(request)
        if scale == 1:
            return Guidance(self._inputs(labels))
        return Guidance(self._inputs(labels), self._inputs(torch.full_like(labels, self.null)), scale)  # type: ignore[arg-type]

    def _scale(self, request: Request) -> float:
        if self.null is None and request.guidance not in (None, 1):
            raise SlimdpmError("the network knows no null class: it cannot be guided")
        if request.guidance is not None:
            return request.guidance
        return 1.0 if self.null is None else self.scale

    def guided(self) -> Conditioning:
        if self.null is None:
            raise SlimdpmError("distill.guidance: the teacher knows no null class and is never guided; leave it at 1")
        return replace(self, scale=1.0)

    def card(self) -> dict[str, str]:
        wanted = repr([self.names[0]] if self.names else self.numbers[:1])
        return {
            "tag": "class-conditional-image-generation",
            "module": "slimdpm",
            "name": "ClassConditionalLDMPipeline",
            "call": f"{wanted}, ",
        }

    def facts(self, request: Request) -> dict[str, Any]:
        classes = [self.number(wanted) for wanted in request.classes]
        return {"classes": classes or "all", "guidance": self._scale(request), **request.interval}


def class_labels_of(pipeline: Any, network: Any) -> ClassLabels | None:
    """The conditioning of a pipeline whose network takes classes, None for another.

    Raises:
        SlimdpmError: if its null class has no embedding.
    """
    embedder = getattr(pipeline, "class_embedder", None)
    if embedder is not None:
        rows, null = embedder.config.num_classes, embedder.config.null_class
    else:
        rows, null = network.config.get("num_class_embeds"), {**pipeline.config, **network.config}.get("null_class")
    if rows is None:
        return None
    if null is not None and (type(null) is not int or null not in range(rows)):
        raise SlimdpmError(f"the null_class {null} is none of the classes that the network knows: 0 to {rows - 1}")
    scale = pipeline.config.get("guidance_scale")
    if scale is not None and not (isinstance(scale, (int, float)) and 1 <= scale < 1e6):
        raise SlimdpmError(f"the guidance_scale of the pipeline is {scale!r}: it should be a number from 1 on")
    bare = ClassLabels(rows, null, None, embedder, scale=SCALE if scale is None else float(scale))
    with blamed("the id2label of the pipeline gives no names to numbers"):
        named = _NAMES.validate_python(pipeline.config.get("id2label") or {})
    for name, number in getattr(pipeline, "labels", {}).items():  # of a `DiTPipeline`: several names for one class
        named[number] = f"{named[number]}, {name}" if number in named else name
    return replace(bare, names=tuple(named[n] for n in bare.numbers)) if set(bare.numbers) <= set(named) else bare


def new_class_labels(config: Mapping[str, Any], source: Any, seed: int) -> tuple[ClassLabels, dict[str, Any]]:
    """The conditioning of a class-conditional network that starts from nothing, and the network's config with it.

    The null class comes last. A network that embeds classes itself learns to; the tokens for one with cross-attention
    are random numbers that stay: what they mean is learnt by the projections that read them.

    Raises:
        SlimdpmError: if the data knows no classes, or the config has no room for them and the null class.
    """
    labels = labels_of(source)
    if labels is None:
        raise SlimdpmError(MISSING_LABELS)
    count = len(labels.names) if labels.names else int(labels.numbers.max()) + 1
    width = config.get("cross_attention_dim")
    if width is None:
        rows = config.get("num_class_embeds") or count + 1
        return ClassLabels(rows, rows - 1), {**config, "num_class_embeds": rows}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClassLabels(count + 1, count, embedder=ClassEmbedder(count + 1, width, count)), dict(config)
