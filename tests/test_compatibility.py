"""What people do with a pipeline before it is a teacher, and with a student afterwards."""

import copy

import accelerate
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    ControlNetModel,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from helpers import TINY, class_pipeline, latent_pipeline, text_pipeline, xl_pipeline
from torch import nn
from torch.nn.utils import parametrizations

from slimdpm import (
    ClassConditionalLDMPipeline,
    SlimdpmError,
    SpectralUNet2DConditionModel,
    SpectralUNet2DModel,
    load_pipeline,
    slim,
)
from slimdpm.method.networks import example_inputs
from slimdpm.method.slimming import Budget, plan_student
from slimdpm.pipelines.teacher import load_teacher


class Lora(nn.Module):
    """Shaped as peft's layers: the original inside, two factors beside it, and `merge`."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, weight = layer, layer.weight
        self.lora_A = nn.Parameter(torch.randn(2, weight[0].numel()) / 4)
        self.lora_B = nn.Parameter(torch.randn(len(weight), 2) / 4)

    @property
    def delta(self):
        return (self.lora_B @ self.lora_A).reshape(self.base_layer.weight.shape)

    def merge(self):
        self.base_layer.weight.data += self.delta

    def forward(self, x):
        merged = copy.deepcopy(self.base_layer)
        merged.weight.data += self.delta
        return merged(x)


class Unmergeable(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return self.base_layer(x)


def pixel_pipeline():
    return DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler())


def wrap(unet, wrapper, *names):
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, wrapper(unet.get_submodule(name)))


def state(pipeline):
    modules = [m for m in pipeline.components.values() if isinstance(m, nn.Module)]
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for part in modules for m in part.modules()]
    return flags, [(p.dtype, p.device, p.clone()) for part in modules for p in part.parameters()]


def same(one, other):
    return one[0] == other[0] and all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(one[1], other[1], strict=True)
    )


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", ["adapters", "parametrised", "compiled", "offloaded"])
def test_a_teachers_plain_copy_computes_the_same(kind):
    pipeline = pixel_pipeline()
    unet = pipeline.unet
    if kind == "adapters":  # of linear layers and of convolutions
        wrap(unet, Lora, "conv_in", "mid_block.attentions.0.to_q", "down_blocks.0.resnets.0.conv1")
    elif kind == "parametrised":
        parametrizations.weight_norm(unet.conv_in)
        parametrizations.spectral_norm(unet.mid_block.resnets[0].conv1)
    elif kind == "compiled":
        pipeline.unet = torch.compile(unet)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    inputs = example_inputs(unet.config, batch=2)
    expected = unet.eval()(**inputs).sample
    if kind == "offloaded":
        accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
        assert unet.conv_in.weight.is_meta
    teacher = load_teacher(pipeline)
    assert type(teacher.unet) is UNet2DModel
    torch.testing.assert_close(teacher.unet(**inputs).sample, expected, atol=1e-5, rtol=1e-4)
    if kind != "offloaded":
        assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        (Unmergeable, r"the unet has a .*Unmergeable at mid_block\.resnets\.0\.conv1, which is no plain layer"),
        (lambda layer: nn.Conv2d(32, 32, 1), "the unet has no weight at mid_block.resnets.0.conv1.weight"),
        (lambda layer: nn.utils.weight_norm(layer), "the unet cannot be copied: .*weight_norm"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_merged_is_named(wrapper, words):
    pipeline = pixel_pipeline()
    wrap(pipeline.unet, wrapper, "mid_block.resnets.0.conv1")
    with pytest.raises(SlimdpmError, match=words):
        load_teacher(pipeline)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_teacher_in_single_precision(dtype, tmp_path):
    pipeline = text_pipeline(tmp_path).to(dtype)
    teacher = load_teacher(pipeline)
    assert {p.dtype for m in (teacher.unet, *teacher.shell.frozen) for p in m.parameters()} == {torch.float32}
    assert pipeline.unet.dtype is pipeline.vae.dtype is dtype


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_pipeline_stays_as_it_is(fails, tmp_path, image_folder):
    pipeline = latent_pipeline(AutoencoderKL)
    pipeline.unet.train()
    pipeline.unet.mid_block.eval()
    pipeline.vqvae.decoder.train().requires_grad_(False)
    before = state(pipeline)
    settings = {"train.batch_size": 4, "train.trackers": [], "samples.count": 2, "samples.steps": 2, "data.workers": 0}
    call = {"width": 16, "steps": 1, "progress": False, "settings": {**settings, "train.sample_every": 0}}
    if fails:
        with pytest.raises(SlimdpmError):
            slim(pipeline, tmp_path / "nothing", **call)
    else:
        slim(pipeline, image_folder, output=tmp_path / "run", **call)
    assert same(state(pipeline), before)


@pytest.fixture(params=[SpectralUNet2DConditionModel, UNet2DConditionModel], ids=["gated", "plain"])
def student(request, tmp_path):
    pipeline = text_pipeline(tmp_path)
    unet = request.param.from_config(pipeline.unet.config).eval()
    made = StableDiffusionPipeline(**{**pipeline.components, "unet": unet}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def plain(student):
    return type(student.unet) is UNet2DConditionModel


def image(pipeline, **call):
    return pipeline("a", **call, num_inference_steps=2, output_type="np", generator=torch.manual_seed(3)).images


def test_other_pipelines_take_a_student(student):
    given = {"image": torch.rand(1, 3, 16, 16), "strength": 1.0}
    mask = {"mask_image": torch.ones(1, 1, 16, 16), "height": 16, "width": 16}
    kinds = {StableDiffusionImg2ImgPipeline: given, StableDiffusionInpaintPipeline: given | mask}
    for kind, call in kinds.items():
        other = kind.from_pipe(student, unet=student.unet)
        assert other.unet is student.unet and image(other, **call).shape == (1, 16, 16, 3)
    if plain(student):
        assert StableDiffusionImg2ImgPipeline.from_pipe(student).unet is student.unet
    expected = image(student)
    student.enable_attention_slicing()
    np.testing.assert_allclose(image(student), expected, atol=1e-5)
    student.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert image(student).shape == expected.shape


def test_a_controlnet_is_made_of_a_student(student):
    """With the weights of a plain one. What it adds starts at nothing."""
    control = ControlNetModel.from_unet(
        student.unet, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=plain(student)
    )
    assert control.config.block_out_channels == (16, 32)
    if plain(student):
        assert torch.equal(control.conv_in.weight, student.unet.conv_in.weight)
        name = "down_blocks.0.downsamplers.0.conv.weight"
        assert torch.equal(control.get_parameter(name), student.unet.get_parameter(name))
    controlled = StableDiffusionControlNetPipeline(
        **student.components, controlnet=control, requires_safety_checker=False
    )
    controlled.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(image(controlled, image=torch.rand(1, 3, 16, 16)), image(student), atol=1e-5)


def test_an_adapter_is_added_to_a_student_and_fused(student, tmp_path):
    peft = pytest.importorskip("peft")
    before = image(student)
    layers = ["to_q", "to_v", "conv1"]
    student.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False))
    adapted = image(student)
    assert np.abs(adapted - before).max() > 1e-3
    student.save_lora_weights(tmp_path / "lora", peft.get_peft_model_state_dict(student.unet))
    student.fuse_lora()
    np.testing.assert_allclose(image(student), adapted, atol=1e-4)
    student.unfuse_lora()
    student.unload_lora_weights()
    np.testing.assert_allclose(image(student), before, atol=1e-4)
    student.load_lora_weights(tmp_path / "lora")
    np.testing.assert_allclose(image(student), adapted, atol=1e-4)
    teacher = load_teacher(student)  # merged into the copy
    inputs = example_inputs(student.unet.config, batch=1, tokens=3)
    torch.testing.assert_close(teacher.unet(**inputs).sample, student.unet(**inputs).sample, atol=1e-5, rtol=1e-4)


def test_auto_pipelines_take_a_student(student, tmp_path):
    student.save_pretrained(tmp_path / "student")
    loaded = AutoPipelineForText2Image.from_pretrained(tmp_path / "student")
    assert type(loaded) is StableDiffusionPipeline and type(loaded.unet) is type(student.unet)
    other = AutoPipelineForImage2Image.from_pipe(loaded, **({} if plain(student) else {"unet": loaded.unet}))
    assert type(other) is StableDiffusionImg2ImgPipeline and other.unet is loaded.unet


def test_a_class_student_loads_in_plain_diffusers(tmp_path):
    pipeline = class_pipeline()
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is ClassConditionalLDMPipeline
    assert torch.equal(loaded.unet.conv_in.weight, pipeline.unet.conv_in.weight)


@pytest.mark.parametrize("network", [SpectralUNet2DModel, UNet2DModel])
def test_half_precision_files_and_shards(network, tmp_path):
    student = DDPMPipeline(network(**TINY), DDPMScheduler())
    weight = student.unet.conv_in.weight.clone()
    student.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards/unet").glob("*.safetensors"))) > 1
    assert torch.equal(load_pipeline(tmp_path / "shards").unet.conv_in.weight, weight)
    student.unet.half()
    student.save_pretrained(tmp_path / "half", variant="fp16")
    assert torch.equal(load_pipeline(tmp_path / "half").unet.conv_in.weight, weight.half().float())  # found by itself
    plain = DiffusionPipeline.from_pretrained(tmp_path / "half", variant="fp16", torch_dtype=torch.float16)
    assert plain.unet.dtype is torch.float16


@torch.no_grad()
def test_a_traced_student_takes_any_batch():
    model = SpectralUNet2DModel(**TINY).eval().requires_grad_(False)
    inputs = torch.randn(2, 3, 16, 16), torch.tensor([3, 3])
    traced = torch.jit.trace(lambda x, t: model(x, t, return_dict=False)[0], inputs, check_trace=False)
    for batch in (1, 5):
        x, t = torch.randn(batch, 3, 16, 16), torch.full((batch,), 9)
        torch.testing.assert_close(traced(x, t), model(x, t).sample, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"), "norm_num_groups": 32},
            "a UNet2DModel with AttnSkipDownBlock2D, SkipDownBlock2D cannot be slimmed",
        ),
        ({"time_embedding_type": "fourier", "norm_num_groups": 32}, "a fourier time embedding cannot be slimmed"),
    ],
)
def test_networks_of_ncsn_are_named(changes, words):
    config = {**UNet2DModel(**{**TINY, "block_out_channels": (32, 64)}).config, **changes}
    with pytest.raises(SlimdpmError, match=words):
        plan_student({**config, "_class_name": "UNet2DModel"}, Budget(ratio=4))


def test_text_encoders_that_do_not_fit_are_found_at_once(tmp_path):
    for make in (text_pipeline, xl_pipeline):
        pipeline = make(tmp_path)
        load_teacher(pipeline)
    wrong = text_pipeline(tmp_path)
    wrong.unet = type(wrong.unet).from_config(wrong.unet.config, cross_attention_dim=20)
    with pytest.raises(SlimdpmError, match="does not work with the rest of it"):
        load_teacher(wrong)
