"""Spectra of planted images, and denoising errors against sums written out."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from helpers import TINY

from slimdpm.method.forward_process import Process
from slimdpm.metrics.denoising import denoising_errors, upper_half
from slimdpm.metrics.spectrum import radial_spectrum


def planted(slope, size, count, rng):
    """Images whose power falls with this slope, as uint8; periodic, so that the window alone is tested."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.fft2(rng.standard_normal((count, size, size)))
    images = np.fft.ifft2(noise * frequency ** (slope / 2)).real
    images = images / images.std() * 40 + 127.5
    return np.clip(images, 0, 255).round().astype(np.uint8)[..., None]


@pytest.mark.parametrize("slope", [-1.0, -2.0])
@pytest.mark.parametrize("size", [32, 64])
def test_a_planted_slope_is_found(slope, size):
    spectrum = radial_spectrum(planted(slope, size, 200, np.random.default_rng(0)))
    inner = (spectrum.frequency > 3 / size) & (spectrum.frequency < 0.4)
    found = np.polyfit(np.log(spectrum.frequency[inner]), np.log(spectrum.power[inner]), 1)[0]
    assert found == pytest.approx(slope, abs=0.05)


@pytest.mark.parametrize("size", [16, 31, 32])
def test_white_noise_has_its_variance_at_every_frequency(size):
    images = np.random.default_rng(0).normal(127.5, 25, (400, size, size, 3)).round().astype(np.uint8)
    variance = (25 / 127.5) ** 2 + (1 / 127.5) ** 2 / 12
    spectrum = radial_spectrum(images)
    np.testing.assert_allclose(spectrum.power[1:], variance, rtol=0.08)
    assert spectrum.frequency[0] == pytest.approx(1 / size) and spectrum.frequency[-1] <= 0.5


def test_a_plane_wave_lies_in_its_ring():
    x = np.arange(32)
    wave = 127.5 + 100 * np.sin(2 * np.pi * 8 * x / 32)
    spectrum = radial_spectrum(np.tile(wave, (1, 32, 1)).round().astype(np.uint8)[..., None])
    assert spectrum.frequency[spectrum.power.argmax()] == 8 / 32


def test_denoising_errors_are_those_written_out():
    torch.manual_seed(0)
    unet, process = UNet2DModel(**TINY).eval(), Process.of_scheduler(DDPMScheduler())
    x0 = torch.randn(5, 3, 16, 16)
    errors = denoising_errors(unet, process, x0, timesteps=(100, 800), seed=3, batch_size=2)
    fy, fx = np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16), indexing="ij")
    high = np.hypot(fy, fx) >= 0.25
    np.testing.assert_array_equal(upper_half(16, 16).numpy(), high)
    for i, t in enumerate((100, 800)):
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3 * 100_003 + t))
        times = torch.full((5,), t)
        with torch.no_grad():
            error = (unet(process.add_noise(x0, noise, times), times).sample - noise).double().numpy()
        assert errors.overall[i] == pytest.approx((error**2).mean(), rel=1e-5)
        power = np.abs(np.fft.fft2(error, norm="ortho")) ** 2
        assert errors.upper[i] == pytest.approx(power[..., high].mean(), rel=1e-5)


def test_predicting_nothing_has_an_error_of_one():
    class Nothing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, return_dict=False):
            return (torch.zeros_like(x),)

    process = Process.of_scheduler(DDPMScheduler())
    errors = denoising_errors(Nothing(), process, torch.randn(64, 3, 16, 16))
    np.testing.assert_allclose(errors.overall + errors.upper, 1, rtol=0.02)
