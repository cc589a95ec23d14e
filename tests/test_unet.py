"""The spectral U-Nets keep what their diffusers parents can do."""

import copy
import inspect
import json
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from helpers import TINY, TINY_CONDITION, TINY_RESNET, text_pipeline

from slimdpm import SpectralUNet2DConditionModel, SpectralUNet2DModel
from slimdpm.method.networks import example_inputs
from slimdpm.unet import FixedHeadsUNet2DModel
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp, record_gates

CASES = {
    "plain": (SpectralUNet2DModel, UNet2DModel, TINY),
    "resnet": (SpectralUNet2DModel, UNet2DModel, TINY_RESNET),
    "condition": (SpectralUNet2DConditionModel, UNet2DConditionModel, TINY_CONDITION),
}


@pytest.fixture(params=CASES)
def case(request):
    ours, parent, config = CASES[request.param]
    return ours(**config), parent, config


def call(model, inputs):
    return model(**inputs, return_dict=False)[0]


def test_all_resamplers_are_gated(case):
    model, _, config = case
    kinds = [type(m) for m in model.modules()]
    assert Downsample2D not in kinds and Upsample2D not in kinds
    assert kinds.count(WaveletGatingDown) == kinds.count(WaveletGatingUp) == len(config["block_out_channels"]) - 1


def test_output_shape_and_determinism(case):
    model, parent, config = case
    inputs = example_inputs(model.config, batch=3, tokens=5)
    out = call(model.eval(), inputs)
    assert out.shape == call(parent(**config).eval(), inputs).shape == inputs["sample"].shape
    assert torch.equal(out, call(model, inputs))


def test_save_and_load_round_trip(case, tmp_path):
    model, _, _ = case
    inputs = example_inputs(model.config, tokens=5)
    model.eval().save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    # loaded weights lie elsewhere in memory, and the convolution's kernel, so its rounding, depends on the alignment
    torch.testing.assert_close(call(loaded, inputs), call(model, inputs), atol=1e-5, rtol=1e-4)
    assert loaded.config.wavelet_expansion == "grouped"


def test_config_round_trip_keeps_our_values_and_the_parents(case):
    _, parent, config = case
    ours = CASES["condition" if parent is UNet2DConditionModel else "plain"][0]
    model = ours(**config, wavelet_expansion="dense", wavelet_gate_reduction=2, wavelet_gate_init=(0.4, 0.1, 0.1, 0.2))
    again = ours.from_config(json.loads(model.to_json_string()))
    for key in inspect.signature(parent.__init__).parameters.keys() - {"self"}:
        assert again.config[key] == model.config[key] or tuple(again.config[key]) == tuple(model.config[key]), key
    assert again.config.wavelet_expansion == "dense" and again.config.wavelet_gate_reduction == 2
    assert tuple(again.config.wavelet_gate_init) == (0.4, 0.1, 0.1, 0.2)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


def test_a_teachers_config_makes_a_student(case):
    ours, parent, config = case
    student = type(ours).from_config(parent(**config).config, block_out_channels=(8, 16))
    assert student.config.block_out_channels == (8, 16)
    assert student.config.down_block_types == config["down_block_types"]


def test_gradient_checkpointing_changes_nothing(case):
    model, _, _ = case
    other = copy.deepcopy(model)
    other.enable_gradient_checkpointing()
    inputs = example_inputs(model.config, batch=2, tokens=5)
    for network in (model, other):
        network.train()
        call(network, inputs).square().mean().backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_every_parameter_gets_a_gradient(case):
    model, _, _ = case
    inputs = example_inputs(model.config, batch=2, tokens=5)
    call(model, inputs).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_attention_processors_can_be_set():
    model = SpectralUNet2DConditionModel(**TINY_CONDITION).eval()
    inputs = example_inputs(model.config, tokens=5)
    before = call(model, inputs)
    model.set_attn_processor(AttnProcessor())
    assert all(isinstance(p, AttnProcessor) for p in model.attn_processors.values())
    torch.testing.assert_close(call(model, inputs), before, atol=1e-5, rtol=1e-4)


def test_class_embedding():
    model = SpectralUNet2DModel(**TINY, num_class_embeds=4).eval()
    inputs = example_inputs(model.config, batch=2)
    a, b = (call(model, {**inputs, "class_labels": torch.full((2,), n)}) for n in (0, 3))
    assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(18, 16), (15, 17), (13, 19)])
def test_odd_sizes_work_where_the_parent_takes_them(size):
    config = {**TINY_CONDITION, "block_out_channels": (16, 32, 32)}
    config["down_block_types"] = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    config["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    inputs = example_inputs({**config}, size=size, tokens=5)
    assert call(SpectralUNet2DConditionModel(**config), inputs).shape[-2:] == size
    assert call(UNet2DConditionModel(**config), inputs).shape[-2:] == size


def test_the_gates_depend_on_the_timestep_once_trained():
    model = SpectralUNet2DModel(**TINY).eval()
    for module in model.modules():
        if hasattr(module, "excite"):
            torch.nn.init.normal_(module.excite.weight)
    sample, gates = torch.randn(1, 3, 16, 16), []
    for t in (10, 900):
        with record_gates(model) as recorded:
            model(sample, t)
        gates.append(recorded["down_blocks.0.downsamplers.0"])
    assert (gates[0] - gates[1]).abs().max() > 1e-3


def test_half_precision():
    model = SpectralUNet2DModel(**TINY).to(torch.bfloat16).eval()
    out = model(torch.randn(1, 3, 16, 16, dtype=torch.bfloat16), 5).sample
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()


@pytest.mark.slow
def test_a_new_process_loads_a_student_in_plain_diffusers_and_speaks_of_nothing_that_a_user_cannot_follow(tmp_path):
    """As of torchvision, which nothing here needs: what a text-to-image pipeline is made of loads there at last."""
    pytest.importorskip("transformers")
    model = SpectralUNet2DModel(**TINY).eval()
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["slimdpm.unet", "SpectralUNet2DModel"]
    code = (
        "import sys, torch, slimdpm\n"
        "from diffusers import DiffusionPipeline\n"
        "unet = DiffusionPipeline.from_pretrained(sys.argv[1]).unet\n"
        "torch.manual_seed(0)\n"
        "print(type(unet).__name__, unet(torch.randn(1, 3, 16, 16), 7).sample.double().sum().item())\n"
        "slimdpm.load_pipeline(sys.argv[2])\n"
    )
    (tmp_path / "vocabulary").mkdir()
    text_pipeline(tmp_path / "vocabulary").save_pretrained(tmp_path / "text")
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "text")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "torchvision" not in done.stdout + done.stderr
    name, total = done.stdout.split()
    torch.manual_seed(0)
    expected = model(torch.randn(1, 3, 16, 16), 7).sample.double().sum().item()
    assert name == "SpectralUNet2DModel" and float(total) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("processor", [None, AttnProcessor()])
@torch.no_grad()
def test_a_fixed_number_of_heads(processor, tmp_path):
    """Heads change what attention computes, not its parameters; the parent's own number changes nothing."""
    plain = UNet2DModel(**TINY).eval()  # attention on a level of 32 channels: 4 heads of 8
    inputs = example_inputs(plain.config, batch=2)
    outputs = {}
    for heads in (4, 2):
        model = FixedHeadsUNet2DModel(**TINY, num_attention_heads=heads).eval()
        model.load_state_dict(plain.state_dict())
        model.save_pretrained(tmp_path / str(heads))
        model = FixedHeadsUNet2DModel.from_pretrained(tmp_path / str(heads))
        for module in model.modules():
            if processor is not None and isinstance(module, Attention):
                module.set_processor(processor)
        outputs[heads] = call(model, inputs)
    torch.testing.assert_close(outputs[4], call(plain, inputs))
    assert not torch.allclose(outputs[2], outputs[4], atol=1e-5)
