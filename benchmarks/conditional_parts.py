"""What conditional.py needs beside slimdpm: photographs with classes and captions, an autoencoder, and a text-to-image
pipeline to begin with.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from slimdpm.data.images import pixels, square, to_model_range, to_pixels
from slimdpm.method.networks import build
from slimdpm.metrics.extractors import Extractor
from slimdpm.system.files import atomic_file, atomic_folder
from slimdpm.system.progress import Display

PLURAL = {"pants", "shoes", "shorts"}
TEMPLATES = ("a photo of {}", "{} in a photo", "a picture of {}")  # the first is what samples are asked for
TOKENS = 16  # of a caption, at most
HIDDEN = 64  # of the text encoder


def caption(name: str, template: int = 0) -> str:
    """``"a photo of a dress"``."""
    return TEMPLATES[template % len(TEMPLATES)].format(name if name in PLURAL else f"a {name}")


def prepare_photos(data: Path, size: int, folder: Path) -> list[str]:
    """``train.npz`` and ``evaluation.npz`` with images, labels and captions, squares cut from the centre and shrunk
    with a Lanczos filter. Returns the classes' names.

    Args:
        data: an .npz of images with ``names`` such as ``train/dress/1.jpg``.
        size: of a square in pixels.
        folder: of the files.
    """
    with np.load(data) as arrays:
        names = [str(name).split("/") for name in arrays["names"]]
        images = arrays["images"]
    classes = np.array([name[1] for name in names])
    captions = np.array([caption(name, i) for i, name in enumerate(classes)])
    training = np.array([name[0] == "train" for name in names])
    for part, chosen in (("train", training), ("evaluation", ~training)):
        if not (file := folder / f"{part}.npz").exists():
            with atomic_file(file) as temporary, temporary.open("wb") as stream:
                squares = np.stack([_square(image, size) for image in images[chosen]])
                np.savez(stream, images=squares, labels=classes[chosen], captions=captions[chosen])
    return sorted(set(classes.tolist()))


def _square(image: np.ndarray, size: int) -> np.ndarray:
    return pixels(square(Image.fromarray(image), size, interpolation="lanczos"))


def train_autoencoder(images: np.ndarray, folder: Path, steps: int, display: Display) -> AutoencoderKL:
    """A KL autoencoder that halves height and width, for uint8 images ``(N, H, W, 3)``; trained once.

    Absolute error, and a KL divergence of weight 1e-4, so that its latents are smooth; its scaling factor makes their
    deviation 1.
    """
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=images.shape[1],
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(0)
    for _ in display.track(range(steps), steps, "autoencoder", "steps"):
        x = _batch(images, rng.integers(0, len(images), 32))
        posterior = model.encode(x).latent_dist
        loss = F.l1_loss(model.decode(posterior.sample()).sample, x) + 1e-4 * posterior.kl().mean() / x[0].numel()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        latents = model.encode(_batch(images, np.arange(0, len(images), 8))).latent_dist.mode()
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
    return model


def _batch(images: np.ndarray, chosen: np.ndarray) -> Tensor:
    return to_model_range(torch.from_numpy(images[chosen]).permute(0, 3, 1, 2))


@torch.no_grad()
def reconstructed(model: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of images, uint8 ``(N, H, W, 3)``."""
    parts = []
    for chosen in np.array_split(np.arange(len(images)), max(len(images) // 64, 1)):
        parts.append(to_pixels(model.decode(model.encode(_batch(images, chosen)).latent_dist.mode()).sample))
    return np.concatenate(parts)


def text_pipeline(folder: Path, autoencoder: AutoencoderKL, unet: dict, classes: list[str]) -> None:
    """Stable Diffusion's parts in small, untrained, saved for ``slimdpm train --like``.

    The text encoder is CLIP's, with random weights that stay: it tells captions apart, and what they mean is learnt by
    the U-Net.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if folder.exists():
        return
    torch.manual_seed(0)
    with atomic_folder(folder) as temporary:
        words = sorted({part for name in classes for i in range(len(TEMPLATES)) for part in _words(caption(name, i))})
        _write_vocabulary(words, temporary)
        tokenizer = CLIPTokenizer(str(temporary / "vocab.json"), str(temporary / "merges.txt"), model_max_length=TOKENS)
        last = len(tokenizer) - 1
        encoder = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=last - 1,
            eos_token_id=last,
            pad_token_id=last,
        )
        StableDiffusionPipeline(
            vae=autoencoder,
            text_encoder=CLIPTextModel(encoder).eval(),
            tokenizer=tokenizer,
            unet=build(unet),
            scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(temporary)
        (temporary / "vocab.json").unlink()
        (temporary / "merges.txt").unlink()


def _words(text: str) -> list[str]:
    return text.replace("-", " - ").split()


def _write_vocabulary(words: list[str], folder: Path) -> None:
    """CLIP's byte pairs, such that each of the words is one token."""
    letters = sorted({letter for word in words for letter in word})
    merges = []
    for word in words:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            merges.append(f"{symbols[0]} {symbols[1]}")
            symbols[:2] = ["".join(symbols[:2])]
    merges = list(dict.fromkeys(merges))
    joined = [merge.replace(" ", "") for merge in merges]
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *joined])
    vocabulary = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def kept_features(extractor: Extractor, images: np.ndarray, file: Path, display: Display) -> np.ndarray:
    """Features ``(N, D)`` of uint8 images, computed once."""
    if not file.exists():
        parts = np.array_split(images, max(len(images) // 64, 1))
        found = [extractor(part)[0] for part in display.track(parts, len(parts), file.stem, "batches")]
        with atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, np.concatenate(found))
    return np.load(file)
