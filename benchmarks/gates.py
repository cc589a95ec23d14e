"""WG-Down and WG-Up beside the layers that they replace and beside two wavelet libraries.

    pip install pytorch_wavelets ptwt "setuptools<80"   # for the comparison alone
    python benchmarks/gates.py

The libraries do as much as our layer: the same gates, their transform in place of our fused one (and, for WG-Up, the
same expansion before it). Forward, and forward with the gradients of input and parameters; both layouts of memory,
float32, one thread, processor time, medians of alternating runs. A row that is in the result already is not measured
again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ptwt
import pytorch_wavelets
import torch
from ablation.tables import markdown
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from slimdpm.method.latency import FORMATS, timings
from slimdpm.system.documents import read_json
from slimdpm.system.files import write_json
from slimdpm.system.machine import machine_facts
from slimdpm.wavelet import WaveletGatingDown, WaveletGatingUp

SHAPES = ((1, 24, 16, 16), (8, 64, 64, 64), (8, 128, 32, 32))
SECONDS = 6  # for a row, about; 5 rounds at least and 201 at most


class PlainDown(nn.Module):
    """WG-Down with another's transform, from ``(B, C, H, W)`` to the four sub-bands."""

    def __init__(self, gated: WaveletGatingDown, transform: Callable[[Tensor], tuple[Tensor, ...]]):
        super().__init__()
        self.gate, self.transform = gated.gate, transform

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x)[..., None, None].unbind(1)
        return sum(g * band for g, band in zip(gates, self.transform(x), strict=True))  # type: ignore[return-value]


class PlainUp(nn.Module):
    """WG-Up with another's inverse transform of the four sub-bands."""

    def __init__(self, gated: WaveletGatingUp, inverse: Callable[..., Tensor]):
        super().__init__()
        self.gate, self.expand, self.inverse = gated.gate, gated.expand, inverse

    def forward(self, x: Tensor) -> Tensor:
        chunks = self.expand(x).chunk(4, dim=1)  # type: ignore[misc]
        return self.inverse(*(c * g for c, g in zip(chunks, self.gate(x)[..., None, None].unbind(1), strict=True)))


def layers(kind: str, channels: int) -> dict[str, nn.Module]:
    """Ours, what it replaces, and ours with the transforms of the libraries."""
    if kind == "down":
        ours, forward = WaveletGatingDown(channels), pytorch_wavelets.DWTForward(J=1, wave="haar", mode="zero")
        return {
            "ours": ours,
            "convolution": Downsample2D(channels, use_conv=True, padding=1),
            "pytorch_wavelets": PlainDown(ours, lambda x: _flat(*forward(x))),
            "ptwt": PlainDown(ours, lambda x: _flat2(*ptwt.wavedec2(x, "haar", level=1))),
        }
    up, inverse = WaveletGatingUp(channels), pytorch_wavelets.DWTInverse(wave="haar", mode="zero")
    return {
        "ours": up,
        "convolution": Upsample2D(channels, use_conv=True),
        "pytorch_wavelets": PlainUp(up, lambda a, h, v, d: inverse((a, [torch.stack((h, v, d), dim=2)]))),
        "ptwt": PlainUp(up, lambda a, h, v, d: ptwt.waverec2((a, ptwt.WaveletDetailTuple2d(h, v, d)), "haar")),
    }


def _flat(low: Tensor, high: list[Tensor]) -> tuple[Tensor, ...]:
    return low, *high[0].unbind(2)


def _flat2(low: Tensor, details: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    return low, *details


def calls(kind: str, shape: tuple[int, ...], layout: torch.memory_format, backward: bool) -> dict[str, Callable]:
    """One call of each layer, after it has been seen that the libraries give what ours gives."""
    torch.manual_seed(0)
    x = torch.randn(shape).to(memory_format=layout)
    made: dict[str, Callable] = {}
    found = {name: layer.to(memory_format=layout) for name, layer in layers(kind, shape[1]).items()}  # type: ignore[call-overload]
    for name, layer in found.items():
        if name != "convolution":
            torch.testing.assert_close(layer(x), found["ours"](x), atol=1e-4, rtol=1e-4)
        made[name] = _trained(layer, x, layout) if backward else lambda layer=layer: layer(x)
    return made


def _trained(layer: nn.Module, x: Tensor, layout: torch.memory_format) -> Callable:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    upstream = torch.ones_like(layer(x)).contiguous(memory_format=layout)

    def call() -> None:
        torch.autograd.grad(layer(leaf), (leaf, *layer.parameters()), upstream)

    return call


def measure(kind: str, shape: tuple[int, ...], layout: str, backward: bool) -> dict[str, Any]:
    """Microseconds by layer."""
    timed, device = calls(kind, shape, FORMATS[layout], backward), torch.device("cpu")
    start = time.process_time()
    timings(timed, device, rounds=1, clock=time.process_time, gradients=backward)
    rounds = min(201, max(5, round(2 * SECONDS / (time.process_time() - start))))
    found = timings(timed, device, rounds=rounds, clock=time.process_time, gradients=backward)
    return {"rounds": rounds, **{name: round(1e6 * latency.median, 1) for name, latency in found.items()}}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Milliseconds of each, and how many times faster ours is than the convolution and than the faster library."""
    names = ("ours", "convolution", "pytorch_wavelets", "ptwt")
    lines = []
    for row, found in rows.items():
        best = min(found["pytorch_wavelets"], found["ptwt"])
        ratios = [f"{other / found['ours']:.1f}" for other in (found["convolution"], best)]
        lines.append([row, *(f"{found[name] / 1000:.2f}" for name in names), *ratios])
    return markdown(["ms", *names, "than convolution", "than library"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/gates.json")
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = read_json(options.output)["rows"] if options.output.exists() else {}
    torch.set_num_threads(1)
    for shape in SHAPES:
        for kind in ("down", "up"):
            for layout in FORMATS:
                for backward in (False, True):
                    name = f"{kind} {shape}, {layout}, {'forward+backward' if backward else 'forward'}"
                    if name not in rows:
                        rows[name] = measure(kind, shape, layout, backward)
                        write_json(options.output, {"hardware": machine_facts(), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
