"""Wavelet gating against PyWavelets and against the plain four-band form."""

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from slimdpm.wavelet import (
    SUBBANDS,
    WaveletGate,
    WaveletGatingDown,
    WaveletGatingUp,
    fused_gated_dwt2,
    haar_dwt2,
    haar_idwt2,
    record_gates,
)


def four_band_down(x, gates):
    """WG-Down as the paper writes it: transform, gate each sub-band, add."""
    return sum(g[..., None, None] * band for g, band in zip(gates.unbind(1), haar_dwt2(x), strict=True))


def randomised(module):
    """Gates that depend on the content, unlike at the start of training."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (2, 4)])
def test_transform_equals_pywavelets(shape):
    x = np.random.default_rng(0).standard_normal((2, 3, *shape))
    approximation, (horizontal, vertical, diagonal) = pywt.dwt2(x, "haar")
    ours = haar_dwt2(torch.from_numpy(x))
    for name, band, theirs in zip(SUBBANDS, ours, (approximation, horizontal, vertical, diagonal), strict=True):
        np.testing.assert_allclose(band.numpy(), theirs, atol=1e-12, err_msg=name)
    single = haar_dwt2(torch.from_numpy(x.astype(np.float32)))
    np.testing.assert_allclose(single[0].numpy(), approximation, atol=1e-6)
    back = haar_idwt2(*(torch.from_numpy(b) for b in (approximation, horizontal, vertical, diagonal)))
    np.testing.assert_allclose(back.numpy(), pywt.idwt2((approximation, (horizontal, vertical, diagonal)), "haar"))


def test_names_say_which_frequency():
    stripes = torch.tensor([1.0, -1.0]).repeat(4)
    across = stripes.expand(8, 8)  # changes along the width: high there, low along the height
    energy = {name: band.square().sum().item() for name, band in zip(SUBBANDS, haar_dwt2(across), strict=True)}
    assert energy == {"LL": 0, "LH": 0, "HL": 64, "HH": 0}
    energy = {name: band.square().sum().item() for name, band in zip(SUBBANDS, haar_dwt2(across.T), strict=True)}
    assert energy == {"LL": 0, "LH": 64, "HL": 0, "HH": 0}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)]
)
def test_reconstruction_and_energy(dtype, tolerance):
    x = torch.randn(2, 3, 12, 8, dtype=dtype)
    bands = haar_dwt2(x)
    assert all(band.dtype == dtype for band in bands)
    torch.testing.assert_close(haar_idwt2(*bands), x, atol=tolerance, rtol=0)
    energy = sum(band.double().square().sum() for band in bands)
    torch.testing.assert_close(energy, x.double().square().sum(), rtol=tolerance, atol=0)


def test_a_plane_without_channels_comes_back():
    x = torch.randn(12, 8)
    torch.testing.assert_close(haar_idwt2(*haar_dwt2(x)), x)


def test_odd_sizes_are_refused_by_the_transform():
    with pytest.raises(ValueError, match="even height and width"):
        haar_dwt2(torch.zeros(1, 1, 3, 4))


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("batch", "channels", "size"), [(1, 4, 4), (3, 8, 16), (2, 16, 64)])
def test_fused_gating_equals_four_bands_in_value_and_gradient(batch, channels, size, layout):
    torch.manual_seed(1)
    x = torch.randn(batch, channels, size, size).to(memory_format=layout).requires_grad_()
    gates = torch.rand(batch, 4, channels, requires_grad=True)
    upstream = torch.randn(batch, channels, size // 2, size // 2)
    results = []
    for gating in (fused_gated_dwt2, four_band_down):
        out = gating(x, gates)
        results.append((out, *torch.autograd.grad(out, (x, gates), upstream)))
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-5)  # sums of 4,096 numbers


def test_gates_follow_the_content_and_start_where_told():
    gate = WaveletGate(8, init=(0.5, 0.1, 0.2, 0.3))
    gates = gate(torch.randn(2, 8, 4, 4))
    assert gates.shape == (2, 4, 8)
    torch.testing.assert_close(gates, torch.tensor([0.5, 0.1, 0.2, 0.3])[None, :, None].expand(2, 4, 8))
    gates = randomised(gate)(torch.randn(2, 8, 4, 4))
    assert ((gates > 0) & (gates < 1)).all()
    assert (gates[0] - gates[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="between 0 and 1"):
        WaveletGate(8, init=(0.5, 0.0, 0.5, 0.5))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 6)])
def test_down_drops_in_for_downsample2d(size):
    x = torch.randn(2, 8, *size)
    assert WaveletGatingDown(8)(x).shape == Downsample2D(8, use_conv=True, padding=1)(x).shape


def test_down_starts_near_average_pooling():
    x = torch.randn(2, 8, 8, 8)
    out = WaveletGatingDown(8, gate_init=(0.5, 1e-6, 1e-6, 1e-6))(x)
    torch.testing.assert_close(out, F.avg_pool2d(x, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("expansion", ["grouped", "dense", "none"])
def test_up_drops_in_for_upsample2d(expansion):
    x = torch.randn(2, 8, 4, 5)
    up = randomised(WaveletGatingUp(8, expansion=expansion))
    plain = Upsample2D(8, use_conv=True)
    assert up(x).shape == plain(x).shape == (2, 8, 8, 10)
    assert up(x, output_size=(7, 10)).shape == plain(x, output_size=(7, 10)).shape == (2, 8, 7, 10)
    torch.testing.assert_close(up(x, (7, 9)), up(x)[..., :7, :9])
    with pytest.raises(ValueError, match="larger than twice"):
        up(x, output_size=(9, 10))


def test_up_equals_pywavelets():
    up = randomised(WaveletGatingUp(8, expansion="dense")).double()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        coefficients = up.expand(x).chunk(4, dim=1)
        ll, lh, hl, hh = (c * g[..., None, None] for c, g in zip(coefficients, up.gate(x).unbind(1), strict=True))
        np.testing.assert_allclose(up(x), pywt.idwt2((ll, (lh, hl, hh)), "haar"), atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("expansion", "size"), [("grouped", 12), ("dense", 12), ("dense", 2)])
def test_up_equals_its_three_steps_in_value_and_gradient(expansion, size, layout):
    torch.manual_seed(1)
    up = randomised(WaveletGatingUp(8, expansion=expansion))
    x = torch.randn(2, 8, size, size).to(memory_format=layout).requires_grad_()
    upstream = torch.randn(2, 8, 2 * size, 2 * size)
    coefficients = up.expand(x).unflatten(1, (4, 8)) * up.gate(x)[..., None, None]
    kernels = torch.stack(haar_dwt2(torch.eye(4).view(4, 2, 2)), dim=1)[..., 0, 0].T.reshape(4, 1, 2, 2)  # the bands
    pixels = F.conv_transpose2d(
        coefficients.transpose(1, 2).flatten(1, 2), kernels.repeat(8, 1, 1, 1), None, 2, 0, 0, 8
    )
    wanted = (x, *up.parameters())
    for ours, theirs in zip(
        (up(x), *torch.autograd.grad(up(x), wanted, upstream)),
        (pixels, *torch.autograd.grad(pixels, wanted, upstream)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resampling_works_in_half_precision(layout):
    model, x = Resampling(), torch.randn(2, 8, 80, 80).to(memory_format=layout)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), exact, atol=0.05 * exact.abs().max().item(), rtol=0)
    torch.testing.assert_close(
        model.bfloat16()(x.bfloat16()).float(), exact, atol=0.05 * exact.abs().max().item(), rtol=0
    )


def test_up_refuses_what_it_cannot_build():
    with pytest.raises(ValueError, match="expansion must be one of"):
        WaveletGatingUp(8, expansion="other")
    with pytest.raises(ValueError, match="multiple of 4"):
        WaveletGatingUp(6, expansion="grouped")


class Resampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = randomised(WaveletGatingDown(8)), randomised(WaveletGatingUp(8))

    def forward(self, x):
        return self.up(self.down(x))


@pytest.mark.slow
def test_compile_gives_the_same_values_and_gradients():
    model, x = Resampling(), torch.randn(2, 8, 8, 8)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    ours = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    theirs = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_export_with_a_free_batch_gives_the_same_values():
    model = Resampling()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.randn(2, 8, 8, 8),), dynamic_shapes={"x": {0: batch}})
    for size in (2, 5):
        x = torch.randn(size, 8, 8, 8)
        torch.testing.assert_close(program.module()(x), model(x))


def test_gates_are_recorded_only_when_asked():
    model, x = Resampling(), torch.randn(2, 8, 8, 8)
    with record_gates(model) as gates:
        model(x)
    assert set(gates) == {"down", "up"}
    torch.testing.assert_close(gates["down"], model.down.gate(x))
    assert not gates["down"].requires_grad
    gates.clear()
    model(x)
    assert not gates
    assert not any(m._forward_hooks for m in model.modules())
