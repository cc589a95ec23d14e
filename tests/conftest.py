"""Tiny real models and images. Everything is seeded, nothing is downloaded."""

import json
import os
import socket
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached for the network would fail, not hang

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image

from slimdpm import ClassConditionalLDMPipeline, ClassEmbedder

torch.set_num_threads(1)  # the tests run side by side

LONG = 1800  # seconds: who waits for an event gives up only on a process that hangs, however busy the machine

# A run of a few seconds that takes every path: features are compared, too. Its width and steps are the test's.
TRIAL = [
    "distill.pairs=auto", "train.batch_size=4", "train.trackers=[]", "train.sample_every=0", "samples.count=2",
    "samples.steps=2", "data.workers=0",
]  # fmt: skip

TINY = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
TINY_CONDITION = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
TINY_RESNET = {  # like LDM-8: resampling inside residual blocks
    **TINY,
    "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
}

AUTOENCODER = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
}


def latent_pipeline(kind):
    """16x16 images as 8x8 latents of an autoencoder of this kind, a `VQModel` or an `AutoencoderKL`."""
    autoencoder = kind(**AUTOENCODER)
    unet = UNet2DModel(**{**TINY, "sample_size": 8})
    return LDMPipeline(autoencoder, unet, DDIMScheduler(clip_sample=False))


CLASSES = ("boots", "coat", "dress")
NAMES = dict(enumerate(CLASSES))


def class_pipeline(names=NAMES):
    """16x16 images of three classes, in pixels; the U-Net embeds the class, the fourth stands for none."""
    unet = UNet2DModel(**TINY, num_class_embeds=4)
    return ClassConditionalLDMPipeline(unet, DDIMScheduler(), null_class=3, id2label=names)


def embedded_class_pipeline(names=NAMES):
    """The same in latents of 8x8, the class being a token for cross-attention."""
    unet = UNet2DConditionModel(**{**TINY_CONDITION, "sample_size": 8, "in_channels": 3, "out_channels": 3})
    embedder = ClassEmbedder(4, TINY_CONDITION["cross_attention_dim"], null_class=3)
    scheduler = DDIMScheduler(clip_sample=False)
    return ClassConditionalLDMPipeline(unet, scheduler, VQModel(**AUTOENCODER), embedder, id2label=names)


def tiny_tokenizer(folder):
    """CLIP's tokenizer with letters for words, at most twelve of them."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def text_config(tokenizer, **options):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
        **options,
    )


def text_pipeline(folder, scheduler=None):
    """Stable Diffusion for 16x16 images; `folder` is for the tokenizer's files."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    tokenizer = tiny_tokenizer(folder)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(**{**AUTOENCODER, "latent_channels": 4}),
        text_encoder=CLIPTextModel(text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**{**TINY_CONDITION, "sample_size": 8}).eval(),
        scheduler=scheduler or DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def xl_pipeline(folder):
    """The same for Stable Diffusion XL: two text encoders, pooled text, sizes."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer(folder)
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 10,
        "cross_attention_dim": 24,
    }
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**{**AUTOENCODER, "latent_channels": 4}),
        text_encoder=CLIPTextModel(text_config(tokenizer)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, projection_dim=10)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(**{**TINY_CONDITION, "sample_size": 8, **added}).eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """A DDPM pipeline as diffusers saves it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teacher")
    DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Twelve PNGs of 24x20 smooth noise, in two folders."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        (folder / f"part{i % 2}").mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"part{i % 2}" / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory):
    """Nine PNGs of 16x16 smooth noise, three in the folder of each class."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(1)
    for i in range(9):
        (folder / CLASSES[i % 3]).mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((16, 16), Image.Resampling.BICUBIC).save(folder / CLASSES[i % 3] / f"{i}.png")
    return folder


def struck(number, method, when, *arguments):
    """The command of slimdpm that gets a signal from itself: no clock decides when.

    Args:
        number: of the signal.
        method: ``"module:Class.method"`` of slimdpm, at whose call it comes.
        when: an expression in the method's ``self`` and ``args``: at which of its calls.
        arguments: of the command.
    """
    module, _, place = method.partition(":")
    name, _, attribute = place.partition(".")
    script = f"""
import os
from slimdpm.cli import main as cli
from slimdpm.{module} import {name}
true = {name}.{attribute}
def struck(self, *args):
    if {when}:
        os.kill(os.getpid(), {int(number)})
    return true(self, *args)
{name}.{attribute} = struck
cli.main()
"""
    return [sys.executable, "-c", script, *arguments]


def launch(tmp_path, *command):
    """Run a command in two processes that know of each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=LONG)[0] for process in processes]
    return [process.returncode for process in processes], outputs
