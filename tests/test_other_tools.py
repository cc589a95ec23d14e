"""What leaves for other tools: single files under the original names, and folders that bring their code."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import plain_diffusers
import pytest
import reference_ldm as reference
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from helpers import (
    AUTOENCODER,
    TINY,
    TINY_CONDITION,
    class_pipeline,
    embedded_class_pipeline,
    latent_pipeline,
    text_pipeline,
)
from safetensors.torch import load_file
from typer.testing import CliRunner

import slimdpm
from slimdpm import SpectralUNet2DConditionModel, SpectralUNet2DModel, load_pipeline
from slimdpm.cli.main import app
from slimdpm.export.hub import pipeline_code, unet_code, write_diffusers_folder, write_hub_folder
from slimdpm.export.single_file import write_single_file
from slimdpm.system.errors import SlimdpmError
from slimdpm.unet import FixedHeadsUNet2DModel

WIDE = {"block_out_channels": (32, 64), "norm_num_groups": 32}  # as the original: 32 norm groups everywhere


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain student of Stable Diffusion v1 in its layout, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("plain")
    pipeline = text_pipeline(folder, DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1))
    unet = UNet2DConditionModel(**{**TINY_CONDITION, **WIDE, "sample_size": 8}).eval()
    vae = AutoencoderKL(**{**AUTOENCODER, **WIDE, "latent_channels": 4}).eval()
    parts = {**pipeline.components, "unet": unet, "vae": vae}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder / "student")
    return folder / "student"


def outputs(pipeline):
    """Of the U-Net, of the autoencoder both ways, and of the text encoder."""
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([7, 300]), torch.randn(2, 5, 12)
    return (
        pipeline.unet(x, t, context).sample,
        pipeline.vae.decode(x).sample,
        pipeline.vae.encode(torch.randn(1, 3, 16, 16)).latent_dist.parameters,
        pipeline.text_encoder(torch.tensor([[52, 1, 2, 53]]))[0],
    )


def same(one, other):
    """The same weights, and outputs to the last digits: kernels go by where in a file's memory the weights begin."""
    for part in ("unet", "vae", "text_encoder"):
        weights, others = (getattr(pipeline, part).eval().state_dict() for pipeline in (one, other))
        assert weights.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in weights.items())
    torch.manual_seed(1)
    ours = outputs(one)
    torch.manual_seed(1)
    for a, b in zip(ours, outputs(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_single_file_is_read_by_diffusers_and_by_us(plain, tmp_path):
    file = tmp_path / "student.safetensors"
    write_single_file(str(plain), file)
    student = load_pipeline(plain)
    read = StableDiffusionPipeline.from_single_file(
        str(file), config=str(plain), local_files_only=True, safety_checker=None
    )
    same(student, read)
    words = ["import", str(file), "--config", str(plain), "-o", str(tmp_path / "back")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    same(student, load_pipeline(tmp_path / "back"))


@torch.no_grad()
def test_its_yaml_makes_the_original_networks_that_take_its_weights_and_compute_the_same(plain, tmp_path):
    write_single_file(str(plain), tmp_path / "student.safetensors")
    params = yaml.safe_load((tmp_path / "student.yaml").read_text())["model"]["params"]
    networks = {
        "model.diffusion_model.": reference.UNetModel(params["unet_config"]["params"]),
        "first_stage_model.": reference.FirstStage(params["first_stage_config"]["params"]),
    }
    state = load_file(tmp_path / "student.safetensors")
    for prefix, network in networks.items():
        part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        network.load_state_dict(part)
    student = load_pipeline(plain)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([7, 300]), torch.randn(2, 5, 12)
    unet, first = networks.values()
    torch.testing.assert_close(unet(x, t, context), student.unet(x, t, context).sample, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.decode(x), student.vae.decode(x).sample, atol=1e-5, rtol=1e-4)
    scheduler = student.scheduler.config
    assert (params["linear_start"], params["timesteps"]) == (scheduler["beta_start"], 1000)
    assert (params["scale_factor"], params["parameterization"]) == (student.vae.config.scaling_factor, "eps")


def test_half_of_the_bytes_and_no_yaml_for_what_it_cannot_tell(plain, tmp_path):
    student = load_pipeline(plain)
    student.unet = UNet2DConditionModel(**{**TINY_CONDITION, "block_out_channels": (16, 40), "sample_size": 8})
    student.save_pretrained(tmp_path / "lopsided")
    write_single_file(str(tmp_path / "lopsided"), tmp_path / "half.safetensors", half=True)
    state = load_file(tmp_path / "half.safetensors")
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float16}
    assert not (tmp_path / "half.yaml").exists()


def test_what_has_no_single_file_is_told(plain, tmp_path):
    gated = load_pipeline(plain)
    gated.unet = SpectralUNet2DConditionModel(**{**TINY_CONDITION, "sample_size": 8})
    gated.save_pretrained(tmp_path / "gated")
    second = load_pipeline(plain)
    second.unet = UNet2DConditionModel(**{**TINY_CONDITION, "sample_size": 8}, use_linear_projection=True)
    second.save_pretrained(tmp_path / "second")
    latent_pipeline(AutoencoderKL).save_pretrained(tmp_path / "latent")
    (tmp_path / "there.safetensors").touch()
    for folder, name, words in (
        (tmp_path / "gated", "out.safetensors", "is wavelet-gated, and single files have no room for gates"),
        (tmp_path / "second", "out.safetensors", "is a Stable Diffusion 2"),
        (tmp_path / "latent", "out.safetensors", "is a LDMPipeline: single files are written of StableDiffusion"),
        (plain, "out.ckpt", "a single file is a .safetensors"),
        (plain, "there.safetensors", "exists already"),
    ):
        with pytest.raises(SlimdpmError, match=words):
            write_single_file(str(folder), tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["there.safetensors"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Students of slimdpm's classes as folders that bring their code, and as slimdpm saves them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("hub")
    text = text_pipeline(root)
    text.unet = SpectralUNet2DConditionModel(**{**TINY_CONDITION, "sample_size": 8})
    classes, token = class_pipeline(), embedded_class_pipeline()
    classes.unet = SpectralUNet2DModel(**TINY, num_class_embeds=4)
    token.unet = SpectralUNet2DConditionModel.from_config(token.unet.config)
    latents = latent_pipeline(AutoencoderKL)
    latents.unet = FixedHeadsUNet2DModel.from_config(latents.unet.config, num_attention_heads=2)
    pixels = DDPMPipeline(SpectralUNet2DModel(**TINY, wavelet_down_mix=True), DDIMScheduler())
    made = {"pixels": pixels, "latents": latents, "text": text, "class": classes, "token": token}
    for name, pipeline in made.items():
        for parameter in pipeline.unet.parameters():
            parameter.data += torch.randn(parameter.shape) / 20  # so that the gates see something
        pipeline.save_pretrained(root / "ours" / name)
        write_hub_folder(str(root / "ours" / name), root / "hub" / name)
    return root


@pytest.mark.slow
def test_a_hub_folder_loads_where_slimdpm_cannot_be_imported(hub, tmp_path):
    """In plain diffusers, class-conditional ones too; and here without running any of its code."""
    words = [sys.executable, plain_diffusers.__file__, hub / "hub", tmp_path / "made.npz", "--trust"]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    made = np.load(tmp_path / "made.npz")
    expected = plain_diffusers.samples(hub / "ours", load_pipeline, plain_diffusers.WITH_CODE)
    assert sorted(made) == sorted(expected)
    for file in (hub / "hub").rglob("*.py"):
        file.write_text("raise AssertionError('was run')")
    ours = plain_diffusers.samples(hub / "hub", load_pipeline, plain_diffusers.WITH_CODE)
    for name, images in expected.items():
        np.testing.assert_allclose(made[name], images, atol=1e-5)
        assert np.array_equal(ours[name], images)


def test_a_hub_folder_asks_to_be_trusted_and_a_plain_one_has_no_code(hub, plain, tmp_path):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(hub / "hub/pixels")
    write_hub_folder(str(plain), tmp_path / "plain")
    assert not list((tmp_path / "plain").rglob("*.py"))
    assert "trust_remote_code" not in (tmp_path / "plain/README.md").read_text()
    documents = [file.read_text() for file in (hub / "hub").rglob("*.json")]
    assert len(documents) > 10 and not any(str(hub) in text for text in documents)
    assert "`unet/slimdpm_unet.py`" in (hub / "hub/pixels/README.md").read_text()


def test_the_code_of_a_hub_folder_is_slimdpms_own():
    """Each definition as it stands in its module, and nothing of slimdpm is imported."""
    for code in (unet_code(), pipeline_code()):
        tree = ast.parse(code)
        imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in imported if name.startswith("slimdpm")]
        sources = "".join(file.read_text() for file in Path(slimdpm.__file__).parent.rglob("*.py"))
        definitions = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        assert len(definitions) >= 10 and all(ast.get_source_segment(code, node) in sources for node in definitions)


@torch.no_grad()
def test_weights_in_half_precision_on_the_disk(plain, tmp_path):
    write_diffusers_folder(str(plain), tmp_path / "half", variant="fp16")
    write_diffusers_folder(str(plain), tmp_path / "whole")
    names = {file.relative_to(tmp_path / "half").as_posix() for file in (tmp_path / "half").rglob("*.safetensors")}
    unet, vae = "unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"
    assert names == {unet, vae, "text_encoder/model.fp16.safetensors"}
    whole = (tmp_path / "whole/unet/diffusion_pytorch_model.safetensors").stat().st_size
    assert (tmp_path / "half" / unet).stat().st_size < 0.6 * whole
    read = DiffusionPipeline.from_pretrained(tmp_path / "half", variant="fp16", torch_dtype=torch.float16)
    assert read.unet.dtype is read.text_encoder.dtype is torch.float16
    ours, student = load_pipeline(tmp_path / "half"), load_pipeline(plain)
    assert torch.equal(ours.unet.conv_in.weight, student.unet.conv_in.weight.half().float())
    same(student, load_pipeline(tmp_path / "whole"))


def test_a_weight_beyond_half_precision_is_named(tmp_path):
    pipeline = DDPMPipeline(SpectralUNet2DModel(**TINY), DDIMScheduler())
    pipeline.unet.conv_in.bias.data[0] = 1e5
    pipeline.save_pretrained(tmp_path / "large")
    with pytest.raises(
        SlimdpmError, match=r"unet of .* in half precision: conv_in.bias holds numbers that are not finite"
    ):
        write_diffusers_folder(str(tmp_path / "large"), tmp_path / "half", variant="fp16")
    assert not (tmp_path / "half").exists()
