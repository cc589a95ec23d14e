"""The recipes of the paper's tasks: each value has its reason, and each plans the preset's networks."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from helpers import AUTOENCODER, text_config, tiny_tokenizer

from slimdpm.data.arrays import Arrays
from slimdpm.method.cost import measure
from slimdpm.method.networks import build
from slimdpm.method.presets import PRESETS
from slimdpm.originals import outline
from slimdpm.recipe_file import load_recipe
from slimdpm.training.accelerator import split_batch
from slimdpm.training.plan import plan_job

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
ORIGINALS = {
    "ffhq": ("ffhq", "ldm4"),
    "celebahq": ("celebahq", "ldm4"),
    "lsun-bedroom": ("lsun_beds", "ldm4"),
    "lsun-church": ("lsun_churches", "ldm8-church"),
    "imagenet": ("cin256-v2", "ldm4-imagenet"),
}
TASKS = [*ORIGINALS, "text-to-image"]
REASONS = ("paper", "recalled", "LDM", "ours")


def text_to_image(folder):
    """Stable Diffusion v1's U-Net and number of tokens at full size without weights, in a pipeline of tiny parts."""
    from transformers import CLIPTextModel

    tokenizer = tiny_tokenizer(folder)
    tokenizer.model_max_length = 77
    with torch.device("meta"):
        unet = build(PRESETS["sd-v1"].config)
    autoencoder = AutoencoderKL(
        **{
            **AUTOENCODER,
            "latent_channels": 4,
            "block_out_channels": (8,) * 4,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        }
    )
    encoder = CLIPTextModel(text_config(tokenizer))
    parts = (autoencoder, encoder, tokenizer, unet, DDIMScheduler(clip_sample=False, steps_offset=1), None, None)
    return StableDiffusionPipeline(*parts, requires_safety_checker=False)


@pytest.mark.parametrize("name", TASKS)
def test_every_value_says_whose_it_is(name):
    lines = (ROOT / f"recipes/{name}.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\s*[a-z_]+: \S", line)]
    assert len(values) > 25
    for line in values:
        value, mark, reason = line.partition(" # ")
        assert mark and len(reason) >= 5, f"{value} has no comment"
        if line.startswith("  ") and not line.startswith(("  path", "  guidance")):
            assert reason.startswith(REASONS), line


@pytest.mark.parametrize("name", TASKS)
def test_the_head_has_the_commands(name):
    text = (ROOT / f"recipes/{name}.yaml").read_text()
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml")
    assert f" -o {recipe.teacher}\n" in text  # slimdpm import writes what the recipe reads
    assert f"accelerate launch --multi_gpu --num_processes 8 -m slimdpm.cli slim --recipe recipes/{name}.yaml" in text
    shares = [split_batch(recipe, processes) for processes in (1, 8, 16)]
    assert all(micro * times * n == 512 for (micro, times), n in zip(shares, (1, 8, 16), strict=True))
    d = recipe.distill
    assert (d.lambda_spatial, d.lambda_freq, d.alpha, d.pairs) == (0.1, 0.1, -1.0, "auto")  # the paper's


@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_plans_the_presets_networks(name, tmp_path):
    if name == "text-to-image":
        pytest.importorskip("transformers")
        teacher, preset = text_to_image(tmp_path), "sd-v1"
    else:
        file, preset = ORIGINALS[name]
        teacher = outline(ROOT / f"tests/originals/{file}.yaml").pipeline()
    images = np.zeros((2, 16, 16, 3), np.uint8)
    data = Arrays(images, classes=np.array([0, 999]), texts=np.array(["a", "b"]))
    job = plan_job(load_recipe(ROOT / f"recipes/{name}.yaml"), teacher=teacher, data=data, weights=False)
    for cost, network in ((job.plan.teacher_cost, preset), (job.plan.cost, f"{preset}-spectral")):
        assert cost == measure(PRESETS[network].config, tokens=PRESETS[network].tokens)
    blocks = len(job.plan.config["down_block_types"])
    assert len(job.pairs) == 2 * blocks + 1  # each block has its counterpart
    assert job.shell.image_size == job.recipe.data.size
