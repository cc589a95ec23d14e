"""Named networks: each row of the paper's complexity tables as teacher, Lite and Spectral.

``slimdpm profile NAME`` prints what each costs. The students of the paper are 64 channels wide (96 for
text-to-image); where the paper's width is not known the preset uses 64 and says so in its note.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdpm.method.networks import check_known, completed
from slimdpm.system.documents import read_json
from slimdpm.system.errors import SlimdpmError
from slimdpm.system.packaged import packaged_pipeline


@dataclass(frozen=True)
class Preset:
    """A network by name.

    `paper` holds the paper's own figures, (parameters, conv+linear MACs), None where it gives none; `recalled` says
    that they were not checked against the paper's page.
    """

    name: str
    config: dict[str, Any]
    note: str
    tokens: int = 77
    paper: tuple[float | None, float | None] = (None, None)
    recalled: bool = False


def _ldm4(width: int, name: str = "UNet2DModel") -> dict[str, Any]:
    """LDM-4, unconditional: 256x256 images as 64x64x3 latents."""
    return {
        "_class_name": name,
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [width * m for m in (1, 2, 3, 4)],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 32,
        "norm_num_groups": 32,
    }


def _ldm8_church(width: int, name: str = "UNet2DModel") -> dict[str, Any]:
    """LDM-8: 256x256 images as 32x32x4 latents; resampling inside residual blocks, scale-shift norm."""
    return {
        "_class_name": name,
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [width * m for m in (1, 2, 2, 4, 4)],
        "layers_per_block": 2,
        # The level without attention is the Resnet* block: plain Down/UpBlock2D have no resampling in residual form.
        "down_block_types": ["AttnDownBlock2D"] * 4 + ["ResnetDownsampleBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D"] + ["AttnUpBlock2D"] * 4,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "attention_head_dim": width // 8,
        "norm_num_groups": 32,
    }


def _ldm4_imagenet(width: int, name: str = "UNet2DConditionModel") -> dict[str, Any]:
    """LDM-4, class-conditional: the label's embedding is the one token of cross-attention."""
    return {
        "_class_name": name,
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [width * m for m in (1, 2, 3, 5)],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
        "attention_head_dim": 1,  # diffusers' name for the number of heads
        "cross_attention_dim": 512,
        "norm_num_groups": 32,
    }


def _sd_v1(width: int, name: str = "UNet2DConditionModel") -> dict[str, Any]:
    """Text-to-image, Stable Diffusion v1: 512x512 images as 64x64x4 latents, 77 tokens of 768 numbers."""
    return {
        "_class_name": name,
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [width * m for m in (1, 2, 4, 4)],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": 8,  # diffusers' name for the number of heads
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
    }


def _pixel(size: int, channels: list[int], attention: list[bool], layers: int) -> dict[str, Any]:
    """A small U-Net in pixel space, to be trained at home as a teacher."""
    return {
        "_class_name": "UNet2DModel",
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        "attention_head_dim": 16,
        "norm_num_groups": 8,
    }


def _rows() -> list[Preset]:
    plain, gated = "UNet2DModel", "SpectralUNet2DModel"
    plain_cond, gated_cond = "UNet2DConditionModel", "SpectralUNet2DConditionModel"
    ours = "width chosen by slimdpm; the paper's is not known to us"
    return [
        Preset("ldm4", _ldm4(224, plain), "teacher: FFHQ, CelebA-HQ, LSUN-Bedroom", paper=(274.1e6, 96.1e9)),
        Preset("ldm4-lite", _ldm4(64, plain), "the paper's Lite baseline", paper=(22.4e6, 7.9e9)),
        Preset("ldm4-spectral", _ldm4(64, gated), "the paper's student", paper=(21.1e6, 6.7e9)),
        Preset(
            "ldm8-church", _ldm8_church(192, plain), "teacher: LSUN-Church", paper=(294.96e6, 18.7e9), recalled=True
        ),
        Preset("ldm8-church-lite", _ldm8_church(64, plain), ours),
        Preset("ldm8-church-spectral", _ldm8_church(64, gated), ours),
        Preset("ldm4-imagenet", _ldm4_imagenet(192, plain_cond), "teacher: ImageNet", tokens=1, paper=(400e6, None)),
        Preset("ldm4-imagenet-lite", _ldm4_imagenet(64, plain_cond), ours, tokens=1),
        Preset("ldm4-imagenet-spectral", _ldm4_imagenet(64, gated_cond), ours, tokens=1),
        Preset(
            "sd-v1",
            _sd_v1(320, plain_cond),
            "teacher: text-to-image, Stable Diffusion v1",
            paper=(860e6, None),
            recalled=True,
        ),
        Preset("sd-v1-lite", _sd_v1(96, plain_cond), "Lite at the width of the paper's student"),
        Preset("sd-v1-spectral", _sd_v1(96, gated_cond), "the paper's student", paper=(77.6e6, None), recalled=True),
        Preset("pixel-32", _pixel(32, [32, 64, 128], [False, False, True], 1), "the demo's teacher, 32x32 pixels"),
        Preset("pixel-64", _pixel(64, [32, 64, 96, 128], [False, False, False, True], 1), "a teacher for 64x64 pixels"),
    ]


PRESETS: dict[str, Preset] = {preset.name: preset for preset in _rows()}


def find_network(name: str) -> Preset:
    """A network by preset, by its config.json, by a folder that has one (U-Net, pipeline, run), or by a name of ours.

    Raises:
        SlimdpmError: if there is no such network.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = packaged_pipeline(name) or Path(name).expanduser()
    for file in (path, *(path / part / "config.json" for part in (".", "unet", "student/unet"))):
        if file.is_file():
            try:
                config = read_json(file)
            except SlimdpmError as error:
                raise SlimdpmError(f"{file} is no config.json of a network ({error})") from None
            if not isinstance(config, dict) or "block_out_channels" not in config:
                raise SlimdpmError(f"{file} is no config of a U-Net")
            check_known(config.get("_class_name"))
            embedded = (file.parent.parent / "class_embedder").is_dir()  # the one token of a class-conditional pipeline
            return Preset(name, completed(config), str(file), tokens=1 if embedded else 77)
    if path.exists():
        raise SlimdpmError(f"{name} holds no config.json of a U-Net")
    raise SlimdpmError(f"no preset and no folder is called {name!r}; the presets are {', '.join(PRESETS)}")
