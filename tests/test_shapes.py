"""Passes of which only shapes matter, against PyTorch's own: the results' shapes, its counter, its complaints."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from helpers import AUTOENCODER, TINY, TINY_CONDITION, TINY_RESNET
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from slimdpm.method.networks import call, example_inputs, outline
from slimdpm.method.presets import PRESETS
from slimdpm.method.shapes import MacCounter, ShapesAlone

CONV_LINEAR = ("convolution", "addmm", "mm")  # what PyTorch's counter calls a convolution and a linear layer


def theirs(run):
    """MACs of convolutions and linear layers, and of all, by PyTorch's counter of operations."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    counts = {str(op).rpartition(".")[2]: count for op, count in counter.get_flop_counts()["Global"].items()}
    return sum(counts.get(op, 0) for op in CONV_LINEAR) // 2, sum(counts.values()) // 2


def ours(model, run):
    with MacCounter(model, ()) as counter, torch.no_grad():
        run()
    paper = sum(counter.layers.values())
    return paper, paper + sum(counter.products.values())


def tiny(name, config):
    return {**config, "_class_name": name}


@pytest.mark.parametrize(
    "config",
    [
        tiny("UNet2DModel", TINY),
        tiny("SpectralUNet2DModel", {**TINY, "wavelet_expansion": "dense", "wavelet_down_mix": True}),
        tiny("UNet2DModel", TINY_RESNET),
        tiny("UNet2DConditionModel", TINY_CONDITION),
        tiny("SpectralUNet2DConditionModel", {**TINY_CONDITION, "sample_size": [10, 15]}),
        PRESETS["ldm4-spectral"].config,
    ],
    ids=lambda config: f"{config['_class_name']}-{config['sample_size']}",
)
def test_macs_are_those_of_pytorchs_counter(config):
    model = outline(config)
    inputs = example_inputs(config, batch=2, tokens=5, device="meta")
    sample, t = inputs.pop("sample"), inputs.pop("timestep")

    def run():
        assert call(model, sample, t, inputs).shape == (2, config["out_channels"], *sample.shape[2:])

    assert ours(model, run) == theirs(run)


@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel])
def test_an_autoencoders_macs_are_those_of_pytorchs_counter(kind):
    with torch.device("meta"):
        model = kind(**AUTOENCODER)
    images = torch.empty(2, 3, 16, 16, device="meta")

    def run():
        assert model.decoder(model.encoder(images)[:, :3]).shape == images.shape

    assert ours(model, run) == theirs(run)


def test_an_upsampling_convolutions_macs_are_those_of_pytorchs_counter():
    x, model = torch.empty(2, 6, 5, 7, device="meta"), torch.nn.ConvTranspose2d(6, 4, 3, 2, device="meta")
    assert ours(model, lambda: model(x)) == theirs(lambda: model(x))


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


@pytest.mark.parametrize(
    "function",
    [
        lambda: F.conv2d(meta(2, 8, 9, 11), meta(6, 4, 3, 5), stride=(2, 1), padding=(1, 3), dilation=2, groups=2),
        lambda: F.conv2d(meta(1, 3, 8, 8), meta(4, 3, 3, 3), meta(4), 1, "same"),
        lambda: F.conv_transpose2d(meta(2, 8, 5, 6), meta(8, 3, 4, 3), None, (2, 1), (1, 0), (1, 0), 2),
        lambda: F.linear(meta(2, 3, 5), meta(7, 5), meta(7)),
        lambda: F.scaled_dot_product_attention(meta(2, 4, 5, 6), meta(2, 4, 7, 6), meta(2, 4, 7, 6)),
        lambda: torch.baddbmm(meta(2, 3, 4), meta(2, 3, 5), meta(2, 5, 4), beta=0, alpha=0.5),
        lambda: torch.matmul(meta(2, 3, 5), meta(2, 5, 4)),
        lambda: torch.matmul(meta(3, 5), meta(2, 5, 4)),
        lambda: F.linear(input=meta(2, 5), weight=meta(7, 5)),
        lambda: F.scaled_dot_product_attention(query=meta(2, 5, 6), key=meta(2, 7, 6), value=meta(2, 7, 6)),
    ],
)
def test_results_have_pytorchs_shapes(function):
    with ShapesAlone():
        found = function()
    assert found.shape == function().shape and found.is_meta


@pytest.mark.parametrize(
    "function",
    [
        lambda: F.conv2d(meta(2, 8, 9, 9), meta(6, 4, 3, 3)),
        lambda: F.conv2d(meta(2, 8, 2, 2), meta(6, 8, 3, 3)),
        lambda: F.linear(meta(2, 5), meta(7, 6)),
        lambda: F.scaled_dot_product_attention(meta(2, 4, 5, 6), meta(2, 4, 7, 8), meta(2, 4, 7, 8)),
        lambda: torch.bmm(meta(2, 3, 4), meta(2, 5, 4)),
    ],
)
def test_what_does_not_fit_is_pytorchs_complaint(function):
    with pytest.raises(RuntimeError) as expected:
        function()
    with ShapesAlone(), pytest.raises(RuntimeError) as found:
        function()
    assert str(found.value) == str(expected.value)


def test_numbers_are_computed_outside_of_the_meta_device():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    with ShapesAlone():
        assert torch.equal(F.linear(x, weight), x @ weight.T)


def test_a_network_at_hand_is_the_same_afterwards():
    for network, config in ((UNet2DModel, TINY), (UNet2DConditionModel, TINY_CONDITION)):
        model = network(**config)
        before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        with MacCounter(model, (torch.nn.Module,)):
            assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] != before
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == before
