"""Tiny real models, and commands in processes of their own. Everything is seeded, nothing is downloaded."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from unittest.mock import patch

from accelerate.state import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DConditionModel, UNet2DModel, VQModel

from slimdpm import ClassConditionalLDMPipeline, ClassEmbedder

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


def drawn():
    """A context in which figures are drawn, as they are for a user; in the tests' other reports they are empty."""
    from matplotlib.figure import Figure

    return patch.object(Figure, "savefig", Figure.savefig.__wrapped__)


@dataclass
class Done:
    """What became of a process; a signal that ended it is a negative code."""

    code: int
    out: str
    err: str


class Forked:
    """A function at work in a process of its own, which is forked from this one: torch and diffusers are there at once.

    Signals, loggers, warnings and streams are in it as in a new process. It ends as Python would: 0 after the
    function, the code of a `SystemExit`, 1 after a traceback.
    """

    def __init__(self, function: Callable[[], object], environment: Mapping[str, str] | None = None):
        self._streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._process = os.fork()
        if self._process == 0:
            code = 1
            try:
                self._become(environment or {})
                function()
                code = 0
            except SystemExit as stopped:
                code = stopped.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def _become(self, environment: Mapping[str, str]) -> None:
        gc.freeze()  # nothing of the parent's is finalized here
        for number, stream in enumerate(self._streams, 1):
            os.dup2(stream.fileno(), number)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(LONG)
        logging.root.handlers.clear()
        warnings.resetwarnings()
        os.environ.update(environment)
        PartialState._reset_state()  # of accelerate: the parent may have been one of one process

    def wait(self) -> Done:
        code = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read().decode())
            stream.close()
        return Done(code, *texts)


def command(*words: object, before: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """What a process does that is started as ``slimdpm WORDS``, after it has done something of the test's."""

    def run() -> None:
        from slimdpm.cli import main as cli

        sys.argv = ["slimdpm", *map(str, words)]
        before()
        cli.main()

    return run


def struck(number: int, owner: type, method: str, when: Callable[..., bool]) -> Callable[[], None]:
    """To be done before a command: it gets a signal from itself, so that no clock decides when.

    Args:
        number: of the signal.
        owner: the class of slimdpm at whose method's call it comes.
        method: its name.
        when: of the method's arguments: at which of its calls.
    """

    def prepare() -> None:
        true = getattr(owner, method)

        def replaced(*args, **kwargs):
            if when(*args, **kwargs):
                os.kill(os.getpid(), number)
            return true(*args, **kwargs)

        setattr(owner, method, replaced)

    return prepare


def launch(function: Callable[[], object]) -> list[Done]:
    """Two processes at work that know of each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    both = [Forked(function, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]
    return [process.wait() for process in both]
