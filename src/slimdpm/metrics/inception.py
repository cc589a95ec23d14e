"""The Inception-v3 network that FID is defined by: TensorFlow's graph of 2015-12-05, with its resizing and its quirks.

It differs from the usual Inception-v3: bilinear resizing without half-pixel centres, average pooling that leaves the
padding out, a maximum in place of the last average, and 1008 classes. Layers carry the names of the PyTorch
conversion of the weights that pytorch-fid and torch-fidelity share, so that file loads as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimdpm.system.errors import SlimdpmError, first_line
from slimdpm.system.hashing import file_digest

SIZE = 299
FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256_PREFIX = "6726825d"

Layer = tuple[str, int, tuple[int, int]]  # name, channels out, kernel; stride 1, padded to keep the size
Branch = tuple[str, tuple[Layer | tuple[Layer, Layer], ...]]  # what comes first ("", "average", "max"), layers


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Any, stride: int = 1, padding: Any = 0):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches whose outputs are concatenated.

    Args:
        channels: of the input.
        branches: each a pooling (or none) and layers; a pair of layers in the last place splits the branch in two.
        halve: the last convolution of each branch, and the pooling, have stride 2 and no padding.
    """

    def __init__(self, channels: int, branches: tuple[Branch, ...], halve: bool = False):
        super().__init__()
        self.branches, self.halve = branches, halve
        for _, layers in branches:
            width = channels
            for i, layer in enumerate(layers):
                last = halve and i == len(layers) - 1
                for name, out, kernel in _each(layer):
                    padding = 0 if last else (kernel[0] // 2, kernel[1] // 2)
                    setattr(self, name, ConvBlock(width, out, kernel, 2 if last else 1, padding))
                width = _each(layer)[0][1]

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for pooling, layers in self.branches:
            y = [self._pool(x, pooling)]
            for layer in layers:
                y = [getattr(self, name)(y[0]) for name, _, _ in _each(layer)]
            outputs += y
        return torch.cat(outputs, dim=1)

    def _pool(self, x: Tensor, pooling: str) -> Tensor:
        if pooling == "average":
            return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        if pooling == "max":
            return F.max_pool2d(x, 3, stride=2) if self.halve else F.max_pool2d(x, 3, stride=1, padding=1)
        return x


def _each(layer: Any) -> tuple[Layer, ...]:
    """A layer, or the two into which a branch splits."""
    return (layer,) if isinstance(layer[0], str) else layer


def _chain(name: str, *layers: tuple[int, int, int]) -> Branch:
    """A branch of layers ``name_1``, ``name_2``, ...; each is (channels, kernel height, kernel width)."""
    return "", tuple((f"{name}_{i}", out, (high, wide)) for i, (out, high, wide) in enumerate(layers, 1))


def _block_35(channels: int, pool: int) -> Mixed:
    return Mixed(
        channels,
        (
            ("", (("branch1x1", 64, (1, 1)),)),
            _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
            _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
            ("average", (("branch_pool", pool, (1, 1)),)),
        ),
    )


def _block_17(n: int) -> Mixed:
    return Mixed(
        768,
        (
            ("", (("branch1x1", 192, (1, 1)),)),
            _chain("branch7x7", (n, 1, 1), (n, 1, 7), (192, 7, 1)),
            _chain("branch7x7dbl", (n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)),
            ("average", (("branch_pool", 192, (1, 1)),)),
        ),
    )


def _block_8(channels: int, pooling: str) -> Mixed:
    def split(name: str) -> tuple[Layer, Layer]:
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    return Mixed(
        channels,
        (
            ("", (("branch1x1", 320, (1, 1)),)),
            ("", (("branch3x3_1", 384, (1, 1)), split("branch3x3_2"))),
            ("", (("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)), split("branch3x3dbl_3"))),
            (pooling, (("branch_pool", 192, (1, 1)),)),
        ),
    )


class InceptionV3(nn.Module):
    """uint8 images to pooled features and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBlock(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvBlock(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvBlock(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvBlock(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBlock(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_35(192, 32), _block_35(256, 64), _block_35(288, 64)
        self.Mixed_6a = Mixed(
            288,
            (
                ("", (("branch3x3", 384, (3, 3)),)),
                _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
                ("max", ()),
            ),
            halve=True,
        )
        self.Mixed_6b, self.Mixed_6c = _block_17(128), _block_17(160)
        self.Mixed_6d, self.Mixed_6e = _block_17(160), _block_17(192)
        self.Mixed_7a = Mixed(
            768,
            (
                _chain("branch3x3", (192, 1, 1), (320, 3, 3)),
                _chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)),
                ("max", ()),
            ),
            halve=True,
        )
        self.Mixed_7b, self.Mixed_7c = _block_8(1280, "average"), _block_8(2048, "max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits.

        Args:
            images: ``(B, 3, H, W)`` of values 0 to 255.

        Returns:
            features ``(B, 2048)`` and logits without bias ``(B, 1008)``, as the Inception Score takes them.
        """
        x = (resize_like_tensorflow_1(images.float(), SIZE) - 128) / 128  # (B, 3, 299, 299)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6a(x)  # (B, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))  # (B, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        features = x.mean(dim=(2, 3))  # (B, 2048)
        return features, features @ self.fc.weight.T


def resize_like_tensorflow_1(x: Tensor, size: int) -> Tensor:
    """Bilinear resizing ``(B, C, H, W)`` → ``(B, C, size, size)`` with pixel i of the output at ``i · H / size``.

    No half-pixel centres, no antialiasing: TensorFlow 1's ``resize_bilinear`` with ``align_corners=False``.
    """
    for dim in (2, 3):
        length = x.shape[dim]
        place = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
        low = place.long()
        high = (low + 1).clamp_max(length - 1)
        weight = (place - low).reshape(-1, 1) if dim == 2 else place - low
        below, above = x.index_select(dim, low), x.index_select(dim, high)
        x = below + (above - below) * weight
    return x


def load_inception(weights: Path | None = None) -> InceptionV3:
    """The network with the standard weights, from a file or downloaded once into torch's hub folder.

    Raises:
        SlimdpmError: if the file is missing, is another file, or cannot be downloaded.
    """
    path = weights if weights is not None else _downloaded()
    if not path.is_file():
        raise SlimdpmError(f"{path} does not exist; {_where()}")
    digest = file_digest(path, "sha256")
    if not digest.startswith(SHA256_PREFIX):
        raise SlimdpmError(f"{path} is not the standard Inception file (SHA-256 {digest[:8]}...); {_where()}")
    with torch.device("meta"):
        network = InceptionV3()
    # weights_only: nothing in the file is executed. The number of batches seen is no part of the network.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    return network.eval().requires_grad_(False)


def _downloaded() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256_PREFIX, progress=False)
        except Exception as error:  # a connection breaks in many ways
            reason = getattr(error, "reason", None) or first_line(error)
            raise SlimdpmError(f"the Inception weights cannot be downloaded ({reason}); {_where()}") from None
    return path


def _where() -> str:
    return (
        f"get {FILE} (91 MB, SHA-256 {SHA256_PREFIX}...) from {URL} and give it as --inception-weights PATH, "
        "or choose another --extractor"
    )
