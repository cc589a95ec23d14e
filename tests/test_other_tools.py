"""What leaves for other tools: single files under the original names."""

import pytest
import reference_ldm as reference
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from helpers import AUTOENCODER, TINY_CONDITION, latent_pipeline, text_pipeline
from safetensors.torch import load_file
from typer.testing import CliRunner

from slimdpm import SpectralUNet2DConditionModel, load_pipeline
from slimdpm.cli.main import app
from slimdpm.export.single_file import write_single_file
from slimdpm.system.errors import SlimdpmError

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
    for pipeline in (one, other):
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.eval()
    torch.manual_seed(1)
    ours = outputs(one)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(ours, outputs(other), strict=True))


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
