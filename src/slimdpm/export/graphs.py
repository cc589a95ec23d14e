"""The networks of a pipeline as ONNX graphs, with the names of inputs and outputs that optimum uses.

Any batch B; of a pipeline that takes images of many sizes (`slimdpm.pipelines.fitting.size_step`) any H and W.

U-Net          sample (B, C, H, W), the channels of an image that it sees included, timestep (1),
               [class_labels (B) | encoder_hidden_states (B, T, D)] → out_sample;
               Stable Diffusion XL's besides text_embeds (B, P), time_ids (B, 6)
decoder        latent_sample (B, C, h, w), unscaled → sample (B, 3, H, W)
encoder        sample (B, 3, H, W) → latent_parameters: means and log-variances (B, 2C, h, w)
text encoder   input_ids (B, T) → last_hidden_state (B, T, D); XL's two hidden_states.0 to .n besides, the second
               text_embeds (B, P) before all
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from slimdpm.conditioning.classes import ClassLabels
from slimdpm.conditioning.text import Text
from slimdpm.export.attention import fuse_attention
from slimdpm.export.runner import MOST
from slimdpm.export.storage import PROTOBUF
from slimdpm.method.group_norm import whole_group_norms
from slimdpm.method.networks import call, example_inputs
from slimdpm.method.runtimes import quiet_export
from slimdpm.pipelines.shell import Shell
from slimdpm.system.errors import SlimdpmError, first_line
from slimdpm.system.sizes import sides

OPSET = 18
_BATCH = 2  # of the examples: a graph of 1 could be one for 1 alone
# diffusers' upsampling takes another way from 64 images on: PyTorch, not told so, traces such a network, finds it out,
# and traces it again. The graph itself knows no limit.
_LARGEST_BATCH = 63


@dataclass(frozen=True)
class Graph:
    """A network to be exported.

    Attributes:
        name: of its folder, as diffusers and optimum have it.
        module: takes the inputs by name.
        inputs: examples by name, of a batch of 2.
        outputs: their names.
        config: for ``config.json``.
        fixed: inputs without a batch.
        step: images may be of any height and width that are multiples of it, and twice it at least; None: the
            examples' alone.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    config: Mapping[str, Any]
    fixed: tuple[str, ...] = ()
    step: int | None = None


class _Denoiser(nn.Module):
    """A network with the class embedder that belongs to it, if there is one."""

    def __init__(self, network: nn.Module, embedder: nn.Module | None):
        super().__init__()
        self.network, self.embedder = network, embedder

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        if self.embedder is not None:
            class_labels, encoder_hidden_states = None, self.embedder(class_labels)  # (B, 1, D)
        given = {"class_labels": class_labels, "encoder_hidden_states": encoder_hidden_states}
        inputs: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if text_embeds is not None:
            inputs["added_cond_kwargs"] = {"text_embeds": text_embeds, "time_ids": time_ids}
        return call(self.network, sample, timestep.expand(sample.shape[0]), inputs)


class _Decoder(nn.Module):
    def __init__(self, autoencoder: Any):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.autoencoder.decode(latent_sample).sample


class _Encoder(nn.Module):
    """Mean and log-variance beside each other, as optimum wants them of a KL autoencoder."""

    def __init__(self, autoencoder: Any):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, sample: Tensor) -> Tensor:
        return self.autoencoder.encode(sample).latent_dist.parameters


class _TextEncoder(nn.Module):
    """A text encoder with the outputs of these names, as optimum has them."""

    def __init__(self, encoder: Any, outputs: tuple[str, ...]):
        super().__init__()
        self.encoder, self.outputs = encoder, outputs

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        told = self.encoder(input_ids.long(), output_hidden_states=len(self.outputs) > 1)
        layers = {f"hidden_states.{i}": states for i, states in enumerate(told.hidden_states or ())}
        return tuple(layers[name] if name in layers else told[name] for name in self.outputs)


def graphs_of(network: Any, shell: Shell, step: int | None = None) -> Iterator[Graph]:
    """The networks that samples are made with, one after the other.

    Args:
        network: of the pipeline, see `slimdpm.pipelines.shell.network_of`.
        shell: what surrounds it.
        step: images may be of any height and width that are multiples of it (pixels); None: the shell's alone.
    """
    inner = None if step is None else step // shell.factor
    yield _denoiser(network, shell, inner)
    if shell.autoencoder is not None:
        config = shell.autoencoder.config
        latents = {"latent_sample": _latents(shell)}
        yield Graph("vae_decoder", _Decoder(shell.autoencoder), latents, ("sample",), config, step=inner)
    if isinstance(shell.conditioning, Text):
        yield from _of_text(shell, shell.conditioning, step)


def _latents(shell: Shell) -> Tensor:
    """Examples ``(2, C, h, w)``. Of a quantising autoencoder they are codes of its book: between two of them the
    smallest rounding decides which one is nearer, and two computations that agree give different images."""
    numbers = torch.randn(_BATCH, *shell.shape)
    if not isinstance(shell.autoencoder, VQModel):
        return numbers
    book = shell.autoencoder.quantize.embedding.weight.detach()
    chosen = torch.randint(len(book), (_BATCH, *shell.shape[1:]))
    return book[chosen].permute(0, 3, 1, 2).contiguous()


def _of_text(shell: Shell, conditioning: Text, step: int | None) -> Iterator[Graph]:
    """What a text-to-image pipeline has besides; optimum asks for an encoder of images, too."""
    if isinstance(shell.autoencoder, AutoencoderKL):
        images = torch.randn(_BATCH, shell.image_channels, *sides(shell.image_size))
        module, config = _Encoder(shell.autoencoder), shell.autoencoder.config
        yield Graph("vae_encoder", module, {"sample": images}, ("latent_parameters",), config, step=step)
    encoders = text_encoders(conditioning)
    for name, encoder in encoders.items():
        layers = range(encoder.config.num_hidden_layers + 1) if len(encoders) > 1 else ()
        pooled = ("text_embeds",) if name == "text_encoder_2" else ()
        outputs = (*pooled, "last_hidden_state", *(f"hidden_states.{i}" for i in layers))
        tokens = torch.ones(_BATCH, conditioning.tokens, dtype=torch.int32)
        yield Graph(name, _TextEncoder(encoder, outputs), {"input_ids": tokens}, outputs, encoder.config.to_dict())


def text_encoders(conditioning: Text) -> dict[str, Any]:
    """By the names of their folders: one, of Stable Diffusion XL two."""
    found = {name: getattr(conditioning.encoder, name, None) for name in ("text_encoder", "text_encoder_2")}
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def _denoiser(network: Any, shell: Shell, step: int | None) -> Graph:
    embedder = shell.conditioning.embedder if isinstance(shell.conditioning, ClassLabels) else None
    inputs = example_inputs(network.config, batch=_BATCH, size=shell.size, tokens=shell.conditioning.tokens)
    if embedder is not None:
        inputs = {name: value for name, value in inputs.items() if name != "encoder_hidden_states"}
        inputs["class_labels"] = torch.zeros(_BATCH, dtype=torch.long)
    inputs["timestep"] = torch.tensor([500.0])
    inputs |= inputs.pop("added_cond_kwargs", {})
    module = _Denoiser(network, embedder)
    config = {**network.config, "sample_size": shell.size}  # of the graph, which may know this one alone
    return Graph("unet", module, inputs, ("out_sample",), config, fixed=("timestep",), step=step)


def to_onnx(graph: Graph, file: Path, *, portable: bool = False) -> None:
    """Write the graph as ONNX; weights that a file of protobuf has no room for lie beside it.

    Args:
        portable: with ONNX's own operators alone; else attention is ONNX Runtime's.

    Raises:
        SlimdpmError: for a network that PyTorch cannot export.
    """
    with quiet_export(), torch.inference_mode(), whole_group_norms() as translations:
        try:
            program: Any = torch.onnx.export(
                graph.module.eval(),
                kwargs=dict(graph.inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=_dimensions(graph),
                custom_translation_table=translations,
                verbose=False,
            )
        except ImportError:
            raise
        except Exception as error:  # of many kinds, each of them long
            raise SlimdpmError(f"PyTorch cannot export this {graph.name}: {first_line(error)}") from error
        _remove_notes(program.model)
        if not portable:
            fuse_attention(program.model)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in graph.module.parameters())
        program.save(str(file), external_data=weights > PROTOBUF)


def _dimensions(graph: Graph) -> dict[str, Any]:
    """What of the inputs' shapes is free, by the inputs' names."""
    batch = torch.export.Dim("batch", max=_LARGEST_BATCH)
    free: dict[str, Any] = {name: None if name in graph.fixed else {0: batch} for name in graph.inputs}
    if graph.step is not None:
        for name in (name for name, value in graph.inputs.items() if value.ndim == 4):
            steps = [torch.export.Dim(side, min=2, max=MOST // graph.step) for side in ("rows", "columns")]
            free[name] |= {2 + i: graph.step * steps[i] for i in range(2)}
    return free


def to_openvino(file: Path) -> Path:
    """An ONNX file as OpenVINO's two, in its place. The numbers stay as they are kept there."""
    import openvino

    converted = file.with_name("openvino_model.xml")
    openvino.save_model(openvino.convert_model(str(file)), str(converted), compress_to_fp16=False)
    for left in file.parent.glob(f"{file.name}*"):
        left.unlink()
    return converted


def _remove_notes(model: Any) -> None:
    """Where in PyTorch each node comes from: several times the size of a small network's weights."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
