"""The losses against float64 references written out with NumPy's full FFT."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from PIL import Image

from slimdpm.method.forward_process import Process
from slimdpm.method.losses import (
    FLOOR,
    denoising_loss,
    frequency_loss,
    half_plane_count,
    min_snr_weight,
    spatial_loss,
    spectral_weight,
)
from slimdpm.wavelet import haar_dwt2

PAIRS = [((2, 5, 8, 8), (2, 5, 8, 8)), ((2, 3, 6, 4), (2, 3, 6, 4)), ((2, 7, 5, 7), (2, 7, 5, 7))]


@pytest.fixture
def pairs():
    return [(torch.randn(s), torch.randn(t)) for s, t in PAIRS]


def full_plane(half, width):
    """The half-plane of a real image's symmetric map, completed."""
    left = half[..., 1 : (width + 1) // 2]
    mirrored = np.roll(left[..., ::-1, ::-1], 1, axis=-2)
    return np.concatenate([half, mirrored], axis=-1)


def reference_weight(x0, size, alpha, scaling):
    """ω as the paper defines it, in float64 with the full transform. Area resizing of even factors is block means."""
    x = x0.double().numpy()
    factor = x.shape[-1] // size[1]
    x = x.reshape(*x.shape[:2], size[0], factor, size[1], factor).mean(axis=(3, 5))
    amplitude = np.sqrt((np.abs(np.fft.fft2(x, norm="ortho")) ** 2).mean(axis=1, keepdims=True))
    rms = np.sqrt((amplitude**2).mean(axis=(-2, -1), keepdims=True))
    weight = np.maximum(amplitude, FLOOR * rms) ** alpha
    return weight / weight.mean(axis=(-2, -1), keepdims=True) if scaling == "mean" else weight


@pytest.mark.parametrize("alpha", [-1.0, -0.5, -2.0, 0.0])
@pytest.mark.parametrize("scaling", ["mean", "none"])
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (4, 4)])
def test_weight_matches_a_float64_reference(alpha, scaling, size):
    x0 = torch.randn(3, 4, 16, 16)
    ours = spectral_weight(x0, size, alpha=alpha, scaling=scaling)
    assert ours.shape == (3, 1, size[0], size[1] // 2 + 1)
    np.testing.assert_allclose(full_plane(ours.numpy(), size[1]), reference_weight(x0, size, alpha, scaling), rtol=2e-5)


def test_weight_has_mean_one_over_the_full_plane_at_odd_sizes():
    weight = spectral_weight(torch.randn(2, 3, 7, 9), (7, 9))
    mean = (weight * half_plane_count(9, "cpu")).sum(dim=(-2, -1)) / 63
    torch.testing.assert_close(mean, torch.ones_like(mean))


def test_rare_frequencies_weigh_more():
    walk = torch.randn(1, 1, 16, 16).cumsum(-1).cumsum(-2)  # like a photograph: little power at high frequencies
    weight = spectral_weight(walk, (16, 16))[0, 0]
    assert weight[4:13, 4:].mean() > 5 * weight[:3, :3].mean()


@pytest.mark.parametrize("alpha", [-1.0, -2.0])
def test_a_blank_image_is_weighed_evenly_and_stays_finite(alpha):
    weight = spectral_weight(torch.zeros(1, 3, 8, 8), (8, 8), alpha=alpha)
    torch.testing.assert_close(weight, torch.ones_like(weight))
    assert torch.isfinite(spectral_weight(torch.full((1, 3, 8, 8), 0.5), (8, 8), alpha=alpha, scaling="none")).all()


@pytest.mark.parametrize("resize", ["area", "bilinear", "bicubic", "nearest"])
def test_every_resize_filter_is_that_of_its_name(resize):
    """Against Pillow's filters, which are antialiased, and against plain slices."""
    x = torch.randn(1, 3, 16, 16)
    if resize == "nearest":
        small = x[..., ::2, ::2]
    else:
        kind = {"area": "BOX", "bilinear": "BILINEAR", "bicubic": "BICUBIC"}[resize]
        planes = [Image.fromarray(plane.numpy()).resize((8, 8), Image.Resampling[kind]) for plane in x[0]]
        small = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))[None]
    found, expected = spectral_weight(x, (8, 8), resize=resize), spectral_weight(small, (8, 8))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="scaling must be one of"):
        spectral_weight(torch.zeros(1, 1, 4, 4), (4, 4), scaling="max")
    with pytest.raises(ValueError, match="resize filter must be one of"):
        spectral_weight(torch.zeros(1, 1, 4, 4), (2, 2), resize="lanczos")


def test_denoising_and_spatial_loss_match_float64_sums(pairs):
    expected = [((s.double() - t.double()) ** 2).mean().item() for s, t in pairs]
    assert denoising_loss(*pairs[0]).item() == pytest.approx(expected[0], rel=1e-6)
    assert spatial_loss(pairs).item() == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_error_of_x0_by_the_clipped_ratio(kind):
    """Whatever is predicted, a weighed error is min(s, γ) times that of x₀, up to one factor for all timesteps."""
    alpha_bar = DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod
    weight, process = min_snr_weight(alpha_bar, kind, 5.0), Process(alpha_bar, kind)
    assert weight.dtype == torch.float32 and weight.mean().item() == pytest.approx(1)
    x0, noise, error = torch.randn(3, 1, 1, 2, 2)
    factors = []
    for t in (1, 100, 400, 800, 999):
        step = torch.tensor([t])
        guess, truth = (process.target(kind, x, noise, step) for x in (x0 + error, x0))
        if kind == "epsilon":  # the noise that explains the same x_t with the other x₀
            guess = noise - (alpha_bar[t] / (1 - alpha_bar[t])).sqrt() * error
        else:
            guess = truth - error / (1 - alpha_bar[t]).sqrt()  # x₀ = √ᾱ x_t − √(1 − ᾱ) v
        ratio = (alpha_bar[t] / (1 - alpha_bar[t])).double().item()
        expected = min(ratio, 5.0) * error.square().mean().item()
        factors.append(denoising_loss(guess, truth, weight[step]).item() / expected)
    assert factors == pytest.approx([factors[0]] * 5, rel=1e-3)


def test_min_snr_is_finite_without_noise_and_without_signal():
    for kind in ("epsilon", "v_prediction"):
        assert torch.isfinite(min_snr_weight(torch.tensor([1 - 1e-7, 0.5, 0.0]), kind, 5.0)).all()


def test_frequency_loss_matches_a_float64_reference(pairs):
    x0 = torch.randn(2, 3, 16, 16)
    weights = [spectral_weight(x0, tuple(s.shape[-2:])) for s, _ in pairs]
    expected = 0.0
    for (s, t), weight in zip(pairs, weights, strict=True):
        difference = np.fft.fft2(s.double().numpy() - t.double().numpy(), norm="ortho")
        omega = full_plane(weight.double().numpy(), s.shape[-1])
        expected += (omega * np.abs(difference) ** 2).mean()
    assert frequency_loss(pairs, weights).item() == pytest.approx(expected, rel=1e-5)


def test_with_alpha_zero_the_frequency_loss_is_the_spatial_loss(pairs):
    weights = [spectral_weight(torch.randn(2, 3, 16, 16), tuple(s.shape[-2:]), alpha=0.0) for s, _ in pairs]
    torch.testing.assert_close(frequency_loss(pairs, weights), spatial_loss(pairs), rtol=1e-5, atol=0)


def test_losses_of_half_precision_are_computed_in_single(pairs):
    halves = [(s.bfloat16(), t.bfloat16()) for s, t in pairs]
    weights = [spectral_weight(torch.randn(2, 3, 16, 16), tuple(s.shape[-2:])) for s, _ in pairs]
    for loss in (denoising_loss(*halves[0]), spatial_loss(halves), frequency_loss(halves, weights)):
        assert loss.dtype == torch.float32 and torch.isfinite(loss)


def test_frequency_loss_has_the_right_gradient():
    student = torch.randn(1, 2, 6, 5, dtype=torch.float32, requires_grad=True)
    teacher, weight = torch.randn(1, 2, 6, 5), spectral_weight(torch.randn(1, 3, 6, 5), (6, 5))
    (gradient,) = torch.autograd.grad(frequency_loss([(student, teacher)], [weight]), student)
    direction = torch.randn_like(student)
    step = 1e-2
    with torch.no_grad():
        up, down = (frequency_loss([(student + k * step * direction, teacher)], [weight]) for k in (1, -1))
    assert ((up - down) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-2)


def test_area_resizing_is_the_low_band_of_haar():
    # What the docs say of the default filter: half size is the LL band at average-pooling gain.
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(F.interpolate(x, size=(4, 4), mode="area"), haar_dwt2(x)[0] / 2)
