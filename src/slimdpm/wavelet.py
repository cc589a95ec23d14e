"""Wavelet gating: resampling that knows frequencies.

Section 4.1 of "Diffusion Probabilistic Model Made Slim" (Yang et al., CVPR 2023, arXiv 2211.17106).

The transform is the orthonormal Haar wavelet. For a 2x2 block with rows ``a b`` and ``c d``::

    LL = (a + b + c + d) / 2        LH = (a + b - c - d) / 2
    HL = (a - b + c - d) / 2        HH = (a - b - c + d) / 2

The first letter speaks of the width, the second of the height: LH is low along the width and high along the
height, so it answers to horizontal edges. This is the order of PyWavelets' ``cA, cH, cV, cD``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUBBANDS = ("LL", "LH", "HL", "HH")
EXPANSIONS = ("grouped", "dense", "none")
Gates = tuple[float, float, float, float]  # of LL, LH, HL, HH
LOW_PASS: Gates = (0.5, 0.05, 0.05, 0.05)  # at the start: near average pooling, while gradients reach all four
# From a, b, c, d to LL, LH, HL, HH and back: symmetric and orthonormal, hence its own inverse.
HAAR = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float32) / 2
_FEW = 2**14  # numbers in a tensor: below, the calls of a CPU cost more than its arithmetic


def _split_blocks(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four pixels ``a, b, c, d`` of each 2x2 block of ``x (..., H, W)``, each ``(..., H/2, W/2)``."""
    top, bottom = x.unflatten(-2, (-1, 2)).unbind(-2)  # (..., H/2, W)
    a, b = top.unflatten(-1, (-1, 2)).unbind(-1)
    c, d = bottom.unflatten(-1, (-1, 2)).unbind(-1)
    return a, b, c, d


def _butterfly(p: Tensor, q: Tensor, r: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`HAAR` applied to four tensors."""
    p, q, r, s = p + q, p - q, r + s, r - s
    return (p + r) / 2, (p - r) / 2, (q + s) / 2, (q - s) / 2


def haar_dwt2(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of the orthonormal 2-D Haar transform.

    Args:
        x: ``(..., H, W)``, any floating dtype, `H` and `W` even.

    Returns:
        The sub-bands ``LL, LH, HL, HH``, each ``(..., H/2, W/2)``. Their energies add up to that of `x`.

    Raises:
        ValueError: if `H` or `W` is odd. The transform of an odd size is not orthonormal; pad it first, as
            `WaveletGatingDown` does.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"haar_dwt2 needs an even height and width, got {tuple(x.shape[-2:])}; pad the input first")
    a, b, c, d = _split_blocks(x)
    return _butterfly(a, b, c, d)


def haar_idwt2(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor) -> Tensor:
    """The inverse of `haar_dwt2`.

    Args:
        ll, lh, hl, hh: the sub-bands, each ``(..., C, H, W)``, or ``(H, W)``.

    Returns:
        ``(..., C, 2H, 2W)``, in memory with the channels last: so whole pixels are copied to their places.
    """
    if ll.ndim == 2:
        return haar_idwt2(ll[None], lh[None], hl[None], hh[None])[0]
    a, b, c, d = (pixels.movedim(-3, -1) for pixels in _butterfly(ll, lh, hl, hh))  # (..., H, W, C)
    top = torch.stack((a, b), dim=-2).flatten(-3, -2)  # (..., H, 2W, C)
    bottom = torch.stack((c, d), dim=-2).flatten(-3, -2)  # (..., H, 2W, C)
    return torch.stack((top, bottom), dim=-3).flatten(-4, -3).movedim(-1, -3)  # (..., C, 2H, 2W)


def _in_graph() -> bool:
    """Whether the formulas shall stand as they are written.

    A compiler fuses them, and an exported or traced graph of them serves every batch size. Elsewhere calls cost.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class WaveletGate(nn.Module):
    """Gates from content: ``g = sigmoid(FFN(avgpool(X)))``, one for each sub-band and channel (section 4.1).

    The features carry the timestep, so the gates follow it without an input of their own.

    Args:
        channels: C.
        reduction: the hidden width of the FFN is ``C // reduction``.
        init: the gates of LL, LH, HL, HH before training, each strictly between 0 and 1.

    Shape: ``(B, C, H, W) -> (B, 4, C)``, values in (0, 1).
    """

    def __init__(self, channels: int, reduction: int = 4, init: Gates = (0.5, 0.5, 0.5, 0.5)):
        super().__init__()
        if len(init) != 4 or not all(0 < g < 1 for g in init):
            raise ValueError(f"the initial gates must be four numbers between 0 and 1, got {tuple(init)}")
        self.channels = channels
        self.init = tuple(init)
        hidden = max(channels // reduction, 1)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, 4 * channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at `init` whatever the content: the FFN's last weights are zero, its bias is ``logit(init)``."""
        nn.init.zeros_(self.excite.weight)
        logits = torch.tensor([math.log(g / (1 - g)) for g in self.init])
        self.excite.bias.copy_(logits.repeat_interleave(self.channels))

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.flatten(2).mean(2)  # (B, C)
        gates = torch.sigmoid(self.excite(F.silu(self.squeeze(pooled))))  # (B, 4C)
        return gates.unflatten(1, (4, self.channels))  # (B, 4, C)


class WaveletGatingDown(nn.Module):
    """WG-Down: the gated sum of the four Haar sub-bands (section 4.1), in place of diffusers' `Downsample2D`.

    ``X' = sum_i g_i * X_i``. The sub-bands are never materialised: the transform is linear, so the gates fold
    into one 2x2 filter for each sample and channel, which is the inverse transform of the gates themselves.

    Odd sizes are padded by repeating the last row or column, which gives ``ceil(H/2)``, the size of diffusers'
    strided convolution.

    Args:
        channels: C, kept.
        reduction: of the gates' FFN.
        gate_init: the gates of LL, LH, HL, HH before training. The default is close to average pooling.
        mix: mix the channels by a 1x1 convolution afterwards, which starts as the identity. The paper has none.

    Shape: ``(B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))``.
    """

    def __init__(self, channels: int, reduction: int = 4, gate_init: Gates = LOW_PASS, mix: bool = False):
        super().__init__()
        self.channels = channels
        self.gate = WaveletGate(channels, reduction, gate_init)
        self.mix: nn.Conv2d | None = None
        if mix:
            self.mix = nn.Conv2d(channels, channels, 1)
            nn.init.dirac_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, hidden_states: Tensor) -> Tensor:
        _, _, height, width = hidden_states.shape
        if height % 2 or width % 2:
            hidden_states = F.pad(hidden_states, (0, width % 2, 0, height % 2), mode="replicate")
        out = fused_gated_dwt2(hidden_states, self.gate(hidden_states))  # (B, C, H/2, W/2)
        return out if self.mix is None else self.mix(out)


def fused_gated_dwt2(x: Tensor, gates: Tensor) -> Tensor:
    """``sum_i g_i * DWT(x)_i`` as one 2x2 filter for each sample and channel.

    Args:
        x: ``(B, C, H, W)``, even sizes.
        gates: ``(B, 4, C)`` in the order LL, LH, HL, HH.

    Returns:
        ``(B, C, H/2, W/2)``.
    """
    batch, channels, height, width = x.shape
    if gates.is_cpu and not _in_graph():
        filters = gates.transpose(1, 2) @ HAAR.to(gates)  # (B, C, 4): w = H^T g
    else:
        filters = torch.stack(_butterfly(*gates.unbind(1)), dim=-1)
    few = x.is_cpu and x.numel() <= _FEW
    if _in_graph() or not (few or x.is_contiguous() or x.is_meta):  # what counts MACs on meta knows convolutions
        (a, b, c, d), (wa, wb, wc, wd) = _split_blocks(x), filters[..., None, None].unbind(2)
        return torch.addcmul(torch.addcmul(torch.addcmul(wa * a, wb, b), wc, c), wd, d)
    if few:
        blocks = F.pixel_unshuffle(x, 2).reshape(batch * channels, 4, -1)
        out = torch.bmm(filters.reshape(batch * channels, 1, 4), blocks)
    else:
        pixels = x.reshape(1, batch * channels, height, width)
        out = F.conv2d(pixels, filters.reshape(-1, 1, 2, 2), stride=2, groups=batch * channels)
    return out.view(batch, channels, height // 2, width // 2)


class WaveletGatingUp(nn.Module):
    """WG-Up: four gated chunks as wavelet coefficients, inverse transform (section 4.1), in place of `Upsample2D`.

    Args:
        channels: C, kept.
        reduction: of the gates' FFN.
        gate_init: the gates of LL, LH, HL, HH before training.
        expansion: how C channels become the 4C coefficients. ``"grouped"``: a 1x1 convolution with 4 groups, one
            quarter of the channels for each sub-band (the reading that gives the paper's budget); ``"dense"``: a
            full 1x1 convolution; ``"none"``: the gated copies of the input, without parameters.

    Shape: ``(B, C, H, W) -> (B, C, 2H, 2W)``, or ``output_size``, cut at the bottom and right, if one is given.

    Raises:
        ValueError: for an unknown expansion, for channels that are no multiple of 4 with ``"grouped"``, and for an
            `output_size` beyond twice the input.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        gate_init: Gates = LOW_PASS,
        expansion: str = "grouped",
    ):
        super().__init__()
        if expansion not in EXPANSIONS:
            raise ValueError(f"expansion must be one of {', '.join(EXPANSIONS)}, got {expansion!r}")
        if expansion == "grouped" and channels % 4:
            raise ValueError(f"the grouped expansion needs a multiple of 4 channels, got {channels}")
        self.channels = channels
        self.gate = WaveletGate(channels, reduction, gate_init)
        self.expand: nn.Conv2d | None = None
        if expansion != "none":
            self.expand = nn.Conv2d(channels, 4 * channels, 1, groups=4 if expansion == "grouped" else 1)

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        _, channels, height, width = hidden_states.shape
        gates = self.gate(hidden_states)  # (B, 4, C)
        if self.expand is None:
            coefficients = hidden_states[:, None] * gates[..., None, None]  # (B, 4, C, H, W)
            out = haar_idwt2(*coefficients.unbind(1))  # (B, C, 2H, 2W)
        elif hidden_states.is_cpu and height * width >= 8 * channels and not _in_graph():
            out = fused_gated_idwt2(hidden_states, gates, self.expand)
        else:
            coefficients = self.expand(hidden_states).unflatten(1, (4, channels)) * gates[..., None, None]
            out = haar_idwt2(*coefficients.unbind(1))
        if output_size is None:
            return out
        height, width = output_size
        if height > out.shape[-2] or width > out.shape[-1]:
            raise ValueError(
                f"output_size {tuple(output_size)} is larger than twice the input, {tuple(out.shape[-2:])}"
            )
        return out[..., :height, :width]


def fused_gated_idwt2(x: Tensor, gates: Tensor, expand: nn.Conv2d) -> Tensor:
    """``IDWT(g * expand(x))`` as one 1x1 convolution with filters for each sample, C to 4C, and a rearrangement.

    All three steps are linear. With ``W_sc`` and ``b_sc`` the expansion's filter and bias for sub-band s and channel
    c, pixel p of a 2x2 block is ``sum_s H_ps g_sc (W_sc x + b_sc)``. The filters are worth making where there are
    many more positions than channels.

    Args:
        x: ``(B, C, H, W)``.
        gates: ``(B, 4, C)`` in the order LL, LH, HL, HH.
        expand: 1x1, C to 4C, with 1 or 4 groups.

    Returns:
        ``(B, C, 2H, 2W)``, in memory with the channels last.
    """
    assert expand.bias is not None
    batch, channels, height, width = x.shape
    mixing = HAAR.to(gates) * gates.transpose(1, 2)[:, :, None]  # (B, C, 4, 4): H_ps g_sc
    weight = expand.weight.view(4, channels, -1).transpose(0, 1)  # (C, 4, C / groups)
    # (B, C, 4, C); with groups (B, C, 4, 4, C / 4): each sub-band sees a quarter of the channels
    filters = mixing @ weight if expand.groups == 1 else mixing[..., None] * weight[:, None]
    bias = mixing @ expand.bias.view(4, channels).t()[..., None]  # (B, C, 4, 1)
    out = torch.baddbmm(
        bias.reshape(batch, 1, 4 * channels),
        x.permute(0, 2, 3, 1).reshape(batch, height * width, channels),
        filters.reshape(batch, 4 * channels, channels).transpose(1, 2),
    )  # (B, HW, 4C)
    return F.pixel_shuffle(out.unflatten(1, (height, width)).permute(0, 3, 1, 2), 2)


@contextmanager
def record_gates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the gates of each resampler in `model` while the context is open.

    Yields:
        a dict from the resampler's name to its gates of the last forward pass, ``(B, 4, C)``, detached. It fills as
        the model runs. Outside of the context nothing is kept and nothing is paid.
    """
    gates: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            gates[name] = output.detach()

        return hook

    named = [(n.rpartition(".")[0], m) for n, m in model.named_modules() if isinstance(m, WaveletGate)]
    handles = [module.register_forward_hook(keep(name)) for name, module in named]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()
