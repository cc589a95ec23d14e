"""Original checkpoints of latent-diffusion, written with their own names, imported and compared with a reference."""

import copy
from pathlib import Path

import pytest
import reference_ldm as reference
import torch
import yaml
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DModel, VQModel

from slimdpm import load_pipeline
from slimdpm.method.cost import measure
from slimdpm.method.presets import PRESETS
from slimdpm.originals import convert_checkpoint, import_checkpoint
from slimdpm.originals.settings import read_settings
from slimdpm.originals.unet import unet_config
from slimdpm.pipelines.sampling import sample_images
from slimdpm.recipe_file import load_recipe
from slimdpm.training.plan import plan_job
from slimdpm.training.run import run_job
from slimdpm.unet import FixedHeadsUNet2DModel, SpectralUNet2DModel

pytestmark = pytest.mark.slow

YAMLS = Path(__file__).parent / "originals"
NAMES = ["ffhq", "celebahq", "lsun_beds", "lsun_churches", "cin256-v2"]


def reduced(name):
    """The YAML's values with the same topology and few channels."""
    values = yaml.safe_load((YAMLS / f"{name}.yaml").read_text())
    params = values["model"]["params"]
    params["unet_config"]["params"]["model_channels"] = 32
    if "num_head_channels" in params["unet_config"]["params"]:
        params["unet_config"]["params"]["num_head_channels"] = 8
    stage = params["first_stage_config"]["params"]
    stage["ddconfig"]["ch"] = 32
    params["unet_config"]["params"]["image_size"] = 16  # of the latents
    if "n_embed" in stage:
        stage["n_embed"] = 50
    return values


def original(values, folder, *, trainer=None, change=None):
    """A reference network with random weights, its checkpoint and its YAML, as a training leaves them."""
    model = reference.LatentDiffusion(values).eval()
    with torch.no_grad():
        for weight in model.model.parameters():  # else the averages would equal the weights
            weight.add_(0.02 * torch.randn_like(weight))
    state = model.state_dict()
    if change is not None:
        change(state)
    torch.save({"epoch": 3, "global_step": 1000, "state_dict": state, **(trainer or {})}, folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return model, folder / "model.ckpt", folder / "config.yaml"


def averaged(model):
    """The reference's U-Net with the running averages in place of its weights."""
    unet = copy.deepcopy(model.model.diffusion_model)
    averages = dict(model.model_ema.named_buffers())
    for name, weight in unet.named_parameters():
        weight.data = averages[f"diffusion_model.{name}".replace(".", "")]
    return unet


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_imported_checkpoint_computes_what_the_original_computes(name, tmp_path):
    values = reduced(name)
    model, checkpoint, config = original(values, tmp_path)
    parts = convert_checkpoint(checkpoint, config)
    params = values["model"]["params"]

    x, t = torch.randn(2, params["channels"], 16, 16), torch.tensor([3, 700])
    if parts.class_embedder is None:
        close(parts.unet(x, t).sample, averaged(model)(x, t))
        assert parts.ema
    else:
        labels = torch.tensor([7, 1000])
        context = parts.class_embedder(labels)
        close(context, model.cond_stage_model(labels))
        close(parts.unet(x, t, context).sample, model.model.diffusion_model(x, t, context))
        assert not parts.ema  # this checkpoint has none

    images, first = torch.rand(2, 3, 32, 32) * 2 - 1, model.first_stage_model
    encoded = parts.autoencoder.encode(images)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.parameters
    close(latents, first.encode(images))
    z = torch.randn(2, params["channels"], 8, 8) * 0.3
    close(parts.autoencoder.decode(z).sample, first.decode(z))


@pytest.mark.parametrize("name", NAMES[:4])
def test_an_unconditional_checkpoint_becomes_a_pipeline(name, tmp_path):
    values = reduced(name)
    _, checkpoint, config = original(values, tmp_path)
    import_checkpoint(checkpoint, config, tmp_path / "out")
    pipeline = load_pipeline(tmp_path / "out")
    church = name == "lsun_churches"
    assert type(pipeline.unet) is (FixedHeadsUNet2DModel if church else UNet2DModel)
    assert type(pipeline.vqvae) is (AutoencoderKL if church else VQModel)
    assert pipeline.vqvae.config.scaling_factor == pytest.approx(0.9 if church else 1.0)
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "out").unet) is type(pipeline.unet)
    pixels = pipeline.unet.config.sample_size * (8 if church else 4)
    assert sample_images(pipeline, 1, steps=2).shape == (1, pixels, pixels, 3)


def test_without_averages_the_weights_themselves_are_taken(tmp_path):
    model, checkpoint, config = original(reduced("ffhq"), tmp_path)
    parts = convert_checkpoint(checkpoint, config, ema=False)
    torch.testing.assert_close(parts.unet.conv_in.weight, model.model.diffusion_model.input_blocks[0][0].weight)
    assert not parts.ema


@pytest.mark.parametrize(("name", "published"), [*zip(NAMES, [274.06, 274.06, 274.06, 294.96, 400.92], strict=True)])
def test_the_networks_of_the_published_checkpoints(name, published):
    params = read_settings(YAMLS / f"{name}.yaml").unet_config.params
    config = unet_config(params)
    preset = PRESETS[{"lsun_churches": "ldm8-church", "cin256-v2": "ldm4-imagenet"}.get(name, "ldm4")]
    cost = measure(config, tokens=preset.tokens)
    assert cost.params == pytest.approx(published * 1e6, abs=1e4)
    assert cost == measure(preset.config, tokens=preset.tokens)
    with torch.device("meta"):
        theirs = reference.UNetModel(params.model_dump(exclude_unset=True))
    assert sum(p.numel() for p in theirs.parameters()) == cost.params


@torch.no_grad()
def test_the_variants_that_the_five_do_not_use(tmp_path):
    """The newer order of queries, keys, values; attention inside the autoencoder; heads of one size with context."""
    values = reduced("cin256-v2")
    params = values["model"]["params"]
    del params["unet_config"]["params"]["num_heads"]
    params["unet_config"]["params"] |= {"num_head_channels": 8, "transformer_depth": 2, "channel_mult": [1, 2]}
    params["first_stage_config"]["params"]["ddconfig"]["attn_resolutions"] = [64]
    model, *files = original(values, tmp_path)
    parts = convert_checkpoint(*files)
    x, t, context = torch.randn(1, 3, 16, 16), torch.tensor([5]), torch.randn(1, 1, 512)
    close(parts.unet(x, t, context).sample, model.model.diffusion_model(x, t, context))
    close(parts.autoencoder.encode(x).latents, model.first_stage_model.encode(x))
    close(parts.autoencoder.decode(x).sample, model.first_stage_model.decode(x))

    values = reduced("ffhq")
    values["model"]["params"]["unet_config"]["params"] |= {"use_new_attention_order": True, "channel_mult": [1, 2]}
    model, *files = original(values, tmp_path)
    close(convert_checkpoint(*files).unet(x, t).sample, averaged(model)(x, t))


def test_the_scheduler_is_the_originals(tmp_path):
    """Its noise levels, and the timesteps and the last step of its DDIM sampler."""
    values = reduced("lsun_churches")
    model, *files = original(values, tmp_path)
    scheduler = convert_checkpoint(*files).scheduler
    torch.testing.assert_close(scheduler.alphas_cumprod, model.alphas_cumprod, atol=1e-6, rtol=1e-5)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == [t + 1 for t in range(0, 1000, 20)][::-1]
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0] and not scheduler.config.clip_sample


def test_a_teacher_with_a_fixed_number_of_heads_is_slimmed(tmp_path, image_folder):
    few = reduced("lsun_churches")
    few["model"]["params"]["unet_config"]["params"].update(channel_mult=[1, 2], num_res_blocks=1)
    _, checkpoint, config = original(few, tmp_path)
    import_checkpoint(checkpoint, config, tmp_path / "teacher")
    values = {"teacher": str(tmp_path / "teacher"), "data": {"path": str(image_folder)}}
    settings = ["train.steps=1", "train.batch_size=1", "train.trackers=[]", "samples.count=1", "samples.steps=1"]
    settings += ["train.sample_every=0"]
    job = plan_job(load_recipe(None, ["student.kind=spectral", "student.width=32", *settings], values=values))
    run_job(job, tmp_path / "run")
    student = load_pipeline(tmp_path / "run").unet
    assert type(student) is SpectralUNet2DModel and student.config.attention_head_dim == 4
    assert "num_attention_heads" not in student.config
