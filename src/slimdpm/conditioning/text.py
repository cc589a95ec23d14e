"""Text-to-image networks: Stable Diffusion v1, v2 and XL."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimdpm.conditioning.base import Conditioning, Embeddings, Guidance, Keeper, Request
from slimdpm.data.labels import captions_of
from slimdpm.method.networks import Inputs, map_inputs
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.hashing import fingerprint
from slimdpm.system.sizes import Size, sides

_ENCODERS = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_EXAMPLES = 8  # captions of the data that a run's samples show
MISSING_CAPTIONS = (
    "the network takes captions and the data has none: put a metadata.jsonl or metadata.csv with file_name and text "
    "beside the images, or name the column that has them as data.text_column"
)


class Text:
    """Captions, encoded by the pipeline's own `encode_prompt`: whatever its text encoders are, they are used its way.

    The null condition is the pipeline's too: the empty prompt, or zeros where it says so (XL).

    Args:
        pipeline: a text-to-image pipeline of diffusers. Its U-Net is not kept.
        size: of the images in pixels, which XL is told.
        embeddings: of texts that were encoded before.
    """

    pipeline: str | None = None
    keepable = True

    def __init__(self, pipeline: Any, size: Size, embeddings: Embeddings | None = None):
        given = {k: v for k, v in pipeline.config.items() if k not in pipeline.components and not k.startswith("_")}
        self.encoder = type(pipeline)(**{**pipeline.components, **given, "unet": None})
        self.size, self.embeddings = size, embeddings
        self.tokens = pipeline.tokenizer.model_max_length
        self.zeros = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
        self.scale = inspect.signature(type(pipeline).__call__).parameters["guidance_scale"].default

    @property
    def extra(self) -> int:
        return 0

    @property
    def modules(self) -> list[nn.Module]:
        return [] if self.embeddings is not None else self._encoders

    @property
    def _encoders(self) -> list[nn.Module]:
        found = [getattr(self.encoder, name, None) for name in _ENCODERS]
        return [module for module in found if module is not None]

    def parts(self) -> dict[str, Any]:
        return {}

    def sized(self, size: Size) -> Conditioning:
        return self._with(size=size)

    def _with(self, **changes: Any) -> Conditioning:
        other = copy(self)
        vars(other).update(changes)
        return other

    def describe(self, drop: float) -> str | None:
        names = ", ".join(type(module).__name__ for module in self._encoders)
        return f"conditioning: text of {self.tokens} tokens by {names}; {drop:.0%} of the captions are dropped"

    def knows(self, source: Any) -> bool:
        return captions_of(source) is not None

    def read(self, source: Any) -> tuple[Conditioning, Sequence | None]:
        captions = captions_of(source)
        if captions is None:
            raise SlimdpmError(MISSING_CAPTIONS)
        return self, captions

    def ask(self, request: Request, conditions: Iterable) -> Request:
        return replace(request, prompts=tuple(conditions))

    def examples(self, conditions: Sequence | None, seed: int) -> list[str]:
        different = list(dict.fromkeys(conditions or ()))
        chosen = np.random.default_rng(seed).permutation(len(different))[:_EXAMPLES]
        return [different[i] for i in chosen]

    def kept(self, conditions: Sequence | None, keeper: Keeper) -> Conditioning:
        texts = list(dict.fromkeys(["", *(conditions or ())]))  # the empty prompt is the null condition
        tokenizers = [getattr(self.encoder, name) for name in _TOKENIZERS if getattr(self.encoder, name, None)]
        told = [(t.get_vocab(), t.special_tokens_map, t.model_max_length) for t in tokenizers]
        name = " ".join([*map(fingerprint, self._encoders), json.dumps(told, sort_keys=True, default=str)])
        embeddings = keeper.embeddings(texts, self._encode, self._encoders, name)
        return self._with(embeddings=embeddings)

    def in_turn(self, request: Request) -> Sequence | None:
        if not request.prompts:
            raise SlimdpmError("the pipeline is text-to-image: it needs prompts, of its samples data.samples.prompts")
        return list(self.facts(request)["prompts"])

    def training_inputs(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> Inputs:
        captions, device = batch["conditions"], None if dropped is None else dropped.device
        given = self._inputs(captions, device)
        if dropped is None:
            return given
        null = self._null(None, len(captions), device)
        return map_inputs(lambda a, b: torch.where(dropped.reshape(-1, *[1] * (a.ndim - 1)), a, b), null, given)

    def sampling_inputs(self, indices: range, request: Request, device: torch.device) -> Guidance:
        facts = self.facts(request)
        prompts = [facts["prompts"][i % len(facts["prompts"])] for i in indices]
        given = self._inputs(prompts, device)
        if facts["guidance"] == 1:
            return Guidance(given)
        return Guidance(given, self._null(request.negative_prompt, len(prompts), device), facts["guidance"])

    def facts(self, request: Request) -> dict[str, Any]:
        if request.classes or (not self.extra and len(request.images) + len(request.masks)):
            raise SlimdpmError("the pipeline is text-to-image: it takes a prompt, no class and no image")
        if not request.prompts:
            raise SlimdpmError("the pipeline is text-to-image: give a prompt, or data with captions")
        scale = self.scale if request.guidance is None else request.guidance
        shown = {"prompts": list(request.prompts), "negative_prompt": request.negative_prompt}
        return {**shown, "guidance": scale, **request.interval}

    def guided(self) -> Conditioning:
        return self._with(scale=1.0)

    def card(self) -> dict[str, str]:
        call = '"a prompt", ' + ("guidance_scale=1, " if self.scale == 1 else "")
        return {"tag": "text-to-image", "module": "diffusers", "name": "DiffusionPipeline", "call": call}

    def _null(self, negative_prompt: str | None, count: int, device: torch.device | None) -> Inputs:
        """What takes the place of `count` prompts: a negative prompt, or the null condition."""
        null = self._inputs([negative_prompt or ""] * count, device)
        if negative_prompt is None and self.zeros:  # the size, which XL is told too, stays
            null["encoder_hidden_states"] = torch.zeros_like(null["encoder_hidden_states"])
            added = null["added_cond_kwargs"]
            null["added_cond_kwargs"] = {**added, "text_embeds": torch.zeros_like(added["text_embeds"])}
        return null

    def _inputs(self, texts: Sequence[str], device: torch.device | None) -> Inputs:
        """Texts as the U-Net is given them, on a device, by default the encoder's; a repeated one is encoded once."""
        different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        known = self.embeddings is not None and self.embeddings.know(list(different))
        encoded = self.embeddings.of(list(different)) if known else self._encode(list(different))  # type: ignore[union-attr]
        rows = torch.tensor([different[text] for text in texts])
        encoded = {part: tensor[rows.to(tensor.device)].to(device or tensor.device) for part, tensor in encoded.items()}
        inputs: Inputs = {"encoder_hidden_states": encoded["encoder_hidden_states"]}  # (B, tokens, D)
        if "text_embeds" in encoded:  # XL: the pooled text, and six numbers: original size, corner of the crop, size
            pooled = encoded["text_embeds"]
            ids = pooled.new_tensor([[*sides(self.size), 0, 0, *sides(self.size)]])
            inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids.expand(len(texts), -1)}
        return inputs

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``encoder_hidden_states`` ``(N, tokens, D)``, of XL ``text_embeds`` ``(N, P)`` too."""
        device = next(self._encoders[0].parameters()).device
        # InstructPix2Pix has none but the older method, which gives the bare tensor.
        encode = getattr(self.encoder, "encode_prompt", None) or self.encoder._encode_prompt
        with _quiet(encode.__module__):
            encoded: Any = encode(
                prompt=list(texts), device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        encoded = (encoded,) if isinstance(encoded, Tensor) else encoded
        return {"encoder_hidden_states": encoded[0]} | ({"text_embeds": encoded[2]} if len(encoded) == 4 else {})


@contextmanager
def _quiet(module: str) -> Iterator[None]:
    """Captions that are too long are cut as the pipeline cuts them, without a warning at each step."""
    logger = logging.getLogger(module)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
