"""Inputs that are whole: tiny teachers, data, original checkpoints, a run, samples and an evaluation of it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS))  # for the tests' own tiny networks

SIZE = 16
QUICK = [
    "train.batch_size=2",
    "train.trackers=[]",
    "train.sample_every=0",
    "samples.count=2",
    "samples.steps=1",
    "data.workers=0",
    "student.width=8",
]
RUN_STEPS, LONGER = 4, 6
ORIGINALS = ("ffhq", "cin256-v2")


def sets(*settings: str) -> list[str]:
    """As words of the command line."""
    return [word for setting in settings for word in ("--set", setting)]


@dataclass
class Base:
    """Paths of what is whole. `run` is finished at step 4 with a checkpoint at 2; `longer` is it, resumed to 6."""

    folder: Path
    quick: bool = False  # commands of a fraction of a second alone, and no runs to damage

    def __getattr__(self, name: str) -> Path:
        """Any of what `build` makes, by name."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self.folder / name

    def teacher(self, name: str) -> Path:
        return self.folder / "teachers" / name

    def run_words(self, output: Path, steps: int = RUN_STEPS) -> list[Any]:
        """The command whose run `run` is."""
        extra = sets(*QUICK, "train.checkpoint_every=2", "train.ema=0.5")
        return ["slim", self.teacher("pixel"), self.images, "-o", output, "--steps", steps, *extra]

    def latent_words(self, output: Path, cache: Path) -> list[Any]:
        """The command whose run is `latent-run`, with what it keeps in `cache`."""
        extra = sets(*QUICK, f"data.cache={cache}")
        return ["slim", self.teacher("latent"), self.images, "-o", output, "--steps", 2, *extra]

    def evaluate_words(self, output: Path) -> list[Any]:
        """The command whose results lie in `evaluation`."""
        measured = [self.teacher("pixel"), "--against", self.images, "-n", 12, "--steps", 1]
        return ["evaluate", *measured, "--extractor", self.extractor, "-o", output, "--json"]

    def sample_words(self, output: Path) -> list[Any]:
        """The command whose images lie in `samples`."""
        return ["sample", self.teacher("pixel"), "-n", 4, "--steps", 1, "-o", output]

    def import_words(self, output: Path) -> list[list[Any]]:
        """The commands that import the original checkpoints."""
        originals = self.folder / "originals"
        pairs = {name: (originals / name / "model.ckpt", originals / name / "config.yaml") for name in ORIGINALS}
        pairs["sd"] = (originals / "sd" / "sd.safetensors", originals / "sd" / "configs")
        return [["import", file, "--config", config, "-o", output / name] for name, (file, config) in pairs.items()]

    @property
    def extractor(self) -> Path:
        return self.folder / "features.onnx"


def picture(rng: np.random.Generator, size: tuple[int, int] = (20, 24), channels: int = 3) -> np.ndarray:
    """Smooth noise, ``(H, W, C)`` uint8."""
    small = Image.fromarray(rng.integers(0, 256, (4, 5, channels), dtype=np.uint8).squeeze())
    array = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC))
    return array if array.ndim == 3 else array[..., None]


def build(folder: Path, quick: bool = False) -> Base:
    """Make all of it; takes half a minute, and without the runs a few seconds."""
    base = Base(folder, quick)
    _teachers(base)
    _data(base)
    _extractor(base)
    _originals(base)
    if quick:
        return base
    for words in (
        base.run_words(base.folder / "run"),
        base.latent_words(base.folder / "latent-run", base.folder / "latent-cache"),
        base.evaluate_words(base.folder / "evaluation"),
        base.sample_words(base.folder / "samples"),
    ):
        command(words)
    shutil.copytree(base.folder / "run", base.folder / "longer")
    command(base.run_words(base.folder / "longer", LONGER))
    return base


def command(words: list[Any]) -> None:
    """In this process; raises whatever goes wrong."""
    from slimdpm.cli.main import app

    app([str(word) for word in words], standalone_mode=False)


def _teachers(base: Base) -> None:
    import torch
    from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel, VQModel
    from helpers import (
        TINY,
        TINY_RESNET,
        class_pipeline,
        embedded_class_pipeline,
        latent_pipeline,
        text_pipeline,
        xl_pipeline,
    )

    torch.manual_seed(0)
    scratch = base.folder / "tokenizer"
    scratch.mkdir(parents=True)
    pipelines = {
        "pixel": DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()),
        "resnet": DDPMPipeline(UNet2DModel(**TINY_RESNET), DDPMScheduler(num_train_timesteps=20)),
        "latent": latent_pipeline(VQModel),
        "kl": latent_pipeline(AutoencoderKL),
        "class": class_pipeline(),
        "embedded": embedded_class_pipeline(),
        "text": text_pipeline(scratch),
        "xl": xl_pipeline(scratch),
    }
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(base.teacher(name))
    (base.folder / "net.json").write_text(json.dumps({**TINY, "_class_name": "UNet2DModel"}))


def _data(base: Base) -> None:
    rng = np.random.default_rng(0)
    arrays = [picture(rng) for _ in range(12)]
    names = [f"{i:02d}.png" for i in range(12)]
    classes, captions = ["boots", "coat", "dress"], ["ab", "a dress", "coat b"]
    rows = [{"file_name": n, "label": classes[i % 3], "text": captions[i % 3]} for i, n in enumerate(names)]
    for place in ("images", "labelled", "captioned", "tabled"):
        (base.folder / place).mkdir()
        for name, array in zip(names, arrays, strict=True):
            Image.fromarray(array).save(base.folder / place / name)
    for i, array in enumerate(arrays):
        (base.folder / "classes" / classes[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(base.folder / "classes" / classes[i % 3] / names[i])
    (base.folder / "labelled" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i, name in enumerate(names):
        (base.folder / "captioned" / name).with_suffix(".txt").write_text(captions[i % 3])
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys())
    table.writeheader()
    table.writerows(rows)
    (base.folder / "tabled" / "metadata.csv").write_text(text.getvalue())
    squares = np.stack([array[:16, :16] for array in arrays])
    np.savez(base.folder / "images.npz", images=squares, labels=np.arange(12) % 3, captions=np.array(captions * 4))
    np.save(base.folder / "images.npy", squares)
    with tarfile.open(base.folder / "images.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, name in enumerate(names):
            data = (base.folder / "images" / name).read_bytes()
            for path, content in ((name, data), (f"{i:02d}.cls", b"%d" % (i % 3)), (f"{i:02d}.txt", b"a dress")):
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    np.savez(base.folder / "stats.npz", mu=np.zeros(6), sigma=np.eye(6))


def _extractor(base: Base) -> None:
    """One convolution and an average, as ONNX: six features."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(1).normal(size=(6, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "weight"], ["maps"], strides=[2, 2]),
            helper.make_node("Relu", ["maps"], ["positive"]),
            helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
        ],
        "features",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, base.extractor)


def _originals(base: Base) -> None:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from reference_ldm import FirstStage, UNetModel
    from safetensors.torch import save_file
    from test_import import SD_UNET, SD_VAE
    from test_originals import original, reduced

    torch.manual_seed(0)
    for name in ORIGINALS:
        values = reduced(name)
        values["model"]["params"]["unet_config"]["params"].update(channel_mult=[1, 2], num_res_blocks=1)
        values["model"]["params"]["unet_config"]["params"]["attention_resolutions"] = [2]
        (base.folder / "originals" / name).mkdir(parents=True)
        original(values, base.folder / "originals" / name)

    text = StableDiffusionPipeline.from_pretrained(base.teacher("text"))
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1}
    unet = UNet2DConditionModel(
        **blocks,
        cross_attention_dim=16,
        attention_head_dim=4,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        **blocks,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    )
    config = type(text.text_encoder.config)(**{**text.text_encoder.config.to_dict(), "hidden_size": 16})
    clip = type(text.text_encoder)(config)
    whole = StableDiffusionPipeline(
        vae, clip, text.tokenizer, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )
    folder = base.folder / "originals" / "sd"
    whole.save_pretrained(folder / "configs")
    for file in (folder / "configs").rglob("*.safetensors"):
        file.unlink()
    networks: dict[str, Any] = {
        "model.diffusion_model.": UNetModel(SD_UNET),
        "first_stage_model.": FirstStage({"embed_dim": 4, "ddconfig": SD_VAE}),
        "cond_stage_model.transformer.": clip,
    }
    state = {}
    for prefix, network in networks.items():
        for name, tensor in network.state_dict().items():
            inside = "text_model." if prefix.startswith("cond") and not name.startswith("text_model.") else ""
            state[prefix + inside + name] = tensor.contiguous()
    save_file(state, folder / "sd.safetensors")
